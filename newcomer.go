package levee

import (
	"sync/atomic"
	"time"
)

// A connection that is asked to leave before its first request has come is a newcomer: its client may be
// in the middle of the handshake, and will take an end of the stream for a fault. So the request is heeded only
// when the first request has come, which is served then, or when there has been time enough for it.

const (
	// courtesy is how long a newcomer gets that has said something, as in net/http's Shutdown: from when it is asked.
	courtesy = 5 * time.Second

	// silentCourtesy is how long one gets that has said nothing, from when it was accepted: the first bytes of one
	// that has only connected are on their way. Anybody can open connections and be silent, so it is less.
	silentCourtesy = time.Second
)

// A newness is how far a connection has come before its first request.
type newness uint32

const (
	settled  newness = iota // the first request has come, or there is nothing that has to come before it
	silent                  // it has to arrive, and has not said anything yet
	speaking                // it is in the middle of its arrival
	unheard                 // its arrival is over
)

// A novelty is a connection's newness while a goroutine serves it. It is written under the connection's mu.
type novelty struct{ atomic.Uint32 }

func (n *novelty) get() newness  { return newness(n.Load()) }
func (n *novelty) set(s newness) { n.Store(uint32(s)) }

// newnessLocked returns it wherever the connection is.
func (c *Conn) newnessLocked() newness {
	switch s := c.stream.Load(); {
	case s != nil:
		return s.novelty.get()
	case c.looped.isUnheard():
		return unheard
	}
	return settled
}

// isNew begins with a connection that has just been accepted. If nothing has to come before its first request it is no newcomer.
func (s *stream) isNew() {
	set := s.conn.set
	if _, looks := set.handler.(Router); looks || set.tls != nil || s.conn.comesByProxy() {
		s.novelty.set(silent)
	}
}

// hasSpoken notes that the client has said something that is no request: a PROXY header, or a hello.
func (s *stream) hasSpoken() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.novelty.get() != speaking {
		s.novelty.set(speaking)
		c.postponeLocked()
	}
}

// isToBeHeard notes that the arrival is over.
func (s *stream) isToBeHeard() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if n := s.novelty.get(); n == silent || n == speaking {
		s.novelty.set(unheard)
	}
}

// isHeard notes that the first request has come.
func (s *stream) isHeard() {
	if s.novelty.get() != settled && !s.arriving {
		s.conn.settleDown()
	}
}

// postponeLocked has a request to leave that was made already, or is being made, be heeded later. It reports false if there
// is no cause for that, or none any more: there is one courtesy for each connection.
func (c *Conn) postponeLocked() bool {
	r := c.requestedLocked()
	if r == nil || r.reason == ReasonNone || r.due {
		return false
	}
	left := time.Duration(0)
	switch c.newnessLocked() {
	case silent:
		left = silentCourtesy - c.Age()
	case speaking:
		left = r.at + courtesy - c.Age()
	case unheard: // perhaps for a long time: a connection that is kept for later
		left = min(r.at, c.life.at[routed].get()) + courtesy - c.Age()
	}
	if r.grace != nil {
		r.grace.Stop()
	}
	if r.due = left <= 0; r.due {
		return false
	}
	r.grace = time.AfterFunc(left, c.endCourtesy) // stopped by settleDown and strikeOff
	return true
}

// postponedLocked reports whether a request to leave is not to be heeded yet.
func (c *Conn) postponedLocked() bool {
	r := c.requestedLocked()
	return r != nil && r.grace != nil && !r.due
}

// settleDown has the connection heed a request to leave from now on.
func (c *Conn) settleDown() {
	c.mu.Lock()
	if s := c.stream.Load(); s != nil {
		s.novelty.set(settled)
	}
	c.looped.isHeard()
	due := c.postponedLocked()
	if due {
		c.extra.request.due = true
		c.extra.request.grace.Stop()
	}
	c.mu.Unlock()
	if due {
		c.heed()
	}
}

// endCourtesy has a newcomer leave that has been waited for long enough.
func (c *Conn) endCourtesy() {
	c.mu.Lock()
	n, due := c.newnessLocked(), c.postponedLocked()
	c.mu.Unlock()
	if !due {
		return
	}
	c.settleDown()
	if n == speaking { // what it waits for is not to be interrupted
		reason, cause := c.asked()
		_ = c.cut(reason, cause)
	}
}
