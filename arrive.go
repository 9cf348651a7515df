package levee

import (
	"errors"
	"net/netip"
	"slices"
	"time"
)

// tlsHandshakeRecord is the first byte of every TLS connection (RFC 8446,
// section 5.1: ContentType handshake).
const tlsHandshakeRecord = 22

// arrive takes a connection from accept to the handler that will serve it:
// PROXY header, TLS, routing. One absolute deadline lies over all of it, and no
// byte moves that, so a slow stranger has no foothold.
func (s *stream) arrive() (Handler, error) {
	s.arriving = true
	if err := s.meetProxy(); err != nil {
		return nil, s.failed(ProxyHeaderInvalid, err)
	}
	var sniff time.Time
	if err := s.secure(&sniff); err != nil {
		return nil, s.failed(TLSFailed, err)
	}
	h, err := s.route(s.conn.set.handler, &sniff)
	if err != nil {
		return nil, s.failed(NoRoute, err)
	}
	s.arriving = false
	s.isToBeHeard()
	s.wire.setPhase(time.Time{})
	return h, nil
}

// failed ends an arrival that went wrong. What the network or time did to it
// takes precedence over the step in which it happened.
func (s *stream) failed(step CloseReason, err error) error {
	c := s.conn
	var ended *CloseError
	var refusal *Refusal
	switch {
	case errors.As(err, &ended) && ended == c.end.Load():
		return err // already said
	case errors.Is(err, errAskedToLeave):
		reason, cause := c.asked()
		step, err = reason, errors.Join(errAskedToLeave, cause)
	case errors.As(err, &refusal):
		step = refusal.reason()
	case s.wire.eof.Load() && isEOF(err):
		step = ClientAborted
	case s.wire.broken.Load() != 0 && reasonOf(err) != ReasonNone:
		step = CloseReason(s.wire.broken.Load())
	}
	c.end.CompareAndSwap(nil, &CloseError{Reason: step, Cause: err})
	return err
}

// meetProxy reads the PROXY header of a source that must send one, and has the
// first bytes of any other screened for one.
func (s *stream) meetProxy() error {
	set := s.conn.set
	if len(set.proxyFrom) == 0 {
		s.enter(0)
		return nil
	}
	if !s.conn.comesByProxy() {
		s.wire.screening.Store(true)
		s.enter(0)
		return nil
	}
	s.enter(set.limits.proxyHeader)
	if err := s.wire.await(); err != nil {
		return err
	}
	s.hasSpoken()
	if err := s.readProxyHeader(); err != nil {
		return err
	}
	s.conn.reached(proxyHeaderRead)
	if hook := s.conn.server.trace().ProxyHeader; hook != nil {
		hook(s.conn)
	}
	if err := s.conn.reach(StageClient); err != nil {
		return err
	}
	return s.conn.awaitGate()
}

// comesByProxy reports whether the peer must send a PROXY header.
func (c *Conn) comesByProxy() bool {
	if len(c.set.proxyFrom) == 0 {
		return false
	}
	peer := addrPort(c.peer).Addr().WithZone("") // no prefix contains a zone
	return slices.ContainsFunc(c.set.proxyFrom, func(from netip.Prefix) bool { return from.Contains(peer) })
}

// secure makes the TLS handshake, or in a server that allows plaintext looks at
// the first byte to tell which of the two it is.
func (s *stream) secure(sniff *time.Time) error {
	config := s.conn.set.tls
	if config == nil {
		return nil
	}
	if s.conn.set.plaintext {
		s.enterSniff(sniff)
		if err := s.wire.await(); err != nil {
			return err
		}
		s.conn.reached(sniffed)
		first, err := s.wire.peek(1)
		if err != nil || first[0] != tlsHandshakeRecord {
			return err
		}
	}
	s.enter(0)
	*sniff = time.Time{} // what TLS carries is looked at anew
	return s.handshake(config)
}

// route follows Routers until one names a handler that is none.
func (s *stream) route(h Handler, sniff *time.Time) (Handler, error) {
	for {
		router, ok := h.(Router)
		if !ok {
			return h, nil
		}
		s.enterSniff(sniff)
		next, err := router.Route(s.context(), s.conn)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return nil, errNoHandler
		}
		h = next
	}
}

var errNoHandler = errors.New("route: no handler")

// enter begins a phase of the arrival that has a limit of its own, within the
// one over all. A limit that is not positive is none.
func (s *stream) enter(limit time.Duration) {
	var end time.Time
	if whole := s.conn.set.limits.arrival; whole > 0 {
		end = s.conn.Accepted().Add(whole)
	}
	if limit > 0 {
		end = earliest(end, time.Now().Add(limit))
	}
	s.wire.setPhase(end)
}

// enterSniff begins to look at the first bytes, or goes on with that: whoever looks at them,
// one after the other, has one limit, which ends at until.
func (s *stream) enterSniff(until *time.Time) {
	limit := s.conn.set.limits.sniff
	if limit <= 0 {
		s.enter(0)
		return
	}
	if until.IsZero() {
		*until = time.Now().Add(limit)
	}
	s.enter(max(1, time.Until(*until))) // not 0, which is no limit
}
