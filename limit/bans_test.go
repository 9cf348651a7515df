package limit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
)

// abused returns a gate at which each client may have one connection.
func abused(b *Bans) *Gate {
	return &Gate{Scopes: []*Scope{{Name: "public", Clients: []*Clients{{Limits: Limits{Connections: 1}}}}}, Bans: b}
}

const tooMany = "limit public.client.connections"

func refusedTimes(t *testing.T, g *Gate, addr string, n int) {
	t.Helper()
	for range n {
		isRefused(t, g, addr, tooMany)
	}
}

func TestWhoIsRefusedAgainAndAgainIsBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made []Ban
		b := &Bans{Refusals: 5, Within: time.Minute, For: time.Minute, Max: 3 * time.Minute, Changed: func(b Ban) { made = append(made, b) }}
		g := abused(b)
		p := comes(t, g, "192.0.2.1")
		refusedTimes(t, g, "192.0.2.1", 4)
		if len(made) > 0 {
			t.Fatalf("banned after 4 refusals: %v", made)
		}
		refusedTimes(t, g, "192.0.2.1", 1)
		leaves(p)
		isRefused(t, g, "192.0.2.1", "banned")
		comes(t, g, "192.0.2.2") // another's business
		if len(made) != 1 || made[0].Prefix.String() != "192.0.2.1/32" || time.Until(made[0].Until) != time.Minute || made[0].Why != "5 refusals" {
			t.Fatalf("%v", made)
		}
		err := g.Denies(netip.MustParseAddr("192.0.2.1"))
		if banned, ok := errors.AsType[*BanError](err); !ok || banned.Ban != made[0] || !errors.Is(err, ErrBanned) {
			t.Errorf("a connection that is there: %v", err)
		}
		time.Sleep(time.Minute) // virtual time
		comes(t, g, "192.0.2.1")
		for _, want := range []time.Duration{2 * time.Minute, 3 * time.Minute, 3 * time.Minute} { // doubled, up to the most
			refusedTimes(t, g, "192.0.2.1", 5)
			if d := time.Until(made[len(made)-1].Until); d != want {
				t.Errorf("ban %d lasts %s; want %s", len(made), d, want)
			}
			time.Sleep(want) // virtual time
		}
		// As long as the last ban, in peace.
		time.Sleep(3 * time.Minute) // virtual time
		refusedTimes(t, g, "192.0.2.1", 5)
		if d := time.Until(made[len(made)-1].Until); d != time.Minute {
			t.Errorf("after a time of peace a ban lasts %s; want %s", d, time.Minute)
		}
		if stats := b.Stats(); stats.Made != 5 || stats.Active != 1 || stats.Decisions != (Decisions{Limit: "bans", Refused: 1}) {
			t.Errorf("%+v", stats)
		}
	})
}

func TestRefusalsAreForgivenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bans{Refusals: 5, Within: time.Minute}
		g := abused(b)
		comes(t, g, "192.0.2.1")
		for range 100 {
			refusedTimes(t, g, "192.0.2.1", 1)
			time.Sleep(12 * time.Second) // virtual time
		}
		refusedTimes(t, g, "192.0.2.1", 4)
		if n := b.Stats().Made; n != 0 {
			t.Errorf("%d bans", n)
		}
	})
}

func TestIPv6ClientsAreBannedByTheirNetwork(t *testing.T) {
	b := &Bans{Refusals: 3}
	g := abused(b)
	comes(t, g, "2001:db8:1:1::1")
	for i := range 3 {
		isRefused(t, g, fmt.Sprintf("2001:db8:1:1::%d", i+2), tooMany)
	}
	isRefused(t, g, "2001:db8:1:1:ffff::1", "banned")
	comes(t, g, "2001:db8:1:2::1")
}

func TestTotalsBanNobody(t *testing.T) {
	b := &Bans{Refusals: 1}
	s := &Scope{Name: "public", Limits: Limits{Connections: 1, Handshakes: Rate{PerSecond: 1, Burst: 1}}}
	g := &Gate{Scopes: []*Scope{s}, Bans: b}
	p := comes(t, g, "192.0.2.1")
	for range 10 {
		isRefused(t, g, "192.0.2.2", "limit public.connections")
	}
	_ = p.Reach(nil, levee.StageHandshake)
	if refusal := p.Reach(nil, levee.StageHandshake); refusal == nil {
		t.Fatal("a handshake too many")
	}
	if n := b.Stats().Made; n != 0 {
		t.Errorf("%d bans", n)
	}
}

