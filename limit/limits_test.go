package limit

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/levee-net/levee"
)

func TestAScopeTakesNoMoreConnectionsThanItMay(t *testing.T) {
	s := &Scope{Name: "public", Limits: Limits{Connections: 2}}
	g := &Gate{Scopes: []*Scope{s}}
	first := comes(t, g, "192.0.2.1")
	comes(t, g, "192.0.2.2")
	isRefused(t, g, "192.0.2.3", "limit public.connections")
	leaves(first)
	comes(t, g, "192.0.2.3")
	wants(t, s, "public.connections", 3, 1, 0)
	if open := s.Stats().Open; open != 2 {
		t.Errorf("%d open; want 2", open)
	}
}

func TestGatesShareAScope(t *testing.T) {
	process := &Scope{Limits: Limits{Connections: 2}}
	a := &Gate{Scopes: []*Scope{process, {Name: "a"}}}
	b := &Gate{Scopes: []*Scope{process, {Name: "b"}}}
	comes(t, a, "192.0.2.1")
	comes(t, b, "192.0.2.1")
	isRefused(t, a, "192.0.2.1", "limit levee.connections")
	isRefused(t, b, "192.0.2.1", "limit levee.connections")
}

func TestARateLetsABurstInAndThenSoManyASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scope{Name: "public", Clients: []*Clients{{Limits: Limits{Rate: Rate{PerSecond: 2, Burst: 3}}}}}
		g := &Gate{Scopes: []*Scope{s}}
		for range 3 {
			comes(t, g, "192.0.2.1")
		}
		isRefused(t, g, "192.0.2.1", "limit public.client.rate")
		comes(t, g, "192.0.2.2")           // another's business
		time.Sleep(499 * time.Millisecond) // virtual time
		isRefused(t, g, "192.0.2.1", "limit public.client.rate")
		time.Sleep(time.Millisecond) // virtual time
		comes(t, g, "192.0.2.1")
		isRefused(t, g, "192.0.2.1", "limit public.client.rate")
		time.Sleep(time.Hour) // virtual time
		for range 3 {
			comes(t, g, "192.0.2.1")
		}
		isRefused(t, g, "192.0.2.1", "limit public.client.rate")
		wants(t, s, "public.client.rate", 8, 4, 0)
	})
}

func TestABurstIsTwoSecondsWorthUnlessSaid(t *testing.T) {
	for _, c := range []struct {
		rate Rate
		want int64
	}{
		{Rate{PerSecond: 50}, 100},
		{Rate{PerSecond: 1.0 / 60}, 1},
		{Rate{PerSecond: 50, Burst: 7}, 7},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &Scope{Limits: Limits{Rate: c.rate}}
			g := &Gate{Scopes: []*Scope{s}}
			for range 1000 {
				_, _ = come(g, netip.MustParseAddr("192.0.2.1"))
			}
			wants(t, s, "levee.rate", c.want, 1000-c.want, 0)
		})
	}
}

// A flood of a client that is over its own limit must not use up what all have in common.
func TestWhoIsRefusedHasNotBeenChargedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scope{
			Name:    "public",
			Limits:  Limits{Rate: Rate{PerSecond: 1, Burst: 10}, Connections: 10},
			Clients: []*Clients{{Limits: Limits{Connections: 1}}},
		}
		outer := &Scope{Name: "process", Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 10}}}
		g := &Gate{Scopes: []*Scope{outer, s}}
		comes(t, g, "192.0.2.1")
		for range 1000 {
			isRefused(t, g, "192.0.2.1", "limit public.client.connections")
		}
		for i := range 9 {
			comes(t, g, fmt.Sprintf("192.0.2.%d", 10+i))
		}
		isRefused(t, g, "192.0.2.30", "limit process.rate")
		if open := s.Stats().Open; open != 10 {
			t.Errorf("%d open; want 10", open)
		}
	})
}

func TestIPv4InIPv6IsTheSameClient(t *testing.T) {
	g := &Gate{Scopes: []*Scope{{Clients: []*Clients{{Limits: Limits{Connections: 1}}}}}}
	p, refusal := come(g, netip.MustParseAddr("::ffff:192.0.2.1").Unmap()) // as Conn.ClientAddr has it
	if refusal != nil {
		t.Fatal(refusal)
	}
	isRefused(t, g, "192.0.2.1", "limit levee.client.connections")
	leaves(p)
}

