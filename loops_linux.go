package levee

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/internal/reactor"
)

// A loopSet are a server's event loops, made when a listener or a connection first
// needs them.
type loopSet struct {
	once    sync.Once
	reactor *reactor.Reactor // nil if there are none to be had

	lagging atomic.Pointer[reactor.Reactor] // the same, once it is there

	hurried *reactor.Reactor // the same, once it knows of the pressure; guarded by pressing.mu
}

// loopLimits are what event loops hold connections to.
type loopLimits struct {
	stepped, steppedUnix reactor.Limits
	joined, joinedUnix   reactor.Limits // of pairs; unix if either socket is one
}

func (l *limits) onLoops() (on loopLimits) {
	on.stepped = reactor.Limits{Idle: l.idle, WriteStall: l.writeStall, Message: l.message, MaxMessage: -1}
	on.joined = reactor.Limits{Idle: l.joinedIdle, WriteStall: l.writeStall, HalfClosed: l.halfClosed}
	on.steppedUnix, on.joinedUnix = on.stepped, on.joined
	on.steppedUnix.Uneven, on.joinedUnix.Uneven = true, true
	return on
}

// loopFiles returns how many files a server's event loops have open.
func loopFiles() int { return reactor.FilesPerLoop * runtime.GOMAXPROCS(0) }

// pipeFiles returns how many they may have open for pairs at most, beside their sockets.
func pipeFiles() int { return reactor.PipeFilesPerLoop * runtime.GOMAXPROCS(0) }

// eventLoops returns the server's event loops, or nil.
func (s *Server) eventLoops() *reactor.Reactor {
	l := &s.loops
	l.once.Do(func() {
		if s.GoroutinePerConn {
			return
		}
		budget := s.inForce.Load().limits.step
		if budget < 0 {
			budget = tooLong
		}
		r, err := reactor.New(reactor.Options{Budget: budget, Lasting: bare.KeepAlive, Quiet: s.quiet})
		if err != nil {
			s.acceptLog.complain(s.Logger, "no event loops: each connection gets a goroutine", "err", err)
			return
		}
		l.reactor = r
		l.lagging.Store(r)
		s.pressing.mu.Lock()
		defer s.pressing.mu.Unlock()
		l.hurried = r
		r.Hurry(s.hurry())
	})
	return l.reactor
}

// lagOfLoops returns how late the loops were at most since the last call.
func (s *Server) lagOfLoops() time.Duration {
	if r := s.loops.lagging.Load(); r != nil {
		return r.Lag()
	}
	return 0
}

// hurry returns what event loops cut short.
func (s *Server) hurry() reactor.Hurry {
	return reactor.Hurry{Idle: s.pressed(ShortIdle), Goodbye: s.pressed(NoLinger), Narrow: s.pressed(PauseReads)}
}

// hurryLoops has the event loops know of the pressure. It is called under pressing.mu.
func (s *Server) hurryLoops() {
	if r := s.loops.hurried; r != nil {
		r.Hurry(s.hurry())
	}
}

// quietOnLoops returns the connections on event loops from or to which nothing has moved
// for so long. It is called under pressing.mu.
func (s *Server) quietOnLoops(atLeast time.Duration) (quiet []quietConn) {
	r := s.loops.hurried
	if r == nil {
		return nil
	}
	now := time.Since(r.Epoch())
	for _, seen := range slices.Concat(survey(r)...) {
		if c := connOf(seen.Owner); c != nil && now-seen.Moved > atLeast {
			quiet = append(quiet, quietConn{c, now - seen.Moved})
		}
	}
	return quiet
}

// movedOnLoops returns when a byte last moved, for those connections on event loops of
// which that shows.
func (s *Server) movedOnLoops() (all []movedConn) {
	s.pressing.mu.Lock()
	r := s.loops.hurried
	s.pressing.mu.Unlock()
	if r == nil {
		return nil
	}
	since := r.Epoch().Sub(s.epoch)
	for _, seen := range survey(r) {
		all = slices.Grow(all, len(seen))
		for _, one := range seen {
			if c := connOf(one.Owner); c != nil {
				all = append(all, movedConn{c.id, one.Moved + since})
			}
		}
	}
	return all
}

// survey returns what each event loop sees of its connections, at a time.
func survey(r *reactor.Reactor) (all [][]reactor.Sight) {
	told := make(chan []reactor.Sight, r.Loops())
	tooLong := time.NewTimer(surveyTime)
	defer tooLong.Stop()
	for calls := r.Survey(func(seen []reactor.Sight) { told <- seen }); calls > 0; calls-- {
		select {
		case seen := <-told:
			all = append(all, seen)
		case <-tooLong.C:
			return all
		}
	}
	return all
}

// connOf returns the connection that an event loop has for the server.
func connOf(o reactor.Owner) *Conn {
	switch o := o.(type) {
	case *stepping:
		return (*Conn)(o)
	case owner:
		return o.itself().conn
	}
	return nil // on its way out
}

// closeLoops ends the event loops when no connection can need them any more.
func (s *Server) closeLoops() {
	s.handshakes.breath.close()
	s.loops.once.Do(func() {})
	if s.loops.reactor != nil {
		s.loops.reactor.Close()
	}
}