func TestEndsThatShowAbuseAreRefusalsToo(t *testing.T) {
	for _, c := range []struct {
		reasons []levee.CloseReason
		end     levee.CloseReason
		want    int64
	}{
		{nil, levee.TLSFailed, 1},
		{nil, levee.ArrivalTimeout, 1},
		{nil, levee.ProxyHeaderRefused, 1},
		{nil, levee.ClientClosed, 0},
		{nil, levee.ProxyHeaderInvalid, 0},
		{[]levee.CloseReason{}, levee.TLSFailed, 0},
		{[]levee.CloseReason{levee.NoRoute}, levee.NoRoute, 1},
		{[]levee.CloseReason{levee.NoRoute}, levee.TLSFailed, 0},
	} {
		b := &Bans{Refusals: 3, Reasons: c.reasons}
		g := &Gate{Bans: b}
		for range 3 {
			comes(t, g, "192.0.2.1").Leave(nil, levee.End{Reason: c.end})
		}
		if n := b.Stats().Made; n != c.want {
			t.Errorf("%v, %s: %d bans; want %d", c.reasons, c.end, n, c.want)
		}
	}
	// What comes before the PROXY header is the proxy's.
	b := &Bans{Refusals: 1}
	admitted, _ := (&Gate{Bans: b}).Admit(nil)
	admitted.Leave(nil, levee.End{Reason: levee.ArrivalTimeout})
	if n := b.Stats().Made; n != 0 {
		t.Errorf("%d bans of a proxy", n)
	}
}

func TestBansInShadowKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bans{Refusals: 2, For: time.Minute, Mode: Shadow, Changed: func(Ban) { t.Error("somebody is told") }}
		g := abused(b)
		p := comes(t, g, "192.0.2.1")
		refusedTimes(t, g, "192.0.2.1", 2)
		leaves(p)
		leaves(comes(t, g, "192.0.2.1"))
		if err := g.Denies(netip.MustParseAddr("192.0.2.1")); err != nil {
			t.Error(err)
		}
		if stats := b.Stats(); stats.Made != 1 || stats.Active != 0 || stats.Decisions.WouldRefuse != 1 {
			t.Errorf("%+v", stats)
		}
		b.Changed = nil
		// Those by hand are in force all the same, beneath a shadow too.
		if err := b.Ban(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
		isRefused(t, g, "192.0.2.1", "banned")
		off := &Bans{Refusals: 1, Mode: Off}
		g = abused(off)
		comes(t, g, "192.0.2.1")
		refusedTimes(t, g, "192.0.2.1", 10)
		if n := off.Stats().Made; n != 0 {
			t.Errorf("off: %d bans", n)
		}
	})
}

func TestBansByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(Bans)
		g := &Gate{Bans: b}
		ban := func(prefix string, d time.Duration) error {
			return b.Ban(netip.MustParsePrefix(prefix), d, "spam\n\x1b[2J"+strings.Repeat("é", 200))
		}
		for _, c := range []struct {
			prefix string
			d      time.Duration
			want   string
		}{
			{"0.0.0.0/0", time.Hour, "ban 0.0.0.0/0: it would keep everybody out"},
			{"10.0.0.1/8", time.Hour, "ban: the address has bits beyond the prefix; is it 10.0.0.0/8, or 10.0.0.1?"},
			{"10.0.0.0/8", 0, "ban 10.0.0.0/8: for 0s is for no time"},
		} {
			if err := ban(c.prefix, c.d); err == nil || err.Error() != c.want {
				t.Errorf("%v; want %s", err, c.want)
			}
		}
		if err := b.Ban(netip.Prefix{}, time.Hour, ""); err == nil {
			t.Error("no prefix is banned")
		}
		for prefix, d := range map[string]time.Duration{"10.0.0.0/8": time.Hour, "10.0.0.1/32": time.Minute, "2001:db8::/32": 2 * time.Hour, "::ffff:192.0.2.0/120": 3 * time.Hour} {
			if err := ban(prefix, d); err != nil {
				t.Fatal(err)
			}
		}
		var list []string
		for _, b := range b.List(0) {
			list = append(list, b.Prefix.String())
			if strings.ContainsAny(b.Why, "\n\x1b") || len(b.Why) > 200 || !strings.HasPrefix(b.Why, "spam  [2J") {
				t.Errorf("why: %q", b.Why)
			}
		}
		if want := []string{"10.0.0.1/32", "10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24"}; !slices.Equal(list, want) {
			t.Errorf("%v; want %v", list, want)
		}
		if n := len(b.List(2)); n != 2 {
			t.Errorf("a list of 2 has %d", n)
		}
		// The narrower one has ended.
		time.Sleep(2 * time.Minute) // virtual time
		isRefused(t, g, "10.0.0.1", "banned")
		isRefused(t, g, "10.255.0.1", "banned")
		isRefused(t, g, "192.0.2.200", "banned")
		if !b.Lift(netip.MustParsePrefix("10.0.0.0/8")) || b.Lift(netip.MustParsePrefix("10.0.0.0/8")) {
			t.Error("lifting, and again")
		}
		comes(t, g, "10.0.0.1")
		time.Sleep(3 * time.Hour) // virtual time
		comes(t, g, "2001:db8::1")
		if n := len(b.List(0)); n != 0 {
			t.Errorf("%d bans are left", n)
		}
	})
}

func TestBansAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 100
		b := &Bans{Size: size}
		var want []time.Duration // until the ends of those in force, in order
		for i := range 1000 {
			d := time.Hour + time.Duration((i*7919)%1000)*time.Second
			if err := b.Ban(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), d, ""); err != nil {
				t.Fatal(err)
			}
			if len(want) == size {
				want = want[1:] // that which would end first makes way for whoever comes
			}
			want = append(want, d)
			slices.Sort(want)
		}
		var got []time.Duration
		for _, ban := range b.List(0) {
			got = append(got, time.Until(ban.Until))
		}
		if !slices.Equal(got, want) {
			t.Errorf("bans end in %v; want %v", got, want)
		}
		if len(b.records) != size || b.inForce.Load().Size() != size {
			t.Errorf("%d records, %d in force", len(b.records), b.inForce.Load().Size())
		}
		if n := b.Stats().Dropped; n != 900 {
			t.Errorf("%d dropped", n)
		}
	})
}

// others is a SharedBans in memory.
type others struct {
	mu      sync.Mutex
	bans    map[netip.Prefix]Ban
	fail    error
	calls   int
	changed chan struct{}
}

func newOthers() *others {
	return &others{bans: make(map[netip.Prefix]Ban), changed: make(chan struct{}, 100)}
}

func (o *others) do(f func()) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	if o.fail != nil {
		return o.fail
	}
	f()
	o.changed <- struct{}{}
	return nil
}

func (o *others) know(prefix string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.bans[netip.MustParsePrefix(prefix)]
	return ok
}

func (o *others) Ban(_ context.Context, b Ban) error { return o.do(func() { o.bans[b.Prefix] = b }) }

func (o *others) Lift(_ context.Context, p netip.Prefix) error {
	return o.do(func() { delete(o.bans, p) })
}

func (o *others) Watch(ctx context.Context, tell func([]Ban, time.Time)) {
	for {
		var all []Ban
		began := time.Now()
		o.mu.Lock()
		for _, b := range o.bans {
			all = append(all, b)
		}
		o.mu.Unlock()
		tell(all, began)
		select {
		case <-ctx.Done():
			return
		case <-o.changed:
		}
	}
}

