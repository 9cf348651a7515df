package limit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// handOn has a scope of another process know what s knows.
func handOn(t *testing.T, s, next *Scope) *Gate {
	t.Helper()
	saved, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Restore(saved); err != nil {
		t.Fatal(err)
	}
	return &Gate{Scopes: []*Scope{next}}
}

// The words of the paper that says what SipHash is: of the key 00 01 … 0f and of the bytes 00 01 … as many as there are.
func TestHashesAreThoseOfSipHash(t *testing.T) {
	key := hashKey{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	for n, want := range map[int]uint64{
		0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 2: 0x0d6c8009d9a94f5a, 3: 0x85676696d7fb7e2d, 7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5,
	} {
		text := make([]byte, n)
		for i := range text {
			text[i] = byte(i)
		}
		if a, b := hash(key, text), hash(key, string(text)); a != want || b != want {
			t.Errorf("%d bytes: %#x and %#x, want %#x", n, a, b, want)
		}
	}
}

func TestWhatAClientHasTakenItHasTakenInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scope := func(entries int, rate Rate) *Scope {
			return &Scope{Name: "public", Clients: []*Clients{{Entries: entries, Limits: Limits{Rate: rate}}}}
		}
		hourly := Rate{PerSecond: 10.0 / 3600, Burst: 10}
		s := scope(0, hourly)
		g := &Gate{Scopes: []*Scope{s}}
		spend := func(addr string, n int) {
			for range n {
				leaves(comes(t, g, addr))
			}
		}
		spend("192.0.2.1", 10)
		spend("192.0.2.2", 4)
		spend("2001:db8::1", 10)
		isRefused(t, g, "192.0.2.1", "limit public.client.rate")
		time.Sleep(time.Minute) // virtual time

		for _, next := range []*Scope{scope(0, hourly), scope(1000, hourly)} { // a smaller one, too
			n := handOn(t, s, next)
			isRefused(t, n, "192.0.2.1", "limit public.client.rate")
			isRefused(t, n, "2001:db8::2", "limit public.client.rate")
			for range 6 {
				leaves(comes(t, n, "192.0.2.2"))
			}
			isRefused(t, n, "192.0.2.2", "limit public.client.rate")
			leaves(comes(t, n, "192.0.2.3"))
			wants(t, next, "public.client.rate", 24+7, 4, 0)

			// Once more, as it is there by now: that is no second charge, and takes nothing back.
			isRefused(t, handOn(t, s, next), "192.0.2.2", "limit public.client.rate")
			leaves(comes(t, n, "192.0.2.3"))
		}

		// Limits that are stricter now have no longer memory than their own.
		strict := scope(0, Rate{PerSecond: 1, Burst: 2})
		n := handOn(t, s, strict)
		isRefused(t, n, "192.0.2.1", "limit public.client.rate")
		time.Sleep(2 * time.Second) // virtual time
		leaves(comes(t, n, "192.0.2.1"))

		time.Sleep(5 * time.Minute) // virtual time
		// One is earned in six minutes.
		leaves(comes(t, handOn(t, s, scope(0, hourly)), "192.0.2.1"))
	})
}

func TestWhatAllHaveTakenTheyHaveTakenInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scope := func() *Scope {
			return &Scope{Name: "public", Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 5}, Bandwidth: Bandwidth{Down: 1000}}}
		}
		s := scope()
		g := &Gate{Scopes: []*Scope{s}}
		for range 5 {
			leaves(comes(t, g, "192.0.2.1"))
		}
		p := comes0(g)
		if p != nil {
			t.Fatal("a sixth is let in")
		}
		share{law: &s.totals, earned: &s.sum.accounts[0].bytes[1], of: down}.mustSpend(t, 60_000, time.Minute)
		time.Sleep(time.Second / 2) // virtual time
		next := scope()
		n := handOn(t, s, next)
		isRefused(t, n, "192.0.2.2", "limit public.rate")
		time.Sleep(time.Second / 2) // virtual time
		leaves(comes(t, n, "192.0.2.2"))
		share{law: &next.totals, earned: &next.sum.accounts[0].bytes[1], of: down}.mustSpend(t, 1, time.Minute-time.Second)
		wants(t, next, "public.rate", 6, 2, 0)
	})
}

func comes0(g *Gate) *pass {
	p, _ := come(g, netip.MustParseAddr("192.0.2.1"))
	return p
}

// mustSpend spends bytes, for which one has to wait about so long then.
func (p share) mustSpend(t *testing.T, n int, want time.Duration) {
	t.Helper()
	if wait := p.spend(n, time.Now()); wait < want-time.Second || wait > want+time.Second {
		t.Errorf("%d bytes have to wait for %v, want %v", n, wait, want)
	}
}

