//go:build linux

package reactor

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	batch      = 64                           // events in one look: some 500 µs of work, after which other goroutines get a chance
	bufferSize = 64 << 10                     // one read; a full one says that more is waiting
	crowdRead  = 20 << 10                     // one read where very many want theirs
	fairReads  = 4                            // reads of one connection before the others get their turn
	fairBytes  = 2 << 20                      // that all together read in their turns, if they can: some milliseconds' work
	fairTime   = int64(50 * time.Microsecond) // between two yields to other goroutines
	aloneTime  = int64(5 * time.Microsecond)  // a yield that takes no longer was to nobody
	breathTime = int64(time.Millisecond)      // between two looks into Go's netpoller; see Breath
)

// A loop runs its connections. Everything in it but the mailbox and the call's
// number belongs to the goroutine that runs it, of which there is one at a time.
// What it is in the middle of stands in fields, not on the stack, so that another
// goroutine can carry it on.
type loop struct {
	reactor *Reactor
	poller  *poller
	conns   []*Conn // by socket

	now     int64 // clock of the present batch
	yielded int64 // clock when other goroutines last had a chance
	parked  int64 // clock when it last was, if only to breathe
	armed   int64 // clock of the deadline that the poller's wait has, 0 if none

	mail   []message // taken from the mailbox
	mailAt int       // the message to obey next
	events [batch]unix.EpollEvent
	at, n  int     // the event to handle next, and their number
	more   []*Conn // that had more to read when their turn was over, and have not had another
	again  []*Conn // that have
	turns  int     // how many more of them get theirs in this batch
	reads  int     // that are a turn now
	read   int     // bytes that one of them takes
	wheel  wheel
	waits  waits // those that a Pacer keeps waiting
	pipes  pipes
	bench  workbench
	doubt  int // that calls are quick; see feed
	hurry  Hurry
	stop   bool

	in, out []byte // of the call that runs, or of the next

	mailbox mailbox
	call    *call         // the watchdog replaces it when it takes the loop
	batches atomic.Uint64 // tells the watchdog that the loop is at work
	lag     atomic.Int64  // nanoseconds; see Reactor.Lag
}

// call is the call of an owner that a loop is in. Whoever changes the number to 0
// has the loop: the caller when it returns, or the watchdog before that. It belongs
// to the call then, as do the loop's buffers.
type call struct {
	number atomic.Uint64
	last   uint64
	conn   *Conn // nil if it is a call of End

	telling sync.Mutex // held while the watchdog takes the loop and tells the owner
	since   time.Time  // when the call was under way already, once the loop has been taken
}

func newLoop(r *Reactor) (*loop, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	l := &loop{reactor: r, poller: p, call: new(call)}
	l.freshBuffers()
	return l, nil
}

func (l *loop) freshBuffers() {
	l.in, l.out = make([]byte, bufferSize), make([]byte, 0, bufferSize)
}

// run carries the loop on until it is stopped or taken away.
func (l *loop) run() {
	for l.finishBatch() {
		if l.stop {
			l.pipes.close()
			l.reactor.done.Done()
			return
		}
		l.nextBatch()
	}
}

// nextBatch finds out what is to be done, and waits for it if there is nothing.
func (l *loop) nextBatch() {
	if len(l.more) == 0 {
		l.more, l.again = l.again, l.more[:0]
	}
	l.at, l.n = 0, l.poller.poll(l.events[:])
	idle, since := l.n == 0 && len(l.more) == 0 && !l.mailbox.some.Load(), l.now
	if idle || l.now-l.yielded > fairTime {
		before := l.reactor.clock()
		if before-l.parked > breathTime {
			l.poller.breath.Take()
			before = l.reactor.clock()
			l.parked = before
		}
		runtime.Gosched()
		l.yielded = l.reactor.clock()
		switch {
		case l.n > 0:
		case idle && !l.mailbox.some.Load():
			l.late(l.yielded - since)
			l.wait(l.yielded-before < aloneTime)
			since = math.MaxInt64 // nothing has had to wait for it
		default:
			l.n = l.poller.poll(l.events[:])
		}
	}
	l.now = l.reactor.clock()
	l.late(l.now - since)
	l.share()
	l.batches.Add(1)
	l.reactor.watch.stir()
	l.mail, l.mailAt = l.mailbox.take(l.mail), 0
	l.wheel.advance(l.now)
}

