package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// A stream is the part of a connection that a goroutine reads and writes: a socket,
// TLS over it, and what has been read ahead. A connection that runs on an event
// loop has none any more.
type stream struct {
	conn     *Conn
	tls      *tls.Conn   // nil in plaintext; set by the arrival, for whoever sees TLS in place
	terms    *tls.Config // what it was made with
	wire     wire
	notified bool // of the client's end, by close_notify; the reader's own
	arriving bool // nothing has been served yet: a silent peer may leave when asked to
	novelty  novelty
	stepped  atomic.Bool // ServeSteps is at work, or it is joined
	plain    held        // decrypted bytes that were read ahead; unused in plaintext

	joint atomic.Pointer[joint] // to an upstream; nil for most
	base  context.Context       // parent of the handler's
	ctx   context.Context       // the handler's; nil until somebody asks
}

// newStreamConn returns the connection that a listener has accepted.
func newStreamConn(ctx context.Context, s *Server, raw net.Conn) *Conn {
	both := new(struct {
		Conn
		stream
	})
	c, st := &both.Conn, &both.stream
	c.init(s, raw.LocalAddr(), raw.RemoteAddr())
	st.conn, st.base = c, ctx
	st.wire.raw, st.wire.conn = raw, c
	st.isNew()
	c.stream.Store(st)
	return c
}

// context returns what the handler gets: it lives exactly as long as the connection.
func (s *stream) context() context.Context {
	if s.ctx == nil {
		s.ctx = s.conn.makeContext(s.base)
	}
	return s.ctx
}

// Read reads up to len(p) bytes.
func (s *stream) Read(p []byte) (int, error) {
	if s.tls == nil {
		n, err := s.wire.Read(p)
		if n > 0 {
			s.isHeard()
		}
		return n, err
	}
	if s.plain.some.Load() {
		if n, ok, err := s.plain.take(p); ok {
			s.isHeard()
			return n, err
		}
	}
	n, err := s.tls.Read(p)
	if n > 0 {
		s.isHeard()
	}
	return n, s.afterTLS(err)
}

// write writes all of p, in its turn.
func (s *stream) write(p []byte) (int, error) {
	s.conn.serves()
	s.wire.turn.take()
	defer s.wire.turn.give()
	if s.tls == nil {
		return s.wire.Write(p)
	}
	return s.writeTLS(p)
}

// afterTLS gives crypto/tls's error levee's own name, where it has one.
func (s *stream) afterTLS(err error) error {
	if err == io.EOF && !s.wire.eof.Swap(true) {
		s.notified = true // the socket itself may still be open
	}
	return s.wire.ended(err)
}

func (s *stream) closeWrite() error {
	if s.tls == nil {
		return s.wire.CloseWrite()
	}
	if err := s.wire.mayWrite(); err != nil {
		return s.wire.ended(err)
	}
	if err := s.tls.CloseWrite(); err != nil {
		return s.wire.ended(err)
	}
	if err := s.wire.cutShort(); err != nil {
		return s.wire.ended(err)
	}
	return s.wire.CloseWrite()
}

func (s *stream) close() error {
	switch {
	case s.cutsJointShort():
		s.reset()
	case s.conn.isSecured():
		return s.tls.Close()
	}
	return s.wire.Close()
}

// cutsJointShort is cutsShort for a connection that is joined.
func (s *stream) cutsJointShort() bool {
	j := s.joint.Load()
	return j != nil && j.cutsShort(&j.nearEnd)
}

// reset makes the socket's close an abortive one: the kernel drops what it
// still holds for the peer.
func (s *stream) reset() {
	if raw, ok := s.wire.raw.(interface{ SetLinger(sec int) error }); ok {
		_ = raw.SetLinger(0)
	}
}

func (s *stream) peek(n int) ([]byte, error) {
	if s.arriving && n > 0 && s.buffered() == 0 {
		if err := s.awaitNext(); err != nil {
			return nil, err
		}
		s.hasSpoken()
		if s.tls == nil {
			s.conn.reached(sniffed)
		}
	}
	if s.tls == nil {
		return s.wire.peek(n)
	}
	b, err := s.plain.peek(n, s.tls.Read)
	return b, s.afterTLS(err)
}

func (s *stream) buffered() int {
	if s.tls == nil {
		return s.wire.held.buffered()
	}
	return s.plain.buffered()
}

// awaitNext waits for the next request's first bytes.
func (s *stream) awaitNext() (err error) {
	if s.tls == nil {
		err = s.wire.awaitMovably()
	} else {
		err = s.nextTLS(s.wire.await)
	}
	if err == nil {
		s.isHeard()
	}
	return err
}

// nextTLS asks crypto/tls for what it has, and waits at the socket when it has
// nothing: crypto/tls itself would wait with a buffer in its hands.
func (s *stream) nextTLS(await func() error) error {
	if s.plain.some.Load() {
		return s.plain.state()
	}
	for ended := false; ; {
		b := blocks.Get().(*block)
		n, err := s.readRecord(b[:])
		if n > 0 {
			s.plain.put(b, n)
			return nil
		}
		blocks.Put(b)
		if ended || !errors.Is(err, errWouldBlock) {
			return s.afterTLS(err)
		}
		switch err := await(); err {
		case nil:
		case io.EOF:
			ended = true // within a record perhaps, which crypto/tls knows
		default:
			return s.afterTLS(err)
		}
	}
}

// readRecord reads what there is of one record. It returns errWouldBlock, perhaps
// wrapped, where it would have to wait for the socket.
func (s *stream) readRecord(p []byte) (int, error) {
	s.wire.impatient = true
	defer func() { s.wire.impatient = false }()
	return s.tls.Read(p)
}

// release gives back what is held beside the socket.
func (s *stream) release() {
	s.wire.held.release()
	s.plain.release()
}