// A breath has all goroutines that wait for the kernel get their turn, between two that
// would go on and on. It takes a file, from the first time on.
type breath struct {
	once  sync.Once
	taken *reactor.Breath // nil if there is none to be had
}

func (b *breath) take() {
	b.once.Do(func() { b.taken, _ = reactor.NewBreath() })
	if b.taken == nil {
		runtime.Gosched()
		return
	}
	b.taken.Take()
}

// close is called when no goroutine takes it any more.
func (b *breath) close() {
	b.once.Do(func() {})
	if b.taken != nil {
		b.taken.Close()
	}
}

// looped is the part of a connection that an event loop has.
type looped struct {
	by    *service      // often the same for all
	state atomic.Uint32 // what a Step has to look at; here, as it is at hand there
	bare  int32         // the socket of a connection that no loop has yet
	reactor.Conn
}

// A service is what connections are served by: a Stepper, or a Joiner that joins them to
// others.
type service struct {
	stepper Stepper
	joiner  Joiner
	base    context.Context // parent of those that Joins see
	tls     *tls.Conn       // of this one connection, which is joined; nil in plaintext
	terms   *tls.Config     // what it was made with
}

// secure returns what the event loop ends TLS with.
func (l *looped) secure() (*tls.Conn, *tls.Config) { return l.by.tls, l.by.terms }

// beginsOnLoop reports whether the connection was accepted to be stepped.
func (c *Conn) beginsOnLoop() bool { return c.stream.Load() == nil && c.looped.by.stepper != nil }

// bareJoiner returns what joins a connection that was accepted for that.
func (c *Conn) bareJoiner() Joiner { return c.looped.by.joiner }

const (
	fresh      = 1 << iota // the Trace has not been told of it
	closedByUs             // Conn.Close has been called
	unserved               // it has not been sent anything
	rejoins                // what has joined it is a Rejoiner
	isNew                  // its first request has not come; see newcomer.go
)

func (l *looped) isUnheard() bool { return l.state.Load()&isNew != 0 }
func (l *looped) isHeard()        { l.state.And(^uint32(isNew)) }

func (l *looped) traffic() (read, written int64) { return l.Traffic() }
func (l *looped) askToLeave()                    { l.Leave() }
func (l *looped) hasten()                        { l.Hasten() }
func (l *looped) held() int                      { return l.Held() }
func (l *looped) pause()                         { l.Pause() }
func (l *looped) resume()                        { l.Resume() }
func (l *looped) kill()                          { l.Kill() }
func (l *looped) close()                         { l.state.Or(closedByUs); l.Kill() }
func (l *looped) discard()                       { _ = unix.Close(int(l.bare)) }
func (l *looped) keepTo(in, out Pacer)           { l.SetPace(in, out) }

func (l *looped) descriptor() int { return int(l.bare) }

// reset is discard with a reset.
func (l *looped) reset() {
	_ = unix.SetsockoptLinger(int(l.bare), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	l.discard()
}

func (l *looped) control(f func(fd uintptr)) error {
	if !l.Control(func(fd int) { f(uintptr(fd)) }) {
		return net.ErrClosed
	}
	return nil
}

// moveToLoop moves a connection whose arrival is over to an event loop, if h can be
// stepped and the socket is one that a loop can have. The bytes that were read
// ahead go along.
func (s *stream) moveToLoop(h Handler) bool {
	c := s.conn
	stepper, ok := h.(Stepper)
	if !ok || s.tls != nil {
		return false
	}
	fd, ok := s.loopSocket()
	if !ok {
		return false
	}
	loops := c.server.eventLoops()
	if !s.handTo(loops, stepper, fd) {
		_ = unix.Close(fd)
		return false
	}
	_ = s.wire.raw.Close() // takes the socket's first descriptor out of Go's poller
	s.release()
	return true
}

// handTo has the loops adopt the connection under a descriptor of its own.
func (s *stream) handTo(loops *reactor.Reactor, stepper Stepper, fd int) bool {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over() {
		return false
	}
	c.looped.SetTraffic(c.Traffic())
	c.looped.SetPace(s.wire.pacers())
	c.looped.by = &service{stepper: stepper}
	c.looped.state.Store(unserved)
	if s.novelty.get() != settled {
		c.looped.state.Or(isNew)
	}
	c.stream.Store(nil)
	limits := &c.set.onLoops.stepped
	if isUnixConn(s.wire.raw) {
		limits = &c.set.onLoops.steppedUnix
	}
	first := bytes.Clone(s.wire.held.bytes())
	if loops.Adopt(&c.looped.Conn, fd, first, (*stepping)(c), limits) != nil {
		c.stream.Store(s)
		return false
	}
	c.loopHasItLocked()
	return true
}

// loopHasItLocked passes on what has been asked of the connection meanwhile.
func (c *Conn) loopHasItLocked() {
	c.onLoop = true
	switch {
	case c.over():
		c.looped.kill()
	case c.isAskedLocked() && !c.postponedLocked():
		c.looped.askToLeave()
	}
}

// canLoop reports whether an event loop can have the socket. It cannot while a part of a
// record waits to be written, which only the next write here does.
func (s *stream) canLoop() bool {
	if s.wire.screening.Load() || s.wire.cutShort() != nil {
		return false
	}
	_, ok := s.wire.socket()
	return ok && s.conn.server.eventLoops() != nil
}

// loopSocket returns a descriptor for an event loop, if it can have one.
func (s *stream) loopSocket() (fd int, ok bool) {
	if !s.canLoop() {
		return -1, false
	}
	sock, _ := s.wire.socket()
	fd = duplicate(sock)
	return fd, fd >= 0
}

// duplicate returns another descriptor of the socket, or -1: in Go's poller and in
// a loop's at once, one would wake both.
func duplicate(sock syscall.RawConn) int {
	fd := -1
	_ = sock.Control(func(own uintptr) {
		if n, err := unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			fd = n
		}
	})
	return fd
}

