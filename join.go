package levee

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/internal/reactor"
)

// A Joiner is a Handler that joins its connection to another one, its upstream: what
// the client sends goes there, what comes from there goes to the client, and so do
// the ends of both. Where both are TCP or Unix sockets, and the upstream's is in plaintext,
// an event loop does that (on Linux, and unless [Server.GoroutinePerConn] is set): the pair
// has no goroutine, no buffer while it is idle but what crypto/tls keeps, and bulk that is
// not encrypted stays inside the kernel. Any other connection gets ServeTCP, which is one
// line, [ServeJoined], and behaves the same.
//
// Each side gets what the other has sent, in full and before its end. A half-close is
// passed on, and a reset as a reset; what the server ends in the middle of something is
// reset on both sides, as a close would look like an end. A side that takes nothing is
// not read for: beside what the kernel holds, at most 32 KiB wait for it, or 64 KiB and
// what TLS adds to them. On an event loop a client that has TLS ask again and again, and reads
// none of the answers, is reset once 148 KiB wait for it.
//
// Over TLS, either side that closes without a close_notify ends like one that has sent it,
// if that is between two records: crypto/tls does not tell them apart. What has to be safe
// from being cut short in between (RFC 8446, section 6.1) needs a protocol that says where
// its messages end.
//
// Asked to leave, a joined connection does when nothing has moved for five seconds and
// the upstream has had the last word; or as [Upstream].Rest has it.
type Joiner interface {
	Handler

	// Join returns what c is to be joined to. It may look at c; if c has arrived by way of
	// a Router that did [Conn.Peek], so may Join, and it may read and write what is not for
	// the upstream. ctx ends when
	// the connection does, and may end when Join has returned; how long Join may take is
	// for itself to limit. An error ends the connection with reason upstream_unavailable.
	Join(ctx context.Context, c *Conn) (Upstream, error)
}

// An Upstream is what a Joiner joins its connection to.
type Upstream struct {
	// Conn is closed by levee. A *net.TCPConn or *net.UnixConn can be served by an event
	// loop, and must not be used by anybody else then.
	Conn net.Conn

	// Rest, if not nil, knows more of when the connection may leave than can be told by its silence. It is asked of one
	// that was asked to leave, and is shown up to RestBytes of what the upstream has sent since the client has last
	// sent something: the first of them, and the last, which may overlap. If some of the bytes have not been seen, as bulk
	// stays inside the kernel, first has none of what comes behind them, and last none of what came before. Rest must be
	// quick, must not keep the slices, and may be called from several goroutines.
	Rest func(first, last []byte) Rest

	// Ended is called once, when Conn has been closed, before [Trace.Closed]. It may be
	// nil. It must be quick, and must not panic. It is called as well when the connection has moved to
	// another process, which has it joined by now: with ReasonNone.
	Ended func(UpstreamEnd)
}

// UpstreamEnd is how the connection to an upstream ended.
type UpstreamEnd struct {
	Reason         CloseReason // the client's, too; ReasonNone if it has not ended, but moved
	Err            error       // what the network, or TLS, said of it; nil if all went well
	ClientFirst    bool        // the client had ended its stream, or reset it, before the upstream did either
	Sent, Received int64       // bytes to and from the upstream, in all processes; 0 if it has moved, as it ends elsewhere
}

// ServeJoined is ServeTCP for a Joiner.
func ServeJoined(ctx context.Context, c *Conn, j Joiner) error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	u, ok, err := c.upstreamOf(ctx, j)
	if !ok {
		return err
	}
	return s.join(ctx, u)
}

