//go:build linux

package reactor

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Two connections that are joined are each other's peer: what one sends is written to
// the other, and so is its end. Nobody is called but at the end of both. One of them,
// the near one, has the owner and is in the wheel.
//
// The kernel drops what it still holds for a peer when a connection is reset, and what
// sits in a pipe is lost with it. So nothing is closed before its bytes have gone on:
// who has read all that a side has sent, and written it, may pass its end on. A reset
// waits in addition for the other side to have taken the bytes.

// What the bits of calls, which a pair has none of, mean for one.
const (
	bulk       = slow    // a read has filled its buffer: the next bytes go through a pipe
	unopened   = slow    // of a near connection that is sealed: there may be bytes from before
	endedFirst = proven  // or failed first, before its peer did either
	deaf       = refused // broken, as it takes no more; but it may have more to say
	young      = killed  // of a far connection: Options.Lasting has not been told of it
	heard      = parting // of a far connection: it has sent something
	said       = killed  // of a near connection that is sealed: it has said itself that it ends
)

const (
	relaySize   = 32 << 10                // one read, and the most that is held of a direction in memory, unless it is sealed
	bulkLeast   = 16 << 10                // a splice that moves less was not worth a pipe
	lastingTime = int64(15 * time.Second) // until a pair counts as one that lasts
)

// Join has a loop move bytes between two non-blocking sockets that are in no other
// poller. What was read from the near one already is written to the far one first. The
// sockets and the bytes are the reactor's from now on. After an error they are still
// the caller's.
//
// The owner's End is told of the near connection, and is the only one of its methods
// that is called, but for those of a Sealer or an Overhearer. Both sockets are closed then.
// Limits.WriteStall, Idle and HalfClosed hold for the pair; MaxMessage means nothing, and
// Uneven is for both. Leave, Kill and the others are for the near connection, and go for
// both.
func (r *Reactor) Join(near, far *Conn, nearFD, farFD int, first []byte, owner Owner, limits *Limits) error {
	turn := r.turn.Add(1)
	l := r.loops[turn%uint32(len(r.loops))] //nolint:gosec // there are not so many
	near.fd, near.gen, near.limits, near.loop = int32(nearFD), turn, limits, l
	far.fd, far.gen, far.limits, far.loop = int32(farFD), turn, limits, l
	near.owner, near.peer, far.peer = owner, far, near
	if _, ok := owner.(Sealer); ok {
		near.set(sealed | unopened)
	}
	if _, ok := owner.(Overhearer); ok {
		far.dear = overheard
	}
	err := l.join(near, first)
	if err != nil {
		near.peer, far.peer = nil, nil // the near one may yet be adopted
		near.clear(sealed | unopened)
	}
	return err
}

func (l *loop) join(near *Conn, first []byte) error {
	b := &l.mailbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return os.ErrClosed
	}
	b.some.Store(true)
	far := near.peer
	if err := l.poller.add(int(near.fd), near.fd, near.gen); err != nil {
		return err
	}
	if err := l.poller.add(int(far.fd), far.fd, far.gen); err != nil {
		_ = l.poller.remove(int(near.fd))
		return err
	}
	l.postLocked(message{op: opJoin, conn: near, first: first})
	return nil
}

// enterPair makes the loop the pair's.
func (l *loop) enterPair(near *Conn, first []byte) bool {
	far := near.peer
	near.quick, far.quick = fresh, wide
	near.set(readable) // most likely; what the far one has, its event will say
	for _, c := range [...]*Conn{near, far} {
		l.list(c)
		if c.limits.Uneven {
			c.set(uneven)
		}
	}
	near.sharePace()
	l.watchPair(near)
	if len(first) > 0 {
		near.active++ // it has sent last
		if err := l.pass(far, first); err != nil {
			l.failed(far, err)
		}
	}
	return l.relay(near) && l.relay(far)
}

// near returns the one of a pair that has the owner.
func (c *Conn) near() *Conn {
	if c.owner == nil {
		return c.peer
	}
	return c
}

// relay moves what c has sent to its peer until there is nothing, or it has had its
// turn, or the peer takes no more.
func (l *loop) relay(c *Conn) bool {
	p := c.peer
	for turns := 0; c.is(readable) && !c.is(ended|paused|gone|queued) && !p.is(broken) && !p.owes() && !c.waits(); turns++ {
		if turns == l.reads || turns == 1 && (c.is(sealed) || p.is(sealed)) { // each takes as long as many others
			return l.enqueue(c)
		}
		switch err := l.move(c, p); err {
		case nil:
		case unix.EAGAIN:
			c.clear(readable)
			if c.is(broken) && !c.is(deaf) {
				c.set(ended)
			}
		case io.EOF:
			c.noteEnd()
			c.set(ended)
			if !c.is(broken) && !c.hasSaidSo() {
				if errno := pendingError(int(c.fd)); errno != 0 { // behind the end
					l.breaks(c, os.NewSyscallError("read", errno))
				}
			}
		default:
			c.noteEnd()
			c.set(ended)
			l.breaks(c, err)
		}
	}
	if p.is(broken) && !l.hearOut(c) {
		return true
	}
	if p.is(broken) && !p.is(ended) && !c.owes() && !c.is(gone) {
		return l.relay(p)
	}
	return l.settlePair(c.near())
}