// enterLoopLocked begins the life of a connection that was accepted as a bare socket.
func (c *Conn) enterLoopLocked() {
	l := &c.looped
	err := c.server.eventLoops().Adopt(&l.Conn, int(l.bare), nil, (*stepping)(c), &c.set.onLoops.stepped)
	if err == nil {
		c.loopHasItLocked()
		return
	}
	l.discard()
	go c.neverBegin(err) // ends with the hooks
}

// runBare is what run does with a connection that was accepted as a bare socket.
func (c *Conn) runBare() (moved bool, err error) {
	if c.beginsOnLoop() {
		return c.enterLoopLate()
	}
	j := c.bareJoiner()
	c.announce(j)
	return c.joinTo(j)
}

// enterLoopLate has a loop take over a connection that had to wait in a goroutine first.
func (c *Conn) enterLoopLate() (moved bool, err error) {
	l := &c.looped
	l.state.And(^uint32(fresh)) // what its first Step would tell has been told, but this
	c.announce(l.by.stepper)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over() {
		return false, net.ErrClosed
	}
	err = c.server.eventLoops().Adopt(&l.Conn, int(l.bare), nil, (*stepping)(c), &c.set.onLoops.stepped)
	if err != nil {
		c.ends(NetworkError, err) // as in neverBegin
		return false, err
	}
	c.loopHasItLocked()
	return true, nil
}

// neverBegin is the life of a connection that no loop would take, for want of
// memory.
func (c *Conn) neverBegin(err error) {
	c.server.guard(c, c.introduce)
	c.depart(c.settle(outcome{err: err, broken: NetworkError}), err)
}

// stepping is a Conn as its event loop sees it.
type stepping Conn

// Step is the server's Step around the handler's. The first comes before any byte.
func (o *stepping) Step(in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	c := (*Conn)(o)
	l := &c.looped
	if l.state.Load()&fresh != 0 {
		l.state.And(^uint32(fresh))
		c.introduce()
		c.announce(l.by.stepper)
	}
	if l.state.Load()&isNew != 0 && len(in) > 0 {
		c.settleDown()
	}
	if l.state.Load()&closedByUs == 0 && c.end.Load() == nil && len(in) > 0 {
		n, reply, err = l.by.stepper.Step(c, in, seen, out)
		checkStep(n, len(in))
	}
	state := l.state.Load()
	if state&closedByUs != 0 || c.end.Load() != nil {
		return n, nil, net.ErrClosed
	}
	if state&unserved != 0 && len(reply) > 0 {
		l.state.And(^uint32(unserved))
		c.serves()
	}
	return n, reply, err
}

// Closing looks at the socket for the last time.
func (o *stepping) Closing(fd int) { (*Conn)(o).look(fd) }

// Slow counts.
func (o *stepping) Slow() { o.server.slow.Add(1) }

// Slowed tells the Trace.
func (o *stepping) Slowed(took time.Duration) {
	if hook := o.server.trace().SlowStep; hook != nil {
		c := (*Conn)(o)
		c.server.guard(c, func() { hook(c, took) })
	}
}

// End is a connection's leave, once its socket is closed.
func (o *stepping) End(cause reactor.Cause, err error) {
	c := (*Conn)(o)
	outcome := outcome{err: err}
	switch cause {
	case reactor.EOF:
		outcome.eof = true
	case reactor.IOError:
		outcome.err, outcome.broken = c.networkError(err), reasonOf(err)
	case reactor.Refused:
		if err == io.EOF {
			outcome.err = nil
		}
	case reactor.Panicked:
		if p, ok := errors.AsType[*reactor.PanicError](err); ok {
			outcome.err = c.panicked(p.Value, p.Stack)
		}
	case reactor.Idle:
		c.ends(IdleTimeout, nil)
	case reactor.Unfinished:
		c.ends(MessageTimeout, nil)
	case reactor.Stalled:
		c.ends(WriteStalled, nil)
	case reactor.Left, reactor.Killed: // whoever asked has said why
	}
	if c.over() && cause != reactor.Panicked {
		outcome.err = nil // not the handler's to report
	}
	c.depart(c.settle(outcome), outcome.err)
}
