package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A modelAccount is a token bucket, in a map that forgets nobody: the other way to say what GCRA says.
type modelAccount struct {
	credit time.Duration // what it may still take, as the time in which that is earned
	at     time.Duration
	open   int
}

type model struct {
	most     int
	interval time.Duration
	burst    int
	accounts map[netip.Prefix]*modelAccount
}

func (m *model) keys(addr netip.Addr) (keys []netip.Prefix, times []int) {
	if addr.Is4() {
		return []netip.Prefix{netip.PrefixFrom(addr, 32)}, []int{1}
	}
	for _, bits := range []int{64, 56, 48} {
		p, _ := addr.Prefix(bits)
		keys = append(keys, p)
	}
	return keys, []int{1, 2, 4}
}

func (m *model) account(key netip.Prefix, times int, now time.Duration) *modelAccount {
	a := m.accounts[key]
	full := m.interval / time.Duration(times) * time.Duration(m.burst*times)
	if a == nil {
		a = &modelAccount{credit: full, at: now}
		m.accounts[key] = a
	}
	a.credit = min(full, a.credit+now-a.at)
	a.at = now
	return a
}

func (m *model) admit(addr netip.Addr, now time.Duration) bool {
	keys, times := m.keys(addr)
	for i, key := range keys {
		a := m.account(key, times[i], now)
		if a.open >= m.most*times[i] || a.credit < m.interval/time.Duration(times[i]) {
			return false
		}
	}
	for i, key := range keys {
		a := m.accounts[key]
		a.open++
		a.credit -= m.interval / time.Duration(times[i])
	}
	return true
}

func (m *model) leave(addr netip.Addr) {
	keys, _ := m.keys(addr)
	for _, key := range keys {
		m.accounts[key].open--
	}
}

// addresses are few enough to meet again, and near enough to share networks.
func addresses() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(0, 3).Draw(t, "host"))})
		}
		a := netip.MustParseAddr("2001:db8::").As16()
		a[5] = byte(rapid.IntRange(0, 1).Draw(t, "/48"))
		a[6] = byte(rapid.IntRange(0, 1).Draw(t, "/56"))
		a[7] = byte(rapid.IntRange(0, 1).Draw(t, "/64"))
		a[15] = byte(rapid.IntRange(0, 255).Draw(t, "host"))
		return netip.AddrFrom16(a)
	})
}

type guest struct {
	st   *stake
	addr netip.Addr
}

// The table decides as a map of token buckets would that forgets nobody, as long as there is room.
func TestTheTableDecidesAsAMapOfTokenBucketsWould(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSecond := rapid.SampledFrom([]int{1, 2, 5, 10, 250}).Draw(t, "rate") // whose intervals are whole numbers, also of four times as much
		m := &model{
			most: rapid.IntRange(1, 4).Draw(t, "most"), burst: rapid.IntRange(1, 4).Draw(t, "burst"),
			interval: time.Second / time.Duration(perSecond), accounts: make(map[netip.Prefix]*modelAccount),
		}
		c := &Clients{
			Entries: 1024, Times56: 2, Times48: 4,
			Limits: Limits{Connections: m.most, Rate: Rate{PerSecond: float64(perSecond), Burst: m.burst}},
		}
		rules := &ruleset{rules: rulesOf([]*Scope{{Clients: []*Clients{c}}}, 0, 0)}
		var now time.Duration
		var guests []guest
		for range 200 {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				now += time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pause"))
			case 1:
				if len(guests) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(guests)-1).Draw(t, "who")
				guests[i].st.leave(0)
				m.leave(guests[i].addr)
				guests = append(guests[:i], guests[i+1:]...)
			default:
				addr := addresses().Draw(t, "from")
				st := &stake{of: rules}
				refusal := st.address(1, addr, c.each.epoch.Add(now))
				if want := m.admit(addr, now); want != (refusal == nil) {
					t.Fatalf("%s after %s: %v; the model says %t", addr, now, refusal, want)
				}
				if refusal == nil {
					guests = append(guests, guest{st, addr})
				}
			}
		}
		for key, a := range m.accounts {
			if got := c.table.openOf(key); got != a.open {
				t.Fatalf("%s has %d open; want %d", key, got, a.open)
			}
		}
	})
}

// openOf returns how many connections the table knows of.
func (t *table) openOf(key netip.Prefix) int {
	tag := t.address(key.Addr(), key.Bits())
	s := t.set(tag)
	for i, have := range s.tags {
		if have == tag {
			return int(s.accounts[i].open)
		}
	}
	return 0
}