// share says how much is a turn. Were it always as much as it is for a few, who wants little would wait
// for tens of milliseconds for hundreds who want much.
func (l *loop) share() {
	each := fairBytes / max(1, l.n+len(l.more)+len(l.again))
	l.reads = min(max(1, each/bufferSize), fairReads)
	l.read = min(max(crowdRead, each), bufferSize)
	l.turns = batch
}

// wait waits until something happens or somebody's time has come: for a moment in
// the kernel, if nobody else wants the processor, and then parked.
//
// To park and to be woken costs as much as serving a message, and when the
// processor falls idle for some microseconds again and again, Go's monitor thread
// wakes with it each time. So the processor is kept for a moment, though not if
// somebody else has just used it.
func (l *loop) wait(alone bool) {
	if !l.mailbox.sleep() {
		return
	}
	if alone {
		if l.n = l.poller.linger(l.events[:]); l.n > 0 {
			l.mailbox.wake()
			return
		}
	}
	// A deadline that is armed for an earlier time is left: a needless look costs less.
	if at := l.nextDue(); at != 0 && (l.armed == 0 || at < l.armed) {
		l.armed = at
		l.poller.wakeAt(l.reactor.epoch, at)
	}
	over := false
	if l.n, over = l.poller.wait(l.events[:]); over {
		if l.armed > l.yielded {
			l.late(l.reactor.clock() - l.armed)
		}
		l.armed = 0
		l.poller.wakeAt(l.reactor.epoch, 0) // or every wait would end at once
	}
	l.parked = l.reactor.clock()
	l.mailbox.wake()
}

// nextDue returns the clock at which somebody's time may have come, 0 if there is nobody.
func (l *loop) nextDue() int64 {
	at, wait := l.wheel.next(), l.waits.next()
	if at == 0 || wait != 0 && wait < at {
		return wait
	}
	return at
}

// late notes that something may have had to wait so long.
func (l *loop) late(by int64) {
	if by > l.lag.Load() {
		l.lag.Store(by)
	}
}

// finishBatch does what is to be done. It reports false if the loop was taken
// away meanwhile: the goroutine must end then, and touch nothing. So do all that
// it calls.
func (l *loop) finishBatch() bool {
	for l.mailAt < len(l.mail) { // first: a new connection's events may be in this very batch
		m := l.mail[l.mailAt]
		l.mail[l.mailAt] = message{} // it may hold memory
		l.mailAt++
		if !l.obey(m) {
			return false
		}
	}
	for l.at < l.n {
		event := l.events[l.at]
		l.at++
		if !l.handle(event) {
			return false
		}
	}
	for ; l.turns > 0 && len(l.more) > 0; l.turns-- {
		c := l.more[len(l.more)-1]
		l.more[len(l.more)-1] = nil // it may end, and be garbage
		l.more = l.more[:len(l.more)-1]
		if c.is(gone) && c.near().packed() == nil {
			continue // and its owner may be looking at it
		}
		c.clear(queued)
		if !l.pump(c) {
			return false
		}
	}
	for c := l.wheel.pop(); c != nil; c = l.wheel.pop() {
		if !l.look(c) {
			return false
		}
	}
	return l.goOn()
}

// handle takes an event to its connection.
func (l *loop) handle(event unix.EpollEvent) bool {
	c := l.find(event)
	if c == nil {
		if event.Fd == bellSlot {
			l.reactor.ring(uint32(event.Pad))
		}
		return true
	}
	if event.Events&incoming != 0 {
		c.set(readable)
	}
	if event.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && c.owner != nil {
		l.stopPacing(c)
	}
	if event.Events&unevenly != 0 {
		c.set(uneven)
		if c.peer != nil && event.Events&unix.EPOLLERR != 0 && c.is(ended) {
			return l.resetAfterEnd(c)
		}
	}
	if event.Events&unix.EPOLLOUT != 0 && c.owes() && !c.is(away) {
		return l.flush(c)
	}
	return l.pump(c)
}

