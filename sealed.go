package levee

import (
	"net"
	"os"
	"time"
)

// A TLS record is all or nothing: crypto/tls cannot go on after a write that
// stopped within one, and so a write deadline ends its connections for good. Here
// the rest of such a record is kept, and goes out before anything else. To
// crypto/tls the record has been sent; to the handler its deadline has passed.

// backlogLimit bounds what is kept: one chunk as records, and the odd alert. A
// peer could otherwise make it grow by asking for key updates.
const backlogLimit = 64 << 10

// chunkSize is how much of a handler's write is made into records at a time: the
// largest record's payload (RFC 8446, section 5.1).
const chunkSize = 16 << 10

// writeSealed writes records.
func (w *wire) writeSealed(p []byte) (int, error) {
	w.pen.Lock()
	defer w.pen.Unlock()
	if err := w.flushLocked(); err != nil {
		return w.keepLocked(p, 0, err)
	}
	n, err := w.writeSocket(p)
	if err != nil {
		return w.keepLocked(p, n, err)
	}
	return n, nil
}

// keepLocked keeps what is left of p if err is the handler's own deadline.
func (w *wire) keepLocked(p []byte, n int, err error) (int, error) {
	if w.conn.end.Load() != nil || !isTimeout(err) || len(w.backlog)+len(p)-n > backlogLimit {
		return n, err
	}
	w.backlog = append(w.backlog, p[n:]...)
	return len(p), nil
}

// flushLocked writes the backlog out.
func (w *wire) flushLocked() error {
	if len(w.backlog) == 0 {
		return nil
	}
	n, err := w.writeSocket(w.backlog)
	w.backlog = w.backlog[n:]
	if len(w.backlog) == 0 {
		w.backlog = nil
	}
	return err
}

// mayWrite reports whether a record may be written now: the backlog is gone and
// the handler's deadline has not passed.
func (w *wire) mayWrite() error {
	if w.conn.isClosing() {
		return net.ErrClosed // the deadline that crypto/tls sets at its Close would say otherwise
	}
	w.pen.Lock()
	err := w.flushLocked()
	w.pen.Unlock()
	if err != nil {
		return err
	}
	w.mu.Lock()
	late := past(w.userWrite, time.Now())
	w.mu.Unlock()
	if late {
		return w.timeout("write")
	}
	return nil
}

// cutShort reports whether the handler's deadline left a backlog behind.
func (w *wire) cutShort() error {
	w.pen.Lock()
	defer w.pen.Unlock()
	if len(w.backlog) > 0 {
		return w.timeout("write")
	}
	return nil
}

// timeout is what net says when a deadline has passed.
func (w *wire) timeout(op string) error {
	local := w.raw.LocalAddr()
	return &net.OpError{Op: op, Net: local.Network(), Source: local, Addr: w.raw.RemoteAddr(), Err: os.ErrDeadlineExceeded}
}

// writeTLS writes p as records, and heeds the handler's deadline between them.
func (s *stream) writeTLS(p []byte) (n int, err error) {
	for {
		pace := s.wire.meterOut()
		s.wire.abide(pace)
		if err := s.wire.mayWrite(); err != nil {
			return n, s.wire.ended(err)
		}
		m, err := s.tls.Write(p[n : n+pace.chunk(min(len(p)-n, chunkSize))])
		n += m
		if err != nil {
			return n, s.afterTLS(err)
		}
		if err := s.wire.cutShort(); err != nil {
			return n, s.wire.ended(err)
		}
		if n == len(p) {
			return n, nil
		}
	}
}

// endTLS sends the close_notify, and waits as for any other bytes: crypto/tls gives it 5
// seconds, and up.
func (s *stream) endTLS() error {
	if err := s.tls.CloseWrite(); err != nil {
		return s.wire.ended(err)
	}
	_ = s.wire.SetWriteDeadline(time.Time{}) // crypto/tls's
	s.wire.pen.Lock()
	defer s.wire.pen.Unlock()
	return s.wire.ended(s.wire.flushLocked())
}