// With far too little room it forgets, but never who is there, and it never refuses whom a table without end would let
// in, unless it is crowded.
func TestATableWithoutRoomForgetsOnlyWhoIsGone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 2
		m := &model{most: most, burst: 2, interval: time.Second, accounts: make(map[netip.Prefix]*modelAccount)}
		c := &Clients{Entries: 1, Limits: Limits{Connections: most, Rate: Rate{PerSecond: 1, Burst: 2}}}
		rules := &ruleset{rules: rulesOf([]*Scope{{Clients: []*Clients{c}}}, 0, 0)}
		var now time.Duration
		var guests []guest
		open := make(map[netip.Addr]int)
		crowd := 0 // guests who are counted together
		for range 300 {
			if rapid.Bool().Draw(t, "pause") {
				now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "for"))
			}
			if rapid.IntRange(0, 3).Draw(t, "leave") == 0 && len(guests) > 0 {
				i := rapid.IntRange(0, len(guests)-1).Draw(t, "who")
				g := guests[i]
				if g.st.held[0].slot == ways {
					crowd--
				}
				g.st.leave(0)
				open[g.addr]--
				m.leave(g.addr)
				guests = append(guests[:i], guests[i+1:]...)
				continue
			}
			addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 59).Draw(t, "from"))})
			before := c.table.crowded.Load()
			st := &stake{of: rules}
			refusal := st.address(1, addr, c.each.epoch.Add(now))
			crowded := c.table.crowded.Load() > before
			may := m.admit(addr, now)
			switch {
			case refusal != nil && may:
				if !crowded {
					t.Fatalf("%s is refused and would not be by a table without end", addr)
				}
				m.leave(addr)
				m.accounts[netip.PrefixFrom(addr, 32)].credit += m.interval
			case refusal == nil:
				if !may {
					k := m.account(netip.PrefixFrom(addr, 32), 1, now)
					k.open++
					k.credit -= m.interval // into debt: the model's credit is never more than the table's
					if !crowded && open[addr] >= most+crowd {
						t.Fatalf("%s has %d open and gets one more", addr, open[addr])
					}
				}
				open[addr]++
				if crowded {
					crowd++
				}
				guests = append(guests, guest{st, addr})
			}
			if crowd > most {
				t.Fatalf("%d are counted together; want at most %d", crowd, most)
			}
		}
		for _, g := range guests {
			g.st.leave(0)
		}
		for i := range c.table.sets[0].accounts {
			a := &c.table.sets[0].accounts[i]
			if a.open != 0 {
				t.Fatalf("account %d has %d open at the end", i, a.open)
			}
		}
	})
}

func TestWhoHasMadeUpForEverythingIsForgottenFirst(t *testing.T) {
	c := &Clients{Entries: ways, Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 5}}}
	rules := &ruleset{rules: rulesOf([]*Scope{{Clients: []*Clients{c}}}, 0, 0)}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	at := c.each.epoch
	visit := func(i, times int) {
		for range times {
			st := &stake{of: rules}
			if refusal := st.address(1, addr(i), at); refusal != nil {
				t.Fatalf("%d: %v", i, refusal)
			}
			st.leave(0)
		}
	}
	visit(0, 1)
	for i := 1; i < ways; i++ {
		visit(i, 2+i%3)
	}
	at = at.Add(time.Second) // by which 0 has made up for everything, and nobody else
	visit(100, 5)
	if n := c.table.evicted.Load(); n != 0 {
		t.Errorf("%d were forgotten early", n)
	}
	visit(101, 5) // some other has to go: one of those with the least to make up for
	if n := c.table.evicted.Load(); n != 1 {
		t.Errorf("%d were forgotten early; want 1", n)
	}
	st := &stake{of: rules}
	if refusal := st.address(1, addr(100), at); fmt.Sprint(refusal) == "<nil>" {
		t.Error("who has most to make up for was forgotten")
	}
}

func TestNobodyCanAimAtASet(t *testing.T) {
	const clients = 1 << 14
	a, b := newTable(clients*2), newTable(clients*2)
	same, most := 0, 0
	load := make(map[*set]int)
	for i := range uint64(clients) {
		addr := in("2001:db8::/32", i)
		x, y := a.address(addr, 64), b.address(addr, 64)
		if x == y {
			same++
		}
		load[a.set(x)]++
		most = max(most, load[a.set(x)])
	}
	if same > 0 {
		t.Errorf("two tables have %d hashes in common", same)
	}
	if most > 32 { // 8 on average; a Poisson of that is above 32 once in 10^10
		t.Errorf("one set is asked for %d of %d clients", most, clients)
	}
}
