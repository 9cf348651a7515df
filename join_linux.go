package levee

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/internal/reactor"
)

// A pair is a connection and its upstream's as an event loop has them.
type pair struct {
	conn  *Conn
	far   reactor.Conn
	ended func(UpstreamEnd)
}

// joinTo joins the connection to what j has for it.
func (c *Conn) joinTo(j Joiner) (moved bool, err error) {
	ctx := c.ownContext()
	u, ok, err := c.upstreamOf(ctx, j)
	if !ok {
		return false, err
	}
	if _, ok := j.(Rejoiner); ok {
		c.looped.state.Or(rejoins)
	}
	if c.joinOnLoop(u) {
		return true, nil
	}
	s := c.stream.Load()
	if s == nil {
		if s, err = c.streamOfBare(); err != nil {
			_ = u.Conn.Close()
			c.tellEnded(u.Ended, UpstreamEnd{Reason: c.settle(outcome{err: err})})
			return false, err
		}
	}
	return false, s.join(ctx, u)
}

// joinOnLoop has an event loop move the bytes, and reports whether one does. If not,
// both sockets are as they were.
func (c *Conn) joinOnLoop(u Upstream) (moved bool) {
	loops := c.server.eventLoops()
	if loops == nil {
		return false
	}
	near, uneven := int(c.looped.bare), isUnixConn(u.Conn)
	if s := c.stream.Load(); s != nil {
		var ok bool
		if near, ok = s.loopSocket(); !ok {
			return false
		}
		defer func() {
			if !moved {
				_ = unix.Close(near)
			}
		}()
		uneven = uneven || isUnixConn(s.wire.raw)
	}
	far, giveBack := farDescriptor(u.Conn)
	if far < 0 {
		return false
	}
	p := c.newPair(u)
	if _, ok := u.Conn.(*bare.Conn); ok {
		p.itself().far.MayLast() // who dialled otherwise has set the options that he wants
	}
	if !c.handPairTo(loops, near, far, uneven, p) {
		giveBack(far)
		return false
	}
	_ = u.Conn.Close() // takes the socket's first descriptor out of Go's poller
	return true
}

// farDescriptor returns a descriptor for an event loop, or -1, and what takes it back. It
// may be conn's only one.
func farDescriptor(conn net.Conn) (fd int, giveBack func(fd int)) {
	if b, ok := conn.(*bare.Conn); ok {
		if fd, ok := b.Detach(); ok {
			return fd, b.Attach
		}
	}
	if sock, ok := rawSocket(netsOwn(conn)); ok {
		return duplicate(sock), func(fd int) { _ = unix.Close(fd) }
	}
	return -1, nil
}

func isUnixConn(conn net.Conn) bool {
	_, is := conn.(*net.UnixConn)
	return is
}

// handPairTo has the loops join the connection and its upstream under descriptors of
// their own.
func (c *Conn) handPairTo(loops *reactor.Reactor, near, far int, uneven bool, p owner) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over() {
		return false
	}
	limits := &c.set.onLoops.joined
	if uneven {
		limits = &c.set.onLoops.joinedUnix
	}
	var first []byte
	s := c.stream.Load()
	if s != nil {
		c.looped.SetTraffic(c.Traffic())
		c.looped.SetPace(s.wire.pacers())
		first = p.takeOver(s)
		c.stream.Store(nil)
	}
	if loops.Join(&c.looped.Conn, &p.itself().far, near, far, first, p, limits) != nil {
		c.stream.Store(s)
		if s != nil {
			s.wire.veil = nil
		}
		return false
	}
	if s != nil {
		_ = s.wire.raw.Close()
		s.release()
	}
	if c.cancel != nil { // what has been done with the context is done
		c.cancel(nil)
		c.cancel = nil
	}
	c.loopHasItLocked()
	return true
}

// An owner is a pair, of whichever kind.
type owner interface {
	reactor.Owner
	itself() *pair

	// takeOver takes the stream's bytes that were read ahead, and returns those of them that
	// are for the upstream.
	takeOver(s *stream) (first []byte)
}

func (c *Conn) newPair(u Upstream) (o owner) {
	s := c.stream.Load()
	isSealed := s != nil && s.tls != nil
	switch {
	case isSealed && u.Rest != nil:
		o = &overheardSealedPair{sealedPair: sealedPair{tls: s.tls}, overhearing: c.overhears(u)}
	case isSealed:
		o = &sealedPair{tls: s.tls}
	case u.Rest != nil:
		o = &overheardPair{overhearing: c.overhears(u)}
	default:
		o = new(pair)
	}
	p := o.itself()
	p.conn, p.ended = c, u.Ended
	return o
}