// hearOut reads and drops what c sends, whose peer has failed and can be told nothing more: if nobody listened
// to c, it might not take what its peer has sent before. It reports false if c has more to say, and its turn is over.
func (l *loop) hearOut(c *Conn) bool {
	for reads := 0; c.is(readable) && !c.is(ended|broken|paused|gone|queued); reads++ {
		if reads == l.reads {
			return !l.enqueue(c)
		}
		n, err := readSocket(int(c.fd), l.in)
		switch {
		case err == unix.EAGAIN:
			c.clear(readable)
		case err == io.EOF:
			c.noteEnd()
			c.set(ended)
		case err != nil:
			c.noteEnd()
			c.set(ended)
			l.breaks(c, os.NewSyscallError("read", err))
		default:
			c.read.Add(int64(n))
		}
	}
	return true
}

// sent notes that c has sent something, now.
func (l *loop) sent(c *Conn) {
	c.active = max(l.now, c.peer.active+1) // who has sent last is told apart within a batch too
	if c.owner == nil && !c.is(heard) {
		c.set(heard)
		if o, ok := c.peer.owner.(Hearer); ok {
			o.Heard()
		}
	}
}

// move makes one read from c, and writes to p what it got. Its error is c's; p's shows
// in p's state.
func (l *loop) move(c, p *Conn) error {
	if p.quick != wide {
		l.makeRoom(p)
	}
	switch {
	case c.is(sealed):
		return l.moveOpened(c, p)
	case p.is(sealed):
		return l.moveSealed(c, p)
	case c.is(bulk) && !(c.isOverheard() && p.is(leaving)):
		if ok, err := l.moveByPipe(c, p); ok {
			return err
		}
		c.clear(bulk)
	}
	buffer := l.in[:c.chunk(relaySize)]
	n, err := readSocket(int(c.fd), buffer)
	switch {
	case err == unix.EAGAIN || err == io.EOF:
		return err
	case err != nil:
		return os.NewSyscallError("read", err)
	case n == len(buffer) && n >= bulkLeast && !c.limits.Uneven && p.quick == wide:
		c.set(bulk)
	case n < len(buffer) && !c.is(uneven):
		c.clear(readable) // a short read: the socket is empty, and the next byte a new edge
	}
	c.read.Add(int64(n))
	l.spendIn(c, n)
	l.overhear(c, buffer[:n])
	l.sent(c)
	if err := l.pass(p, buffer[:n]); err != nil {
		l.failed(p, err)
	}
	return nil
}

// moveByPipe is move through a pipe. It is not ok if the kernel cannot do that, or there
// is no pipe, or it was not worth it.
func (l *loop) moveByPipe(c, p *Conn) (ok bool, err error) {
	pipe := l.pipes.take()
	if pipe == nil {
		return false, nil
	}
	n, err := pipe.fill(int(c.fd), c.chunk(pipeSize))
	switch {
	case err == unix.EINVAL:
		l.pipes.give(pipe)
		return false, nil
	case err == unix.EAGAIN:
		l.pipes.give(pipe)
		c.clear(bulk)
		return !c.is(uneven), err // splice does not get past urgent data, as a read does
	case err != nil:
		l.pipes.give(pipe)
		return true, os.NewSyscallError("splice", err)
	case n == 0:
		l.pipes.give(pipe)
		return false, nil // the end, or urgent data with the end behind it: a read tells them apart
	case n < bulkLeast:
		c.clear(bulk)
	}
	c.read.Add(int64(n))
	l.spendIn(c, n)
	l.overhear(c, nil)
	l.sent(c)
	moved, err := pipe.drain(int(p.fd))
	p.written.Add(int64(moved))
	switch {
	case err == unix.EAGAIN:
		p.needRest().pipe = pipe
		p.weigh()
		l.waitFor(p)
		return true, nil
	case err != nil:
		l.pipes.give(pipe)
		l.failed(p, err)
		return true, nil
	}
	l.pipes.give(pipe)
	return true, nil
}

// pass writes b to p and keeps what p does not take.
func (l *loop) pass(p *Conn, b []byte) error {
	n, err := 0, error(nil)
	if !p.owes() {
		n, err = writeSocket(int(p.fd), b)
		p.written.Add(int64(max(n, 0)))
	}
	if err != nil && err != unix.EAGAIN {
		return err
	}
	if n < len(b) {
		r := p.needRest()
		r.out = append(r.out, b[n:]...)
		p.weigh()
		l.waitFor(p)
	}
	return nil
}

