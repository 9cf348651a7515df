package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnUpdateThatIsWrongChangesNothing(t *testing.T) {
	for _, c := range []struct {
		servers []Server
		tls     *tls.Config
		want    string
	}{
		{[]Server{{}}, nil, "server 1: it has neither name nor address"},
		{[]Server{{Name: "db1"}}, nil, `server db1: address "db1": missing port in address`},
		{[]Server{{Name: "db1:x"}}, nil, `server db1:x: address "db1:x": the port is a number from 1 to 65535`},
		{[]Server{{Name: "db1:0"}}, nil, `server db1:0: address "db1:0": the port is a number from 1 to 65535`},
		{[]Server{{Name: ":5432"}}, nil, `server :5432: address ":5432": no host`},
		{[]Server{{Name: "unix:"}}, nil, `server unix:: address "unix:": no path`},
		{[]Server{{Addresses: []string{"a:1"}}, {Name: "a:1"}}, nil, "server a:1: there are two of this name"},
		{[]Server{{Name: "a:1", Weight: -1}}, nil, "server a:1: weight -1 is negative"},
		{[]Server{{Name: "a:1", Tier: -1}}, nil, "server a:1: tier -1 is negative"},
		{
			[]Server{{Name: "unix:/run/a"}},
			&tls.Config{},
			"server unix:/run/a: it has no host that a certificate could be for: TLS needs a ServerName",
		},
	} {
		p := &Pool{Name: "test", TLS: c.tls}
		if err := p.Update([]Server{{Name: "well:1"}}); err != nil {
			t.Fatal(err)
		}
		err := p.Update(append([]Server{{Name: "new:1"}}, c.servers...))
		want := strings.Replace(c.want, "server 1:", "server 2:", 1)
		if err == nil || err.Error() != "upstream test: "+want {
			t.Errorf("got %v, want %s", err, want)
		}
		if s := p.Stats().Servers; len(s) != 1 || s[0].Name != "well:1" {
			t.Errorf("the servers are %+v", s)
		}
	}
	if err := (&Pool{Balance: 99}).Update(nil); err == nil {
		t.Error("there is a balance 99")
	}
}

func TestAServerThatLeavesKeepsItsConnectionsAndGetsNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		var news []string
		p := found(t, where, &Pool{Trace: &Trace{
			ServerAdded: func(server string) { news = append(news, "+"+server) },
			ServerLeft:  func(server string) { news = append(news, "-"+server) },
		}})
		a := dial(t, p)
		p.Update([]Server{where.server("b")})
		for range 10 {
			if got := useQuietly(t, p); got != "b" {
				t.Fatalf("got %s", got)
			}
		}
		if s := stats(t, p, a.Server()); s.State() != "left" || s.Active != 1 {
			t.Errorf("stats are %+v", s)
		}
		a.Close()
		if s := p.Stats().Servers; len(s) != 1 {
			t.Errorf("the servers are %+v", s)
		}
		if got := strings.Join(news, " "); got != "+a +b -a" {
			t.Errorf("the news was %s", got)
		}
	})
}

func TestAServerThatComesBackIsRememberedWhileItHasConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		a, b := dial(t, p), dial(t, p)
		p.Drain("a")
		dial(t, p).Ended(End{ByServer: true}) // opens b's breaker
		p.Update(nil)
		mustFail(t, p, "upstream test: no server available: no servers are known")
		p.Update(where.servers())
		if a, b := stats(t, p, "a"), stats(t, p, "b"); a.State() != "drained" || b.State() != "breaker_open" {
			t.Errorf("they are %s and %s", a.State(), b.State())
		}
		p.Update(nil)
		a.Close()
		b.Close()
		p.Update(where.servers())
		if a, b := stats(t, p, "a"), stats(t, p, "b"); a.State() != "up" || b.State() != "up" {
			t.Errorf("they are %s and %s", a.State(), b.State())
		}
	})
}