// An overheardPair is a pair whose upstream has a Rest, an overheardSealedPair likewise. They are types of their own
// as the others are many, and need not have room for it.
type (
	overheardPair struct {
		pair
		overhearing
	}
	overheardSealedPair struct {
		sealedPair
		overhearing
	}
)

var (
	_ reactor.Overhearer = (*overheardPair)(nil)
	_ reactor.Overhearer = (*overheardSealedPair)(nil)
	_ reactor.Sealer     = (*overheardSealedPair)(nil)
)

func (p *pair) itself() *pair { return p }

func (p *pair) takeOver(s *stream) (first []byte) { return bytes.Clone(s.wire.held.bytes()) }

// Step, Slow and Slowed are not called of a pair.
func (*pair) Step([]byte, int, []byte) (n int, reply []byte, err error) { return 0, nil, net.ErrClosed }
func (*pair) Slow()                                                     {}
func (*pair) Slowed(time.Duration)                                      {}

// Heard notes the upstream's first byte.
func (p *pair) Heard() { p.conn.serves() }

// Closing looks at the client's socket for the last time.
func (p *pair) Closing(fd int) { p.conn.look(fd) }

// End is a connection's leave, once both sockets are closed.
func (p *pair) End(cause reactor.Cause, err error) {
	c := p.conn
	var o outcome
	var ofFar error
	switch cause {
	case reactor.EOF:
		o.eof = true
	case reactor.IOError:
		if caught, ok := errors.AsType[*reactor.PanicError](err); ok { // in crypto/tls
			o.err = c.panicked(caught.Value, caught.Stack)
			break
		}
		o.err, o.broken = c.networkError(err), reasonOf(err)
		o.eof = err == io.ErrUnexpectedEOF // within a TLS record
	case reactor.FarEOF:
		c.ends(UpstreamClosed, nil)
	case reactor.FarIOError:
		ofFar, o.err = err, ofUpstream(err)
		c.ends(upstreamReason(err), o.err)
	case reactor.Idle:
		c.ends(IdleTimeout, nil)
	case reactor.HalfClosed:
		c.ends(HalfClosedTimeout, nil)
	case reactor.Stalled:
		c.ends(WriteStalled, nil)
	case reactor.FarStalled:
		c.ends(UpstreamStalled, nil)
	}
	reason := c.settle(o)
	defer c.depart(reason, o.err) // also when the hook calls runtime.Goexit
	received, sent := p.far.Traffic()
	first := c.looped.EndedFirst()
	c.tellEnded(p.ended, UpstreamEnd{Reason: reason, Err: ofFar, ClientFirst: first, Sent: sent, Received: received})
}

// streamOfBare gives a connection that was accepted bare, and cannot go to a loop, a
// stream after all.
func (c *Conn) streamOfBare() (*stream, error) {
	f := os.NewFile(uintptr(c.looped.bare), "tcp")
	raw, err := net.FileConn(f)
	_ = f.Close() // FileConn makes a descriptor of its own
	if err != nil {
		c.looped.bare = -1
		return nil, err
	}
	s := &stream{conn: c, base: c.looped.by.base}
	s.wire.raw, s.wire.conn = raw, c
	s.wire.keepTo(c.looped.Paced())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream.Store(s)
	if c.over() {
		_ = raw.Close()
	}
	return s, nil
}

// leaveBare is leave for a connection that has got no further than to be accepted. Its
// goodbye is a loop's.
func (c *Conn) leaveBare(err error) {
	reason := c.settle(outcome{err: err})
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.looped
	if reason.isKind() && c.server.eventLoops().Adopt(&l.Conn, int(l.bare), nil, &farewell{c, err}, &c.set.onLoops.stepped) == nil {
		c.onLoop = true
		return
	}
	if reason.isRefusal() {
		l.reset()
	} else {
		l.discard()
	}
	go c.depart(reason, err) // ends with the hooks
}

// A farewell is what is left of a connection that leaves before it was served.
type farewell struct {
	conn *Conn
	err  error
}

// Step has the loop say goodbye.
func (*farewell) Step([]byte, int, []byte) (n int, reply []byte, err error) {
	return 0, nil, net.ErrClosed
}
func (*farewell) Slow()                {}
func (*farewell) Slowed(time.Duration) {}

// Closing is as stepping's.
func (f *farewell) Closing(fd int) { f.conn.look(fd) }

// End is the connection's leave.
func (f *farewell) End(reactor.Cause, error) { f.conn.depart(f.conn.Reason(), f.err) }

// ownContext returns the connection's context, also before it has a stream.
func (c *Conn) ownContext() context.Context {
	if s := c.stream.Load(); s != nil {
		return s.context()
	}
	return c.makeContext(c.looped.by.base)
}
