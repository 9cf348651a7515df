package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A Conn is one accepted connection. It is a net.Conn that knows more: who the
// client is behind a proxy, what TLS agreed on, whether it has been asked to
// leave. Nothing wraps it on its way to the handler, so kernel splice, half-close
// and the TLS state are all still there.
//
// Its methods may be called from several goroutines, as with any net.Conn;
// [Conn.Peek], [Conn.Buffered] and [Conn.Next] belong to the one that reads.
//
// The server's deadlines are always in force beneath the handler's own: a read
// that waits longer than Server.IdleTimeout, or a write that makes no progress
// for Server.WriteStallTimeout, ends the connection and returns a [*CloseError].
// A deadline of the handler's own returns os.ErrDeadlineExceeded, as usual, and
// ends nothing.
type Conn struct {
	wire   wire
	tls    *tls.Conn // nil in plaintext; set by the arrival, for whoever sees secured
	plain  held      // decrypted bytes that were read ahead; unused in plaintext
	server *Server

	id       uint64
	accepted time.Time
	arriving bool                           // nothing has been served yet: a silent peer may leave when asked to
	client   atomic.Pointer[netip.AddrPort] // who the PROXY header says; nil without one

	secured atomic.Bool // TLS is in place

	turn turn // of those that write

	end     atomic.Pointer[CloseError] // set once, by whatever ends it
	closing atomic.Bool                // the handler has called Close
	ctx     context.Context            // the handler's: lives exactly as long as the connection
	cancel  context.CancelCauseFunc

	mu          sync.Mutex
	drainReason CloseReason // why it was asked to leave
	drainCause  error
	draining    chan struct{} // made when first asked for
	lifetime    *time.Timer
	introduced  bool           // Draining may be told: Accepted has been, Closed not yet
	telling     sync.WaitGroup // Draining is being told
}

// lastID makes ids unique in the process, over all servers: an operator names a
// connection by its id alone.
var lastID atomic.Uint64

func newConn(ctx context.Context, s *Server, raw net.Conn) *Conn {
	c := &Conn{server: s, id: lastID.Add(1), accepted: time.Now()}
	c.wire.raw, c.wire.conn = raw, c
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c
}

// ID returns the connection's number, unique in the process.
func (c *Conn) ID() uint64 { return c.id }

// Server returns the server that accepted the connection.
func (c *Conn) Server() *Server { return c.server }

// Accepted returns when the connection was accepted.
func (c *Conn) Accepted() time.Time { return c.accepted }

// Reason returns why the connection ended, or ReasonNone while it lives.
func (c *Conn) Reason() CloseReason {
	if end := c.end.Load(); end != nil {
		return end.Reason
	}
	return ReasonNone
}

// Traffic returns the bytes read and written so far, as counted on the wire:
// TLS and a PROXY header included.
func (c *Conn) Traffic() (read, written int64) {
	return c.wire.read.Load(), c.wire.written.Load()
}

// TLS returns what the handshake agreed on (SNI, ALPN, the peer's certificates),
// or nil for a plaintext connection.
func (c *Conn) TLS() *tls.ConnectionState {
	if !c.secured.Load() { // anybody may ask, also during the arrival
		return nil
	}
	state := c.tls.ConnectionState()
	return &state
}

// NetConn returns the connection as the listener accepted it, to set socket
// options on. Reading, writing or closing it goes behind levee's back.
func (c *Conn) NetConn() net.Conn { return c.wire.raw }

// LocalAddr returns the address that the connection was accepted on.
func (c *Conn) LocalAddr() net.Addr { return c.wire.raw.LocalAddr() }

// PeerAddr returns the address of the socket's other end: the proxy's, where a
// proxy stands in front.
func (c *Conn) PeerAddr() net.Addr { return c.wire.raw.RemoteAddr() }

// RemoteAddr returns the client's address: the one in the PROXY header where
// there was one, else the socket's.
func (c *Conn) RemoteAddr() net.Addr {
	if client := c.client.Load(); client != nil {
		return net.TCPAddrFromAddrPort(*client)
	}
	return c.PeerAddr()
}