func TestAUnixSocketsClientIsNobodys(t *testing.T) {
	g := &Gate{Scopes: []*Scope{{Clients: []*Clients{{Limits: Limits{Connections: 1}}}}}, Lists: &Lists{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, Bans: new(Bans)}
	if err := g.Lists.Load(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, refusal := come(g, netip.Addr{}); refusal != nil {
			t.Fatal(refusal)
		}
	}
}

// in returns the i-th of many addresses that are spread over a prefix.
func in(prefix string, i uint64) netip.Addr {
	p := netip.MustParsePrefix(prefix)
	a := p.Addr().As16()
	var free [16]byte
	binary.BigEndian.PutUint64(free[:8], i*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(free[8:], i*0xd1342543de82ef95+1)
	for b := p.Bits(); b < 128; b++ {
		a[b/8] |= free[b/8] & (0x80 >> (b % 8))
	}
	return netip.AddrFrom16(a)
}

func TestTenThousandAddressesOfAnIPv6NetworkAreLimitedAsOne(t *testing.T) {
	for _, c := range []struct {
		prefix            string
		connections, want int64
	}{
		{"2001:db8:1:2::/64", 4, 4},
		{"2001:db8:1:200::/56", 4, 16},
		{"2001:db8:1::/48", 4, 64},
	} {
		s := &Scope{Name: "public", Clients: []*Clients{{Limits: Limits{Connections: int(c.connections)}}}}
		g := &Gate{Scopes: []*Scope{s}}
		var held []*pass
		for i := range uint64(10_000) {
			if p, refusal := come(g, in(c.prefix, i)); refusal == nil {
				held = append(held, p)
			}
		}
		wants(t, s, "public.client.connections", c.want, 10_000-c.want, 0)
		for i := range uint64(1000) { // each in a network of its own
			if _, refusal := come(g, in("2001:db8:8000::/33", i)); refusal != nil {
				t.Fatalf("beside %s: %v", c.prefix, refusal)
			}
		}
		comes(t, g, "192.0.2.1")
		for _, p := range held {
			leaves(p)
		}
		comes(t, g, in(c.prefix, 77).String())
	}
}

func TestRatesOfAnIPv6NetworkAreThoseOfAllItsParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scope{Name: "public", Clients: []*Clients{{Times48: 8, Times56: -1, Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 2}}}}}
		g := &Gate{Scopes: []*Scope{s}}
		for i := range uint64(10_000) {
			_, _ = come(g, in("2001:db8:1::/48", i))
		}
		wants(t, s, "public.client.rate", 16, 9984, 0)
		time.Sleep(time.Second) // virtual time
		for i := range uint64(10_000) {
			_, _ = come(g, in("2001:db8:1::/48", 20_000+i))
		}
		wants(t, s, "public.client.rate", 24, 19976, 0)
		isRefused(t, g, "2001:db8:1::1", "limit public.client.rate (of the client's /48)")
	})
}

func TestShadowCountsWhatEnforceRefuses(t *testing.T) {
	run := func(mode Mode) (counts [3]int64, came int) {
		synctest.Test(t, func(t *testing.T) {
			s := &Scope{Name: "public", Clients: []*Clients{{Times56: 1, Limits: Limits{Rate: Rate{PerSecond: 3, Burst: 4}, Mode: mode}}}}
			g := &Gate{Scopes: []*Scope{s}}
			random := rand.New(rand.NewPCG(1, 2))
			for range 2000 {
				time.Sleep(time.Duration(random.Int64N(int64(20 * time.Millisecond)))) // virtual time
				if p, refusal := come(g, in("2001:db8:1::/58", random.Uint64N(6))); refusal == nil {
					came++
					leaves(p)
				}
			}
			counts = decisions(s.Stats().Limits, "public.client.rate")
		})
		return counts, came
	}
	enforced, cameEnforced := run(Enforce)
	shadowed, cameShadowed := run(Shadow)
	if enforced[1] == 0 || enforced[0] == 0 {
		t.Fatalf("allowed and refused %d: nothing is compared", enforced[:2])
	}
	if shadowed != [3]int64{enforced[0], 0, enforced[1]} {
		t.Errorf("in shadow %d; enforced %d", shadowed, enforced)
	}
	if cameShadowed != 2000 || int64(cameEnforced) != enforced[0] {
		t.Errorf("%d came in in shadow and %d when enforced; want 2000 and %d", cameShadowed, cameEnforced, enforced[0])
	}
	if off, came := run(Off); off != [3]int64{} || came != 2000 {
		t.Errorf("off: %d, %d came in", off, came)
	}
}

func TestShadowChargesNobodyForWhatEnforceWouldHaveRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scope{Clients: []*Clients{{Times56: 1, Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 1}, Mode: Shadow}}}}
		g := &Gate{Scopes: []*Scope{s}}
		comes(t, g, "2001:db8:0:1::1")
		time.Sleep(900 * time.Millisecond) // virtual time
		comes(t, g, "2001:db8:0:2::1")     // too soon for the /56, and no charge to its /64
		time.Sleep(100 * time.Millisecond) // virtual time
		comes(t, g, "2001:db8:0:2::1")
		wants(t, s, "levee.client.rate", 2, 0, 1)
	})
}