// find returns the connection that an event is for, nil if it is for a listener, was
// a ring, or is for a connection that has ended and whose socket's number may be
// another's by now.
func (l *loop) find(event unix.EpollEvent) *Conn {
	if uint32(event.Fd) >= uint32(len(l.conns)) { //nolint:gosec // wakeSlot and bellSlot are beyond all
		return nil
	}
	c := l.conns[event.Fd]
	if c == nil || c.gen != uint32(event.Pad) {
		return nil
	}
	return c
}

// enter makes the loop the connection's, and makes the first call, with or without
// bytes.
func (l *loop) enter(c *Conn, first []byte) bool {
	l.list(c)
	if c.limits.Uneven {
		c.set(uneven)
	}
	l.watch(c)
	return l.feed(c, first, 0) && l.pump(c)
}

// list puts a connection where its events find it.
func (l *loop) list(c *Conn) {
	if int(c.fd) >= len(l.conns) {
		grown := make([]*Conn, max(2*len(l.conns), int(c.fd)+1))
		copy(grown, l.conns)
		l.conns = grown
	}
	l.conns[c.fd] = c
	c.active = l.now
}

// has reports whether the connection is the loop's.
func (l *loop) has(c *Conn) bool { return int(c.fd) < len(l.conns) && l.conns[c.fd] == c }

// watch has the wheel look at a connection when its time may be over, or before.
func (l *loop) watch(c *Conn) {
	since, limit, cause := l.patience(c)
	if limit <= 0 {
		return
	}
	at := since + int64(limit)
	if cause == Stalled {
		at = min(at, l.now+int64(limit)/StallLooks)
	}
	l.wheel.put(c, at)
}

// patience returns since when a connection is waited for, how long that may last
// and what it ends of then.
func (l *loop) patience(c *Conn) (since int64, limit time.Duration, cause Cause) {
	switch {
	case c.owes() && c.limits.WriteStall > 0:
		return c.rest.since, c.limits.WriteStall, Stalled
	case c.is(paused) && c.messageMustEnd():
		return c.rest.began, c.limits.Message, Unfinished // or what is held would be held for as long as it is too much
	case c.is(away|paused) || c.waits():
		return l.now, l.idle(c.limits.Idle), Idle // it is not the peer that is idle
	}
	since, limit, cause = c.active, l.idle(c.limits.Idle), Idle
	if c.messageMustEnd() && (limit <= 0 || c.rest.began+int64(c.limits.Message) < since+int64(limit)) {
		return c.rest.began, c.limits.Message, Unfinished
	}
	return since, limit, cause
}

// messageMustEnd reports whether a message waits for its rest, for a limited time.
func (c *Conn) messageMustEnd() bool {
	return c.limits.Message > 0 && c.rest != nil && c.rest.began != 0 && !c.owes()
}

// resumeMessage has the time of a message that waits for its rest begin anew.
func (l *loop) resumeMessage(c *Conn) {
	if c.rest != nil && c.rest.began != 0 {
		c.rest.began = l.now
		l.watch(c)
	}
}

// look sees whether a connection's time is over.
func (l *loop) look(c *Conn) bool {
	if c.is(gone) {
		return true
	}
	if c.peer != nil {
		return l.lookAtPair(c)
	}
	l.askTaken(c)
	switch since, limit, cause := l.patience(c); {
	case c.is(parting):
		return l.drop(c)
	case limit > 0 && l.now-since >= int64(limit):
		return l.end(c, cause, nil)
	}
	l.watch(c)
	return true
}

