//go:build unix

package redislimit_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// An ailment is something that Redis has until it is cured.
type ailment struct {
	name    string
	inflict func(*server)
	cure    func(*server)
	passing bool // the machines share again by themselves before anybody notices
}

// spoil puts something else at a key, in one go: somebody who writes there would be in between.
func (s *server) spoil(key string) {
	s.do("EVAL", "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'what', 'is', 'this')", "1", key)
}

var ailments = []ailment{
	{name: "killed", inflict: (*server).kill, cure: (*server).start},
	{
		name:    "hung",
		inflict: func(s *server) { s.signal(syscall.SIGSTOP) },
		cure:    func(s *server) { s.signal(syscall.SIGCONT) },
	},
	{
		name:    "out of memory",
		inflict: func(s *server) { s.do("CONFIG", "SET", "maxmemory", "1") },
		cure:    func(s *server) { s.do("CONFIG", "SET", "maxmemory", "0") },
	},
	{
		name:    "a replica",
		inflict: func(s *server) { s.do("REPLICAOF", "127.0.0.1", "1") },
		cure:    func(s *server) { s.do("REPLICAOF", "NO", "ONE") },
	},
	{
		name: "busy",
		inflict: func(s *server) {
			s.do("CONFIG", "SET", "lua-time-limit", "20")
			client := connect(s.t, s.socket())
			go client.Do(context.Background(), client.B().Eval().Script("while true do end").Numkeys(0).Build()) // until it is killed
		},
		cure: func(s *server) { s.do("SCRIPT", "KILL") },
	},
	{name: "emptied", inflict: func(s *server) { s.do("FLUSHALL") }, passing: true},
	{name: "without scripts", inflict: func(s *server) { s.do("SCRIPT", "FLUSH") }, passing: true},
	{
		name: "with other things at our keys",
		inflict: func(s *server) {
			keys, err := s.do("KEYS", "*").AsStrSlice()
			if err != nil {
				s.t.Error(err)
			}
			for _, key := range keys {
				s.spoil(key)
			}
		},
		passing: true,
	},
}

func TestNobodyWaitsForARedisThatAils(t *testing.T) {
	for _, a := range ailments {
		t.Run(a.name, func(t *testing.T) {
			redis := startRedis(t)
			told, began := new(states), time.Now()
			l := &redislimit.Limits{Client: connect(t, redis.socket()), Changed: told.add}
			run(t, l)
			other := machine(t, redis.socket())
			eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
			hold(t, l, 10, open(20, "x"))

			a.inflict(redis)
			took := claimDuring(l, time.Second)
			if !a.passing && l.State().Err == nil {
				t.Error("it is said to be well")
			}
			l.Release([]limit.Claim{open(20, "x")})
			l.Release([]limit.Claim{open(20, "x")})
			for range 3 {
				l.Hold([]limit.Claim{open(20, "x")})
			}
			if a.cure != nil {
				a.cure(redis)
			}
			took.check(t, l, a)

			// By itself everything is as it was, with what has happened meanwhile.
			eventually(t, "limits are shared again", func() bool { return l.State().Err == nil && other.State().Err == nil })
			eventually(t, "Redis knows of 11", func() bool {
				counts, err := redis.do("HVALS", "{levee:limit}:open:4:open:x").AsStrSlice()
				return err == nil && slices.Contains(counts, "11")
			})
			if n := claimed(t, other, 30, open(20, "x")); n != 9 {
				t.Errorf("with 11 of 20 there, %d more were let in", n)
			}
			eventually(t, "that is said", told.well)
			told.check(t, began, a)
		})
	}
}

// states are what Changed was told.
type states struct {
	mu  sync.Mutex
	all []redislimit.State
}

func (s *states) add(state redislimit.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, state)
}

func (s *states) well() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all) > 0 && s.all[len(s.all)-1].Err == nil
}

// check wants changes only, and few. A machine that stands still for 50 ms in the middle of a
// test is an ailment of its own.
func (s *states) check(t *testing.T, began time.Time, a ailment) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	failures := 0
	for i, state := range s.all {
		if state.Since.IsZero() || i > 0 && (state.Err == nil) == (s.all[i-1].Err == nil) {
			t.Errorf("of %+v the %dth is no change", s.all, i)
		}
		if state.Err != nil {
			failures++
		}
	}
	if most := int(time.Since(began)/time.Second) + 2; failures > most || failures == 0 && !a.passing {
		t.Errorf("it failed %d times: %+v", failures, s.all)
	}
}

// hold claims until n are granted, for a machine that may have been slow.
func hold(t *testing.T, l *redislimit.Limits, n int, c limit.Claim) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d are let in", n), func() bool {
		if refused, err := l.Claim(t.Context(), []limit.Claim{c}); err == nil && refused < 0 {
			n--
		}
		return n == 0
	})
}

