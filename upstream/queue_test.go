package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheOneThatWaitedLongestGetsTheFirstFreePlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a", "b"), &Pool{MaxConnections: 1})
		open := []*Conn{dial(t, p), dial(t, p)}
		type place struct {
			waiter int
			conn   *Conn
		}
		got := make(chan place, 10)
		for i := range 10 {
			go func() {
				c, err := p.Dial(context.Background(), Request{})
				if err != nil {
					t.Error(err)
					return
				}
				got <- place{i, c}
			}()
			synctest.Wait()
		}
		if s := p.Stats(); s.Queue != 10 || s.Queued != 10 {
			t.Errorf("%d of %d wait", s.Queue, s.Queued)
		}
		for i := range 10 {
			open[0].Close()
			next := <-got
			if next.waiter != i {
				t.Fatalf("waiter %d came before %d", next.waiter, i)
			}
			open = append(open[1:], next.conn)
		}
		for _, c := range open {
			c.Close()
		}
		if s := p.Stats(); s.Queue != 0 || s.Servers[0].Active+s.Servers[1].Active != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestAPlaceIsWaitedForNoLongerThanQueueTimeout(t *testing.T) {
	for _, c := range []struct {
		queue, total, want time.Duration
	}{
		{0, 0, 10 * time.Second},
		{3 * time.Second, 0, 3 * time.Second},
		{30 * time.Second, 0, 10 * time.Second},
		{3 * time.Second, -1, 3 * time.Second},
		{-1, 0, 0},
	} {
		bubble(t, func(t *testing.T) {
			p := found(t, newTown("a"), &Pool{MaxConnections: 1, QueueTimeout: c.queue, TotalTimeout: c.total})
			dial(t, p)
			began := time.Now()
			_, err := p.Dial(t.Context(), Request{})
			if !errors.Is(err, ErrUnavailable) || time.Since(began) != c.want {
				t.Errorf("%+v: after %v: %v", c, time.Since(began), err)
			}
			if s := p.Stats(); s.Queue != 0 {
				t.Errorf("%d still wait", s.Queue)
			}
		})
	}
}

func TestOnlySoManyMayWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{MaxConnections: 1, MaxQueue: 2})
		var served, queued atomic.Int32
		p.Trace = &Trace{Queued: func() { queued.Add(1) }}
		c := dial(t, p)
		for range 2 {
			go func() {
				if c, err := p.Dial(context.Background(), Request{}); err == nil {
					served.Add(1)
					c.Close()
				}
			}()
		}
		synctest.Wait()
		mustFail(t, p, "upstream test: no server available: a: as many connections as it may have; too many wait for a free connection")
		if s := p.Stats(); s.TurnedAway != 1 {
			t.Errorf("%d were turned away", s.TurnedAway)
		}
		c.Close()
		synctest.Wait()
		if served.Load() != 2 || queued.Load() != 2 {
			t.Errorf("%d waited and %d were served", queued.Load(), served.Load())
		}
	})
}

func TestWhoStopsWaitingTakesNoPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{MaxConnections: 1})
		c := dial(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if _, err := p.Dial(ctx, Request{}); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		c.Close()
		if s := p.Stats(); s.Queue != 0 || s.Servers[0].Active != 0 {
			t.Errorf("stats are %+v", s)
		}
		dial(t, p).Close()
	})
}

func TestServersThatComeServeThoseWhoWait(t *testing.T) {
	for name, come := range map[string]func(p *Pool, where town) error{
		"added":     func(p *Pool, where town) error { return p.Update(where.servers()) },
		"undrained": func(p *Pool, _ town) error { p.Undrain("b"); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				where := newTown("a", "b")
				p := found(t, where, &Pool{MaxConnections: 1})
				if name == "added" {
					p.Update([]Server{where.server("a")})
				}
				p.Drain("b")
				dial(t, p)
				got := make(chan string, 1)
				go func() { got <- use(p) }()
				synctest.Wait()
				where["b"].become(greets)
				if err := come(p, where); err != nil {
					t.Error(err)
				}
				if server := <-got; server != "b" {
					t.Errorf("got %s", server)
				}
			})
		})
	}
}

func TestWhoWaitsIsToldWhenNoServerIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{MaxConnections: 1})
		dial(t, p)
		got := make(chan string, 1)
		go func() { got <- use(p) }()
		synctest.Wait()
		p.Drain("a")
		if want := "upstream test: no server available: a: drained"; <-got != want {
			t.Errorf("did not get %s", want)
		}
	})
}

func TestNoServerEverHasMoreThanItsCap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		p := found(t, where, &Pool{MaxConnections: 4, MaxQueue: 10_000, TotalTimeout: time.Hour, Tries: 10})
		for _, h := range where {
			h.delay.Store(int64(time.Millisecond))
		}
		var served, over atomic.Int32
		for i := range 500 {
			go func() {
				c, err := p.Dial(context.Background(), Request{Key: uint64(i)})
				if err != nil {
					t.Error(err)
					return
				}
				if c.member.active.Load() > 4 {
					over.Add(1)
				}
				time.Sleep(time.Millisecond) // virtual time
				c.Close()
				served.Add(1)
			}()
		}
		advance(time.Minute)
		if served.Load() != 500 || over.Load() > 0 {
			t.Errorf("%d were served, %d over the cap", served.Load(), over.Load())
		}
		if s := fmt.Sprint(p.Stats().Queue); s != "0" {
			t.Errorf("%s wait", s)
		}
	})
}