// pump reads and steps until there is nothing to read, or the connection has had
// its turn, or something stands in the way.
func (l *loop) pump(c *Conn) bool {
	if c.peer != nil {
		return l.relay(c)
	}
	for reads := 0; c.is(readable) && !c.is(away|paused|gone|refused|parting|queued) && !c.owes() && !c.waits(); reads++ {
		if reads == l.reads {
			return l.enqueue(c)
		}
		buffer, have := l.space(c)
		buffer = buffer[:have+c.chunk(min(len(buffer)-have, l.read))]
		n, err := readSocket(int(c.fd), buffer[have:])
		switch {
		case err == unix.EAGAIN:
			c.clear(readable)
			continue
		case err == io.EOF:
			c.clear(readable)
			c.set(ended)
			continue
		case err != nil:
			return l.end(c, IOError, os.NewSyscallError("read", err))
		}
		c.read.Add(int64(n))
		c.active = l.now
		l.spendIn(c, n)
		if have+n < len(buffer) && !c.is(uneven|leaving) {
			c.clear(readable) // a short read: the socket is empty, and the next byte a new edge
		}
		if !l.feed(c, buffer[:have+n], have) { // what waits for more has been shown, or it would not wait
			return false
		}
	}
	return l.settle(c)
}

// enqueue has a connection that has more to read wait for its next turn.
func (l *loop) enqueue(c *Conn) bool {
	c.set(queued)
	l.again = append(l.again, c)
	return true
}

// space returns where to read to, and how much of it a message's beginning takes
// already.
func (l *loop) space(c *Conn) (buffer []byte, have int) {
	if c.rest == nil || len(c.rest.in) == 0 {
		return l.in, 0
	}
	if have = len(c.rest.in); have <= len(l.in)/2 {
		copy(l.in, c.rest.in)
		return l.in, have
	}
	if cap(c.rest.in)-have < have/8 { // a large message grows in its own memory, never by more than it has sent
		c.rest.in = append(make([]byte, 0, 2*have), c.rest.in...)
	}
	return c.rest.in[:cap(c.rest.in)], have
}

// A call that has to be taken its loop costs the others a budget or two, and the
// loop its buffers. One in a while is fine; if there are many, as when all calls
// wait for the same server that has stopped to answer, further calls had better
// be made aside, until enough of them have proven quick.
const (
	strike       = 64           // quick calls that make up for a slow one
	doubtNew     = 2 * strike   // above it, the calls of connections that have not proven quick are made aside
	doubtAll     = 16 * strike  // above it, all are
	doubtAtWorst = doubtAll + 1 // so that it ends soon when calls are quick again
)

func (l *loop) trust() { l.doubt = max(0, l.doubt-1) }

// trusts reports whether the connection's next call may be made inline.
func (l *loop) trusts(c *Conn) bool {
	return !c.is(slow) && (l.doubt <= doubtNew || l.doubt <= doubtAll && c.is(proven))
}

// feed has the owner step through what was received, of which the last step has
// seen so much and consumed nothing. It makes one call at least.
func (l *loop) feed(c *Conn, in []byte, seen int) bool {
	for {
		if !l.trusts(c) {
			l.lend(c, bytes.Clone(in), seen)
			return true
		}
		n, reply, err, mine := l.step(c, in, seen)
		if !mine {
			return false
		}
		in, seen = in[n:], 0
		if n > 0 {
			c.messageOver()
		}
		if !l.answer(c, reply, err) {
			return false
		}
		if n == 0 || len(in) == 0 || c.is(gone|parting|refused) || c.owes() {
			return l.keep(c, in, n == 0)
		}
	}
}

// answer writes a step's reply, and ends the connection with its error.
func (l *loop) answer(c *Conn, reply []byte, refusal error) bool {
	if len(reply) > 0 {
		if err := l.write(c, reply); err != nil {
			return l.end(c, IOError, os.NewSyscallError("write", err))
		}
	}
	if refusal == nil {
		return true
	}
	if c.owes() {
		c.rest.in, c.rest.refusal = nil, refusal
		c.set(refused)
		return true
	}
	return l.refuse(c, refusal)
}

