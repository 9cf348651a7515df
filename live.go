package levee

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"time"
)

// live is a connection's whole life, in its goroutine: arrive, be served, leave.
func (c *Conn) live() {
	var err error
	returned := false
	defer func() { c.leave(err) }() // a defer of its own: Goexit in Panicked ends the other
	defer func() {
		if !returned { // a panic, or runtime.Goexit
			err = c.caught(recover())
		}
	}()
	err = c.run()
	returned = true
}

func (c *Conn) run() error {
	c.introduce()
	c.limitLifetime()
	h, err := c.arrive(c.ctx)
	if err != nil {
		return err
	}
	if hook := c.server.trace().Serving; hook != nil {
		hook(c, h)
	}
	return h.ServeTCP(c.ctx, c)
}

// introduce tells the Trace of the connection. A request to leave that came before
// is told after it.
func (c *Conn) introduce() {
	if hook := c.server.trace().Accepted; hook != nil {
		hook(c)
	}
	hook := c.server.trace().Draining
	if hook == nil {
		return
	}
	c.mu.Lock()
	c.introduced = true
	asked := c.drainReason != ReasonNone
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
	c.mu.Unlock()
	c.telling.Wait()
	if hook := c.server.trace().Closed; hook != nil {
		c.server.guard(c, func() { hook(c, end) })
	}
}

// limitLifetime asks the connection to leave at its age, and cuts it when it
// has not done so a drain's time later.
func (c *Conn) limitLifetime() {
	lifetime := c.server.limits.lifetime
	if lifetime <= 0 {
		return
	}
	lifetime += time.Duration((2*rand.Float64() - 1) * float64(lifetime) / 10) //nolint:gosec // spreads load, keeps no secret
	expired := func() {
		c.askToLeave(LifetimeExpired, nil)
		if grace := c.server.limits.drain; grace >= 0 {
			c.startTimer(grace, func() { _ = c.cut(LifetimeExpired, nil) })
		}
	}
	c.startTimer(lifetime, expired)
}

func (c *Conn) startTimer(d time.Duration, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end.Load() != nil {
		return // too late to limit anything
	}
	c.lifetime = time.AfterFunc(d, f) // stopped by release
}

// caught turns a recovered panic into the connection's end. A value of nil is
// runtime.Goexit, which a test's FailNow calls.
func (c *Conn) caught(value any) error {
	if value == nil {
		c.end.CompareAndSwap(nil, &CloseError{Reason: HandlerError, Cause: errGoexit})
		return errGoexit
	}
	err := panicError(value)
	c.end.CompareAndSwap(nil, &CloseError{Reason: HandlerPanic, Cause: err})
	c.server.reportPanic(c, value)
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
			s.reportPanic(c, value)
		}
	}()
	hook()
}

func (s *Server) reportPanic(c *Conn, value any) {
	stack := debug.Stack()
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
	reason := c.settleReason(err)
	c.closeSocket(reason)
	c.release()
	end := End{Reason: reason, Err: err, Duration: time.Since(c.accepted)}
	end.Read, end.Written = c.Traffic()
	c.server.depart(c, end)
}

// settleReason decides, once, what the connection ended of.
func (c *Conn) settleReason(err error) CloseReason {
	c.mu.Lock()
	asked, cause := c.drainReason, c.drainCause
	c.mu.Unlock()

	if c.closing.Load() && errors.Is(err, net.ErrClosed) {
		err = nil // what a handler meets that closes its connection while it reads
	}
	reason := HandlerClosed
	broken := CloseReason(c.wire.broken.Load())
	switch {
	case broken != ReasonNone && (err == nil || reasonOf(err) != ReasonNone):
		reason = broken
	case err != nil && !(isEOF(err) && c.wire.eof.Load()):
		reason = HandlerError
	case c.wire.eof.Load():
		reason = ClientClosed
	case asked != ReasonNone:
		reason = asked
	}
	if reason != asked {
		cause = err
	}
	end := &CloseError{Reason: reason, Cause: cause}
	if !c.end.CompareAndSwap(nil, end) {
		end = c.end.Load()
	}
	c.cancel(end)
	return end.Reason
}

// closeSocket closes a connection that is still open, kindly if its handler left
// on good terms.
func (c *Conn) closeSocket(reason CloseReason) {
	if c.closing.Load() {
		return
	}
	switch reason {
	case HandlerClosed, HandlerError, ClientClosed, Drained, LifetimeExpired, TLSFailed, NoRoute:
		c.sayGoodbye()
	}
	_ = c.wire.Close()
}

const (
	lingerTime  = 500 * time.Millisecond // net/http's: long enough for the last bytes to get across
	lingerBytes = 256 << 10
)

// sayGoodbye ends TLS by the book, and sees to it that the peer gets to read the
// last bytes it was sent. The kernel answers a close with unread bytes by a
// reset, which can overtake them (RFC 1122, section 4.2.2.13): so whatever is
// still coming is read and dropped, for a moment.
func (c *Conn) sayGoodbye() {
	if c.tls != nil {
		// A phase, as crypto/tls takes the liberty of a write deadline of 5 seconds.
		c.wire.setPhase(time.Now().Add(lingerTime))
		_ = c.wire.armWrite(0) // for a goroutine that the handler left behind in a Write
		_ = c.tls.CloseWrite()
	}
	if c.wire.eof.Load() {
		return
	}
	if c.wire.CloseWrite() != nil { // first, so that what comes after the look below cannot turn it into a reset
		return
	}
	b := blocks.Get().(*block)
	defer blocks.Put(b)
	n, err := c.wire.readLast(b[:])
	if err == errWouldBlock && unsent(c.wire.raw) {
		err = nil // what comes while the kernel still sends would make it drop the rest
	}
	if err != nil {
		return // nothing unread, nothing unsent: a plain close harms nobody
	}
	until := time.Now().Add(lingerTime)
	for dropped := n; dropped < lingerBytes && err == nil; dropped += n {
		_ = c.wire.SetReadDeadline(until)
		n, err = c.wire.raw.Read(b[:])
		c.wire.read.Add(int64(n))
	}
}

// release gives back what the connection holds beside its socket.
func (c *Conn) release() {
	c.mu.Lock()
	if c.lifetime != nil {
		c.lifetime.Stop()
	}
	c.mu.Unlock()
	c.wire.held.release()
	c.plain.release()
}

// depart takes the connection out of the server's counts, and tells the Trace.
func (s *Server) depart(c *Conn, end End) {
	s.mu.Lock()
	delete(s.conns, c.id)
	s.left.add(end)
	s.leaving++
	s.mu.Unlock()
	s.freeSlot()
	defer s.departed() // also when the hook calls runtime.Goexit
	c.takeLeave(end)
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
