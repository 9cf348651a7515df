package levee

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
)

// Settings are what connections are let in and served by: a Server's fields, with the
// defaults filled in, as they were when it began, or those of a later Reconfigure. They
// never change. A connection takes those that are in force when it is accepted, and keeps
// them for life.
type settings struct {
	generation uint64 // from 1
	handler    Handler
	route      string
	stepper    Stepper // the handler, if that is one and connections need no arrival
	joiner     Joiner  // the same
	gate       Gate
	tls        *tls.Config
	plaintext  bool
	proxyFrom  []netip.Prefix
	limits     limits
	onLoops    loopLimits

	users atomic.Int64  // connections, and the server while they are in force
	over  chan struct{} // closed when there are none any more
}

func (s *Server) newSettings(generation uint64) *settings {
	t := &settings{
		generation: generation,
		handler:    s.Handler,
		route:      s.Route,
		gate:       s.Gate,
		tls:        s.TLSConfig,
		plaintext:  s.AllowPlaintext,
		proxyFrom:  s.ProxyFrom,
		limits:     s.effectiveLimits(),
		over:       make(chan struct{}),
	}
	if t.needsNoArrival() {
		t.stepper, _ = t.handler.(Stepper)
		t.joiner, _ = t.handler.(Joiner)
	}
	t.onLoops = t.limits.onLoops()
	t.users.Store(1)
	return t
}

// hold counts one more user, and reports false if the last has gone already.
func (t *settings) hold() bool {
	for n := t.users.Load(); n > 0; n = t.users.Load() {
		if t.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

func (t *settings) letGo() {
	if t.users.Add(-1) == 0 {
		close(t.over)
	}
}

// takesBare reports whether connections may be accepted as bare sockets.
func (t *settings) takesBare() bool { return t.stepper != nil || t.joiner != nil }

// needsNoArrival reports whether a connection can go from accept to its handler at once.
func (t *settings) needsNoArrival() bool {
	_, isRouter := t.handler.(Router)
	return !isRouter && t.tls == nil && len(t.proxyFrom) == 0
}

// holdSettings returns what a connection that has just been accepted is served by.
func (s *Server) holdSettings() *settings {
	for {
		if t := s.inForce.Load(); t.hold() {
			return t
		}
	}
}

// Reconfigure has the server serve the connections to come by the fields of another, which
// is itself not used for anything: Handler, Route, Gate, TLSConfig, AllowPlaintext, ProxyFrom,
// MaxConns, MaxArrivals, MaxHandshakes and all durations but StepBudget. They
// are in force when it returns, all at once: no connection is served by some of the old and
// some of the new. The connections that are there are not touched, and go on by what let
// them in; under a MaxConns that is lower all of them stay, and there is no room for
// newcomers until enough have left. DrainTimeout and DrainSpread are also those of the server itself.
//
// Name, Trace, Logger, StepBudget and GoroutinePerConn must be the same: they are the server's
// for life. An error says what cannot be, and then nothing has changed. The server's own fields
// are not written to.
//
// The channel that it returns is closed when the last connection has ended that was let in
// by the settings before: what only those needed can be closed then.
//
// It may be called at any time, before Serve too, and from several goroutines.
func (s *Server) Reconfigure(like *Server) (past <-chan struct{}, err error) {
	if err := s.canBecome(like); err != nil {
		return nil, err
	}
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.inForce.Load()
	now := like.newSettings(before.generation + 1)
	s.inForce.Store(now)
	s.slots.resize(now.limits.conns)
	s.handshakes.resize(now.limits.handshakes)
	before.letGo()
	return before.over, nil
}

// canBecome returns what keeps the server from serving by the fields of another.
func (s *Server) canBecome(like *Server) error {
	if err := like.check(); err != nil {
		return err
	}
	for _, field := range []struct {
		name string
		same bool
	}{
		{"Name", s.Name == like.Name},
		{"Trace", s.Trace == like.Trace},
		{"Logger", s.Logger == like.Logger},
		{"StepBudget", s.StepBudget == like.StepBudget},
		{"GoroutinePerConn", s.GoroutinePerConn == like.GoroutinePerConn},
	} {
		if !field.same {
			return fmt.Errorf("levee: Server.%s cannot change while it serves", field.name)
		}
	}
	return nil
}

// check refuses what nothing could be served by.
func (s *Server) check() error {
	if s.Handler == nil {
		return errors.New("levee: Server.Handler is nil: nothing to serve connections with")
	}
	return s.checkTLS()
}

// Generation returns which settings are in force: 1 for those that the server began with,
// and one more for each [Server.Reconfigure].
func (s *Server) Generation() uint64 {
	s.init()
	return s.inForce.Load().generation
}

// Generation returns which settings have let the connection in, and are its own for life;
// see [Server.Generation].
func (c *Conn) Generation() uint64 { return c.set.generation }

// maxHandshakes is MaxHandshakes with its default. Where they had all processors, whoever waits for one
// would wait behind all those whose hellos have come: at a flood, for a tenth of a second.
func (s *Server) maxHandshakes() int { return cmp.Or(s.MaxHandshakes, max(1, runtime.GOMAXPROCS(0)-1)) }