func TestShadowCountsConnectionsThatAreOpen(t *testing.T) {
	c := &Clients{Limits: Limits{Connections: 2, Mode: Shadow}}
	s := &Scope{Name: "public", Clients: []*Clients{c}}
	g := &Gate{Scopes: []*Scope{s}}
	var held []*pass
	for range 5 {
		held = append(held, comes(t, g, "192.0.2.1"))
	}
	wants(t, s, "public.client.connections", 2, 0, 3)
	c.Set(Limits{Connections: 5})
	isRefused(t, g, "192.0.2.1", "limit public.client.connections")
	leaves(held[0])
	comes(t, g, "192.0.2.1")
}

func TestLimitsChangeUnderOpenConnections(t *testing.T) {
	c := &Clients{Limits: Limits{Mode: Off}}
	s := &Scope{Name: "public", Clients: []*Clients{c}}
	g := &Gate{Scopes: []*Scope{s}}
	held := []*pass{comes(t, g, "192.0.2.1"), comes(t, g, "192.0.2.1")}
	c.Set(Limits{Connections: 2})
	isRefused(t, g, "192.0.2.1", "limit public.client.connections")
	leaves(held[0])
	comes(t, g, "192.0.2.1")
	s.Set(Limits{Connections: 2})
	isRefused(t, g, "192.0.2.9", "limit public.connections")
	s.Set(Limits{})
	comes(t, g, "192.0.2.9")
	// Another gate of the same scope takes the place of the first.
	isRefused(t, &Gate{Scopes: []*Scope{s}}, "192.0.2.1", "limit public.client.connections")
}

func TestHandshakesAreCountedWhenTheyBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scope{
			Name:    "public",
			Limits:  Limits{Handshakes: Rate{PerSecond: 1, Burst: 5}},
			Clients: []*Clients{{Limits: Limits{Handshakes: Rate{PerSecond: 1, Burst: 2}}}},
		}
		g := &Gate{Scopes: []*Scope{s}}
		shakes := func(addr string) string {
			p := comes(t, g, addr)
			if refusal := p.Reach(nil, levee.StageHandshake); refusal != nil {
				return refusal.Cause.Error()
			}
			return ""
		}
		for i, c := range []struct{ addr, want string }{
			{"2001:db8::1", ""},
			{"2001:db8::2", ""},
			{"2001:db8::3", "limit public.client.handshakes"},
			{"2001:db8::4", "limit public.client.handshakes"}, // which cost the others nothing
			{"192.0.2.1", ""},
			{"192.0.2.2", ""},
			{"192.0.2.3", ""},
			{"192.0.2.4", "limit public.handshakes"},
		} {
			if got := shakes(c.addr); got != c.want {
				t.Errorf("%d, %s: %q; want %q", i, c.addr, got, c.want)
			}
		}
		wants(t, s, "public.client.handshakes", 5, 2, 0)
	})
}

func TestAHandshakeThatIsRefusedGivesBackOnlyWhatItTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := Rate{PerSecond: 1, Burst: 1}
		s := &Scope{
			Name:    "public",
			Limits:  Limits{Handshakes: once, Mode: Shadow},
			Clients: []*Clients{{Limits: Limits{Handshakes: once}}},
		}
		g := &Gate{Scopes: []*Scope{s}}
		greedy := comes(t, g, "192.0.2.1")
		greedy.Reach(nil, levee.StageHandshake)
		for range 5 { // beyond both limits, of which only one refuses
			if greedy.Reach(nil, levee.StageHandshake) == nil {
				t.Fatal("it may do as many handshakes as it likes")
			}
		}
		comes(t, g, "192.0.2.2").Reach(nil, levee.StageHandshake)
		wants(t, s, "public.handshakes", 1, 0, 6)
	})
}

func TestARefusalKnowsItsManner(t *testing.T) {
	s := &Scope{Name: "public", Limits: Limits{Connections: 1}}
	for _, g := range []*Gate{
		{Scopes: []*Scope{s}},
		{Scopes: []*Scope{s}, Manner: levee.Politely},
		{Scopes: []*Scope{s}, Manner: levee.Slowly, Delay: time.Second},
	} {
		_, _ = come(g, netip.MustParseAddr("192.0.2.1"))
		_, refusal := come(g, netip.MustParseAddr("192.0.2.1"))
		if refusal == nil || refusal.Reason != levee.Limited || refusal.Manner != g.Manner || refusal.Delay != g.Delay {
			t.Errorf("%+v; want manner %d, delay %s", refusal, g.Manner, g.Delay)
		}
		if cause, ok := refusal.Cause.(*Error); !ok || cause.Limit != "public.connections" { //nolint:errorlint // as it comes
			t.Errorf("cause %v", refusal.Cause)
		}
	}
}