// waitFor has the pair's time run while p takes no more, and run anew when it has taken
// some.
func (l *loop) waitFor(p *Conn) {
	p.rest.since, p.rest.queue = l.now, sendQueue(int(p.fd))
	l.touch(p.near())
	l.watchPair(p.near())
}

// touch has a pair's silence begin now. Who has sent last stays who has.
func (l *loop) touch(near *Conn) {
	far := near.peer
	silent := max(0, l.now-lastSent(near))
	near.active += silent
	far.active += silent
}

// lastSent returns when either of a pair has last sent, or taken what had to wait.
func lastSent(near *Conn) int64 { return max(near.active, near.peer.active) }

// failed notes that a write to c has failed. What it has sent before is still to be
// read; the kernel has told of the error and will show an end of stream. Unless it is a
// Unix socket that was shut down for reading: that may go on to send.
func (l *loop) failed(c *Conn, err error) {
	c.set(readable | uneven)
	if err == unix.EPIPE && isUnix(int(c.fd)) {
		c.set(deaf)
	}
	l.breaks(c, os.NewSyscallError("write", err))
	l.watchPair(c.near())
}

// resetAfterEnd passes on that c, which has ended its stream already, has failed.
func (l *loop) resetAfterEnd(c *Conn) bool {
	if !c.is(broken) {
		errno := pendingError(int(c.fd))
		if errno == 0 {
			errno = unix.ECONNRESET
		}
		l.breaks(c, os.NewSyscallError("read", errno))
	}
	return l.settlePair(c.near())
}

// noteEnd notes that c has ended its stream or failed, if it is the first of the pair.
func (c *Conn) noteEnd() {
	if !c.is(ended|broken) && !c.peer.is(ended|broken) {
		c.set(endedFirst)
	}
}

// hasSaidSo reports whether c has ended its stream by its own account, which no reset behind
// it can spoil. A client that never reads is reset by its kernel when it closes, as it has
// not read what TLS had to say to it.
func (c *Conn) hasSaidSo() bool { return c.is(sealed) && c.is(said) }

// EndedFirst reports whether one of a pair has ended its stream or failed before the
// other did either. It is for the owner's End.
func (c *Conn) EndedFirst() bool { return c.is(endedFirst) }

// pendingError returns what has broken a socket, and forgets it; 0 if nothing has. Behind
// the end of the stream the kernel calls a reset a broken pipe. What TCP was told on the
// way, such as that a host is unreachable, it tells as well, and goes on all the same.
func pendingError(fd int) unix.Errno {
	code, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // fails for no socket
	switch errno := unix.Errno(code); errno {                         //nolint:gosec // errors are small
	case 0, unix.ECONNRESET:
		return errno
	case unix.EPIPE:
		return unix.ECONNRESET
	default:
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.State != unix.BPF_TCP_CLOSE {
			return 0
		}
		return errno
	}
}

// breaks notes that c's socket has failed: it takes nothing more. What it failed of first
// is why.
func (l *loop) breaks(c *Conn, err error) {
	l.discardRest(c)
	if r := c.needRest(); r.refusal == nil {
		r.refusal = err
	}
	c.noteEnd()
	c.set(broken)
	l.touch(c.near())
	if c.peer.is(broken) { // then there is nobody to read for
		c.set(ended)
		c.peer.set(ended)
	}
}

// flushPair writes what waits for c, and goes on with what its peer has sent.
func (l *loop) flushPair(c *Conn) bool {
	r := c.rest
	n, err := 0, error(nil)
	if len(r.out) > 0 {
		n, err = writeSocket(int(c.fd), r.out)
		r.out = r.out[max(n, 0):]
	} else {
		n, err = r.pipe.drain(int(c.fd))
		if r.pipe.held == 0 {
			l.pipes.give(r.pipe)
			r.pipe = nil
		}
	}
	c.written.Add(int64(max(n, 0)))
	c.weigh()
	switch {
	case err != nil && err != unix.EAGAIN:
		l.failed(c, err)
	case n > 0:
		l.waitFor(c)
	}
	if !c.owes() {
		l.discardRest(c)
	}
	return l.relay(c) && l.relay(c.peer)
}

// discardRest lets go of what waits for c, and keeps why it has failed.
func (l *loop) discardRest(c *Conn) {
	r := c.rest
	if r == nil {
		return
	}
	r.out = nil
	if r.pipe != nil {
		l.pipes.give(r.pipe)
		r.pipe = nil
	}
	c.weigh()
	if r.refusal == nil {
		c.rest = nil
	}
}