// upstreamOf returns what j joins the connection to. It is not ok if there is nothing:
// the connection ends then, and the error is what is to be told of that.
func (c *Conn) upstreamOf(ctx context.Context, j Joiner) (u Upstream, ok bool, _ error) {
	c.reached(dialBegun)
	_ = stretchToDial(0)
	u, err := j.Join(ctx, c)
	switch {
	case err == nil && u.Conn != nil:
		c.reached(dialDone)
		c.settleDown() // what rests on either side is seen from now on
		return u, true, nil
	case err == nil:
		err = errNoUpstream
	}
	reason := UpstreamUnavailable
	if s := c.stream.Load(); s != nil && s.wire.eof.Load() && isEOF(err) {
		reason = ClientAborted // in the middle of what Join had to talk about with it
	}
	if c.isClosing() || !c.ends(reason, err) {
		err = nil // it is not the Joiner's to report that it was called off
	}
	return Upstream{}, false, err
}

var errNoUpstream = errors.New("join: no upstream")

// A joint moves the bytes of a connection that no event loop can serve, by two
// goroutines: a client's connection is near, its upstream's far. What it does in
// which case is what internal/reactor's relay does.
type joint struct {
	stream *stream
	far    net.Conn
	sock   *farSocket  // nil if far has to be waited for with a buffer in hand
	watch  *stallWatch // over writes to far; nil if a deadline does

	sent, received     atomic.Int64
	sentAt, receivedAt atomic.Int64 // clock when what goes there, and comes from there, was read
	movedAt            atomic.Int64 // clock when some of it had been written
	inHand             atomic.Int32 // directions that have bytes to write

	nearOver        atomic.Int64           // clock when the upstream had got all that it gets, 0 before
	first           atomic.Pointer[ending] // the one of the two that was over or broken before the other
	nearEnd, farEnd ending                 // of the sockets

	leaving, hasty atomic.Bool // it was asked to leave, and the time is running out

	mu    sync.Mutex
	heard *overhearing // nil if nobody listens
	timer *time.Timer  // of leaveInQuiet
	over  bool
}

// An ending is how one of the two sockets ends.
type ending struct {
	broken atomic.Pointer[error] // what went wrong with it first

	mu   sync.Mutex  // held while the stream to it is ended
	told atomic.Bool // that it has been
	over bool        // it has ended its own, in good order
}

func (e *ending) set(err error) { e.broken.CompareAndSwap(nil, &err) }

