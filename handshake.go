package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"time"
)

// StartTLS makes a TLS handshake, as the server, on a connection in plaintext: for a
// [Router] that chooses the configuration, or lets some connections pass undecrypted,
// and for protocols that begin TLS by a command, as SMTP's STARTTLS does. From then on
// the connection is as if Server.TLSConfig had been config.
//
// Bytes that were peeked at, and not read, are the handshake's: the client's hello. What
// else a client has sent ahead is not TLS and fails the handshake; so nothing of it can
// be taken for something that came encrypted.
//
// Within the arrival its deadline stays in force; a handler has Server.ArrivalTimeout
// anew. Only the goroutine that reads may call it, while nobody writes. A handshake that
// fails ends the connection with reason tls_failed, and the error says so.
func (c *Conn) StartTLS(config *tls.Config) error {
	if config == nil {
		return errors.New("StartTLS: no configuration")
	}
	s, err := c.bytes()
	switch {
	case err != nil:
		return err
	case s.tls != nil:
		return errors.New("StartTLS: TLS is in place already")
	}
	if !s.arriving {
		limit := c.set.limits.arrival
		if limit > 0 {
			s.wire.setPhase(time.Now().Add(limit))
		}
		defer s.wire.setPhase(time.Time{})
	}
	if err := s.handshake(config); err != nil {
		_ = s.failed(TLSFailed, err)
		return c.end.Load()
	}
	return nil
}

// handshake puts TLS in place.
func (s *stream) handshake(config *tls.Config) error {
	if err := s.wire.await(); err != nil {
		return err
	}
	s.hasSpoken()
	if err := s.conn.reach(StageHandshake); err != nil {
		return err
	}
	began := time.Now()
	s.conn.reached(handshakeBegun)
	s.wire.sealed = true
	_ = stretchToHandshake(0) // now that the client has spoken: one that is silent costs no more for it
	handshake := tls.Server(&s.wire, config)
	err := s.wire.throughTurnstile(&s.conn.server.handshakes, handshake.Handshake) // bounded by the wire's deadline; a context would cost a goroutine
	if hook := s.conn.server.trace().Handshake; hook != nil {
		hook(s.conn, time.Since(began), err)
	}
	if err != nil {
		return err
	}
	s.conn.reached(handshakeDone)
	s.tls, s.terms = handshake, config
	s.conn.marks.Or(secured)
	if !s.arriving {
		s.isToBeHeard()
	}
	return s.conn.reach(StageSecured)
}

// throughTurnstile makes a handshake while it is let in. Whenever it has to wait for the peer
// it leaves: a peer that is slow, or silent, keeps nobody from the processor.
func (w *wire) throughTurnstile(t *turnstile, handshake func() error) error {
	if t.most.Load() <= 0 {
		return handshake()
	}
	if err := w.enterTurnstile(t); err != nil {
		return err
	}
	defer func() {
		if w.turnstile != nil {
			w.turnstile = nil
			t.leave()
		}
	}()
	err := handshake()
	if err == nil {
		t.remember(w.source())
	}
	return err
}

func (w *wire) source() netip.Addr { return sourceOf(w.conn.ClientAddr().Addr()) }

// enterTurnstile waits until it is let in, within the present phase.
func (w *wire) enterTurnstile(t *turnstile) error {
	if !t.enter(w.source(), w.phaseEnds()) {
		return w.conn.cut(ArrivalTimeout, nil)
	}
	w.turnstile = t
	return nil
}

// phaseEnds is when the present phase does, zero if never.
func (w *wire) phaseEnds() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.phase
}

// WaitOutside calls wait, in a callback of a tls.Config such as GetConfigForClient or GetCertificate that has to ask somebody
// else: meanwhile the handshake does not count among [Server.MaxHandshakes], and keeps nobody from the processor. The context
// ends when the connection's time to arrive is over. Then WaitOutside waits until the handshake counts again, and returns an error
// if that is in vain, for the callback to return.
//
// The callback calls it in its own goroutine, and does not return before it does. Of a hello on somebody else's connection
// there is nothing to count: wait is called with the hello's context, and the error is nil.
func WaitOutside(hello *tls.ClientHelloInfo, wait func(ctx context.Context)) error {
	if w, ok := hello.Conn.(*wire); ok {
		return w.WaitOutside(wait)
	}
	wait(hello.Context())
	return nil
}

// WaitOutside is [WaitOutside], for those who do not know this package: they ask the hello's Conn whether it has the method.
func (w *wire) WaitOutside(wait func(ctx context.Context)) error {
	ctx := context.Background()
	if until := w.phaseEnds(); !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	t := w.turnstile
	if t == nil {
		wait(ctx)
		return nil
	}
	w.turnstile = nil
	t.leave()
	wait(ctx)
	return w.enterTurnstile(t)
}

// readOutside reads what is there, and where there is nothing waits outside the turnstile.
func (w *wire) readOutside(p []byte) (int, error) {
	if w.direct() != nil {
		if n, err := w.readNow(p); err != errWouldBlock {
			return n, err
		}
	}
	t := w.turnstile
	w.turnstile = nil
	t.leave()
	n, err := w.raw.Read(p)
	n, err = w.count(p, n, err)
	if err != nil {
		return n, err
	}
	if err := w.enterTurnstile(t); err != nil {
		return 0, err // with bytes it would be for the next read to tell, and what they complete be computed first
	}
	return n, nil
}