func (l *loop) refuse(c *Conn, refusal error) bool {
	if p := (*PanicError)(nil); errors.As(refusal, &p) {
		return l.end(c, Panicked, refusal)
	}
	return l.end(c, Refused, refusal)
}

// keep holds what a step has left of what was received, and whether it was shown.
func (l *loop) keep(c *Conn, in []byte, shown bool) bool {
	switch {
	case c.is(gone | parting | refused):
		return true
	case len(in) == 0:
		if c.rest != nil {
			c.rest.in, c.rest.began = nil, 0
			c.weigh()
			c.dropRest()
		}
		return true
	case len(in) >= c.limits.maxMessage() && !c.owes():
		return l.end(c, Refused, ErrMessageTooLong)
	}
	r := c.needRest()
	if cap(r.in) > bufferSize && len(in) <= cap(r.in)/4 {
		r.in = nil // a large message has been there
	}
	r.in, r.shown = append(r.in[:0], in...), shown
	c.weigh()
	if r.began == 0 {
		r.began = l.now
		l.watch(c)
	}
	return true
}

// write writes what the peer takes and keeps the rest.
func (l *loop) write(c *Conn, p []byte) error {
	n, err := 0, error(nil)
	if !c.owes() {
		n, err = writeSocket(int(c.fd), p)
		c.written.Add(int64(n))
		l.spendOut(c, n)
	}
	if err != nil && err != unix.EAGAIN {
		return err
	}
	if n < len(p) {
		r := c.needRest()
		r.out = append(r.out, p[n:]...)
		c.weigh()
		l.progress(c)
		l.watch(c)
	}
	return nil
}

// progress notes that the peer has taken bytes. The kernel calls a socket writable,
// and writes to it, when a good part of its buffer is free; for that a peer that
// reads slowly may need longer than it may stall. So what counts is what the kernel
// still holds for it.
func (l *loop) progress(c *Conn) {
	c.rest.since, c.active = l.now, l.now
	c.rest.queue = sendQueue(int(c.fd))
}

// flush writes what waits for the peer, and goes on when it has taken all.
func (l *loop) flush(c *Conn) bool {
	if c.peer != nil {
		return l.flushPair(c)
	}
	n, err := writeSocket(int(c.fd), c.rest.out)
	if err != nil && err != unix.EAGAIN {
		return l.end(c, IOError, os.NewSyscallError("write", err))
	}
	c.written.Add(int64(n))
	l.spendOut(c, n)
	c.rest.out = c.rest.out[n:]
	if n > 0 {
		l.progress(c)
	}
	if len(c.rest.out) > 0 {
		return true
	}
	c.rest.out = nil
	c.weigh()
	l.resumeMessage(c) // whose sender was not read meanwhile
	l.watch(c)
	if c.is(refused) {
		return l.refuse(c, c.rest.refusal)
	}
	return l.proceed(c)
}

// proceed goes on with a connection for whose peer nothing waits.
func (l *loop) proceed(c *Conn) bool {
	var in []byte
	shown := false
	if c.rest != nil {
		in, shown = c.rest.in, c.rest.shown
		c.dropRest()
	}
	if len(in) == 0 || shown { // then it waits for more
		return l.keep(c, in, shown) && l.pump(c)
	}
	return l.feed(c, in, 0) && l.pump(c)
}

// settle ends a connection that has nothing more to do here.
func (l *loop) settle(c *Conn) bool {
	if c.is(gone|away|paused|refused|queued) || c.owes() {
		return true
	}
	if c.is(parting) {
		return l.drop(c)
	}
	if c.is(ended) {
		if c.rest != nil {
			return l.end(c, EOF, io.ErrUnexpectedEOF)
		}
		return l.end(c, EOF, nil)
	}
	if c.is(leaving) && c.rest == nil && !(c.waits() && unread(int(c.fd)) > 0) {
		return l.end(c, Left, nil)
	}
	return true
}