func TestMachinesShareBans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := newOthers()
		var made []Ban
		b := &Bans{Refusals: 2, For: time.Hour, Shared: o, Changed: func(b Ban) { made = append(made, b) }}
		g := abused(b)
		done := make(chan error)
		go func() { done <- b.Run(ctx) }() // ends with ctx

		comes(t, g, "192.0.2.1")
		refusedTimes(t, g, "192.0.2.1", 2)
		synctest.Wait()
		if !o.know("192.0.2.1/32") {
			t.Error("the others were not told of a ban")
		}

		_ = o.Ban(ctx, Ban{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Until: time.Now().Add(time.Hour), Why: "theirs"})
		_ = o.Ban(ctx, Ban{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Until: time.Now().Add(time.Hour)})
		synctest.Wait()
		isRefused(t, g, "198.51.100.1", "banned")
		comes(t, g, "203.0.113.1")
		if len(made) != 2 || made[1].Why != "theirs" {
			t.Errorf("%v", made)
		}

		_ = o.Lift(ctx, netip.MustParsePrefix("198.51.100.0/24"))
		_ = o.Lift(ctx, netip.MustParsePrefix("192.0.2.1/32"))
		synctest.Wait()
		comes(t, g, "198.51.100.1")
		if err := b.Denies(netip.MustParseAddr("192.0.2.1")); err != nil {
			t.Errorf("lifted by another machine: %v", err)
		}

		// While the others cannot be told it goes on alone, and tells them later.
		o.mu.Lock()
		o.fail = errors.New("out of reach")
		o.mu.Unlock()
		_ = b.Ban(netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "by hand")
		isRefused(t, g, "203.0.113.1", "banned")
		time.Sleep(10 * time.Second) // virtual time
		if err := b.Stats().Err; err == nil || err.Error() != "out of reach" {
			t.Errorf("Stats tell of %v", err)
		}
		o.mu.Lock()
		o.fail = nil
		o.mu.Unlock()
		time.Sleep(2 * time.Second) // virtual time
		if told := o.know("203.0.113.0/24"); !told || b.Stats().Err != nil {
			t.Errorf("told %t; %v", told, b.Stats().Err)
		}
		b.Lift(netip.MustParsePrefix("203.0.113.0/24"))
		synctest.Wait()
		if o.know("203.0.113.0/24") {
			t.Error("the others were not told that a ban was lifted")
		}
		comes(t, g, "203.0.113.2")

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

// slowOthers look every second whether anything has changed, as Redis' do, and tell of what they saw a moment later.
type slowOthers struct {
	*others
	late time.Duration
}

func (o slowOthers) Watch(ctx context.Context, tell func([]Ban, time.Time)) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for told := -1; ctx.Err() == nil; {
		began := time.Now()
		o.mu.Lock()
		all, calls := slices.Collect(maps.Values(o.bans)), o.calls
		o.mu.Unlock()
		time.Sleep(o.late) // virtual time
		if calls != told {
			told = calls
			tell(all, began)
		}
		select {
		case <-ctx.Done():
		case <-look.C:
		}
	}
}

// withAnother has two machines share bans: that of b, and that of whoever calls o.
func withAnother(t *testing.T, late time.Duration, f func(b *Bans, o *others)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := newOthers()
		b := &Bans{Shared: slowOthers{o, late}}
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()      // ends with ctx
		time.Sleep(late + 100*time.Millisecond) // virtual time
		f(b, o)
		cancel()
		<-done
	})
}

func TestABanIsLiftedByAnotherMachineBeforeThisOneHasLooked(t *testing.T) {
	withAnother(t, 0, func(b *Bans, o *others) {
		prefix := netip.MustParsePrefix("192.0.2.1/32")
		if err := b.Ban(prefix, time.Hour, ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !o.know("192.0.2.1/32") {
			t.Fatal("the others were not told")
		}
		_ = o.Lift(t.Context(), prefix)
		time.Sleep(5 * time.Second) // virtual time
		if err := b.Denies(prefix.Addr()); err != nil {
			t.Errorf("lifted by another machine: %v", err)
		}
	})
}

func TestABanIsKeptThatWasMadeWhileThisMachineLooked(t *testing.T) {
	const late = 500 * time.Millisecond
	withAnother(t, late, func(b *Bans, o *others) {
		_ = o.Ban(t.Context(), Ban{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Until: time.Now().Add(time.Hour)})
		time.Sleep(time.Second) // virtual time
		// It has seen that one, and is about to tell of it.
		if err := b.Ban(netip.MustParsePrefix("192.0.2.1/32"), time.Hour, ""); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			time.Sleep(late / 5) // virtual time
			if b.Denies(netip.MustParseAddr("192.0.2.1")) == nil {
				t.Fatal("a look that began before the ban has ended it")
			}
		}
	})
}

