package upstream

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheConnectionsOfAServerThatIsDownAreCutAtARate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		var cuts atomic.Int64
		p := found(t, where, &Pool{
			Balance: LeastConnections, CutOnDown: true, CutRate: 10, Health: Health{Fall: 1},
			Trace: &Trace{Cut: func(server string) {
				if cuts.Add(1); server != "a" {
					t.Errorf("a connection to %s was cut", server)
				}
			}},
		})
		var clients []*puppet
		for range 100 {
			clients = append(clients, enter(t, p, 0))
		}
		nobody := dial(t, p) // has no Client: its socket is closed
		for nobody.Server() != "a" {
			nobody = dial(t, p)
		}
		atA := stats(t, p, "a").Active
		where["a"].become(refuses)
		run(t, p)
		advance(500 * time.Millisecond)
		p.mu.Lock()
		down := p.members["a"].down.Load()
		p.mu.Unlock()
		if !down {
			t.Fatal("it is not down")
		}
		before := cuts.Load()
		advance(2 * time.Second)
		if n := cuts.Load() - before; n < 19 || n > 21 {
			t.Errorf("%d were cut in 2 s", n)
		}
		advance(10 * time.Second)
		if cuts.Load() != atA {
			t.Errorf("%d of %d were cut", cuts.Load(), atA)
		}
		for _, c := range clients {
			cause := c.ended.Load()
			if atA := c.conn.Server() == "a"; atA != (cause != nil) || atA && !errors.Is(*cause, ErrServerDown) {
				t.Errorf("the client of %s has cause %v", c.conn.Server(), cause)
			}
		}
		if _, err := nobody.Read(make([]byte, 1)); err == nil {
			t.Error("the connection without a client lives")
		}
	})
}

// A connection that was being made when its server was declared down comes when all
// others are gone.
func TestAConnectionThatComesLateIsCutToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{CutOnDown: true, DialTimeout: time.Minute, TotalTimeout: time.Minute, Health: Health{Fall: 1}})
		where["a"].delay.Store(int64(10 * time.Second)) // which is too long for a check
		p.Drain("b")
		late := make(chan *Conn, 1)
		go func() { late <- dial(t, p) }() // ends with the dial
		synctest.Wait()
		p.Undrain("b")
		run(t, p)
		advance(5 * time.Second)
		if s := stats(t, p, "a"); s.State() != "down" || s.Active != 1 {
			t.Fatalf("stats are %+v", s)
		}
		c := <-late
		advance(2 * time.Second)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("it lives: %v", err)
		}
	})
}

func TestAServerThatComesBackDownIsCutOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{CutOnDown: true, CutRate: 1, Health: Health{Fall: 1}})
		for range 40 {
			enter(t, p, 0)
		}
		where["a"].become(refuses)
		run(t, p)
		advance(5 * time.Second)
		p.Update([]Server{where.server("b")})
		advance(5 * time.Second)
		had := stats(t, p, "a").Active
		p.Update(where.servers())
		advance(time.Minute)
		if has := stats(t, p, "a").Active; had < 10 || has > 0 {
			t.Errorf("%d of %d are left", has, had)
		}
	})
}

func TestNothingIsCutOnceTheServerIsUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{CutOnDown: true, CutRate: 1, Health: Health{Fall: 1, Rise: 1}})
		for range 100 {
			enter(t, p, 0)
		}
		where["a"].become(refuses)
		run(t, p)
		advance(3 * time.Second)
		where["a"].become(accepts)
		advance(6 * time.Second)
		cut := 50 - stats(t, p, "a").Active
		advance(time.Minute)
		if later := 50 - stats(t, p, "a").Active; cut == 0 || later != cut {
			t.Errorf("%d were cut before it was up, %d later", cut, later-cut)
		}
	})
}