// settlePair passes on what has ended, and ends the pair when there is nothing more to
// do.
func (l *loop) settlePair(near *Conn) bool {
	if near.is(gone) {
		return true
	}
	for _, c := range [...]*Conn{near, near.peer} {
		p := c.peer
		if !c.is(ended) || p.owes() {
			continue
		}
		if !p.is(told|broken) && (!c.is(broken) || c.hasSaidSo()) {
			if !l.sealEnd(p) {
				return true
			}
			p.set(told)
			_ = unix.Shutdown(int(p.fd), unix.SHUT_WR) // fails if p has been reset, which shows by itself
			l.touch(near)                              // as if the end were a byte
			l.watchPair(near)
		}
		if c.is(broken) {
			return l.passReset(c)
		}
	}
	switch far := near.peer; {
	case !near.is(ended) || !far.is(ended) || near.owes() || far.owes():
		return l.leaveAtRest(near)
	case far.is(endedFirst):
		return l.endPair(near, FarEOF, nil)
	}
	return l.endPair(near, EOF, nil)
}

// passReset resets the peer of c, which was reset, once that has taken all that c had
// sent before.
func (l *loop) passReset(c *Conn) bool {
	near, p := c.near(), c.peer
	waits := !p.is(broken) && sendQueue(int(p.fd)) > 0 && pendingError(int(p.fd)) == 0
	if waits && l.now-lastSent(near) < l.reactor.deliver {
		l.wheel.put(near, l.now)
		return true
	}
	cause, err := IOError, c.rest.refusal
	if c != near {
		cause = FarIOError
	}
	_ = unix.SetsockoptLinger(int(p.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return l.endPair(near, cause, err)
}

// endPair closes both and tells the owner. If neither side has ended it, whoever has not
// been told of an end is reset if this may come in the middle of something.
func (l *loop) endPair(near *Conn, cause Cause, err error) bool {
	stalled, cut := false, false
	switch cause {
	case EOF, FarEOF, IOError, FarIOError: // they know, or passReset has seen to it
	case Stalled, FarStalled: // what is not taken is not kept
		stalled = true
	default:
		if cut = l.restsAt(near) > l.now; !cut { // which asks the kernel
			l.sealLast(near)
		}
	}
	for _, c := range [...]*Conn{near, near.peer} {
		if stalled || cut && !c.is(told) {
			_ = unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
	}
	near.closing()
	for _, c := range [...]*Conn{near, near.peer} {
		l.forget(c)
		l.discardRest(c)
		c.rest = nil
		c.giveUp()
	}
	return l.tell(near, cause, err)
}

// watchPair has the wheel look at a pair when its time may be over, or before.
func (l *loop) watchPair(near *Conn) {
	if near.peer.is(young) {
		l.wheel.put(near, l.now+lastingTime)
	}
	since, limit, cause := l.patienceWith(near)
	if limit <= 0 {
		return
	}
	at := since + int64(limit)
	if cause == Stalled || cause == FarStalled {
		at = min(at, l.now+int64(limit)/StallLooks)
	}
	l.wheel.put(near, at)
}

// patienceWith is patience for a pair.
func (l *loop) patienceWith(near *Conn) (since int64, limit time.Duration, cause Cause) {
	far, limits := near.peer, near.limits
	owing, cause := near, Stalled
	if !near.owes() || far.owes() && far.rest.since < near.rest.since {
		owing, cause = far, FarStalled
	}
	since = lastSent(near)
	if near.waits() || far.waits() {
		since = l.now
	}
	switch {
	case owing.owes() && limits.WriteStall > 0:
		return owing.rest.since, limits.WriteStall, cause
	case near.is(paused):
		return l.now, l.idle(limits.Idle), Idle
	case near.isHeard() || far.isHeard():
		return since, l.idle(limits.HalfClosed), HalfClosed
	case near.is(broken) || far.is(broken):
		if !owing.owes() {
			return 0, 0, 0 // passReset's patience is its own
		}
	case near.is(ended) != far.is(ended):
		return since, l.idle(limits.HalfClosed), HalfClosed
	}
	return since, l.idle(limits.Idle), Idle
}

// isHeard reports whether c takes no more, and all that is waited for is what it has to say.
func (c *Conn) isHeard() bool { return c.is(deaf) && !c.is(ended) && !c.peer.owes() }

// lookAtPair sees whether a pair's time is over.
func (l *loop) lookAtPair(near *Conn) bool {
	if far := near.peer; far.is(young) { // whatever the look is for: it is early for hardly any
		far.clear(young)
		l.reactor.lasting(int(far.fd))
	}
	l.askTaken(near)
	l.askTaken(near.peer)
	if since, limit, cause := l.patienceWith(near); limit > 0 && l.now-since >= int64(limit) {
		return l.endPair(near, cause, nil)
	}
	l.watchPair(near)
	return l.leaveInQuiet(near) && (near.is(gone) || l.settlePair(near))
}