func TestAnotherMachinesLongerBanIsTakenOverForOnesOwn(t *testing.T) {
	withAnother(t, 0, func(b *Bans, o *others) {
		prefix := netip.MustParsePrefix("192.0.2.1/32")
		if err := b.Ban(prefix, time.Minute, ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_ = o.Ban(t.Context(), Ban{Prefix: prefix, Until: time.Now().Add(time.Hour)})
		time.Sleep(5 * time.Minute) // virtual time
		if b.Denies(prefix.Addr()) == nil {
			t.Error("it ended when one's own would have")
		}
	})
}

func TestBansForOthersAreBoundedWhileTheyAreOutOfReach(t *testing.T) {
	b := &Bans{Shared: newOthers()}
	for i := range 3000 {
		_ = b.Ban(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), time.Hour, "")
	}
	if len(b.news) != maxNews || b.Stats().Untold != 3000-maxNews || b.Stats().Active != 3000 {
		t.Errorf("%d wait to be told; %+v", len(b.news), b.Stats())
	}
}

func TestBansWhoeverComesAtTheSameTime(t *testing.T) {
	b := &Bans{Refusals: 3, Size: 16, For: time.Millisecond, Entries: 64}
	g := abused(b)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				addr := netip.AddrFrom4([4]byte{10, 0, 0, byte((i + worker) % 40)})
				p, _ := come(g, addr)
				_, _ = come(g, addr)
				_ = g.Denies(addr)
				if p != nil {
					p.Leave(nil, levee.End{Reason: levee.TLSFailed})
				}
				switch i % 100 {
				case 0:
					_ = b.List(10)
				case 1:
					_ = b.Ban(netip.MustParsePrefix("10.0.0.0/30"), time.Millisecond, "")
				case 2:
					b.Lift(netip.MustParsePrefix("10.0.0.0/30"))
				case 3:
					_ = b.Stats()
				}
			}
		})
	}
	wg.Wait()
	if len(b.ends) != len(b.records) || len(b.ends) != b.inForce.Load().Size() || len(b.ends) > 16 {
		t.Errorf("%d, %d and %d bans", len(b.ends), len(b.records), b.inForce.Load().Size())
	}
	for i, r := range b.ends {
		if r.place != i {
			t.Errorf("ban %d believes to be %d", i, r.place)
		}
	}
	if b.Stats().Made == 0 {
		t.Error("nobody was banned")
	}
}

func TestBansByOtherTermsAreForRefusalsToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bans{Refusals: 5, Within: time.Minute, For: time.Minute}
		g := abused(b)
		for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
			comes(t, g, addr)
		}
		refusedTimes(t, g, "192.0.2.1", 5)
		refusedTimes(t, g, "192.0.2.2", 4)
		b.Set(&Bans{Refusals: 2, Within: time.Minute, For: time.Hour})
		refusedTimes(t, g, "192.0.2.2", 1) // it has had more than it may by now
		isRefused(t, g, "192.0.2.2", "banned")
		isRefused(t, g, "192.0.2.1", "banned")
		time.Sleep(2 * time.Minute) // virtual time
		if left := b.List(0); len(left) != 1 || left[0].Prefix.String() != "192.0.2.2/32" || left[0].Why != "2 refusals" {
			t.Errorf("%v", left)
		}
		b.Set(&Bans{Mode: Off})
		refusedTimes(t, g, "192.0.2.3", 200)
		if n := b.Stats().Active; n != 1 {
			t.Errorf("%d bans, though there are to be none any more but those that there were", n)
		}
	})
}

func TestWhatEachConnectionMayMoveChangesForThoseToCome(t *testing.T) {
	s := &Scope{Connection: Bandwidth{Up: 1000}}
	g := &Gate{Scopes: []*Scope{s}}
	before := comes(t, g, "192.0.2.1")
	s.SetConnection(Bandwidth{Down: 500})
	after := comes(t, g, "192.0.2.1")
	for p, want := range map[*pass]Bandwidth{before: {Up: 1000}, after: {Down: 500}} {
		if x := p.extra; x == nil || len(x.in.own) != int(want.Up/1000) || len(x.out.own) != int(want.Down/500) {
			t.Errorf("%+v, want %+v", x, want)
		}
	}
}
