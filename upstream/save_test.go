package upstream

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// succeed returns the pool of another process, in the same town, that knows what p has saved. It has been told of the
// servers before, or is after that.
func succeed(t *testing.T, where town, p, next *Pool, toldBefore bool) *Pool {
	t.Helper()
	saved, err := p.Save()
	if err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := next.Restore(saved); err != nil {
			t.Fatal(err)
		}
	}
	if !toldBefore {
		restore()
	}
	found(t, where, next)
	if toldBefore {
		restore()
	}
	return next
}

func inBothOrders(t *testing.T, test func(t *testing.T, toldBefore bool)) {
	for _, toldBefore := range []bool{false, true} {
		t.Run(fmt.Sprintf("told before %t", toldBefore), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, toldBefore) })
		})
	}
}

func TestWhatWasCountedGoesOnInAnotherProcess(t *testing.T) {
	inBothOrders(t, func(t *testing.T, toldBefore bool) {
		where := newTown("a", "b")
		where["b"].become(refuses)
		p := found(t, where, new(Pool))
		for range 4 {
			c := dial(t, p)
			c.Write([]byte("12345"))
			advance(2 * time.Second)
			c.Close()
		}
		want := p.Stats()
		next := succeed(t, where, p, new(Pool), toldBefore)
		same := func(got, want ServerStats) bool {
			got.Weight, want.Weight = 0, 0 // it may start slowly
			return fmt.Sprint(got) == fmt.Sprint(want)
		}
		if got := next.Stats(); got.Retries != want.Retries || !slices.EqualFunc(got.Servers, want.Servers, same) {
			t.Errorf("got\n%+v, want\n%+v", got, want)
		}
		if got := stats(t, next, "b"); got.Dials == 0 || got.Failures[Refused] != got.Dials {
			t.Errorf("%+v", got)
		}

		// It is told again, when more has been counted in both.
		before := stats(t, p, "a")
		dial(t, next).Close()
		dial(t, p).Close()
		saved, _ := p.Save()
		if err := next.Restore(saved); err != nil {
			t.Fatal(err)
		}
		if got := stats(t, next, "a"); got.Dials != before.Dials+2 || got.Sent != before.Sent {
			t.Errorf("%d dials and %d bytes sent, want %d and %d", got.Dials, got.Sent, before.Dials+2, before.Sent)
		}
	})
}

func TestAServerThatIsLeftAloneIsSoInAnotherProcess(t *testing.T) {
	inBothOrders(t, func(t *testing.T, toldBefore bool) {
		where := newTown("broken", "down", "drained", "slow", "well")
		where["broken"].become(refuses)
		where["slow"].delay.Store(int64(50 * time.Millisecond))
		p := found(t, where, &Pool{Health: Health{Fall: 1, FastInterval: -1}})
		for stats(t, p, "broken").Breaker != BreakerOpen || stats(t, p, "slow").Latency == 0 {
			dial(t, p).Close()
		}
		p.members["down"].judge(errReason("no answer from its disk"))
		p.Drain("drained")
		advance(4 * time.Second)
		latency := stats(t, p, "slow").Latency

		next := succeed(t, where, p, &Pool{Health: Health{Fall: 1, FastInterval: -1}}, toldBefore)
		got := make(map[string]string)
		for _, s := range next.Stats().Servers {
			got[s.Name] = s.State()
		}
		want := map[string]string{"broken": "breaker_open", "down": "down", "drained": "drained", "slow": "up", "well": "up"}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if s := stats(t, next, "down"); s.HealthError == nil || s.HealthError.Error() != "no answer from its disk" || s.Checked.IsZero() {
			t.Errorf("%+v", s)
		}
		if got := stats(t, next, "slow").Latency; got != latency {
			t.Errorf("%v to connect, want %v", got, latency)
		}
		for range 20 {
			if c := dial(t, next); c.Server() != "slow" && c.Server() != "well" {
				t.Errorf("a connection to %s", c.Server())
			}
		}
		where["broken"].become(accepts)
		advance(7 * time.Second) // of 10
		if s := stats(t, next, "broken"); s.Breaker != BreakerHalfOpen {
			t.Errorf("it is %v", s.Breaker)
		}
		run(t, next)
		advance(6 * time.Second)
		if s := stats(t, next, "down"); !s.Healthy { // by a check of its own; Rise is 2
			advance(6 * time.Second)
			if s := stats(t, next, "down"); !s.Healthy {
				t.Error("it stays down for ever")
			}
		}
	})
}

