//go:build unix

package redislimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// A watcher knows the bans that it was told of last.
type watcher struct {
	*redislimit.Bans

	mu   sync.Mutex
	told bool
	bans []limit.Ban
}

func watch(t *testing.T, socket string) *watcher {
	t.Helper()
	return startWatcher(t, &redislimit.Bans{Client: connect(t, socket), Every: 20 * time.Millisecond})
}

func startWatcher(t *testing.T, b *redislimit.Bans) *watcher {
	t.Helper()
	w := &watcher{Bans: b}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // until the test ends
		defer close(ended)
		w.Watch(ctx, func(bans []limit.Ban, _ time.Time) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told, w.bans = true, bans
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// knows waits until a watcher knows just these bans.
func (w *watcher) knows(t *testing.T, prefixes ...string) []limit.Ban {
	t.Helper()
	var bans []limit.Ban
	slices.Sort(prefixes)
	eventually(t, fmt.Sprintf("these are banned: %v", prefixes), func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		bans = w.bans
		var got []string
		for _, b := range bans {
			got = append(got, b.Prefix.String())
		}
		slices.Sort(got)
		return w.told && slices.Equal(got, prefixes)
	})
	return bans
}

func ban(t *testing.T, b limit.SharedBans, prefix string, d time.Duration) {
	t.Helper()
	err := b.Ban(t.Context(), limit.Ban{Prefix: netip.MustParsePrefix(prefix), Until: time.Now().Add(d), Why: "of " + prefix})
	if err != nil {
		t.Fatal(err)
	}
}

func TestABanMayBeLiftedElsewhereBeforeWhoMadeItHasLooked(t *testing.T) {
	redis := startRedis(t)
	other := watch(t, redis.socket())
	const every = 200 * time.Millisecond
	bans := &limit.Bans{Shared: &redislimit.Bans{Client: connect(t, redis.socket()), Every: every}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- bans.Run(ctx) }() // until the test ends
	defer func() {
		cancel()
		<-ended
	}()
	prefix := netip.MustParsePrefix("192.0.2.7/32")
	for range 5 {
		if err := bans.Ban(prefix, time.Hour, ""); err != nil {
			t.Fatal(err)
		}
		other.knows(t, prefix.String())
		if err := other.Lift(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is lifted where it was made", func() bool { return bans.Denies(prefix.Addr()) == nil })
		other.knows(t)
	}
}

func TestABanIsKnownToAllUntilItIsLiftedOrEnds(t *testing.T) {
	redis := startRedis(t)
	a, b := watch(t, redis.socket()), watch(t, redis.socket())
	a.knows(t)
	b.knows(t)
	ban(t, a, "192.0.2.7/32", time.Hour)
	ban(t, b, "2001:db8:1:2:3::/64", time.Minute)
	ban(t, a, "198.51.100.0/24", time.Second)
	for _, w := range []*watcher{a, b} {
		bans := w.knows(t, "192.0.2.7/32", "2001:db8:1:2::/64", "198.51.100.0/24")
		for i, want := range []time.Duration{time.Second, time.Minute, time.Hour} {
			left := time.Until(bans[i].Until)
			if left > want || left < want-patience {
				t.Errorf("%s has %s to go", bans[i].Prefix, left)
			}
		}
		if bans[2].Why != "of 192.0.2.7/32" {
			t.Errorf("it is for %q", bans[2].Why)
		}
	}
	b.knows(t, "192.0.2.7/32", "2001:db8:1:2::/64")
	if err := b.Lift(t.Context(), netip.MustParsePrefix("192.0.2.7/32")); err != nil {
		t.Error(err)
	}
	for _, w := range []*watcher{a, b} {
		w.knows(t, "2001:db8:1:2::/64")
	}
	if err := b.Lift(t.Context(), netip.MustParsePrefix("192.0.2.7/32")); err != nil {
		t.Errorf("lifted twice: %v", err)
	}
	ban(t, a, "2001:db8:1:2::/64", 100*time.Millisecond) // shorter than before
	for _, w := range []*watcher{a, b} {
		w.knows(t)
	}
	keys, err := redis.do("KEYS", "*").AsStrSlice()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if left, err := redis.do("PTTL", key).AsInt64(); err != nil || left <= 0 {
			t.Errorf("%s never expires", key)
		}
	}
}

func TestBansSurviveWhatBefallsRedis(t *testing.T) {
	for _, test := range []struct {
		name   string
		befall func(*server)
	}{
		{"restart", func(s *server) { s.kill(); s.start() }},
		{"FLUSHALL", func(s *server) { s.do("FLUSHALL") }},
		{"SCRIPT FLUSH", func(s *server) { s.do("SCRIPT", "FLUSH") }},
		{"other things at our keys", func(s *server) {
			for _, key := range []string{"bans", "bans:why", "bans:numbers", "bans:version"} {
				s.spoil("{levee:limit}:" + key)
			}
		}},
		{"lost connections", func(s *server) { s.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			redis := startRedis(t)
			a, b := watch(t, redis.socket()), watch(t, redis.socket())
			ban(t, a, "192.0.2.7/32", time.Hour)
			ban(t, a, "192.0.2.8/32", time.Hour)
			a.knows(t, "192.0.2.7/32", "192.0.2.8/32")
			b.knows(t, "192.0.2.7/32", "192.0.2.8/32")
			if err := a.Lift(t.Context(), netip.MustParsePrefix("192.0.2.8/32")); err != nil {
				t.Fatal(err)
			}
			a.knows(t, "192.0.2.7/32")
			b.knows(t, "192.0.2.7/32")
			test.befall(redis)
			eventually(t, "another can be banned", func() bool {
				return b.Ban(t.Context(), limit.Ban{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Until: time.Now().Add(time.Hour)}) == nil
			})
			for _, w := range []*watcher{a, b, watch(t, redis.socket())} {
				w.knows(t, "192.0.2.7/32", "192.0.2.9/32")
			}
		})
	}
}

func TestARedisThatComesBackWithAnOldCopyIsGivenTheNewerBans(t *testing.T) {
	redis := startRedis(t)
	w := watch(t, redis.socket())
	ban(t, w, "192.0.2.7/32", time.Hour)
	redis.do("SAVE")
	ban(t, w, "192.0.2.8/32", time.Hour)
	w.knows(t, "192.0.2.7/32", "192.0.2.8/32")
	redis.kill()
	redis.start()
	eventually(t, "Redis has both", func() bool {
		n, err := redis.client.Do(t.Context(), redis.client.B().Zcard().Key("{levee:limit}:bans").Build()).AsInt64()
		return err == nil && n == 2
	})
	watch(t, redis.socket()).knows(t, "192.0.2.7/32", "192.0.2.8/32")
	w.knows(t, "192.0.2.7/32", "192.0.2.8/32")
}

func TestBansStayWhileRedisIsAway(t *testing.T) {
	redis := startRedis(t)
	w := watch(t, redis.socket())
	ban(t, w, "192.0.2.7/32", time.Hour)
	ban(t, w, "192.0.2.8/32", 3*time.Second)
	w.knows(t, "192.0.2.7/32", "192.0.2.8/32")
	redis.signal(syscall.SIGSTOP)
	began := time.Now()
	err := w.Ban(t.Context(), limit.Ban{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Until: time.Now().Add(time.Hour)})
	if took := time.Since(began); err == nil || took > 3*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	w.knows(t, "192.0.2.7/32") // the other one has ended meanwhile
	if w.State().Err == nil {
		t.Error("it is said to be well")
	}
	redis.signal(syscall.SIGCONT)
	eventually(t, "it is well", func() bool { return w.State().Err == nil })
	if err := w.Lift(t.Context(), netip.MustParsePrefix("192.0.2.9/32")); err != nil { // it may have arrived
		t.Error(err)
	}
	w.knows(t, "192.0.2.7/32")
}

func TestThereAreOnlySoManyBans(t *testing.T) {
	redis := startRedis(t)
	w := watch(t, redis.socket())
	w.knows(t)
	small := &redislimit.Bans{Client: w.Client, Most: 3}
	for i := range 3 {
		ban(t, small, fmt.Sprintf("192.0.2.%d/32", i), time.Duration(i+1)*time.Hour)
	}
	w.knows(t, "192.0.2.0/32", "192.0.2.1/32", "192.0.2.2/32")
	ban(t, small, "192.0.2.8/32", time.Minute) // ends first, so it is over
	ban(t, small, "192.0.2.9/32", 10*time.Hour)
	w.knows(t, "192.0.2.1/32", "192.0.2.2/32", "192.0.2.9/32")
	if n := small.Displaced(); n != 2 {
		t.Errorf("%d had to go", n)
	}
	for _, words := range [][]string{{"ZCARD", "{levee:limit}:bans"}, {"HLEN", "{levee:limit}:bans:why"}, {"ZCARD", "{levee:limit}:bans:numbers"}} {
		if n, err := redis.do(words...).AsInt64(); n != 3 || err != nil {
			t.Errorf("%s is %d, %v", words, n, err)
		}
	}
}

func TestBansThatMakeNoSenseAreErrors(t *testing.T) {
	b := &redislimit.Bans{Client: connect(t, startRedis(t).socket())}
	for _, ban := range []limit.Ban{
		{Until: time.Now().Add(time.Hour)},
		{Prefix: netip.MustParsePrefix("192.0.2.7/32")},
		{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Until: time.Now().Add(-time.Second)},
	} {
		if err := b.Ban(t.Context(), ban); err == nil {
			t.Errorf("%+v is banned", ban)
		}
	}
	if err := new(redislimit.Bans).Lift(t.Context(), netip.MustParsePrefix("192.0.2.7/32")); err == nil {
		t.Error("it does without a client")
	}
	failing := &redislimit.Bans{Reach: func(context.Context) (rueidis.Client, error) { return nil, errors.New("not yet") }}
	if err := failing.Lift(t.Context(), netip.MustParsePrefix("192.0.2.7/32")); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("it does without a client: %v", err)
	}
}

