package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/upstream/internal/balance"
	"github.com/levee-net/levee/upstream/internal/breaker"
)

// A member is a server in a pool: what the pool has been told of it and has seen of it.
type member struct {
	pool    *Pool
	name    string
	spec    atomic.Pointer[spec] // as last told
	breaker *breaker.Breaker
	latency balance.Latency
	active  atomic.Int64 // connections and dials

	down    atomic.Bool // its health checks say so
	drained atomic.Bool // an operator says so
	left    atomic.Bool // it was not among those last told

	rising atomic.Int64 // the pool's clock when it began to start slowly; 0: it does not
	due    atomic.Int64 // the pool's clock when a connection will be old enough to be a success; 0: none

	mu          sync.Mutex
	first, last *Conn         // its connections, the oldest first
	undecided   *Conn         // the oldest of which the breaker has not heard
	leaving     int64         // of its connections, those that were asked to
	didWell     time.Duration // when the last one of which it is known that it did well was born, by the pool's clock
	health      checkup
	tally       tally
	inherited   savedTally // what in it another process has counted
}

func newMember(p *Pool, s *spec) *member {
	m := &member{pool: p, name: s.name}
	m.breaker = breaker.New(p.Breaker.settings(), m.breakerChanged)
	return m
}

// become makes it the server that was last told. TLS sessions are resumed beyond that,
// unless another certificate is wanted.
func (m *member) become(s *spec) {
	if last := m.spec.Load(); last != nil && last.tls != nil && s.tls != nil && last.tls.ServerName == s.tls.ServerName {
		s.tls = last.tls
	}
	m.spec.Store(s)
}

// Name, Weight, Active and Latency are what a balance wants to know.
func (m *member) Name() string { return m.name }

// Active counts connections and dials.
func (m *member) Active() int64 { return m.active.Load() }

// Latency is how long connecting takes.
func (m *member) Latency() time.Duration { return m.latency.Value() }

// Weight is less than what was told while the server starts slowly.
func (m *member) Weight() float64 {
	whole := m.spec.Load().weight
	began := m.rising.Load()
	if began == 0 {
		return whole
	}
	share := float64(m.pool.clock()-time.Duration(began)) / float64(m.pool.terms.slowStart)
	if share >= 1 {
		m.rising.CompareAndSwap(began, 0)
		return whole
	}
	return whole * max(share, 0.1)
}

// riseSlowly has the server start slowly from now on. Once it can be picked, returned is
// to be signalled.
func (m *member) riseSlowly() {
	if m.pool.terms.slowStart > 0 {
		m.rising.Store(int64(m.pool.clock()))
	}
}

func (m *member) breakerChanged(from, to breaker.State) {
	// Locks may be held here: this runs wherever the breaker was asked.
	if to == breaker.Closed {
		m.riseSlowly()
		signal(m.pool.returned)
	}
	m.pool.news.post(func() { m.pool.Trace.breakerChanged(m.name, BreakerState(from), BreakerState(to)) })
}

// usable reports whether the server may get a connection, but for its cap.
func (m *member) usable(unbelieving bool) bool {
	return !m.drained.Load() && (unbelieving || !m.down.Load()) && m.breaker.Ready()
}

// full reports whether it has as many connections as it may.
func (m *member) full() bool {
	most := m.pool.terms.maxConnections
	return most > 0 && m.active.Load() >= most
}

// seize takes a permit of the breaker and a place for a connection. Once it has, settle
// or adopt, and then release, have to follow.
func (m *member) seize() bool {
	if !m.breaker.Allow() {
		return false
	}
	if !m.reserve() {
		m.breaker.Done(breaker.Ignored)
		return false
	}
	if m.left.Load() || m.drained.Load() { // looked at after active: an Update sees one or the other
		m.active.Add(-1)
		m.breaker.Done(breaker.Ignored)
		if m.left.Load() { // never with the pool's mu held: what is picked from has none then that left
			m.pool.forget(m)
		}
		return false
	}
	return true
}

func (m *member) reserve() bool {
	most := m.pool.terms.maxConnections
	if most == 0 {
		m.active.Add(1)
		return true
	}
	for {
		active := m.active.Load()
		if active >= most {
			return false
		}
		if m.active.CompareAndSwap(active, active+1) {
			return true
		}
	}
}

// release gives the place back, to the one who waits longest for it.
func (m *member) release() {
	m.active.Add(-1)
	if m.left.Load() {
		m.pool.forget(m)
		return
	}
	if m.pool.waiting.Load() > 0 {
		m.pool.serveQueue()
	}
}
