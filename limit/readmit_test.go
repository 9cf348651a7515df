package limit_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/limit"
)

// A successor is the gate of a process that goes on with the connections of another, and one of its routes.
type successor struct {
	whole, route *limit.Scope
	gate         *limit.Gate
	routed       levee.Rerouter
}

func newSuccessor(each limit.Limits, shared limit.Shared) *successor {
	s := &successor{
		whole: &limit.Scope{
			Name: "public", Limits: limit.Limits{Connections: 100, Rate: limit.Rate{PerSecond: 100}},
			Clients: []*limit.Clients{{Limits: each}},
		},
		route: &limit.Scope{Name: "route", Limits: limit.Limits{Connections: 100}, Clients: []*limit.Clients{{Limits: each}}},
	}
	s.gate = &limit.Gate{Scopes: []*limit.Scope{s.whole}, Shared: shared}
	s.routed = s.gate.Route(s.route, echoing).(levee.Rerouter)
	return s
}

// takesOver serves connections that the successor counts as well, from when they are served until they end, as one
// does that takes them over.
func (s *successor) takesOver(t *testing.T) *leveetest.Listener {
	l := leveetest.Listen()
	h := levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		pass := s.gate.Readmit(c)
		c.AtEnd(func() { pass.Leave(c, levee.End{Reason: levee.ClientClosed}) })
		next, err := s.routed.Reroute(c)
		if err != nil {
			return err
		}
		return next.ServeTCP(ctx, c)
	})
	serve(t, &levee.Server{Handler: h, ProxyFrom: proxies}, l)
	return l
}

func open(s *limit.Scope) int64 { return s.Stats().Open }

func TestWhoWasLetInByAnotherProcessIsCountedAndNotAskedForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		each := limit.Limits{Connections: 2, Rate: limit.Rate{PerSecond: 1.0 / 3600, Burst: 1}}
		s := newSuccessor(each, nil)
		l := s.takesOver(t)
		var moved []*leveetest.Conn
		for range 3 { // one more than may come in, and more than any rate has
			c := from(t, l, "2001:db8::7")
			isServed(t, c)
			moved = append(moved, c)
		}
		for _, scope := range []*limit.Scope{s.whole, s.route} {
			if n := open(scope); n != 3 {
				t.Errorf("%s: %d open, want 3", scope.Name, n)
			}
			for _, d := range scope.Stats().Limits {
				if d.Allowed+d.Refused+d.WouldRefuse > 0 {
					t.Errorf("it has decided: %+v", d)
				}
			}
		}
		newcomers := leveetest.Listen()
		serve(t, &levee.Server{Handler: s.routed, Gate: s.gate, ProxyFrom: proxies}, newcomers)
		isTurnedAway(t, from(t, newcomers, "2001:db8::7"))
		isServed(t, from(t, newcomers, "2001:db8:0:1::7"))
		for _, c := range moved {
			c.Close()
		}
		synctest.Wait()
		isServed(t, from(t, newcomers, "2001:db8::7")) // whose rate nobody has charged
		synctest.Wait()
		if whole, route := open(s.whole), open(s.route); whole != 2 || route != 2 {
			t.Errorf("%d and %d open, want 2 each", whole, route)
		}
	})
}

func TestWhoWasLetInByAnotherProcessIsPacedLikeTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessor(limit.Limits{Bandwidth: limit.Bandwidth{Up: 1e6}}, nil)
		l := s.takesOver(t)
		begin := time.Now()
		for range 2 {
			go func(c *leveetest.Conn) {
				_, _ = c.Write(make([]byte, 5e6))
				_ = c.CloseWrite()
			}(from(t, l, "192.0.2.1"))
		}
		for open(s.whole) == 0 {
			time.Sleep(time.Millisecond) // virtual time
		}
		for open(s.whole) > 0 { // which looks at the whole of a table
			time.Sleep(time.Second / 4) // virtual time
		}
		if took := time.Since(begin); took < 9*time.Second {
			t.Errorf("two times 5 MB took %s, at 1 MB/s for both", took)
		}
	})
}

// held counts what a machine holds of limits that it shares.
type held struct{ open, asked atomic.Int64 }

func (h *held) Claim(context.Context, []limit.Claim) (int, error) {
	h.asked.Add(1)
	return -1, errors.New("out of reach")
}
func (h *held) Hold(claims []limit.Claim)    { h.open.Add(int64(len(claims))) }
func (h *held) Release(claims []limit.Claim) { h.open.Add(-int64(len(claims))) }

func TestOtherMachinesAreToldOfWhoWasLetInByAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(held)
		s := newSuccessor(limit.Limits{Connections: 1, Shared: true}, h)
		l := s.takesOver(t)
		c := from(t, l, "192.0.2.1")
		isServed(t, c)
		isServed(t, from(t, l, "192.0.2.1"))
		if n := h.open.Load(); n != 4 || h.asked.Load() > 0 { // of the gate and of the route
			t.Errorf("%d are held, and it was asked %d times", n, h.asked.Load())
		}
		c.Close()
		synctest.Wait()
		if n := h.open.Load(); n != 2 {
			t.Errorf("%d are held by one connection, want 2", n)
		}
	})
}

// only is a Router that cannot tell what another process has decided.
type only struct{}

func (only) Route(context.Context, *levee.Conn) (levee.Handler, error) { return echoing, nil }
func (only) ServeTCP(context.Context, *levee.Conn) error               { return nil }

func TestWhatCannotGoOnIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessor(limit.Limits{}, nil)
		s.routed = s.gate.Route(s.route, only{}).(levee.Rerouter)
		c := from(t, s.takesOver(t), "192.0.2.1")
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("it is served: %d bytes", n)
		}
		c.Close()
		synctest.Wait()
		if whole, route := open(s.whole), open(s.route); whole != 0 || route != 0 {
			t.Errorf("%d and %d are still counted", whole, route)
		}
	})
}
