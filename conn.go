package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Conn is one accepted connection. It is a net.Conn that knows more: who the
// client is behind a proxy, what TLS agreed on, whether it has been asked to
// leave. Nothing wraps it on its way to the handler, so kernel splice, half-close
// and the TLS state are all still there.
//
// Its methods may be called from several goroutines, as with any net.Conn;
// [Conn.Peek], [Conn.Buffered] and [Conn.Next] belong to the one that reads. While a
// [Stepper] is served, its bytes belong to that: whatever reads, writes or sets
// deadlines fails, and Next is false.
//
// The server's deadlines are always in force beneath the handler's own: a read
// that waits longer than Server.IdleTimeout, or a write that makes no progress
// for Server.WriteStallTimeout, ends the connection and returns a [*CloseError].
// A deadline of the handler's own returns os.ErrDeadlineExceeded, as usual, and
// ends nothing.
type Conn struct {
	// What is in use while an event loop serves it comes first, in two cache lines:
	// of a thousand connections that take turns each has to be fetched again.
	end    atomic.Pointer[CloseError] // set once, by whatever ends it
	looped looped

	// Either an event loop has the socket, or this. A connection may pass to a loop
	// once, under mu.
	stream atomic.Pointer[stream]

	marks atomic.Uint32 // what is true from some moment on

	onLoop     bool // guarded by mu
	introduced bool // Draining may be told: Accepted has been, Closed not yet; guarded by mu
	arriving   bool // it counts as that; whoever has the connection
	departed   bool // nobody waits for its end any more; guarded by mu

	server   *Server
	set      *settings // that let it in
	id       uint64
	accepted time.Duration // when, by the server's clock

	local, peer net.Addr // of the socket

	mu     sync.Mutex
	pass   Pass                    // of the server's Gate; nil without one
	cancel context.CancelCauseFunc // of the context that handlers see; nil if there is none
	extra  *extra                  // nil for most

	life life
}

const (
	secured = 1 << iota // TLS is in place
	closing             // somebody has called Close
)

func (c *Conn) isSecured() bool { return c.marks.Load()&secured != 0 }
func (c *Conn) isClosing() bool { return c.marks.Load()&closing != 0 }

// extra is what only some connections have.
type extra struct {
	// What a PROXY header has said.
	client netip.AddrPort
	parent *TraceParent // the connection's trace

	request  *request      // to leave; nil for most
	lifetime *time.Timer   // ends it
	expires  time.Duration // clock when that does
	mover    *mover        // of one whose handler is sequential code; nil unless it may move
	atEnd    []func()
	tcp      *TCPInfo // of its last moment, if the Trace wanted to know
}

func (c *Conn) extraLocked() *extra {
	if c.extra == nil {
		c.extra = new(extra)
	}
	return c.extra
}

var _ net.Conn = (*Conn)(nil)

// A request asks a connection to leave.
type request struct {
	reason  CloseReason // ReasonNone: somebody waits for one, but it has not come
	cause   error
	at      time.Duration  // since accept
	made    chan struct{}  // closed when it has; nil if nobody waits
	telling sync.WaitGroup // the Trace

	grace *time.Timer // until which it is not heeded; nil unless a newcomer was asked
	due   bool        // it is heeded
}

func (c *Conn) requestLocked() *request {
	extra := c.extraLocked()
	if extra.request == nil {
		extra.request = new(request)
	}
	return extra.request
}

// requestedLocked returns what asks the connection to leave, or may come to; nil if nothing does.
func (c *Conn) requestedLocked() *request {
	if c.extra == nil {
		return nil
	}
	return c.extra.request
}

// isAskedLocked reports whether the connection was asked to leave.
func (c *Conn) isAskedLocked() bool {
	r := c.requestedLocked()
	return r != nil && r.reason != ReasonNone
}

// asked returns why the connection was asked to leave, or ReasonNone.
func (c *Conn) asked() (CloseReason, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requestedLocked()
	if r == nil {
		return ReasonNone, nil
	}
	return r.reason, r.cause
}

// lastID makes ids unique in the process, over all servers: an operator names a
// connection by its id alone.
var lastID atomic.Uint64

// endedConns counts those that have ended, over all servers: files are the process's, and
// an acceptor that lacks one does not care whose connection has had it.
var endedConns atomic.Int64