func TestWhatIsInRedisIsNotTrusted(t *testing.T) {
	redis := startRedis(t)
	w := watch(t, redis.socket())
	w.knows(t)
	ban(t, w, "192.0.2.7/32", time.Hour)
	late := fmt.Sprint(time.Now().Add(time.Hour).UnixMilli())
	redis.do("ZADD", "{levee:limit}:bans", late, "everybody", late, "10.0.0.0/8")
	redis.do("ZADD", "{levee:limit}:bans:numbers", "7", "everybody", "7", "10.0.0.0/8")
	redis.do("HSET", "{levee:limit}:bans:why", "10.0.0.0/8", "\x1b[31m"+strings.Repeat("x", 1000)+"\n")
	redis.do("SET", "{levee:limit}:bans:version", "?")
	bans := w.knows(t, "192.0.2.7/32", "10.0.0.0/8")
	for _, b := range bans {
		if len(b.Why) > 200 || strings.ContainsAny(b.Why, "\x1b\n") {
			t.Errorf("it is for %q", b.Why)
		}
	}
	ban(t, w, "192.0.2.8/32", time.Hour)
	w.knows(t, "192.0.2.7/32", "10.0.0.0/8", "192.0.2.8/32")
}

func TestTenThousandBansAreGivenBack(t *testing.T) {
	redis := startRedis(t)
	w := watch(t, redis.socket())
	var all sync.WaitGroup
	for part := range 4 {
		all.Go(func() {
			for i := range 2500 {
				n := part*2500 + i
				addr := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
				if err := w.Ban(context.Background(), limit.Ban{Prefix: netip.PrefixFrom(addr, 32), Until: time.Now().Add(time.Hour), Why: "too many connections"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	known := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.bans) == 10_000
	}
	eventually(t, "all are known", known)
	sum := int64(0)
	for _, key := range []string{"bans", "bans:why", "bans:numbers"} {
		n, err := redis.do("MEMORY", "USAGE", "{levee:limit}:"+key, "SAMPLES", "0").AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	t.Logf("10,000 bans are %d bytes", sum)
	if sum > 3<<20 {
		t.Error("that is more than is documented")
	}
	redis.do("FLUSHALL")
	eventually(t, "Redis has them again", func() bool {
		n, err := redis.do("ZCARD", "{levee:limit}:bans").AsInt64()
		return err == nil && n == 10_000
	})
	if !known() {
		t.Error("they are not known any more")
	}
}