func TestNothingIsCutWhenChecksAreNotBelieved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		p := found(t, where, &Pool{CutOnDown: true, Health: Health{Fall: 1}})
		for range 30 {
			enter(t, p, 0)
		}
		for _, h := range where {
			h.become(refuses)
		}
		for _, m := range p.members { // when the first of them is declared down it could be believed for a moment
			m.down.Store(m.name != "c")
		}
		p.reassess()
		run(t, p)
		advance(time.Minute)
		if got := stats(t, p, "c"); got.State() != "down" || got.Active != 10 {
			t.Errorf("it is %s and has %d connections", got.State(), got.Active)
		}
	})
}

func TestAServerThatComesBackGetsTheQuietestConnectionsOfTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		var moved atomic.Int64
		p := found(t, where, &Pool{
			Balance: LeastConnections, Rebalance: 5, Health: Health{Interval: -1}, SlowStart: -1,
			Trace: &Trace{Moved: func(string) { moved.Add(1) }},
		}, where.server("a"), where.server("b"))
		var clients []*puppet
		for i := range 60 {
			clients = append(clients, enter(t, p, time.Duration((i*7)%60)*time.Second))
		}
		dial(t, p) // has no Client: it is not asked
		run(t, p)
		advance(10 * time.Second)
		p.Update(where.servers())
		advance(time.Second)
		if n := moved.Load(); n < 4 || n > 6 {
			t.Errorf("%d were asked in a second", n)
		}
		// Those who were asked leave and come again.
		for range 20 {
			for i, c := range clients {
				if c.left.Load() != nil && c.conn.Server() != "c" {
					if !errors.Is(*c.left.Load(), ErrRebalancing) {
						t.Error(*c.left.Load())
					}
					if c.quiet < 30*time.Second { // 20 of 60, give or take what a tie decides
						t.Errorf("one was asked that was quiet for %v only", c.quiet)
					}
					c.conn.Close()
					clients[i] = enter(t, p, 0)
				}
			}
			advance(time.Second)
		}
		for _, s := range p.Stats().Servers {
			if s.Active < 19 || s.Active > 22 {
				t.Errorf("%s has %d connections", s.Name, s.Active)
			}
		}
		if n := moved.Load(); n > 22 {
			t.Errorf("%d were asked, for 20", n)
		}
	})
}

func TestRebalancingFollowsASlowStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{Rebalance: 1000, Health: Health{Interval: -1}, SlowStart: 10 * time.Second}, where.server("a"))
		var clients []*puppet
		for range 110 {
			clients = append(clients, enter(t, p, 0))
		}
		run(t, p)
		advance(time.Second)
		p.Update(where.servers())
		asked := func() (n int) {
			for _, c := range clients {
				if c.left.Load() != nil {
					n++
				}
			}
			return n
		}
		advance(900 * time.Millisecond) // weights 1 : 0.1
		if n := asked(); n < 9 || n > 11 {
			t.Errorf("%d of 110 were asked at first", n)
		}
		advance(time.Minute)
		if n := asked(); n < 50 || n > 56 {
			t.Errorf("%d of 110 were asked at last", n)
		}
	})
}

func TestATierThatWasStoodInForGetsItsConnectionsBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "d")
		p := found(t, where, &Pool{Rebalance: 100, Health: Health{Interval: -1}}, inTiers(where)...)
		declare(t, p, "a", true)
		var clients []*puppet
		for range 20 {
			clients = append(clients, enter(t, p, 0))
		}
		run(t, p)
		advance(time.Minute)
		declare(t, p, "a", false)
		advance(time.Minute)
		for i, c := range clients {
			if c.conn.Server() != "d" || c.left.Load() == nil {
				t.Errorf("client %d of %s was not asked to move back", i, c.conn.Server())
			}
		}
	})
}

func TestNobodyIsAskedToMoveByAHashingBalanceOrWithoutRebalance(t *testing.T) {
	for _, p := range []*Pool{{Balance: Maglev, Rebalance: 100}, {}} {
		bubble(t, func(t *testing.T) {
			where := newTown("a", "b")
			found(t, where, p, where.server("a"))
			client := enter(t, p, time.Hour)
			run(t, p)
			p.Update(where.servers())
			advance(time.Minute)
			if client.left.Load() != nil {
				t.Error("it was asked to leave")
			}
		})
	}
}