func (e *ending) get() error {
	if err := e.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// tell ends the stream to the socket.
func (e *ending) tell(closeWrite func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := closeWrite()
	if !e.over && reasonOf(err) != ReasonNone {
		e.set(err)
	}
	e.told.Store(err == nil)
	return err
}

// meaning returns what an error of a read means. The kernel tells of a reset once: when
// a write has been told, reads show an end of the stream. No reset spoils an end that the
// other side has notified of by TLS: a client that never reads is reset by its kernel when
// it closes, as it has not read what TLS had to say to it.
func (e *ending) meaning(raw net.Conn, err error, notified bool) error {
	if err != io.EOF {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if notified {
		e.over = true
		return err
	}
	if broken := e.get(); broken != nil {
		return broken
	}
	if !e.told.Load() && wasReset(socketUnder(raw)) { // once it has been told, nothing is written that could be
		return os.NewSyscallError("read", syscall.ECONNRESET)
	}
	e.over = true
	return err
}

const (
	takenLook = 10 * time.Millisecond // how often it is looked whether a peer has taken what it is to
	leastRest = 10 * time.Millisecond // to wait for who is not at rest
)

// join moves bytes both ways until both ends are over.
func (s *stream) join(ctx context.Context, u Upstream) error {
	far := netsOwn(u.Conn)
	j := &joint{stream: s, far: far, sock: newFarSocket(far)}
	j.watch = newStallWatch(j)
	if u.Rest != nil {
		heard := s.conn.overhears(u)
		j.heard = &heard
	}
	now := int64(s.wire.clock())
	j.sentAt.Store(now)
	j.receivedAt.Store(now + 1)
	s.wire.mu.Lock()
	s.wire.joined = true
	s.wire.mu.Unlock()
	s.wire.readArmed.Store(false)
	s.stepped.Store(true)
	defer s.stepped.Store(false)
	unhook := context.AfterFunc(ctx, j.closeFar) // whatever ends the connection ends its upstream's
	s.joint.Store(j)
	if reason, _ := s.conn.asked(); reason != ReasonNone {
		j.leaveInQuiet()
	}
	down := make(chan struct{})
	go j.download(down)                   // ends at far's end, and at the connection's, which closes far
	s.conn.server.guard(s.conn, j.upload) // far may be anybody's code, as in download
	if s.conn.over() {
		j.closeFar()
	}
	<-down
	unhook()
	return j.finish(u.Ended)
}

// netsOwn returns what can be waited for in a goroutine.
func netsOwn(conn net.Conn) net.Conn {
	if b, ok := conn.(*bare.Conn); ok {
		if own := b.NetConn(); own != nil {
			return own
		}
	}
	return conn
}

// upload moves what the client sends.
func (j *joint) upload() {
	s := j.stream
	for {
		err := s.awaitBytes()
		if err == nil {
			_, _, err = s.copyOnce(farWriter{j}, copySize)
		}
		err = j.nearEnd.meaning(s.wire.raw, err, s.notified)
		switch {
		case err == nil:
			continue
		case s.conn.over():
			return
		case j.farEnd.get() != nil: // what it has sent before is on its way down
			j.limitSilence()
			return
		case err == io.EOF:
			j.noteEnd(&j.nearEnd)
			j.endFar()
			return
		}
		j.noteEnd(&j.nearEnd)
		j.nearEnd.set(s.wire.ended(err))
		j.resetFar()
		return
	}
}

// A farWriter is the upstream as upload writes to it.
type farWriter struct{ *joint }

// Write writes all of p, as long as the upstream takes some of it now and then.
func (j farWriter) Write(p []byte) (done int, err error) {
	if !j.takesMore() {
		return 0, net.ErrClosed
	}
	defer j.hasMoved()
	j.watch.begin()
	defer j.watch.end()
	limit := j.stream.conn.set.limits.writeStall
	for {
		if limit > 0 && j.watch == nil {
			_ = j.far.SetWriteDeadline(time.Now().Add(limit))
		}
		n, err := j.far.Write(j.watch.piece(p[done:]))
		done += n
		j.sent.Add(int64(n))
		switch {
		case err == nil && done < len(p):
			continue
		case err == nil:
			return done, nil
		case j.stream.conn.over():
			return done, net.ErrClosed
		case isTimeout(err) && n > 0:
			continue
		case isTimeout(err) && j.watch == nil:
			j.stall()
			return done, net.ErrClosed
		}
		j.noteEnd(&j.farEnd)
		j.farEnd.set(err)
		return done, err
	}
}

// noteEnd notes that a side has ended its stream or failed, if it is the first.
func (j *joint) noteEnd(e *ending) { j.first.CompareAndSwap(nil, e) }

// takes notes that a direction has bytes in hand, and when it got them.
func (j *joint) takes(at *atomic.Int64) {
	j.inHand.Add(1)
	at.Store(int64(j.stream.wire.clock()))
}

// takesMore takes what the client has sent, before the answer to it can come, unless the connection has left.
func (j *joint) takesMore() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stream.conn.over() {
		return false
	}
	j.takes(&j.sentAt)
	return true
}

// hasMoved notes that it has none any more.
func (j *joint) hasMoved() {
	j.movedAt.Store(int64(j.stream.wire.clock()))
	j.inHand.Add(-1)
}

func (j *joint) download(done chan<- struct{}) {
	defer close(done)
	j.stream.conn.server.guard(j.stream.conn, j.moveDown)
}

// moveDown moves what the upstream sends.
func (j *joint) moveDown() {
	s := j.stream
	for {
		pace := s.wire.meterOut()
		s.wire.abide(pace) // and read only then
		buffer, n, err := j.receive(pace.chunk(copySize))
		if n > 0 {
			j.received.Add(int64(n))
			j.overhear(buffer[:n])
			j.takes(&j.receivedAt)
			_, nearErr := s.write(buffer[:n])
			j.hasMoved()
			copyBuffers.Put(buffer)
			j.leaveAtRest()
			switch {
			case nearErr == nil:
				continue
			case !s.conn.over():
				j.noteEnd(&j.nearEnd)
				j.nearEnd.set(nearErr)
			}
			return // what the client has sent before is on its way up
		}
		err = j.farEnd.meaning(j.far, err, false)
		switch {
		case s.conn.over() || j.nearEnd.get() != nil:
			return
		case isTimeout(err) && j.nearOver.Load() != 0:
			if !j.halfClosedTooLong() {
				continue
			}
			return
		case err == io.EOF:
			j.noteEnd(&j.farEnd)
			j.endNear()
			return
		}
		j.noteEnd(&j.farEnd)
		j.farEnd.set(err)
		j.resetNear()
		return
	}
}

// endFar passes the client's end on.
func (j *joint) endFar() {
	if under := socketUnder(j.far); under != j.far { // crypto/tls gives its own end 5 seconds to be written
		j.watch.begin()
		awaitRoom(under)
		j.watch.end()
	}
	j.limitSilence()
	if err := j.farEnd.tell(func() error { return closeWriteOf(j.far) }); isTimeout(err) {
		j.stall()
	}
}

// limitSilence has the upstream, which gets no more, say what it has to within the limit.
func (j *joint) limitSilence() {
	j.nearOver.Store(int64(j.stream.wire.clock()))
	j.hurry()
}

// hurry arms the upstream's deadline, if it has one.
func (j *joint) hurry() {
	if j.nearOver.Load() != 0 {
		_ = j.silenceIsOver()
	}
}

// silenceIsOver reports whether the upstream, which gets no more, has been silent for too
// long. If not it has the deadline look again when it may be.
func (j *joint) silenceIsOver() bool {
	j.mu.Lock() // so that the last to arm the deadline knows the pressure
	defer j.mu.Unlock()
	server := j.stream.conn.server
	limit := server.patience(j.stream.conn.set.limits.halfClosed)
	if limit <= 0 {
		return false
	}
	since := max(j.receivedAt.Load(), j.movedAt.Load(), j.nearOver.Load())
	if pace := j.stream.wire.meterOut(); pace != nil {
		since = max(since, pace.until.Load()) // until then it was not read
	}
	left := limit + time.Duration(since) - j.stream.wire.clock()
	_ = j.far.SetReadDeadline(time.Now().Add(left))
	return left <= 0
}

// endNear passes the upstream's end on.
func (j *joint) endNear() {
	s := j.stream
	if s.tls != nil {
		_ = s.endTLS() // first, as it may have to wait; why it fails shows again
	}
	err := j.nearEnd.tell(s.closeWrite)
	if s.tls == nil && errors.Is(err, errors.ErrUnsupported) {
		s.conn.ends(UpstreamClosed, nil) // a connection that cannot be closed by half is closed
		_ = s.wire.Close()
	}
}

// receive waits for what the upstream sends, and takes no more of it than most. It returns a
// buffer if n is positive.
func (j *joint) receive(most int) (buffer *[copySize]byte, n int, err error) {
	if j.sock != nil {
		return j.sock.read(most)
	}
	buffer = copyBuffers.Get().(*[copySize]byte)
	n, err = j.far.Read(buffer[:most])
	if n == 0 {
		copyBuffers.Put(buffer)
	}
	return buffer, n, err
}

// halfClosedTooLong looks whether the client has been waiting, its side closed, for
// too long, and ends the connection then.
func (j *joint) halfClosedTooLong() bool {
	if j.silenceIsOver() {
		_ = j.stream.conn.cut(HalfClosedTimeout, nil)
		return true
	}
	return false
}

// resetNear resets the client's connection, as the upstream's was.
func (j *joint) resetNear() {
	s := j.stream
	if j.nearEnd.get() == nil {
		awaitTaken(s.wire.raw)
	}
	err := j.farEnd.get()
	s.conn.ends(upstreamReason(err), ofUpstream(err))
	s.wire.stopPacing()
	s.wire.look()
	abort(s.wire.raw)
}

// resetFar resets the upstream's connection, as the client's was.
func (j *joint) resetFar() {
	if j.farEnd.get() == nil {
		awaitTaken(j.far)
	}
	j.stream.wire.stopPacing() // there is nobody to pace any more
	abort(j.far)
}

// upstreamReason is reasonOf for an upstream's socket.
func upstreamReason(err error) CloseReason {
	if reasonOf(err) == ClientReset {
		return UpstreamReset
	}
	return UpstreamFailed
}

// ofUpstream tells an upstream's error from the client's.
func ofUpstream(err error) error { return fmt.Errorf("upstream: %w", err) }

// finish closes what is still open, and says how it ended.
func (j *joint) finish(ended func(UpstreamEnd)) (err error) {
	s, c := j.stream, j.stream.conn
	near, far := j.nearEnd.get(), j.farEnd.get()
	switch {
	case c.over():
	case near != nil:
		j.resetFar()
	case far != nil:
		j.resetNear()
	case j.first.Load() == &j.farEnd:
		c.ends(UpstreamClosed, nil)
	}
	j.watch.stop()
	j.closeFar()
	j.mu.Lock()
	j.over = true
	if j.timer != nil {
		j.timer.Stop()
	}
	j.mu.Unlock()
	s.joint.Store(nil)
	if err = near; near == nil && far != nil {
		err = ofUpstream(far)
	}
	reason := c.settle(outcome{err, s.wire.eof.Load(), CloseReason(s.wire.broken.Load())})
	s.part(reason)
	c.tellEnded(ended, UpstreamEnd{
		Reason: reason, Err: far, ClientFirst: j.first.Load() == &j.nearEnd, Sent: j.sent.Load(), Received: j.received.Load(),
	})
	return err
}

// tellEnded calls an Upstream's Ended, if there is one.
func (c *Conn) tellEnded(ended func(UpstreamEnd), end UpstreamEnd) {
	if ended != nil {
		c.server.guard(c, func() { ended(end) })
	}
}

func (j *joint) closeFar() {
	if j.cutsShort(&j.farEnd) {
		abort(j.far)
		return
	}
	_ = j.far.Close()
}

// cutsShort reports whether a close would look like an end to one that has been told of
// none: the connection was ended by neither side, in the middle of something.
func (j *joint) cutsShort(e *ending) bool {
	c := j.stream.conn
	return c.over() && c.Reason() != UpstreamClosed && !e.told.Load() && j.restsIn() > 0
}

// leaveInQuiet ends a connection that was asked to leave when it is at rest.
func (j *joint) leaveInQuiet() {
	j.leaving.Store(true)
	if j.leaves(j.restsIn()) {
		j.stream.sayGoodbye()
		_ = j.stream.wire.Close()
		j.closeFar()
	}
}

// leaves ends a connection that is at rest, unless its client has said something meanwhile, and reports whether it has.
// Else it has leaveInQuiet look again.
func (j *joint) leaves(restsIn time.Duration) bool {
	reason, cause := j.stream.conn.asked()
	j.mu.Lock() // until then nothing is taken from the client
	defer j.mu.Unlock()
	switch {
	case j.over:
		return false
	case restsIn <= 0 && j.inHand.Load() == 0 && j.sentAt.Load() <= j.receivedAt.Load():
		return j.stream.conn.ends(reason, cause)
	case j.timer == nil:
		j.timer = time.AfterFunc(max(restsIn, leastRest), j.leaveInQuiet) // ended by finish
	default:
		j.timer.Reset(max(restsIn, leastRest))
	}
	return false
}

// leaveAtRest is leaveInQuiet behind each part of an answer, if more is known of it than that it is quiet.
func (j *joint) leaveAtRest() {
	if j.leaving.Load() && j.heard != nil {
		j.leaveInQuiet()
	}
}

// overhear keeps what is to be known of an answer.
func (j *joint) overhear(b []byte) {
	if j.heard == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.heard.Overhear(b, j.sentAt.Load() > j.receivedAt.Load())
}

// rest returns what is known of the connection.
func (j *joint) rest() Rest {
	if j.heard == nil {
		return RestUnknown
	}
	j.mu.Lock()
	heard := *j.heard
	j.mu.Unlock()
	return heard.ask() // anybody's code
}

// restsIn returns how long it takes until the connection is at rest if nothing happens
// meanwhile: nothing has moved for a moment, and the upstream has had the last word. As
// far as can be seen from here, nobody waits for an answer then.
func (j *joint) restsIn() time.Duration {
	rest, hasty, most := j.rest(), j.hasty.Load(), j.stream.conn.server.quietTime()
	if rest == NotAtRest {
		return most
	}
	quiet := reactor.Quiet(most, reactor.Rest(rest), hasty)
	busy := j.inHand.Load() > 0 // first: once that is over, movedAt tells of it
	near, far := j.stream.wire.raw, socketUnder(j.far)
	busy = busy || unread(near) > 0 || unread(far) > 0 || pending(far)
	if rest != AtRest || !hasty { // else it may say its next before it has acknowledged the answer
		busy = busy || pending(near)
	}
	asked, answered := j.sentAt.Load(), j.receivedAt.Load()
	wait := quiet + time.Duration(max(asked, answered, j.movedAt.Load())) - j.stream.wire.clock()
	if busy || asked > answered {
		return max(wait, quiet, leastRest)
	}
	return wait
}

func (s *Server) quietTime() time.Duration { return cmp.Or(s.quiet, reactor.QuietTime) }

// awaitTaken waits until a peer has taken what the kernel holds for it, or does not.
func awaitTaken(conn net.Conn) {
	raw := socketUnder(conn)
	for giveUp := time.Now().Add(reactor.DeliverTime); pending(raw) && time.Now().Before(giveUp); {
		time.Sleep(takenLook)
	}
}

// abort closes a connection by a reset, which drops what the kernel still holds. TLS says
// no goodbye then: its peer would take it for an end in good order.
func abort(conn net.Conn) {
	raw := socketUnder(conn)
	if t, ok := raw.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = raw.Close()
}

// socketUnder returns what a *tls.Conn lies over, and any other connection itself.
func socketUnder(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// closeWriteOf ends the stream to raw, if that can be done: else its end is its close.
func closeWriteOf(raw net.Conn) error {
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	err := half.CloseWrite()
	if under := socketUnder(raw); err == nil && under != raw {
		err = closeWriteOf(under)
	}
	return err
}

// A farSocket reads one of net's sockets without a buffer in hand while it waits.
type farSocket struct {
	sock    syscall.RawConn
	attempt func(fd uintptr) bool // made once

	most   int // to read
	buffer *[copySize]byte
	n      int
	err    error
}

// newFarSocket returns nil if conn is none.
func newFarSocket(conn net.Conn) *farSocket {
	sock, ok := rawSocket(conn)
	if !ok {
		return nil
	}
	f := &farSocket{sock: sock}
	f.attempt = func(fd uintptr) bool {
		f.buffer = copyBuffers.Get().(*[copySize]byte)
		if f.n, f.err = readDirectly(fd, f.buffer[:f.most]); f.n == 0 {
			copyBuffers.Put(f.buffer)
			f.buffer = nil
		}
		return f.err != errWouldBlock
	}
	return f
}

// read returns a buffer if n is positive.
func (f *farSocket) read(most int) (buffer *[copySize]byte, n int, err error) {
	f.most = most
	if err := f.sock.Read(f.attempt); err != nil {
		return nil, 0, err
	}
	return f.buffer, f.n, f.err
}