// ClientAddr is RemoteAddr as a netip.AddrPort, with IPv4-in-IPv6 unmapped. It is
// the zero AddrPort, which is not valid, for a peer without an IP address (a
// Unix socket's).
func (c *Conn) ClientAddr() netip.AddrPort {
	if client := c.client.Load(); client != nil {
		return *client
	}
	return addrPort(c.PeerAddr())
}

// addrPort returns the IP address and port of a, or the zero AddrPort.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Read reads up to len(p) bytes.
func (c *Conn) Read(p []byte) (int, error) {
	if c.tls == nil {
		return c.wire.Read(p)
	}
	if c.plain.some.Load() {
		if n, ok, err := c.plain.take(p); ok {
			return n, err
		}
	}
	n, err := c.tls.Read(p)
	return n, c.afterTLS(err)
}

// Write writes all of p, or returns why it could not. What several goroutines
// write at once does not mix.
func (c *Conn) Write(p []byte) (int, error) {
	c.turn.take()
	defer c.turn.give()
	if c.tls == nil {
		return c.wire.Write(p)
	}
	return c.writeTLS(p)
}

// afterTLS gives crypto/tls's error levee's own name, where it has one.
func (c *Conn) afterTLS(err error) error {
	if err == io.EOF {
		c.wire.eof.Store(true) // by close_notify; the socket itself may still be open
	}
	return c.wire.ended(err)
}

// CloseWrite tells the peer that no more bytes will come: a FIN, or TLS's
// close_notify. Reading goes on, for Server.HalfClosedTimeout without a byte.
func (c *Conn) CloseWrite() error {
	if c.tls == nil {
		return c.wire.CloseWrite()
	}
	if err := c.wire.mayWrite(); err != nil {
		return c.wire.ended(err)
	}
	if err := c.tls.CloseWrite(); err != nil {
		return c.wire.ended(err)
	}
	if err := c.wire.cutShort(); err != nil {
		return c.wire.ended(err)
	}
	return c.wire.CloseWrite()
}

// Close closes the connection. A handler need not call it: returning does the
// same, and is kinder to a peer that is still sending.
func (c *Conn) Close() error {
	if c.closing.Swap(true) || c.end.Load() != nil {
		return net.ErrClosed
	}
	var err error
	if c.secured.Load() {
		err = c.tls.Close()
	} else {
		err = c.wire.Close()
	}
	c.cancel(&CloseError{Reason: HandlerClosed})
	return err
}

// SetDeadline sets the handler's own read and write deadlines. A zero time
// takes them away; the server's own stay in force in any case.
func (c *Conn) SetDeadline(t time.Time) error { return c.wire.SetDeadline(t) }

// SetReadDeadline is SetDeadline for reads alone.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.wire.SetReadDeadline(t) }

// SetWriteDeadline is SetDeadline for writes alone. With TLS, too, writing may go
// on after a deadline; what a write that timed out says it has written includes
// up to 16 KiB that go out before the next.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.wire.SetWriteDeadline(t) }

// Peek returns the next n bytes without taking them, and waits until there are
// so many. Where fewer come it returns those, and why: io.EOF, a deadline, or
// bufio.ErrBufferFull, at once, for an n above 16 KiB. The bytes are valid until the next
// Peek, Read or Next.
func (c *Conn) Peek(n int) ([]byte, error) {
	if c.arriving && n > 0 && c.Buffered() == 0 {
		if err := c.awaitNext(); err != nil {
			return nil, err
		}
	}
	if c.tls == nil {
		return c.wire.peek(n)
	}
	b, err := c.plain.peek(n, c.tls.Read)
	return b, c.afterTLS(err)
}

// Buffered returns how many bytes a Peek can return without waiting.
func (c *Conn) Buffered() int {
	if c.tls == nil {
		return c.wire.held.buffered()
	}
	return c.plain.buffered()
}