func (c *Conn) init(s *Server, local, peer net.Addr) {
	c.server, c.set, c.id, c.accepted = s, s.holdSettings(), lastID.Add(1), s.clock()
	c.local, c.peer = local, peer
}

// makeContext returns a context that lives exactly as long as the connection.
func (c *Conn) makeContext(parent context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	switch end := c.end.Load(); { // before there was anything to cancel
	case end != nil:
		cancel(end)
	case c.isClosing():
		cancel(&CloseError{Reason: HandlerClosed})
	}
	return ctx
}

// cancelContext ends the handler's context, if there is one.
func (c *Conn) cancelContext(cause *CloseError) {
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// ID returns the connection's number, unique in the process.
func (c *Conn) ID() uint64 { return c.id }

// Server returns the server that accepted the connection.
func (c *Conn) Server() *Server { return c.server }

// Accepted returns when the connection was accepted.
func (c *Conn) Accepted() time.Time { return c.server.epoch.Add(c.accepted) }

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
	if s := c.stream.Load(); s != nil {
		return s.wire.read.Load(), s.wire.written.Load()
	}
	return c.looped.traffic()
}

// TLS returns what the handshake agreed on (SNI, ALPN, the peer's certificates),
// or nil for a plaintext connection.
func (c *Conn) TLS() *tls.ConnectionState {
	if !c.isSecured() { // anybody may ask, also during the arrival
		return nil
	}
	secure, _ := c.secure()
	state := secure.ConnectionState()
	return &state
}

// secure returns the TLS that is in place, wherever the connection is served, and what it
// was made with.
func (c *Conn) secure() (secure *tls.Conn, terms *tls.Config) {
	if s := c.stream.Load(); s != nil {
		return s.tls, s.terms
	}
	return c.looped.secure()
}

// TLSConfig returns what the handshake was made with, or nil for a plaintext
// connection: Server.TLSConfig, or what was given to [Conn.StartTLS], and not what its
// GetConfigForClient chose. It tells whose policy a connection came in under, and must not
// be changed.
func (c *Conn) TLSConfig() *tls.Config {
	if !c.isSecured() {
		return nil
	}
	_, terms := c.secure()
	return terms
}

// SyscallConn returns access to the socket, to set options on it or to ask the
// kernel about it: its Control works wherever the connection is served, and fails
// with net.ErrClosed once it has been closed. Reading and writing is not possible.
// For a connection that is no socket the error matches errors.ErrUnsupported.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if s := c.stream.Load(); s != nil {
		if _, ok := s.wire.raw.(syscall.Conn); !ok {
			return nil, errNoSocket
		}
	}
	return socket{c}, nil
}

// LocalAddr returns the address that the connection was accepted on.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// PeerAddr returns the address of the socket's other end: the proxy's, where a
// proxy stands in front.
func (c *Conn) PeerAddr() net.Addr { return c.peer }

// RemoteAddr returns the client's address: the one in the PROXY header where
// there was one, else the socket's.
func (c *Conn) RemoteAddr() net.Addr {
	if client := c.proxied(); client.IsValid() {
		return net.TCPAddrFromAddrPort(client)
	}
	return c.peer
}

// ClientAddr is RemoteAddr as a netip.AddrPort, with IPv4-in-IPv6 unmapped. It is
// the zero AddrPort, which is not valid, for a peer without an IP address (a
// Unix socket's).
func (c *Conn) ClientAddr() netip.AddrPort {
	if client := c.proxied(); client.IsValid() {
		return client
	}
	return addrPort(c.peer)
}

// proxied returns who the PROXY header says that the client is; not valid without one.
func (c *Conn) proxied() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil {
		return netip.AddrPort{}
	}
	return c.extra.client
}

