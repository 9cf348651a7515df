package limit

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// strangers are a million clients, as a flood from everywhere has.
func strangers() []netip.Addr {
	all := make([]netip.Addr, 1_000_000)
	for i := range all {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], uint32(i)*2654435761)
		all[i] = netip.AddrFrom4(a)
	}
	return all
}

func BenchmarkDecision(b *testing.B) {
	limits := Limits{Connections: 100, Rate: Rate{PerSecond: 50}}
	addrs := strangers()
	six := make([]netip.Addr, len(addrs))
	for i := range six {
		six[i] = in("2001:db8::/32", uint64(i))
	}
	now := time.Now()
	for _, c := range []struct {
		name  string
		addrs []netip.Addr
	}{{"ipv4", addrs}, {"ipv6", six}} {
		b.Run(c.name, func(b *testing.B) {
			rules := &ruleset{rules: rulesOf([]*Scope{{Clients: []*Clients{{Entries: 1 << 20, Limits: limits}}}}, 0, 0)}
			b.ReportAllocs()
			var worker atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				st := &stake{of: rules}
				for i := int(worker.Add(1)) * 300_007; pb.Next(); i++ {
					_ = st.address(1, c.addrs[i%len(addrs)], now)
					st.leave(0)
				}
			})
		})
	}
}

// A connection as a whole: what it costs at the door to be let in, and to be turned away.
func BenchmarkGate(b *testing.B) {
	addrs := strangers()
	for name, limits := range map[string]Limits{
		"in":  {Connections: 100, Rate: Rate{PerSecond: 1e6}},
		"out": {Rate: Rate{PerSecond: 1e-6, Burst: 1}},
	} {
		b.Run(name, func(b *testing.B) {
			g := &Gate{Scopes: []*Scope{{Limits: Limits{Connections: 1 << 30}, Clients: []*Clients{{Entries: 1 << 20, Limits: limits}}}}, Lists: new(Lists), Bans: &Bans{Refusals: 1 << 30}}
			_ = g.Lists.Load()
			if name == "out" {
				addrs = addrs[:1000]
				for _, a := range addrs {
					_, _ = come(g, a)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if p, refusal := come(g, addrs[i%len(addrs)]); refusal == nil {
					leaves(p)
				}
				i++
			}
		})
	}
}

func BenchmarkListsOfAMillion(b *testing.B) {
	l := &Lists{DenyFiles: []string{write(b, "deny.txt", million())}}
	if err := l.Load(); err != nil {
		b.Fatal(err)
	}
	for name, addrs := range map[string][]netip.Addr{
		"denied":  {netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("5.6.7.8"), netip.MustParseAddr("2a00:1:2::1")},
		"let in":  {netip.MustParseAddr("99.2.3.4"), netip.MustParseAddr("200.6.7.8"), netip.MustParseAddr("2a01:1:2::1")},
		"million": strangers(),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				_ = l.Denies(addrs[i%len(addrs)])
				i++
			}
		})
	}
}

func BenchmarkBans(b *testing.B) {
	bans := new(Bans)
	addrs := strangers()
	for _, a := range addrs[:defaultBans] {
		_ = bans.Ban(netip.PrefixFrom(a, 32), time.Hour, "")
	}
	now := time.Now()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		_ = bans.decide(addrs[i%len(addrs)], now)
		i++
	}
}