// Next waits for the peer's next request and reports whether its first bytes
// have come. It is how a handler says that it is between two requests, where
// the connection may leave without harm:
//
//	for c.Next() {
//		// read one request, write its answer
//	}
//	return nil
//
// It returns false at the peer's end of stream, when the connection has been
// idle for Server.IdleTimeout, when it has been asked to leave (unless a request
// has already arrived), and on any error. While it waits on a TCP or Unix
// socket, in plaintext or TLS, it holds no buffer.
func (c *Conn) Next() bool {
	return c.awaitNext() == nil
}

func (c *Conn) awaitNext() error {
	if c.tls == nil {
		return c.wire.await()
	}
	return c.nextTLS(c.wire.await)
}

// nextTLS asks crypto/tls for what it has, and waits at the socket when it has
// nothing: crypto/tls itself would wait with a buffer in its hands.
func (c *Conn) nextTLS(await func() error) error {
	if c.plain.some.Load() {
		return c.plain.state()
	}
	for {
		b := blocks.Get().(*block)
		n, err := c.readRecord(b[:])
		if n > 0 {
			c.plain.put(b, n)
			return nil
		}
		blocks.Put(b)
		if !errors.Is(err, errWouldBlock) {
			return c.afterTLS(err)
		}
		if err := await(); err != nil {
			return c.afterTLS(err)
		}
	}
}

// readRecord reads what there is of one record. It returns errWouldBlock, perhaps
// wrapped, where it would have to wait for the socket.
func (c *Conn) readRecord(p []byte) (int, error) {
	c.wire.impatient = true
	defer func() { c.wire.impatient = false }()
	return c.tls.Read(p)
}

// Draining returns a channel that is closed when the connection is asked to
// leave: it should finish what it is doing and return. A handler that waits in
// [Conn.Next] need not look.
func (c *Conn) Draining() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining == nil {
		c.draining = make(chan struct{})
		if c.drainReason != ReasonNone {
			close(c.draining)
		}
	}
	return c.draining
}

// Drain asks the connection to leave, and says why: cause may be nil. A handler
// that waits in [Conn.Next] returns at once; any other learns of it by
// [Conn.Draining]. It does not wait, and only the first request counts.
func (c *Conn) Drain(cause error) { c.askToLeave(Drained, cause) }

func (c *Conn) askToLeave(reason CloseReason, cause error) {
	if c.ask(reason, cause) {
		c.tellDraining()
	}
}

// ask asks, and reports whether the Trace has to be told: by tellDraining, once.
func (c *Conn) ask(reason CloseReason, cause error) (tell bool) {
	c.mu.Lock()
	if c.drainReason != ReasonNone {
		c.mu.Unlock()
		return false
	}
	c.drainReason, c.drainCause = reason, cause
	if c.draining != nil {
		close(c.draining)
	}
	if tell = c.introduced; tell {
		c.telling.Add(1)
	}
	c.mu.Unlock()
	c.wire.askToLeave()
	return tell
}

func (c *Conn) tellDraining() {
	defer c.telling.Done()
	c.server.guard(c, func() { c.server.trace().Draining(c) })
}

// Kill ends the connection now: its context is canceled, its socket closed, and
// every read and write returns a [*CloseError] that wraps cause. A cause of nil
// is fine. It does not wait for the handler to return.
func (c *Conn) Kill(cause error) { _ = c.cut(Killed, cause) }

// cut ends the connection for the given reason, if nothing has ended it before,
// and returns the error that says which it was.
func (c *Conn) cut(reason CloseReason, cause error) *CloseError {
	if c.closing.Load() {
		return &CloseError{Reason: HandlerClosed} // there is nothing left to cut; settleReason has the last word
	}
	end := &CloseError{Reason: reason, Cause: cause}
	if !c.end.CompareAndSwap(nil, end) {
		return c.end.Load()
	}
	c.cancel(end)
	if reason == WriteStalled {
		c.reset() // bytes that the peer will not take are not kept for it
	}
	_ = c.wire.Close()
	return end
}

// reset makes the socket's close an abortive one: the kernel drops what it
// still holds for the peer.
func (c *Conn) reset() {
	if s, ok := c.wire.raw.(interface{ SetLinger(sec int) error }); ok {
		_ = s.SetLinger(0)
	}
}
