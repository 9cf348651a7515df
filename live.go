package levee

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// live is a connection's life in a goroutine: arrive, be served, leave. One that can
// be served by an event loop goes there after its arrival.
func (c *Conn) live() { c.liveBy(c.run) }

// liveBy is a life that is whatever run makes of it, and what comes of that.
func (c *Conn) liveBy(run func() (moved bool, err error)) {
	var err error
	returned, moved := false, false
	defer func() { // a defer of its own: Goexit in Panicked ends the other
		if !moved {
			c.leave(err)
		}
	}()
	defer func() {
		if !returned { // a panic, or runtime.Goexit
			err = c.caught(recover())
		}
	}()
	moved, err = run()
	returned = true
}

func (c *Conn) run() (moved bool, err error) {
	c.introduce()
	if c.set.gate != nil && !c.comesByProxy() {
		if err := c.awaitGate(); err != nil {
			return false, err
		}
	}
	s := c.stream.Load()
	if s == nil {
		return c.runBare()
	}
	h, err := s.arrive()
	if err != nil {
		return false, err
	}
	c.announce(h)
	if j, ok := h.(Joiner); ok && s.canLoop() {
		return c.joinTo(j)
	}
	if s.moveToLoop(h) {
		return true, nil
	}
	return false, h.ServeTCP(s.context(), c)
}

// announce tells the Trace that the arrival is over.
func (c *Conn) announce(h Handler) {
	c.hasArrived()
	c.reached(routed)
	if hook := c.server.trace().Serving; hook != nil {
		hook(c, h)
	}
}

// introduce tells the Trace of the connection, and starts its lifetime.
func (c *Conn) introduce() {
	if hook := c.server.trace().Accepted; hook != nil {
		hook(c)
	}
	c.introduceDraining()
	c.limitLifetime()
}

// introduceDraining tells of a request to leave that came before.
func (c *Conn) introduceDraining() {
	hook := c.server.trace().Draining
	if hook == nil {
		return
	}
	c.mu.Lock()
	c.introduced = true
	asked := c.isAskedLocked()
	c.mu.Unlock()
	if asked {
		hook(c)
	}
}

// takeLeave tells the Trace of the connection's end, when nothing else is being
// told any more.
func (c *Conn) takeLeave(end End) {
	c.mu.Lock()
	c.introduced = false
	r := c.requestedLocked()
	c.mu.Unlock()
	if r != nil {
		r.telling.Wait()
	}
	switch hooks := c.server.trace(); {
	case end.Reason == ReasonNone && hooks.Moved != nil:
		c.server.guard(c, func() { hooks.Moved(c) })
	case end.Reason != ReasonNone && hooks.Closed != nil:
		c.server.guard(c, func() { hooks.Closed(c, end) })
	}
}

// limitLifetime asks the connection to leave at its age, and cuts it when it
// has not done so a drain's time later.
func (c *Conn) limitLifetime() {
	lifetime := c.set.limits.lifetime
	if lifetime <= 0 {
		return
	}
	lifetime += time.Duration((2*rand.Float64() - 1) * float64(lifetime) / 10) //nolint:gosec // spreads load, keeps no secret
	c.limitLifetimeTo(lifetime)
}

// limitLifetimeTo is limitLifetime for so long, from now on.
func (c *Conn) limitLifetimeTo(left time.Duration) {
	expired := func() {
		c.askToLeave(LifetimeExpired, nil)
		if grace := c.set.limits.drain; grace >= 0 {
			c.startTimer(grace, func() { _ = c.cut(LifetimeExpired, nil) })
		}
	}
	c.startTimer(left, expired)
}

func (c *Conn) startTimer(d time.Duration, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end.Load() != nil {
		return // too late to limit anything
	}
	x := c.extraLocked()
	x.lifetime, x.expires = time.AfterFunc(d, f), c.server.clock()+d // stopped by depart
}

// caught turns a recovered panic into the connection's end. A value of nil is
// runtime.Goexit, which a test's FailNow calls.
func (c *Conn) caught(value any) error {
	if value == nil {
		return c.panicked(nil, nil)
	}
	return c.panicked(value, debug.Stack())
}

func (c *Conn) panicked(value any, stack []byte) error {
	if value == nil {
		c.ends(HandlerError, errGoexit)
		return errGoexit
	}
	err := panicError(value)
	c.ends(HandlerPanic, err)
	c.server.reportPanic(c, value, stack)
	return err
}

var errGoexit = errors.New("handler called runtime.Goexit")

// panicError is made at once: what the value points to may change. It survives a
// value whose own Error or String panics.
func panicError(value any) error { return fmt.Errorf("panic: %v", value) }

// guard runs a hook behind a panic wall of its own, for hooks that are called
// outside of run. A panic ends c, if there is one.
func (s *Server) guard(c *Conn, hook func()) {
	defer func() {
		if value := recover(); value != nil {
			if c != nil {
				_ = c.cut(HandlerPanic, panicError(value))
			}
			s.reportPanic(c, value, debug.Stack())
		}
	}()
	hook()
}

func (s *Server) reportPanic(c *Conn, value any, stack []byte) {
	s.mu.Lock()
	s.left.panics++
	s.mu.Unlock()
	var id uint64
	if c != nil {
		id = c.id
	}
	s.panicLog.complain(s.Logger, "panic", "conn", id, "value", fmt.Sprint(value), "stack", string(stack))
	if hook := s.trace().Panicked; hook != nil && c != nil {
		func() {
			defer func() { _ = recover() }() // counted already; there is nobody left to tell
			hook(c, value, stack)
		}()
	}
}