func (c *Conn) setProxied(client netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extraLocked().client = client
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

// bytes returns the stream, if it is anybody's to read and write.
func (c *Conn) bytes() (*stream, error) {
	s := c.stream.Load()
	if s == nil || s.stepped.Load() {
		return nil, errStepped
	}
	return s, nil
}

// ends notes why the connection ends, and reports whether that is the reason.
func (c *Conn) ends(reason CloseReason, cause error) bool {
	return c.end.CompareAndSwap(nil, &CloseError{Reason: reason, Cause: cause})
}

// over reports whether nothing is to be served any more.
func (c *Conn) over() bool { return c.isClosing() || c.end.Load() != nil }

// Read reads up to len(p) bytes.
func (c *Conn) Read(p []byte) (int, error) {
	s, err := c.bytes()
	if err != nil {
		return 0, err
	}
	return s.Read(p)
}

// Write writes all of p, or returns why it could not. What several goroutines
// write at once does not mix.
func (c *Conn) Write(p []byte) (int, error) {
	s, err := c.bytes()
	if err != nil {
		return 0, err
	}
	return s.write(p)
}

// CloseWrite tells the peer that no more bytes will come: a FIN, or TLS's
// close_notify. Reading goes on, for Server.HalfClosedTimeout without a byte.
func (c *Conn) CloseWrite() error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	return s.closeWrite()
}

// Close closes the connection. A handler need not call it: returning does the
// same, and is kinder to a peer that is still sending. What a Step replies that has
// called it is not written.
func (c *Conn) Close() error {
	if c.end.Load() != nil || c.marks.Or(closing)&closing != 0 { // in this order: who sees it closing ends, and leaves the socket to us
		return net.ErrClosed
	}
	err := c.closeSocket()
	c.cancelContext(&CloseError{Reason: HandlerClosed})
	return err
}

// holds returns how many bytes of the server's memory hold what has come from the client and
// has not been taken, or has not been written yet. What a handler holds is not among it.
func (c *Conn) holds() int { return c.holdsIn(c.place()) }

func (c *Conn) holdsIn(onLoop bool, s *stream) int {
	switch {
	case onLoop:
		return c.looped.held()
	case s != nil:
		return s.wire.held.buffered() + s.plain.buffered()
	}
	return 0
}

// pause has an event loop not read the connection, nor its upstream's, until resume, and
// reports whether one serves it. A paused connection is never idle, and does not leave.
func (c *Conn) pause() bool {
	onLoop, _ := c.place()
	if onLoop {
		c.looped.pause()
	}
	return onLoop
}

// resume ends a pause.
func (c *Conn) resume() {
	if onLoop, _ := c.place(); onLoop {
		c.looped.resume()
	}
}

// place returns where the connection is: on an event loop, or in a stream. It is in
// neither if it was accepted bare and no loop would take it.
func (c *Conn) place() (onLoop bool, s *stream) {
	c.mu.Lock() // until then it may be on its way
	defer c.mu.Unlock()
	return c.onLoop, c.stream.Load()
}

// closeSocket closes the connection wherever it is.
func (c *Conn) closeSocket() error {
	switch onLoop, s := c.place(); {
	case onLoop:
		c.looped.close()
	case s != nil:
		return s.close()
	}
	return nil
}

// SetDeadline sets the handler's own read and write deadlines. A zero time
// takes them away; the server's own stay in force in any case.
func (c *Conn) SetDeadline(t time.Time) error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	return s.wire.SetDeadline(t)
}

// SetReadDeadline is SetDeadline for reads alone.
func (c *Conn) SetReadDeadline(t time.Time) error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	return s.wire.SetReadDeadline(t)
}

// SetWriteDeadline is SetDeadline for writes alone. With TLS, too, writing may go
// on after a deadline; what a write that timed out says it has written includes
// up to 16 KiB that go out before the next.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	return s.wire.SetWriteDeadline(t)
}

// Peek returns the next n bytes without taking them, and waits until there are
// so many. Where fewer come it returns those, and why: io.EOF, a deadline, or
// bufio.ErrBufferFull, at once, for an n above 80 KiB. The bytes are valid until the next
// Peek, Read or Next.
func (c *Conn) Peek(n int) ([]byte, error) {
	s, err := c.bytes()
	if err != nil {
		return nil, err
	}
	return s.peek(n)
}

// Buffered returns how many bytes a Peek can return without waiting.
func (c *Conn) Buffered() int {
	s, err := c.bytes()
	if err != nil {
		return 0
	}
	return s.buffered()
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
	s, err := c.bytes()
	return err == nil && s.awaitNext() == nil
}

// Draining returns a channel that is closed when the connection is asked to
// leave: it should finish what it is doing and return. A handler that waits in
// [Conn.Next] need not look.
func (c *Conn) Draining() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requestLocked()
	if r.made == nil {
		r.made = make(chan struct{})
		if r.reason != ReasonNone {
			close(r.made)
		}
	}
	return r.made
}