// Update cannot forget a server that a dial has just picked; so the dial does.
func TestAServerThatLeavesWhileItIsPickedIsForgotten(t *testing.T) {
	where := newTown("a", "b")
	p := found(t, where, &Pool{})
	a := p.members["a"]
	a.active.Add(1) // the dial is in the middle of seize
	p.Update([]Server{where.server("b")})
	a.active.Add(-1)
	if a.seize() {
		t.Error("a server that left was seized")
	}
	if s := p.Stats().Servers; len(s) != 1 {
		t.Errorf("the servers are %+v", s)
	}
}

func TestDrainLastsThroughUpdatesUntilUndrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{})
		if !p.Drain("a") || p.Drain("x") || p.Undrain("x") {
			t.Error("the answers are wrong")
		}
		p.Update(where.servers())
		for range 4 {
			if got := useQuietly(t, p); got != "b" {
				t.Fatalf("got %s", got)
			}
		}
		p.Undrain("a")
		time.Sleep(time.Minute) // virtual time
		if got := []string{useQuietly(t, p), useQuietly(t, p)}; got[0] == got[1] {
			t.Errorf("got %s", got)
		}
	})
}

func TestAServerThatComesLaterIsGivenLittleAtFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{SlowStart: 10 * time.Second}, where.server("a"))
		if w := stats(t, p, "a").Weight; w != 1 {
			t.Errorf("the first has weight %v", w)
		}
		b := where.server("b")
		b.Weight = 2
		p.Update([]Server{where.server("a"), b})
		for _, c := range []struct {
			after time.Duration
			want  float64
		}{{0, 0.2}, {time.Second, 0.2}, {4 * time.Second, 1}, {5 * time.Second, 2}, {time.Hour, 2}} {
			time.Sleep(c.after) // virtual time
			if w := stats(t, p, "b").Weight; math.Abs(w-c.want) > 0.001 {
				t.Errorf("%v later it has weight %v, want %v", c.after, w, c.want)
			}
		}
	})
}

func TestSlowStartMayBeOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{SlowStart: -1}, where.server("a"))
		p.Update(where.servers())
		if w := stats(t, p, "b").Weight; w != 1 {
			t.Errorf("it has weight %v", w)
		}
	})
}

func TestHashingBalancesStartNoServerSlowly(t *testing.T) {
	for _, balance := range []Balance{SourceHash, Maglev} {
		bubble(t, func(t *testing.T) {
			where := newTown("a", "b", "c")
			p := found(t, where, &Pool{Balance: balance}, where.server("a"), where.server("b"))
			p.Update(where.servers())
			declare(t, p, "a", true)
			declare(t, p, "a", false)
			at := func(key int) string {
				c, err := p.Dial(t.Context(), Request{Key: Hash([]byte{byte(key)})})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				return c.Server()
			}
			before := make([]string, 100)
			for key := range before {
				before[key] = at(key)
			}
			time.Sleep(time.Minute) // virtual time
			for key, server := range before {
				if now := at(key); now != server {
					t.Errorf("%v: key %d has moved from %s to %s", balance, key, server, now)
				}
			}
		})
	}
}

func TestAServerWhoseBreakerClosesIsGivenLittleAtFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := halfOpen(t, newTown("a"), Breaker{Probes: 1})
		dial(t, p).FirstByte()
		if w := stats(t, p, "a").Weight; w != 0.1 {
			t.Errorf("it has weight %v", w)
		}
	})
}

// inTiers are three servers of tier 0 and two of tier 7.
func inTiers(where town) (servers []Server) {
	for _, s := range where.servers() {
		if s.Name > "c" {
			s.Tier = 7
		}
		servers = append(servers, s)
	}
	return servers
}

// picks returns who gets connections.
func picks(t *testing.T, p *Pool) string {
	t.Helper()
	var got []string
	for range 20 {
		got = append(got, useQuietly(t, p))
	}
	slices.Sort(got)
	return strings.Join(slices.Compact(got), "")
}

func TestAHigherTierStandsBy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c", "d", "e")
		p := found(t, where, &Pool{SlowStart: -1}, inTiers(where)...)
		check := func(when, want string) {
			t.Helper()
			if got := picks(t, p); got != want {
				t.Errorf("%s, %s get connections, want %s", when, got, want)
			}
		}
		check("when all are well", "abc")
		declare(t, p, "a", true)
		check("when one is down", "bc")
		declare(t, p, "b", true)
		check("when most are down", "de")
		declare(t, p, "d", true)
		check("when half of the other tier is down too", "e")
		declare(t, p, "e", true)
		check("when nobody is believed", "abc")
		if got := p.Stats().Panic; len(got) != 2 {
			t.Errorf("there is panic in tiers %v", got)
		}
		declare(t, p, "a", false)
		check("when two of three can do without panic", "ac")
		for _, name := range []string{"a", "c"} {
			p.Drain(name)
		}
		check("when the well ones are drained", "b")
	})
}