// leave closes the connection, gives back all that it holds and says why it
// ended. It is the last thing its goroutine does.
func (c *Conn) leave(err error) {
	if c.leavesElsewhere() {
		return
	}
	s := c.stream.Load()
	if s == nil {
		c.leaveBare(err)
		return
	}
	reason := c.settle(outcome{err, s.wire.eof.Load(), CloseReason(s.wire.broken.Load())})
	s.part(reason)
	s.release()
	c.depart(reason, err)
}

// An outcome is what the engine that ran a connection knows of its end.
type outcome struct {
	err    error       // of the handler, or what failed in the arrival
	eof    bool        // the peer has closed its side
	broken CloseReason // what the network did to it
}

// settle decides, once, what the connection ended of.
func (c *Conn) settle(o outcome) CloseReason {
	asked, cause := c.asked()
	if c.isClosing() && errors.Is(o.err, net.ErrClosed) {
		o.err = nil // what a handler meets that closes its connection while it reads
	}
	reason := HandlerClosed
	switch {
	case o.broken != ReasonNone && (o.err == nil || reasonOf(o.err) != ReasonNone):
		reason = o.broken
	case o.err != nil && !(isEOF(o.err) && o.eof):
		reason = HandlerError
	case o.eof:
		reason = ClientClosed
	case asked != ReasonNone:
		reason = asked
	}
	if reason != asked {
		cause = o.err
	}
	end := &CloseError{Reason: reason, Cause: cause}
	if !c.end.CompareAndSwap(nil, end) {
		end = c.end.Load()
	}
	c.cancelContext(end)
	return end.Reason
}

// part closes a connection that is still open, kindly if its handler left on good
// terms.
func (s *stream) part(reason CloseReason) {
	if s.conn.isClosing() {
		return
	}
	switch {
	case reason.isKind(), reason.isRefusal() && s.tls != nil:
		s.sayGoodbye()
	case reason.isRefusal():
		s.reset()
	}
	_ = s.wire.Close()
}

// isKind reports whether the peer is to read the last that it was sent.
func (r CloseReason) isKind() bool {
	switch r {
	case HandlerClosed, HandlerError, ClientClosed, UpstreamUnavailable, UpstreamClosed, Drained, LifetimeExpired, TLSFailed, NoRoute:
		return true
	}
	return false
}

// sayGoodbye ends TLS by the book, and sees to it that the peer gets to read the
// last bytes it was sent. The kernel answers a close with unread bytes by a
// reset, which can overtake them (RFC 1122, section 4.2.2.13): so whatever is
// still coming is read and dropped, for a moment.
func (s *stream) sayGoodbye() {
	if s.tls != nil {
		// A phase, as crypto/tls takes the liberty of a write deadline of 5 seconds.
		s.wire.setPhase(time.Now().Add(reactor.LingerTime))
		_ = s.wire.armWrite(0) // for a goroutine that the handler left behind in a Write
		_ = s.tls.CloseWrite()
	}
	if s.wire.eof.Load() {
		return
	}
	if s.wire.CloseWrite() != nil { // first, so that what comes after the look below cannot turn it into a reset
		return
	}
	b := blocks.Get().(*block)
	defer blocks.Put(b)
	n, err := s.wire.readLast(b[:])
	if s.conn.server.pressed(NoLinger) {
		return
	}
	if err == errWouldBlock && unsent(s.wire.raw) {
		err = nil // what comes while the kernel still sends would make it drop the rest
	}
	if err != nil {
		return // nothing unread, nothing unsent: a plain close harms nobody
	}
	until := time.Now().Add(reactor.LingerTime)
	for dropped := n; dropped < reactor.LingerBytes && err == nil; dropped += n {
		_ = s.wire.SetReadDeadline(until)
		n, err = s.wire.raw.Read(b[:])
		s.wire.read.Add(int64(n))
	}
}

// depart takes the connection, whose socket is closed, out of the server's counts,
// and tells the Trace.
func (c *Conn) depart(reason CloseReason, err error) {
	if end := c.end.Load(); err == nil && end != nil {
		err = end.Cause
	}
	c.departAs(End{Reason: reason, Err: err, TCP: c.lastLook()})
}

func (c *Conn) departAs(end End) { c.bidFarewell(c.strikeOff(end)) }

// strikeOff takes the connection out of the server's counts.
func (c *Conn) strikeOff(end End) End {
	c.mu.Lock()
	if c.extra != nil && c.extra.lifetime != nil {
		c.extra.lifetime.Stop()
	}
	if r := c.requestedLocked(); r != nil && r.grace != nil {
		r.grace.Stop()
	}
	c.mu.Unlock()
	s := c.server
	end.Duration = s.clock() - c.accepted
	end.Read, end.Written = c.Traffic()
	s.mu.Lock()
	delete(s.conns, c.id)
	s.left.add(end)
	s.leaving++
	s.mu.Unlock()
	s.slots.free()
	endedConns.Add(1)
	return end
}

// bidFarewell gives back what was taken for a connection that has been struck off, and tells the Trace.
func (c *Conn) bidFarewell(end End) {
	defer c.server.departed() // also when a hook calls runtime.Goexit
	defer c.takeLeave(end)
	c.giveBack(end)
}

// departed lets the server end, if this was its last connection.
func (s *Server) departed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving--
	s.closeIfGoneLocked()
}

// isTimeout reports whether err is a deadline's.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