// errReason is what a check has found.
type errReason string

func (e errReason) Error() string { return string(e) }

// While the pool runs it knows better than what another process knew.
func TestAPoolThatRunsTakesOverCountsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, new(Pool))
		dial(t, p).Close()
		declare(t, p, "a", true)
		p.members["a"].judge(errReason("not well"))
		saved, _ := p.Save()
		next := found(t, where, new(Pool))
		run(t, next)
		synctest.Wait()
		if err := next.Restore(saved); err != nil {
			t.Fatal(err)
		}
		if s := stats(t, next, "a"); !s.Healthy || s.Dials != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAConnectionOfAnotherProcessCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{Balance: LeastConnections, MaxConnections: 2})
		var ends []func(End)
		for range 3 { // one more than MaxConnections
			ended, err := p.Resume("a", nil)
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, ended)
		}
		for range 2 {
			if c := dial(t, p); c.Server() != "b" {
				t.Errorf("a connection to %s, which has 3", c.Server())
			}
		}
		if s := stats(t, p, "a"); s.Active != 3 || s.Dials != 0 {
			t.Errorf("%+v", s)
		}
		// At once, and without a byte: of that the other process has told the breaker.
		for _, ended := range ends {
			ended(End{ByServer: true})
			ended(End{ByServer: true, Sent: 1}) // is no other end
		}
		if s := stats(t, p, "a"); s.Active != 0 || s.EarlyCloses != 0 || s.Breaker != BreakerClosed || s.Sent != 0 {
			t.Errorf("%+v", s)
		}
		if ended, err := p.Resume("a", nil); err != nil {
			t.Error(err)
		} else if ended(End{Sent: 3, Received: 4}); stats(t, p, "a").Sent != 3 || stats(t, p, "a").Received != 4 {
			t.Errorf("%+v", stats(t, p, "a"))
		}
		for _, name := range []string{"", strings.Repeat("a", 5000)} {
			if _, err := p.Resume(name, nil); err == nil {
				t.Errorf("a server named %.10q", name)
			}
		}
	})
}

func TestAServerThatHasLeftIsThereForConnectionsOfAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, new(Pool), where.server("a"))
		one, _ := p.Resume("b", nil)
		other, _ := p.Resume("b", nil)
		if s := stats(t, p, "b"); s.State() != "left" || s.Active != 2 {
			t.Errorf("%+v", s)
		}
		for range 10 {
			if c := dial(t, p); c.Server() != "a" {
				t.Errorf("a connection to %s", c.Server())
			}
		}
		one(End{})
		if err := p.Update(where.servers()); err != nil {
			t.Fatal(err)
		}
		if s := stats(t, p, "b"); s.State() != "up" || s.Active != 1 {
			t.Errorf("it is back: %+v", s)
		}
		if err := p.Update([]Server{where.server("a")}); err != nil {
			t.Fatal(err)
		}
		other(End{})
		if all := p.Stats().Servers; len(all) != 1 || len(p.members) != 1 {
			t.Errorf("it is not forgotten: %+v", all)
		}
	})
}

// asked is a Client that counts what it is asked.
type asked struct{ left, cut atomic.Int32 }

func (*asked) Quiet() time.Duration { return time.Minute }
func (a *asked) Leave(error)        { a.left.Add(1) }
func (a *asked) Cut(error)          { a.cut.Add(1) }

