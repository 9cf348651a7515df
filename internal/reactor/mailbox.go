//go:build linux

package reactor

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// op is what a message asks of a loop.
type op uint8

const (
	opAdopt op = iota
	opJoin
	opBack
	opLeave
	opHasten
	opKill
	opPause
	opResume
	opInspect
	opPack
	opUnpack
	opAll
	opStop
)

// A message asks a loop for something.
type message struct {
	op      op
	conn    *Conn
	first   []byte
	back    *back
	inspect func(View)
	pack    func(*Snapshot)
	all     func(*loop)
}

// back is what a call that outlived its budget, or that the lane made, has to say.
type back struct {
	n     int    // how much it consumed
	rest  []byte // received and not consumed
	reply []byte
	err   error
	took  time.Duration
}

// A mailbox is where others leave messages for a loop.
type mailbox struct {
	some atomic.Bool // there are messages; spares the lock

	mu     sync.Mutex
	queue  []message
	asleep bool // the loop waits, and nobody has rung yet
	closed bool // the loop ends: nothing that comes is read
}

// post leaves a message and sees that it is read, unless the loop ends.
func (l *loop) post(m message) (left bool) {
	b := &l.mailbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	l.postLocked(m)
	return true
}

func (l *loop) postLocked(m message) {
	b := &l.mailbox
	b.queue = append(b.queue, m)
	b.some.Store(true)
	if b.asleep {
		b.asleep = false // one ring wakes it, for however many messages
		l.poller.ring()
	}
}

// shut leaves the last message.
func (l *loop) shut() {
	l.mailbox.mu.Lock()
	defer l.mailbox.mu.Unlock()
	l.postLocked(message{op: opStop})
	l.mailbox.closed = true
}

// adopt registers the connection's socket and leaves the message that goes with
// it. The loop has to read the message before it handles the socket's first
// events. It looks into the mailbox after it has got those; there it finds that
// there is something, and waits for the lock.
func (l *loop) adopt(c *Conn, first []byte) error {
	b := &l.mailbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	b.some.Store(true)
	if err := l.poller.add(int(c.fd), c.fd, c.gen); err != nil {
		return err
	}
	l.postLocked(message{op: opAdopt, conn: c, first: first})
	return nil
}

// manyMessages is how long a queue may get before its memory is not kept.
const manyMessages = 1024

// take returns the messages, and leaves an empty queue in the memory of old ones.
func (b *mailbox) take(old []message) []message {
	if !b.some.Load() {
		return old[:0]
	}
	if cap(old) > manyMessages {
		old = nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.queue
	b.queue = old[:0]
	b.some.Store(false)
	return taken
}

// sleep reports whether there is no message: the loop may wait then.
func (b *mailbox) sleep() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asleep = len(b.queue) == 0
	return b.asleep
}

// wake notes that the loop is up.
func (b *mailbox) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asleep = false
}

// obey does what a message asks.
func (l *loop) obey(m message) bool {
	c := m.conn
	switch m.op {
	case opStop:
		l.stop = true
		return true
	case opAll:
		m.all(l)
		return true
	case opAdopt:
		return l.enter(c, m.first)
	case opJoin:
		return l.enterPair(c, m.first)
	}
	if m.op == opPack && !l.has(c) {
		m.pack(nil)
		return true
	}
	if p := c.packed(); p != nil {
		return l.obeyPacked(c, p, m)
	}
	if !l.has(c) {
		return true
	}
	switch m.op {
	case opBack:
		return l.takeBack(c, m.back)
	case opLeave:
		if c.peer != nil {
			c.set(leaving)
			return l.leaveInQuiet(c)
		}
		c.set(leaving | readable) // what has arrived is answered first
		return l.pump(c)
	case opHasten:
		return l.hasten(c)
	case opKill:
		return l.kill(c)
	case opPause:
		l.pause(c)
	case opResume:
		return l.resume(c)
	case opInspect:
		m.inspect(l.view(c))
	case opPack:
		l.pack(c, m.pack)
	}
	return true
}

func (l *loop) pause(c *Conn) {
	switch {
	case c.is(paused):
		return
	case c.peer != nil:
		c.peer.set(paused)
	default:
		l.resumeMessage(c)
	}
	c.set(paused)
}

func (l *loop) resume(c *Conn) bool {
	switch {
	case !c.is(paused):
	case c.peer != nil:
		l.touch(c) // who has had the last word still has
	default:
		c.active = l.now
		l.resumeMessage(c)
	}
	c.clear(paused)
	if c.peer == nil {
		return l.pump(c)
	}
	c.peer.clear(paused)
	return l.pump(c) && l.pump(c.peer)
}

func (l *loop) kill(c *Conn) bool {
	switch {
	case c.is(away):
		c.set(killed) // when the call is over
		_ = unix.Shutdown(int(c.fd), unix.SHUT_RDWR)
		return true
	case c.is(parting):
		return l.close(c, c.rest.cause, c.rest.refusal)
	}
	return l.end(c, Killed, nil)
}

// takeBack goes on with a connection whose call is over.
func (l *loop) takeBack(c *Conn, b *back) bool {
	c.clear(away)
	c.weigh()
	c.active = l.now
	if b.n > 0 {
		c.messageOver()
	}
	l.judge(c, b.took < l.reactor.budget)
	packer := c.takePacker()
	if packer != nil {
		defer func() { packer(nil) }() // unless it has been packed
	}
	if c.is(killed) {
		return l.end(c, Killed, nil)
	}
	if !l.answer(c, b.reply, b.err) {
		return false
	}
	switch {
	case c.is(gone | parting | refused):
		return true
	case packer != nil && c.mayMove():
		if !l.keep(c, b.rest, b.n == 0) {
			return false
		}
		l.pack(c, packer)
		packer = func(*Snapshot) {}
		return true
	case len(b.rest) > 0 && b.n > 0 && !c.owes() && c.is(slow):
		l.lend(c, b.rest, 0)
		return true
	case len(b.rest) > 0 && b.n > 0 && !c.owes():
		if !l.feed(c, b.rest, 0) {
			return false
		}
	default:
		if !l.keep(c, b.rest, b.n == 0) {
			return false
		}
	}
	return l.pump(c)
}

// lend has the connection's next call made aside. Nothing else may use in.
func (l *loop) lend(c *Conn, in []byte, seen int) {
	c.set(away)
	c.held.Store(int64(len(in)))
	if c.is(slow) {
		l.reactor.lane.submit(job{c, in, seen})
		return
	}
	go stepAside(job{c, in, seen}) // a call that is only doubted does not queue behind slow ones; ends with it
}

// judge decides where the connection's next calls are made, after one that was
// made aside.
func (l *loop) judge(c *Conn, quick bool) {
	if !quick {
		c.quick = 0
		c.set(slow)
		return
	}
	l.trust()
	if c.quick++; c.quick == quickEnough {
		c.clear(slow)
		c.set(proven)
		c.quick = 0
	}
}

// quickEnough is how many quick calls in a row bring a connection back inline.
const quickEnough = 16

func (l *loop) view(c *Conn) View {
	v := View{Idle: l.now - c.active, Away: c.is(away), Slow: c.is(slow), Paused: c.is(paused)}
	v.Read, v.Written = c.Traffic()
	if c.rest != nil {
		v.In, v.Out = len(c.rest.in), len(c.rest.out)
	}
	return v
}