func TestCountsAreExactWhoeverComesAtTheSameTime(t *testing.T) {
	const most, total = 5, 12
	c := &Clients{Entries: 64, Limits: Limits{Connections: most}}
	s := &Scope{Limits: Limits{Connections: total}, Clients: []*Clients{c}}
	g := &Gate{Scopes: []*Scope{s}}
	var (
		wg     sync.WaitGroup
		open   [4]atomic.Int64
		all    atomic.Int64
		passed atomic.Int64
	)
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 3000 {
				i := random.IntN(len(open))
				p, refusal := come(g, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
				if refusal != nil {
					continue
				}
				passed.Add(1)
				if n := open[i].Add(1); n > most {
					t.Errorf("%d open of one client", n)
				}
				if n := all.Add(1); n > total {
					t.Errorf("%d open", n)
				}
				if random.IntN(2) == 0 {
					runtime.Gosched()
				}
				all.Add(-1)
				open[i].Add(-1)
				leaves(p)
			}
		})
	}
	wg.Wait()
	if passed.Load() == 0 {
		t.Error("nobody came in")
	}
	if open := s.Stats().Open; open != 0 {
		t.Errorf("%d open at the end", open)
	}
	if used := s.Stats().Clients[0].Used; used != 0 {
		t.Errorf("%d clients are remembered at the end", used)
	}
}

// notUnderRace skips what counts or measures, of which nothing happens at the same time.
func notUnderRace(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("measured without the race detector, whose own memory and time it would be")
	}
}

func TestADecisionAllocatesNothing(t *testing.T) {
	notUnderRace(t)
	s := &Scope{
		Limits:  Limits{Connections: 10, Rate: Rate{PerSecond: 1e6}},
		Clients: []*Clients{{Limits: Limits{Connections: 1, Rate: Rate{PerSecond: 1e6}}}},
	}
	g := &Gate{Scopes: []*Scope{s}, Lists: &Lists{Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}, Bans: new(Bans)}
	if err := g.Lists.Load(); err != nil {
		t.Fatal(err)
	}
	if err := g.Bans.Ban(netip.MustParsePrefix("203.0.113.0/24"), time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	comes(t, g, "2001:db8::1")
	for _, addr := range []string{"2001:db8::2", "198.51.100.7", "203.0.113.9"} {
		from := netip.MustParseAddr(addr)
		if n := testing.AllocsPerRun(500, func() {
			if _, refusal := come(g, from); refusal == nil {
				t.Fatal("it came in")
			}
		}); n != 0 {
			t.Errorf("refusing %s: %v allocations", addr, n)
		}
	}
	// Who comes in costs a pass and nothing else.
	for _, addr := range []string{"192.0.2.1", "2001:db8:1::1"} {
		from := netip.MustParseAddr(addr)
		if n := testing.AllocsPerRun(500, func() {
			p, refusal := come(g, from)
			if refusal != nil {
				t.Fatal(refusal)
			}
			leaves(p)
		}); n > 2 {
			t.Errorf("admitting %s: %v allocations", addr, n)
		}
	}
}

func TestAConnectionHoldsLittle(t *testing.T) {
	if size := unsafe.Sizeof(pass{}); size > 128 {
		t.Errorf("a pass takes %d bytes", size)
	}
}

func TestAMillionClientsFitIn64MiB(t *testing.T) {
	notUnderRace(t)
	if size := unsafe.Sizeof(set{}); size/ways > 52 {
		t.Errorf("an entry takes %d bytes; the documentation says 52", size/ways)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what was pooled goes with the second
	runtime.ReadMemStats(&before)
	s := &Scope{Clients: []*Clients{{Entries: 1 << 20, Limits: Limits{Connections: 10, Rate: Rate{PerSecond: 0.001, Burst: 10}}}}}
	g := &Gate{Scopes: []*Scope{s}}
	for i := range uint32(1_000_000) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], i)
		p, refusal := come(g, netip.AddrFrom4(a))
		if refusal != nil {
			t.Fatal(refusal)
		}
		leaves(p)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20
	stats := s.Stats().Clients[0]
	t.Logf("%d MiB; %d of %d entries in use, %d forgotten early", used, stats.Used, stats.Entries, stats.Evicted)
	if used > 64 {
		t.Errorf("a million clients take %d MiB", used)
	}
	if stats.Used < 900_000 {
		t.Errorf("only %d of a million are remembered", stats.Used)
	}
}