// times are how long calls of Claim took.
type times struct {
	mu  sync.Mutex
	all []time.Duration
}

const claimants = 4

func claimDuring(l *redislimit.Limits, d time.Duration) *times {
	took := new(times)
	var all sync.WaitGroup
	began := time.Now()
	for who := range claimants {
		all.Go(func() {
			for i := 0; time.Since(began) < d; i++ {
				claims := []limit.Claim{open(1000, fmt.Sprint(who, i)), {Limit: "r", Key: "r", Rate: 1e6, Burst: 1e6}}
				asked := time.Now()
				refused, err := l.Claim(context.Background(), claims)
				took.add(time.Since(asked))
				if refused < 0 && err == nil {
					l.Release(claims)
				}
				pause := time.NewTimer(time.Millisecond) // a connection a millisecond is enough
				<-pause.C
			}
		})
	}
	all.Wait()
	return took
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d)
}

func (t *times) check(test *testing.T, l *redislimit.Limits, a ailment) {
	test.Helper()
	slices.Sort(t.all)
	n := len(t.all)
	test.Logf("of %d claims the median took %s, the 99th %s, the longest %s; %v", n, t.all[n/2], t.all[n*99/100], t.all[n-1], l.State().Err)
	if t.all[n-1] > timeout+slack {
		test.Errorf("one took %s", t.all[n-1])
	}
	late := n - sortedIndex(t.all, timeout*9/10)
	// Those that wait when it begins do, and nobody afterwards. The slack is for a machine that stands still.
	if most := claimants + n/100; !a.passing && late > most {
		test.Errorf("%d of %d claims waited for Redis, %d are all that could not know", late, n, most)
	}
	if !a.passing && l.Stats().Alone < uint64(n)/2 {
		test.Errorf("%d of %d were decided alone", l.Stats().Alone, n)
	}
}

func sortedIndex(all []time.Duration, d time.Duration) int {
	i, _ := slices.BinarySearch(all, d)
	return i
}

// slowly returns a client whose answers come late once it is told to be slow.
func slowly(t *testing.T, socket string, delay *atomic.Int64) rueidis.Client {
	t.Helper()
	o := options(socket)
	o.DialCtxFn = func(ctx context.Context, socket string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "unix", socket)
		return slowConn{conn, delay}, err
	}
	client, err := rueidis.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

type slowConn struct {
	net.Conn
	delay *atomic.Int64
}

func (c slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	<-time.After(time.Duration(c.delay.Load()))
	return n, err
}

func TestNobodyWaitsForARedisThatIsSlow(t *testing.T) {
	redis := startRedis(t)
	var delay atomic.Int64
	told, began := new(states), time.Now()
	l := &redislimit.Limits{Client: slowly(t, redis.socket(), &delay), Changed: told.add}
	run(t, l)
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
	delay.Store(int64(150 * time.Millisecond))
	claimDuring(l, 2*time.Second).check(t, l, ailment{})
	if err := l.State().Err; err == nil {
		t.Error("it is said to be well")
	}
	told.check(t, began, ailment{})
	delay.Store(0)
	eventually(t, "limits are shared again", func() bool { return l.State().Err == nil })
	hold(t, l, 1, open(1, "x"))
}

func TestARedisThatIsNotThereAtFirstIsFoundLater(t *testing.T) {
	redis := startRedis(t)
	redis.kill()
	client, err := rueidis.NewClient(options(redis.socket()))
	if err == nil {
		t.Fatal("it is there")
	}
	t.Cleanup(client.Close)
	l := &redislimit.Limits{Client: client}
	run(t, l)
	eventually(t, "it is missed", func() bool { err := l.State().Err; return err != nil && strings.Contains(err.Error(), "connect") })
	if _, err := l.Claim(t.Context(), []limit.Claim{open(1, "x")}); err == nil {
		t.Error("a claim was decided")
	}
	redis.start()
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
}

func TestAKeyThatIsLostIsPutRightByTheNextConnection(t *testing.T) {
	redis := startRedis(t)
	a, b := machine(t, redis.socket()), machine(t, redis.socket())
	claimed(t, a, 5, open(10, "x"))
	redis.do("DEL", "{levee:limit}:open:4:open:x")
	if n := claimed(t, a, 1, open(10, "x")); n != 1 {
		t.Error("the next one was refused")
	}
	if n := claimed(t, b, 20, open(10, "x")); n != 4 {
		t.Errorf("with 6 of 10 there, %d more were let in", n)
	}
}