// Of more clients than are handed on it is those that have most to make up for.
func TestThoseAreHandedOnWhoHaveMostToMakeUpFor(t *testing.T) {
	c := &Clients{Entries: 1 << 18, Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 1e6}}}
	s := &Scope{Clients: []*Clients{c}}
	s.init()
	all := mostAccounts + 5000
	now := c.each.since(time.Now())
	for i := range all {
		tag := c.table.address(in("2001:db8::/32", uint64(i)), 64)
		set := c.table.set(tag)
		set.accounts[c.table.open(set, tag, now)].rate = now + int64(time.Hour) + int64(i)*int64(time.Second)
	}
	saved, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	if len(saved) > mostAccounts*100 {
		t.Errorf("they take %d bytes", len(saved))
	}
	next := &Clients{Entries: 1 << 18, Limits: c.Limits}
	if err := (&Scope{Clients: []*Clients{next}}).Restore(saved); err != nil {
		t.Fatal(err)
	}
	there := next.table.used(next.each.since(time.Now()))
	if there < mostAccounts-100 || there > mostAccounts { // a set may be full
		t.Errorf("%d are there, want %d", there, mostAccounts)
	}
	for i, want := range map[int]bool{0: false, 4000: false, 6000: true, all - 1: true} {
		tag := next.table.address(in("2001:db8::/32", uint64(i)), 64)
		if got := slices.Contains(next.table.set(tag).tags[:], tag); got != want {
			t.Errorf("client %d: %t, want %t", i, got, want)
		}
	}
}

func TestATableThatIsInUseTakesOverCountsOnly(t *testing.T) {
	scope := func() *Scope {
		return &Scope{Name: "public", Clients: []*Clients{{Limits: Limits{Rate: Rate{PerSecond: .001, Burst: 1}}}, {Name: "sni", By: ByServerName}}}
	}
	s, next, other := scope(), scope(), scope()
	leaves(comes(t, &Gate{Scopes: []*Scope{s}}, "192.0.2.1"))
	g := &Gate{Scopes: []*Scope{next}}
	leaves(comes(t, g, "192.0.2.2"))
	handOn(t, s, next)
	leaves(comes(t, g, "192.0.2.1"))
	wants(t, next, "public.client.rate", 3, 0, 0)

	other.Clients[0].By = ByCertificate // whoever these are
	handOn(t, s, other)
	wants(t, other, "public.client.rate", 0, 0, 0)
}

func TestListsGoOnCountingInAnotherProcess(t *testing.T) {
	lists := func() *Lists {
		l := &Lists{Deny: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
		if err := l.Load(); err != nil {
			t.Fatal(err)
		}
		return l
	}
	l, next := lists(), lists()
	for _, addr := range []string{"192.0.2.1", "192.0.2.2", "198.51.100.1"} {
		_ = l.decide(netip.MustParseAddr(addr))
	}
	_ = next.decide(netip.MustParseAddr("198.51.100.1"))
	saved, err := l.Save()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := next.Restore(saved); err != nil {
			t.Fatal(err)
		}
	}
	if d := next.Stats().Decisions; d.Allowed != 2 || d.Refused != 2 || d.WouldRefuse != 0 {
		t.Errorf("%+v", d)
	}
	if err := next.Restore([]byte("{")); err == nil {
		t.Error("nonsense is believed")
	}
}

// handBans has the bans of another process know what b knows.
func handBans(t *testing.T, b, next *Bans) *Bans {
	t.Helper()
	saved, err := b.Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Restore(saved); err != nil {
		t.Fatal(err)
	}
	return next
}

func TestBansGoOnInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fields := func() *Bans { return &Bans{Refusals: 3, Within: time.Hour, For: 10 * time.Minute} }
		b := fields()
		addr := netip.MustParseAddr
		strike := func(b *Bans, text string, n int) {
			for range n {
				b.strike(addr(text))
			}
		}
		strike(b, "192.0.2.1", 3)
		strike(b, "192.0.2.2", 2)
		strike(b, "2001:db8::1", 3)
		if err := b.Ban(netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
		_ = b.decide(addr("192.0.2.1"), time.Now())
		time.Sleep(4 * time.Minute) // virtual time
		want := b.List(0)
		next := handBans(t, b, fields())
		if got := next.List(0); !slices.EqualFunc(got, want, func(x, y Ban) bool { return x.Prefix == y.Prefix && x.Until.Equal(y.Until) && x.Why == y.Why }) {
			t.Errorf("%v, want %v", got, want)
		}
		if s := next.Stats(); s.Active != 3 || s.Made != 2 || s.Decisions.Refused != 1 || s.Dropped != 0 {
			t.Errorf("%+v", s)
		}
		if s := handBans(t, b, next).Stats(); s.Active != 3 || s.Made != 2 || s.Decisions.Refused != 1 { // once more
			t.Errorf("%+v", s)
		}
		if err := next.Denies(addr("2001:db8::77")); !errors.Is(err, ErrBanned) {
			t.Errorf("%v", err)
		}
		strike(next, "192.0.2.2", 1) // its last
		if err := next.Denies(addr("192.0.2.2")); !errors.Is(err, ErrBanned) {
			t.Errorf("its refusals are forgotten: %v", err)
		}

		time.Sleep(6 * time.Minute) // virtual time
		if err := next.Denies(addr("192.0.2.1")); err != nil {
			t.Errorf("it has ended: %v", err)
		}
		last := handBans(t, next, fields()) // which remembers that there was one
		strike(last, "192.0.2.1", 3)
		bans := last.List(0)
		if i := slices.IndexFunc(bans, func(b Ban) bool { return b.Prefix.Contains(addr("192.0.2.1")) }); i < 0 || time.Until(bans[i].Until) != 20*time.Minute {
			t.Errorf("the second is not twice as long: %v", bans)
		}
	})
}

func TestBansInShadowStaySo(t *testing.T) {
	b := &Bans{Refusals: 2, Mode: Shadow}
	for range 2 {
		b.strike(netip.MustParseAddr("192.0.2.1"))
	}
	next := handBans(t, b, &Bans{Mode: Enforce})
	if err := next.Denies(netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Error(err)
	}
	if next.decide(netip.MustParseAddr("192.0.2.1"), time.Now()); next.Stats().Decisions.WouldRefuse != 1 {
		t.Errorf("%+v", next.Stats())
	}
}

func TestOfMoreBansThanThereIsRoomForThoseStayThatEndLast(t *testing.T) {
	b := new(Bans)
	for i := range 10 {
		if err := b.Ban(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32), time.Duration(i+1)*time.Hour, ""); err != nil {
			t.Fatal(err)
		}
	}
	next := handBans(t, b, &Bans{Size: 3})
	var got []string
	for _, ban := range next.List(0) {
		got = append(got, ban.Prefix.String())
	}
	if want := []string{"192.0.2.7/32", "192.0.2.8/32", "192.0.2.9/32"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// board is a SharedBans that notes what it is told.
type board struct{ told chan Ban }

func (b board) Ban(_ context.Context, ban Ban) error { b.told <- ban; return nil }

func (board) Lift(context.Context, netip.Prefix) error { return nil }

func (board) Watch(ctx context.Context, _ func([]Ban, time.Time)) { <-ctx.Done() }

// What the other process has not come to tell the other machines this one does; and what they know, they know.
func TestOtherMachinesHearOfBansThatWereNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known, unknown := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
		b := &Bans{Shared: board{make(chan Ban, 9)}}
		b.init()
		b.hear([]Ban{{Prefix: known, Until: time.Now().Add(time.Hour)}}, time.Now())
		if err := b.Ban(unknown, time.Hour, ""); err != nil {
			t.Fatal(err)
		}
		told := board{make(chan Ban, 9)}
		next := handBans(t, b, &Bans{Shared: told})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- next.Run(ctx) }()
		synctest.Wait()
		if len(told.told) != 1 || (<-told.told).Prefix != unknown {
			t.Errorf("%d more are told", len(told.told))
		}
		next.hear([]Ban{{Prefix: unknown, Until: time.Now().Add(time.Hour)}}, time.Now()) // the known one was lifted
		if bans := next.List(0); len(bans) != 1 || bans[0].Prefix != unknown {
			t.Errorf("%v", bans)
		}
		stop()
		<-ended
	})
}

