package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"time"
)

// tlsHandshakeRecord is the first byte of every TLS connection (RFC 8446,
// section 5.1: ContentType handshake).
const tlsHandshakeRecord = 22

// arrive takes a connection from accept to the handler that will serve it:
// PROXY header, TLS, routing. One absolute deadline lies over all of it, and no
// byte moves that, so a slow stranger has no foothold.
func (c *Conn) arrive(ctx context.Context) (Handler, error) {
	c.arriving = true
	if err := c.meetProxy(); err != nil {
		return nil, c.failed(ProxyHeaderInvalid, err)
	}
	if err := c.secure(); err != nil {
		return nil, c.failed(TLSFailed, err)
	}
	h, err := c.route(ctx, c.server.Handler)
	if err != nil {
		return nil, c.failed(NoRoute, err)
	}
	c.arriving = false
	c.wire.setPhase(time.Time{})
	return h, nil
}

// failed ends an arrival that went wrong. What the network or time did to it
// takes precedence over the step in which it happened.
func (c *Conn) failed(step CloseReason, err error) error {
	var ended *CloseError
	switch {
	case errors.As(err, &ended) && ended == c.end.Load():
		return err // already said
	case errors.Is(err, errAskedToLeave):
		c.mu.Lock()
		step, err = c.drainReason, errors.Join(errAskedToLeave, c.drainCause)
		c.mu.Unlock()
	case c.wire.eof.Load() && isEOF(err):
		step = ClientAborted
	case c.wire.broken.Load() != 0 && reasonOf(err) != ReasonNone:
		step = CloseReason(c.wire.broken.Load())
	}
	c.end.CompareAndSwap(nil, &CloseError{Reason: step, Cause: err})
	return err
}

// meetProxy reads the PROXY header of a source that must send one, and has the
// first bytes of any other screened for one.
func (c *Conn) meetProxy() error {
	if len(c.server.ProxyFrom) == 0 {
		c.enter(0)
		return nil
	}
	peer := addrPort(c.PeerAddr()).Addr().WithZone("") // no prefix contains a zone
	for _, from := range c.server.ProxyFrom {
		if from.Contains(peer) {
			c.enter(c.server.limits.proxyHeader)
			if err := c.wire.await(); err != nil {
				return err
			}
			if err := c.readProxyHeader(); err != nil {
				return err
			}
			if hook := c.server.trace().ProxyHeader; hook != nil {
				hook(c)
			}
			return nil
		}
	}
	c.wire.screening.Store(true)
	c.enter(0)
	return nil
}

// secure makes the TLS handshake, or in a server that allows plaintext looks at
// the first byte to tell which of the two it is.
func (c *Conn) secure() error {
	config := c.server.TLSConfig
	if config == nil {
		return nil
	}
	if c.server.AllowPlaintext {
		c.enter(c.server.limits.sniff)
		if err := c.wire.await(); err != nil {
			return err
		}
		first, err := c.wire.peek(1)
		if err != nil || first[0] != tlsHandshakeRecord {
			return err
		}
	}
	c.enter(0)
	if err := c.wire.await(); err != nil {
		return err
	}
	began := time.Now()
	c.wire.sealed = true
	handshake := tls.Server(&c.wire, config)
	err := handshake.Handshake() // bounded by the wire's deadline; a context would cost a goroutine
	if hook := c.server.trace().Handshake; hook != nil {
		hook(c, time.Since(began), err)
	}
	if err != nil {
		return err
	}
	c.tls = handshake
	c.secured.Store(true)
	return nil
}

// route follows Routers until one names a handler that is none.
func (c *Conn) route(ctx context.Context, h Handler) (Handler, error) {
	for {
		router, ok := h.(Router)
		if !ok {
			return h, nil
		}
		c.enter(c.server.limits.sniff)
		next, err := router.Route(ctx, c)
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
func (c *Conn) enter(limit time.Duration) {
	var end time.Time
	if whole := c.server.limits.arrival; whole > 0 {
		end = c.accepted.Add(whole)
	}
	if limit > 0 {
		end = earliest(end, time.Now().Add(limit))
	}
	c.wire.setPhase(end)
}