func TestProcessesLetInAsManyTogetherAsTheLimitSays(t *testing.T) {
	redis := startRedis(t)
	var all []*process
	for range 3 {
		all = append(all, startMachine(t, redis.socket()))
	}
	for i := range 3 {
		for _, c := range []limit.Claim{open(100, fmt.Sprint(i)), rate(100, fmt.Sprint(i))} {
			for _, p := range all {
				p.ask(200, c)
			}
			sum := 0
			for _, p := range all {
				sum += p.claimed()
			}
			if sum != 100 {
				t.Errorf("%s: %d were let in, the limit is 100", c.Limit, sum)
			}
		}
	}
}

func TestWhatAKilledMachineHeldIsFreeAfterItsLease(t *testing.T) {
	redis := startRedis(t)
	dead, b, c := startMachine(t, redis.socket()), machine(t, redis.socket()), machine(t, redis.socket())
	dead.ask(70, open(100, "x"))
	if n := dead.claimed(); n != 70 {
		t.Fatalf("%d were let in", n)
	}
	if n := claimed(t, b, 100, open(100, "x")); n != 30 {
		t.Fatalf("%d more were let in", n)
	}
	dead.kill()
	began, free := time.Now(), 0
	eventually(t, "70 are free", func() bool {
		free += claimed(t, b, 1, open(100, "x")) + claimed(t, c, 1, open(100, "x"))
		return free > 0
	})
	if took := time.Since(began); took > lease+slack || took < lease/3 {
		t.Errorf("its connections counted for %s", took)
	}
	for range 2 {
		free += claimed(t, b, 60, open(100, "x")) + claimed(t, c, 60, open(100, "x"))
	}
	if free != 70 {
		t.Errorf("%d were free", free)
	}
	fields, err := redis.do("HLEN", "{levee:limit}:open:4:open:x").AsInt64()
	if err != nil || fields != 2 {
		t.Errorf("%d machines are counted, %v", fields, err)
	}
}

func TestAMachineThatWasAwayCountsAgainWhenItIsBack(t *testing.T) {
	redis := startRedis(t)
	away, b := startMachine(t, redis.socket()), machine(t, redis.socket())
	away.ask(10, open(10, "x"))
	away.claimed()
	if err := away.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is free", func() bool { return claimed(t, b, 1, open(10, "x")) == 1 })
	if err := away.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ten and one are counted", func() bool {
		counts, err := redis.do("HVALS", "{levee:limit}:open:4:open:x").AsStrSlice()
		slices.Sort(counts)
		return err == nil && slices.Equal(counts, []string{"1", "10"})
	})
	if n := claimed(t, b, 20, open(10, "x")); n != 0 {
		t.Errorf("%d more were let in", n)
	}
}

func TestManyConnectionsAreToldOfInBatches(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	const keys = 5000
	for i := range keys {
		l.Hold([]limit.Claim{open(10, fmt.Sprint(i))})
	}
	told := func() bool {
		all, err := redis.do("DBSIZE").AsInt64()
		return err == nil && all == keys+1
	}
	eventually(t, "Redis knows them all", told)
	redis.do("FLUSHALL")
	before := l.Stats().RoundTrips
	claimed(t, l, 1, rate(1, "x")) // notices
	redis.do("DEL", "{levee:limit}:rate:4:rate:x")
	eventually(t, "Redis knows them all again", told)
	if trips := l.Stats().RoundTrips - before; trips > keys/256+5 {
		t.Errorf("it took %d round trips", trips)
	}
}

func TestAConnectionThatBrokeWhileNobodyUsedItCostsNobodyAnAnswer(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	claimed(t, l, 5, open(10, "x"))
	redis.kill()
	redis.start()
	if n := claimed(t, l, 20, open(10, "x")); n != 5 {
		t.Errorf("with 5 of 10 there, %d more were let in", n)
	}
	if err := l.State().Err; err != nil {
		t.Error(err)
	}
}

func TestEarlierLivesLeaveNothing(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	l.Hold([]limit.Claim{open(10, "x")})
	l.Hold([]limit.Claim{open(10, "x")})
	for range 4 {
		name := func() string {
			names, err := redis.do("ZRANGE", "{levee:limit}:live", "0", "-1").AsStrSlice()
			if err != nil || len(names) != 1 {
				return ""
			}
			return names[0]
		}
		before := name()
		redis.do("DEL", "{levee:limit}:live")
		claimed(t, l, 1, rate(1000, "y")) // notices
		eventually(t, "there is one count, of another life", func() bool {
			all, err := redis.do("HGETALL", "{levee:limit}:open:4:open:x").AsIntMap()
			return err == nil && len(all) == 1 && name() != before && all[name()] == 2
		})
	}
}