// Whatever is said of clients, nobody is kept out for longer than the limits could have it, counts are counts, and what is
// saved then makes the same of another scope.
func FuzzRestoreScope(f *testing.F) {
	scope := func() *Scope {
		return &Scope{Name: "s", Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 3}}, Clients: []*Clients{{Entries: 64, Limits: Limits{Rate: Rate{PerSecond: 1, Burst: 3}, Bandwidth: Bandwidth{Up: 1000}}}}}
	}
	s := scope()
	_, _ = come(&Gate{Scopes: []*Scope{s}}, netip.MustParseAddr("2001:db8::1"))
	saved, _ := s.Save()
	f.Add(saved)
	f.Add([]byte(`{"version":1,"at":9000000000000000000,"state":{"totals":{"rate":[-1,5,9223372036854775807]},"taken":[1,18446744073709551615,1,1,1],"clients":{"client":{"by":0,"evicted":-5,"table":{"key":[1,2],"accounts":[[18446744073709551615,18446744073709551615,0,18446744073709551615],[0,5],[7]]}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scope()
		if s.Restore(b) != nil {
			return
		}
		if err := s.Restore(b); err != nil { // the same again is no more
			t.Fatal(err)
		}
		now := time.Now()
		c := s.Clients[0]
		check := func(a *account, now int64) {
			if a.open != 0 || a.rate-now > int64(3*time.Second) || a.handshakes > now || a.bytes[0].Load()-now > int64(longestDebt) || a.bytes[1].Load() > now {
				t.Fatalf("rate %v, handshakes %v, bytes %v", time.Duration(a.rate-now), a.handshakes, time.Duration(a.bytes[0].Load()-now))
			}
		}
		check(&s.sum.accounts[0], s.totals.since(now))
		for i := range c.table.sets {
			for j := range c.table.sets[i].accounts {
				check(&c.table.sets[i].accounts[j], c.each.since(now))
			}
		}
		stats := s.Stats()
		for _, d := range stats.Limits {
			if d.Allowed < 0 || d.Refused < 0 || d.WouldRefuse < 0 {
				t.Fatalf("%+v", d)
			}
		}
		once, err := s.Save()
		if err != nil {
			t.Fatal(err)
		}
		next := scope()
		if err := next.Restore(once); err != nil {
			t.Fatal(err)
		}
		if got := next.Stats(); !slices.Equal(got.Limits, stats.Limits) || got.Clients[0].Used > stats.Clients[0].Used {
			t.Fatalf("%+v, want %+v", got, stats)
		}
	})
}

// Whatever is said of bans, they are of some and not of all, no more than Size, and what is saved then is the same again.
func FuzzRestoreBans(f *testing.F) {
	b := new(Bans)
	_ = b.Ban(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "a reason")
	b.strike(netip.MustParseAddr("2001:db8::1"))
	saved, _ := b.Save()
	f.Add(saved)
	f.Add([]byte(`{"version":1,"state":{"refused":-1,"made":9223372036854775807,"bans":[{"prefix":"0.0.0.0/0","until":"2200-01-02T15:04:05Z"},{"prefix":"::ffff:192.0.2.1/128","until":"9999-01-02T15:04:05Z","forget":"0001-01-02T15:04:05Z","times":-5,"why":"a\nb"},{"prefix":"192.0.2.77/24","until":"2200-01-02T15:04:05Z"},{"prefix":"2001:db8::/32","until":"2000-01-02T15:04:05Z","forget":"9999-01-02T15:04:05Z"}]}}`))
	f.Fuzz(func(t *testing.T, saved []byte) {
		b := &Bans{Size: 4, Entries: 64}
		if b.Restore(saved) != nil {
			return
		}
		if err := b.Restore(saved); err != nil {
			t.Fatal(err)
		}
		stats := b.Stats()
		if len(b.records) > 4 || stats.Active > 4 || stats.Made < 0 || stats.Dropped < 0 || stats.Untold < 0 || stats.Decisions.Refused < 0 || stats.Decisions.WouldRefuse < 0 {
			t.Fatalf("%+v", stats)
		}
		for prefix, r := range b.records {
			if prefix.Bits() == 0 || prefix != prefix.Masked() || prefix.Addr().Is4In6() || strings.ContainsAny(r.Why, "\n\x00") || r.forget.Before(r.Until) || r.times < 0 {
				t.Fatalf("%+v", r)
			}
			if r.inForce(time.Now()) && !r.shadow && b.Denies(prefix.Addr()) == nil {
				t.Fatalf("%s is let in", prefix)
			}
		}
		next := &Bans{Size: 4, Entries: 64}
		once, err := b.Save()
		if err == nil {
			err = next.Restore(once)
		}
		if err != nil {
			t.Fatal(err)
		}
		words := func(b *Bans) string {
			all := make(map[string]string)
			for prefix, r := range b.records {
				all[prefix.String()] = fmt.Sprint(r.Until.UTC(), r.forget.UTC(), r.times, r.Why, r.shadow)
			}
			text, _ := json.Marshal(all)
			return string(text)
		}
		maps.DeleteFunc(b.records, func(_ netip.Prefix, r *record) bool { return !time.Now().Before(r.forget) }) // they may have ended meanwhile
		if got, want := words(next), words(b); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	})
}