func TestChecksAreAlwaysBelievedWithoutAPanicThreshold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		p := found(t, where, &Pool{PanicThreshold: -1})
		declare(t, p, "a", true)
		declare(t, p, "b", true)
		if got := picks(t, p); got != "c" {
			t.Errorf("%s get connections", got)
		}
		declare(t, p, "c", true)
		mustFail(t, p, "upstream test: no server available: a: down; b: down; c: down")
	})
}

func TestBreakersAreBelievedInPanicToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		where["a"].become(refuses)
		picks(t, p)
		for name := range where {
			declare(t, p, name, true)
		}
		if got := picks(t, p); got != "bc" {
			t.Errorf("%s get connections", got)
		}
	})
}

func TestATierThatIsFullIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "d")
		p := found(t, where, &Pool{MaxConnections: 1}, inTiers(where)...)
		a := dial(t, p)
		time.AfterFunc(time.Second, func() { a.Close() })
		began := time.Now()
		if got := useQuietly(t, p); got != "a" || time.Since(began) != time.Second {
			t.Errorf("got %s after %v", got, time.Since(began))
		}
	})
}

func TestAStandbyIsTriedBeforeTheSameServerAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "d")
		where["a"].become(refuses)
		p := found(t, where, &Pool{}, inTiers(where)...)
		if got := useQuietly(t, p); got != "d" {
			t.Errorf("got %s", got)
		}
	})
}

func TestAKeyStaysWithItsServer(t *testing.T) {
	for _, balance := range []Balance{SourceHash, Maglev} {
		bubble(t, func(t *testing.T) {
			where := newTown("a", "b", "c", "d", "e")
			p, again := found(t, where, &Pool{Balance: balance}), found(t, where, &Pool{Balance: balance})
			seen := map[string]bool{}
			for i := range 100 {
				r := Request{Key: Hash([]byte{byte(i)})}
				one, err := p.Dial(t.Context(), r)
				two, err2 := again.Dial(t.Context(), r)
				if err != nil || err2 != nil || one.Server() != two.Server() {
					t.Fatalf("%v: key %d leads to %v and %v", balance, i, one, two)
				}
				seen[one.Server()] = true
			}
			if len(seen) != 5 {
				t.Errorf("%v: keys lead to %v", balance, seen)
			}
		})
	}
}

func TestBalancesHaveWords(t *testing.T) {
	for _, b := range []Balance{RoundRobin, LeastConnections, PowerOfTwo, SourceHash, Maglev} {
		parsed, err := ParseBalance(b.String())
		if err != nil || parsed != b {
			t.Errorf("%v is read as %v, %v", b, parsed, err)
		}
	}
	if _, err := ParseBalance("random"); err == nil || !strings.Contains(err.Error(), "least_connections") {
		t.Errorf("got %v", err)
	}
	if got := Balance(99).String(); got != "Balance(99)" {
		t.Errorf("got %s", got)
	}
}

func TestEveryBalanceDials(t *testing.T) {
	for _, b := range []Balance{RoundRobin, LeastConnections, PowerOfTwo, SourceHash, Maglev} {
		bubble(t, func(t *testing.T) {
			p := found(t, newTown("a", "b", "c"), &Pool{Balance: b})
			for i := range 30 {
				c, err := p.Dial(t.Context(), Request{Key: Hash([]byte{byte(i)})})
				if err != nil {
					t.Fatal(err)
				}
				c.FirstByte()
			}
			total := int64(0)
			for _, s := range p.Stats().Servers {
				total += s.Active
			}
			if total != 30 {
				t.Errorf("%v: %d connections", b, total)
			}
		})
	}
}

func TestUpdatesUnderLoadLoseNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c", "d")
		all := where.servers()
		p := found(t, where, &Pool{Balance: LeastConnections})
		for _, h := range where {
			h.become(greets)
			h.delay.Store(int64(time.Millisecond))
		}
		var served atomic.Int32
		stop := make(chan struct{})
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(300 * time.Microsecond):
				}
				if err := p.Update([]Server{all[i%4], all[(i+1)%4]}); err != nil {
					t.Error(err)
				}
			}
		}()
		var clients sync.WaitGroup
		for range 50 {
			clients.Go(func() {
				for range 20 {
					if got := use(p); len(got) != 1 {
						t.Error(got)
						return
					}
					served.Add(1)
				}
			})
		}
		clients.Wait()
		close(stop)
		synctest.Wait()
		p.Update(nil)
		if served.Load() != 1000 || len(p.Stats().Servers) != 0 {
			t.Errorf("%d were served, and there are left %+v", served.Load(), p.Stats().Servers)
		}
	})
}

func TestDialsUpdatesDrainsAndHealthAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c", "d")
		all := where.servers()
		p := &Pool{
			MaxConnections: 10, Rebalance: 1000, CutOnDown: true, CutRate: 1000,
			EarlyClose: 5 * time.Millisecond, Breaker: Breaker{Open: 10 * time.Millisecond},
			Health: Health{Interval: 5 * time.Millisecond, FastInterval: time.Millisecond, Fall: 1, Rise: 1},
		}
		p.Trace = &Trace{ // hooks may use the pool
			ServerAdded:    func(string) { p.Stats() },
			ServerDown:     func(string, error) { p.Stats() },
			BreakerChanged: func(string, BreakerState, BreakerState) { p.Stats() },
		}
		found(t, where, p)
		ctx, stop := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() { p.Run(ctx) })
		every := func(pause time.Duration, f func(i int)) {
			others.Go(func() {
				for i := 0; rest(ctx, pause); i++ {
					f(i)
				}
			})
		}
		every(900*time.Microsecond, func(i int) { p.Update(all[i%3 : i%3+2]) })
		every(700*time.Microsecond, func(i int) { p.Drain(all[i%4].Name) })
		every(500*time.Microsecond, func(i int) { p.Undrain(all[i%4].Name) })
		every(1100*time.Microsecond, func(i int) { where[all[i%4].Name].become(int32(i % 5)) })
		every(time.Millisecond, func(int) { p.Stats() })
		var clients sync.WaitGroup
		for i := range 50 {
			clients.Go(func() {
				for range 20 {
					client := &puppet{quiet: time.Duration(i)}
					dialCtx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					c, err := p.Dial(dialCtx, Request{Key: uint64(i), Client: client})
					cancel()
					if err != nil {
						continue
					}
					client.conn = c
					c.SetDeadline(time.Now().Add(time.Millisecond))
					c.Read(make([]byte, 1))
					c.Close()
				}
			})
		}
		clients.Wait()
		stop()
		others.Wait()
		for _, s := range p.Stats().Servers {
			if s.Active != 0 {
				t.Errorf("%+v", s)
			}
		}
		for _, m := range p.members {
			if m.first != nil || m.last != nil || m.undecided != nil || m.leaving != 0 {
				t.Errorf("%s has remains", m.name)
			}
		}
	})
}

func TestThePoolRunsOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{})
		run(t, p)
		synctest.Wait()
		if err := p.Run(t.Context()); !errors.Is(err, errRunning) {
			t.Errorf("got %v", err)
		}
	})
}

func TestStateIsTheWordForWhatSpeaksMostAgainstAServer(t *testing.T) {
	for want, s := range map[string]ServerStats{
		"left":         {Left: true, Drained: true, Healthy: true},
		"drained":      {Drained: true, Breaker: BreakerOpen},
		"breaker_open": {Breaker: BreakerOpen},
		"down":         {Breaker: BreakerHalfOpen},
		"half_open":    {Healthy: true, Breaker: BreakerHalfOpen},
		"up":           {Healthy: true},
	} {
		if got := s.State(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := fmt.Sprint(BreakerClosed, BreakerHalfOpen, BreakerOpen); got != "closed half_open open" {
		t.Errorf("got %s", got)
	}
}