func TestConnectionsOfAnotherProcessAreMovedAndCutToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{CutOnDown: true, Rebalance: 100})
		client := new(asked)
		for _, c := range []Client{client, client, nil} { // the last cannot be reached
			if _, err := p.Resume("a", c); err != nil {
				t.Fatal(err)
			}
		}
		run(t, p)
		advance(time.Second)
		if n := client.left.Load(); n != 1 { // b should have half of them, and one and a half is one
			t.Errorf("%d were asked to move to b, want 1", n)
		}
		where["a"].become(refuses)
		advance(20 * time.Second)
		if n := client.cut.Load(); n != 2 {
			t.Errorf("%d were cut, want 2", n)
		}
	})
}

func TestWhatCannotBeReadChangesNothing(t *testing.T) {
	p := found(t, newTown("a"), new(Pool))
	for _, text := range []string{`{`, `{"version":2,"state":{}}`, `{"version":1,"state":{"servers":[{"health":{"at":"now"}}]}}`, strings.Repeat(" ", mostSaved+1)} {
		if err := p.Restore([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), "upstream test: ") {
			t.Errorf("%.50s: %v", text, err)
		}
	}
	if err := p.Restore(nil); err != nil {
		t.Error(err)
	}
}

// Whatever is said, the pool's own terms hold, counts are counts, and what it then saves another believes as it is.
func FuzzRestore(f *testing.F) {
	p := &Pool{}
	_ = p.Update([]Server{{Name: "127.0.0.1:1"}})
	_, _ = p.Resume("gone", nil)
	p.members["127.0.0.1:1"].breaker.Trip()
	saved, _ := p.Save()
	f.Add(saved)
	f.Add([]byte(`{"version":1,"at":-9000000000000000000,"state":{"counts":{"queued":-1},"servers":[{"name":"127.0.0.1:1","breaker":{"state":2,"left":9223372036854775807,"pause":-5},"rising":9223372036854775807,"latency":9223372036854775807,"counts":{"dials":9223372036854775807,"failures":{"refused":-3,"x":1}}},{"name":""}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		restored := func(b []byte) (*Pool, error) {
			p := new(Pool)
			if err := p.Update([]Server{{Name: "127.0.0.1:1"}}); err != nil {
				t.Fatal(err)
			}
			err := p.Restore(b)
			if err == nil {
				err = p.Restore(b) // the same again is no more
			}
			return p, err
		}
		p, err := restored(b)
		m := p.members["127.0.0.1:1"]
		if err != nil {
			if s := m.save(); s.Counts.Dials != 0 || s.Breaker.State != 0 || s.Drained || s.Health != nil {
				t.Fatalf("%v, and yet: %+v", err, s)
			}
			return
		}
		s := p.Stats()
		for _, n := range []int64{s.Queued, s.TurnedAway, s.Retries, s.BudgetExhausted, s.Refused, s.GaveUp} {
			if n < 0 {
				t.Fatalf("%+v", s)
			}
		}
		server := s.Servers[0]
		if server.Dials < 0 || server.Sent < 0 || server.Received < 0 || server.EarlyCloses < 0 || server.Failures[Refused] < 0 ||
			server.Weight <= 0 || server.Weight > 1 || server.Latency > time.Hour || server.Checked.After(time.Now()) ||
			time.Until(m.breaker.Until()) > time.Minute {
			t.Fatalf("%+v, open until %v", server, m.breaker.Until())
		}
		once, err := p.Save()
		if err != nil {
			t.Fatal(err)
		}
		q, err := restored(once)
		if err != nil {
			t.Fatalf("it does not read what it has written: %v", err)
		}
		if was, is := p.Stats(), q.Stats(); !alike(was, is) {
			t.Fatalf("saved\n%+v, restored\n%+v", was, is)
		}
	})
}

// alike compares what does not change as time passes.
func alike(a, b Stats) bool {
	for _, s := range []*Stats{&a, &b} {
		for i := range s.Servers {
			server := &s.Servers[i]
			server.Weight, server.Latency, server.HealthError, server.Breaker = 0, 0, nil, 0
			server.Checked = server.Checked.UTC()
		}
	}
	one, _ := json.Marshal(a)
	other, _ := json.Marshal(b)
	return string(one) == string(other)
}