// end ends a connection: kindly, if it is this side that has had enough.
func (l *loop) end(c *Conn, cause Cause, err error) bool {
	if c.peer != nil {
		return l.endPair(c.near(), cause, err)
	}
	switch cause {
	case Refused, Left:
		return l.sayGoodbye(c, cause, err)
	case Stalled:
		// What the peer will not take is not kept for it.
		_ = unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	return l.close(c, cause, err)
}

// close closes a connection and tells its owner.
func (l *loop) close(c *Conn, cause Cause, err error) bool {
	c.closing()
	l.forget(c)
	c.rest = nil
	c.giveUp()
	return l.tell(c, cause, err)
}

// forget takes a connection out of the loop.
func (l *loop) forget(c *Conn) {
	l.conns[c.fd] = nil
	l.wheel.remove(c)
	l.forgetWait(c)
	c.held.Store(0)
	c.set(gone)
}

// step calls the owner, behind a panic wall and under the watchdog's eye. It
// reports false if the loop was taken away meanwhile; what the step said is then
// on its way to the loop as a message.
func (l *loop) step(c *Conn, in []byte, seen int) (n int, reply []byte, err error, mine bool) { //nolint:revive // mine is the verdict
	out := l.out[:0] // from now on the field may be another goroutine's
	call, number := l.begin(c)
	returned := false
	defer func() {
		if returned {
			return
		}
		value := recover()
		n, reply, err = 0, nil, &PanicError{Value: value, Stack: debug.Stack()}
		if mine = call.finish(number); !mine {
			call.over(&back{err: err})
		} else if value == nil { // runtime.Goexit takes the goroutine: the loop needs another
			c.set(away)
			l.freshBuffers()
			l.post(message{op: opBack, conn: c, back: &back{err: err}})
			go l.run() // ends as every other
			mine = false
		}
	}()
	n, reply, err = c.owner.Step(in, seen, out)
	returned = true
	if mine = call.finish(number); !mine {
		call.over(&back{n: n, rest: in[n:], reply: reply, err: err})
	} else if len(in) > 0 { // a first call without bytes proves nothing of those that follow
		l.trust()
		c.set(proven)
	}
	return n, reply, err, mine
}

// tell calls the owner's End. A panic there ends nothing that has not ended.
func (l *loop) tell(c *Conn, cause Cause, err error) (mine bool) {
	call, number := l.begin(nil)
	returned := false
	defer func() {
		if returned {
			return
		}
		value := recover()
		if mine = call.finish(number); value == nil && mine {
			l.freshBuffers()
			go l.run()
			mine = false
		}
	}()
	c.owner.End(cause, err)
	returned = true
	return call.finish(number)
}

// begin lets the watchdog know that a call runs, and may take the loop.
func (l *loop) begin(c *Conn) (k *call, number uint64) {
	k = l.call
	k.conn = c
	k.last++
	number = k.last // to return it later would be to read what may be another goroutine's
	k.number.Store(number)
	return k, number
}

// finish reports whether the loop is still the caller's.
func (k *call) finish(number uint64) bool { return k.number.CompareAndSwap(number, 0) }

// over ends a call whose loop has been taken.
func (k *call) over(b *back) {
	k.telling.Lock() // the owner is told of the beginning first
	since := k.since
	k.telling.Unlock()
	b.took = max(time.Since(since), k.conn.loop.reactor.budget)
	giveBack(k.conn, b, func() { k.conn.owner.Slowed(b.took) })
}

// seize takes the loop from a call that has lasted too long, and was under way
// already since then, unless it is over. The watchdog calls it, and has the loop when it does.
func (l *loop) seize(number uint64, since time.Time) bool {
	k := l.call
	k.telling.Lock()
	defer k.telling.Unlock()
	if !k.finish(number) {
		return false
	}
	k.since = since
	l.reactor.slow.Add(1)
	l.doubt = min(l.doubt+strike, doubtAtWorst)
	if k.conn != nil {
		k.conn.set(away | slow)
	}
	l.call = new(call)
	l.freshBuffers() // the call has the old ones
	go l.run()       // ends as every other
	if k.conn != nil {
		k.conn.owner.Slow()
	}
	return true
}