// Drain asks the connection to leave, and says why: cause may be nil. A handler
// that waits in [Conn.Next] returns at once; any other learns of it by
// [Conn.Draining]. It does not wait, and only the first request counts.
//
// A client that is in the middle of its arrival (PROXY header, TLS handshake, first bytes for a [Router]), or of whose
// first request after that nothing has come, is given 5 seconds for it: Next waits for so long, once. If it has said nothing at
// all that is until a second after it was accepted.
func (c *Conn) Drain(cause error) { c.askToLeave(Drained, cause) }

func (c *Conn) askToLeave(reason CloseReason, cause error) {
	if c.ask(reason, cause) {
		c.tellDraining()
	}
}

// ask asks, and reports whether the Trace has to be told: by tellDraining, once.
func (c *Conn) ask(reason CloseReason, cause error) (tell bool) {
	c.mu.Lock()
	r := c.requestLocked()
	if r.reason != ReasonNone {
		c.mu.Unlock()
		return false
	}
	r.reason, r.cause, r.at = reason, cause, c.Age()
	if r.made != nil {
		close(r.made)
	}
	if tell = c.introduced; tell {
		r.telling.Add(1)
	}
	later := c.postponeLocked()
	c.mu.Unlock()
	if !later {
		c.heed()
	}
	return tell
}

// heed has whoever serves the connection know that it was asked to leave.
func (c *Conn) heed() {
	switch onLoop, s := c.place(); {
	case onLoop:
		c.looped.askToLeave()
	case s != nil:
		s.wire.askToLeave()
		if j := s.joint.Load(); j != nil {
			j.leaveInQuiet()
		}
	}
}

func (c *Conn) tellDraining() {
	defer c.extra.request.telling.Done() // where it was asked, a moment ago
	c.server.guard(c, func() { c.server.trace().Draining(c) })
}

// Kill ends the connection now: its context is canceled, its socket closed, and
// every read and write returns a [*CloseError] that wraps cause. A cause of nil
// is fine. It does not wait for the handler to return.
func (c *Conn) Kill(cause error) { _ = c.cut(Killed, cause) }

// Forbid is Kill with reason policy: what lets connections in has changed, and would not
// let this one in any more.
func (c *Conn) Forbid(cause error) { _ = c.cut(Policy, cause) }

// cut ends the connection for the given reason, if nothing has ended it before,
// and returns the error that says which it was.
func (c *Conn) cut(reason CloseReason, cause error) *CloseError {
	if c.isClosing() {
		return &CloseError{Reason: HandlerClosed} // there is nothing left to cut; settle has the last word
	}
	end := &CloseError{Reason: reason, Cause: cause}
	if !c.end.CompareAndSwap(nil, end) {
		return c.end.Load()
	}
	c.cancelContext(end)
	switch onLoop, s := c.place(); {
	case onLoop:
		c.looped.kill()
	case s != nil:
		if reason == WriteStalled || s.cutsJointShort() {
			s.reset() // bytes that the peer will not take are not kept for it, and a part is not to look like all
		}
		_ = s.wire.Close()
	}
	return end
}

// networkError makes what a system call said what net would have made of it.
func (c *Conn) networkError(err error) error {
	call, ok := err.(*os.SyscallError) //nolint:errorlint // as it comes
	if !ok {
		return err
	}
	return &net.OpError{Op: call.Syscall, Net: c.peer.Network(), Source: c.local, Addr: c.peer, Err: err}
}

// A socket is a connection's syscall.RawConn. It is not net's own: what knows that
// type reads and writes past whatever lies above the socket.
type socket struct{ conn *Conn }

var errNoSocket = fmt.Errorf("levee: the connection is no socket: %w", errors.ErrUnsupported)

func (s socket) Control(f func(fd uintptr)) error {
	c := s.conn
	onLoop, st := c.place()
	switch {
	case onLoop:
		return c.looped.control(f)
	case st == nil:
		return net.ErrClosed
	}
	raw, err := st.wire.raw.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(f)
	}
	if err != nil && c.stream.Load() == nil { // it has gone to a loop meanwhile
		return s.Control(f)
	}
	return err
}

func (socket) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (socket) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }
