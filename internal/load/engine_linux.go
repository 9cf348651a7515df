package load

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (l Load) run(ctx context.Context) (*Result, error) {
	e, err := newEngine(l)
	if err != nil {
		return nil, err
	}
	defer e.close()
	if err := e.open(ctx); err != nil {
		return nil, err
	}
	return e.measure(ctx)
}

// An engine is one event loop over all connections, on the goroutine that runs it.
type engine struct {
	Load
	family  int
	to      unix.Sockaddr
	epoll   int
	events  []unix.EpollEvent
	clients []client
	out, in []byte  // out is the message over and over, so that several go out in one write
	flags   uintptr // of a read

	phase   phase
	dialled int           // clients, while opening
	opened  int           // clients that were answered, while opening
	heard   time.Duration // when the last of them was
	held    bool          // the server may close a connection: see Held
	left    int           // connections that it has closed

	began time.Time // of the clock
	timer int       // wakes the loop when the next message is due; at a Rate only
	sent  int64     // messages that have been due; at a Rate only
	rec   *recorder
}

type phase int

const (
	opening phase = iota
	warming
	measuring
)

// A client is one connection.
type client struct {
	index    int
	fd       int
	reply    reply
	due      int             // messages that are due but not sent: as many are under way as may be
	underWay int             // messages that are sent but not answered
	unsent   int             // bytes of these that the socket had no room for
	at       int             // of the next byte to send, in its message
	sentAt   []time.Duration // of the messages under way: a ring
	oldest   int             // in the ring
	answered int64           // messages, since the opening
}

const (
	timerEvent = -1        // in place of a client's index
	batch      = 1024      // events of one epoll_wait, and messages that are sent between two
	buffer     = 256 << 10 // of a read or write: 16 messages of 16 KB

	readsInARow = 16 // from a connection that always has more, while others wait
)

func newEngine(l Load) (*engine, error) {
	address, err := net.ResolveTCPAddr("tcp", l.Addr)
	if err != nil {
		return nil, err
	}
	e := &engine{Load: l, timer: -1, rec: newRecorder(l.Progress), began: time.Now()}
	e.family, e.to = sockaddr(address.AddrPort())
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	e.events = make([]unix.EpollEvent, batch)
	e.in = make([]byte, buffer)
	if l.Protocol.blind {
		e.flags = unix.MSG_TRUNC // which on TCP drops the bytes instead of copying them: tcp(7)
	}
	for len(e.out) < max(buffer, len(l.Protocol.request)) {
		e.out = append(e.out, l.Protocol.request...)
	}
	e.clients = make([]client, l.Connections)
	rings := make([]time.Duration, l.Connections*l.Depth)
	for i := range e.clients {
		e.clients[i] = client{index: i, fd: -1, reply: l.Protocol.reply(), sentAt: rings[i*l.Depth : (i+1)*l.Depth]}
	}
	return e, nil
}

func sockaddr(to netip.AddrPort) (int, unix.Sockaddr) {
	if ip := to.Addr().Unmap(); ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4(), Port: int(to.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
}

func (e *engine) close() {
	for i := range e.clients {
		e.reset(&e.clients[i])
	}
	_ = unix.Close(e.epoll)
	if e.timer >= 0 {
		_ = unix.Close(e.timer)
	}
}

// reset ends a connection with a RST: a FIN would keep its port in TIME_WAIT for a
// minute, and an address has 28,000 of them.
func (e *engine) reset(c *client) {
	if c.fd < 0 {
		return
	}
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(c.fd) // which takes it out of the epoll
	c.fd = -1
}

func (e *engine) now() time.Duration { return time.Since(e.began) }

func (e *engine) failed(c *client, err error) error {
	return fmt.Errorf("connection %d of %d to %s: %w", c.index+1, e.Connections, e.Addr, err)
}

// open opens the connections, a few at a time, with one message there and back on
// each: so none waits in the server's backlog, and each has been served when the
// clock starts.
func (e *engine) open(ctx context.Context) error {
	for e.opened < e.Connections {
		for e.dialled < e.Connections && e.dialled-e.opened < arriving {
			c := &e.clients[e.dialled]
			c.due = 1
			e.dialled++
			if err := e.dial(c); err != nil {
				return err
			}
		}
		if err := e.turn(ctx); err != nil {
			return err
		}
		if e.now()-e.heard > e.openBudget {
			return e.unanswered(e.opened)
		}
	}
	return nil
}

// dial starts to connect, and sends what is due as soon as that is done.
func (e *engine) dial(c *client) error {
	now := e.now()
	fd, err := unix.Socket(e.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return e.failed(c, os.NewSyscallError("socket", err))
	}
	c.fd = fd
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return e.failed(c, os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Connect(fd, e.to); err != nil && err != unix.EINPROGRESS {
		return e.failed(c, os.NewSyscallError("connect", err))
	}
	event := interest(c)
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return e.failed(c, os.NewSyscallError("epoll_ctl", err))
	}
	return e.send(c, now) // over loopback the connection is there by now
}

func interest(c *client) unix.EpollEvent {
	return unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     int32(c.index),
	}
}

// dialAnew replaces the connection. What was under way is sent again.
func (e *engine) dialAnew(c *client) error {
	e.reset(c)
	c.unsent, c.at = c.underWay*len(e.Protocol.request), 0
	return e.dial(c)
}

// measure puts the server under the load.
func (e *engine) measure(ctx context.Context) (*Result, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	for {
		now := e.now()
		switch {
		case e.phase == warming && now >= e.Warmup:
			e.phase = measuring
			if e.Rate > 0 {
				now = e.Warmup // what counts is what is due from then on: nothing is lost by looking late
			}
			e.rec.begin(now)
			e.mark()
		case e.phase == measuring && now >= e.rec.began+e.Duration:
			e.mark()
			e.recordUnanswered(now)
			return e.rec.end(now), nil
		case e.phase == measuring:
			e.rec.tick(now)
		}
		if err := e.sendDue(now); err != nil {
			return nil, err
		}
		if err := e.turn(ctx); err != nil {
			return nil, err
		}
	}
}

// begin starts the clock and, in a closed loop, sends the first messages.
func (e *engine) begin() error {
	e.phase, e.began = warming, time.Now()
	if e.Rate > 0 {
		return e.startTimer()
	}
	for i := range e.clients {
		c := &e.clients[i]
		c.due = e.Depth
		if err := e.send(c, e.now()); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) startTimer() (err error) {
	e.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: timerEvent} // by edge, so that it need not be read
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, e.timer, &event))
}

// sendDue sends, at a Rate, what is due by now, and sets the timer for what comes
// next.
func (e *engine) sendDue(now time.Duration) error {
	if e.Rate == 0 {
		return nil
	}
	next := e.due(e.sent)
	for n := 0; n < batch && next <= now && next < e.end(); n++ {
		c := &e.clients[e.sent%int64(e.Connections)]
		c.due++
		if err := e.send(c, now); err != nil {
			return err
		}
		e.sent++
		next = e.due(e.sent)
	}
	if next >= e.end() {
		return nil
	}
	wait := unix.NsecToTimespec(int64(max(next-now, 1))) // 0 would stop the timer
	return os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(e.timer, 0, &unix.ItimerSpec{Value: wait}, nil))
}

// patience is how long the loop waits for an event, in milliseconds: not beyond the
// end, and never long, for it keeps a processor meanwhile (see rawWait).
func (e *engine) patience() int {
	if e.phase != measuring {
		return 10
	}
	return int(min(max((e.rec.began+e.Duration-e.now()).Milliseconds(), 1), 10))
}

// turn waits for events, for a little while, and handles them.
func (e *engine) turn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n := rawWait(e.epoll, e.events, e.patience())
	for _, event := range e.events[:n] {
		if event.Fd == timerEvent {
			continue
		}
		c := &e.clients[event.Fd]
		if c.unsent > 0 {
			if err := e.send(c, e.now()); err != nil {
				return err
			}
		}
		if event.Events == unix.EPOLLOUT {
			continue
		}
		if err := e.receive(c, event.Events&ending != 0); err != nil {
			return err
		}
	}
	return nil
}

// ending is what tells that no more comes after what has come.
const ending = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

// send sends as many of the due messages as may be under way, and as much of them
// as the socket has room for.
func (e *engine) send(c *client, now time.Duration) error {
	for ; c.due > 0 && c.underWay < e.Depth; c.due-- {
		c.sentAt[(c.oldest+c.underWay)%e.Depth] = now
		c.underWay++
		c.unsent += len(e.Protocol.request)
	}
	for c.unsent > 0 {
		n, err := rawWrite(c.fd, e.out[c.at:min(c.at+c.unsent, len(e.out))])
		if err == unix.EAGAIN {
			return nil
		}
		if err != 0 {
			return e.failed(c, err)
		}
		c.unsent -= n
		c.at = (c.at + n) % len(e.Protocol.request)
	}
	return nil
}

// receive takes what has come back on a connection, and sends what may be sent now.
func (e *engine) receive(c *client, ends bool) error {
	for range readsInARow {
		n, err := rawRead(c.fd, e.in, e.flags)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err != 0:
			return e.failed(c, err)
		case n == 0 && e.held:
			e.leave(c)
			return nil
		case n == 0:
			return e.failed(c, errClosed)
		}
		now := e.now() // once for all that has come
		replaced, problem := e.take(c, e.in[:n], now)
		if problem != nil || replaced {
			return problem
		}
		if err := e.send(c, now); err != nil {
			return err
		}
		if n < len(e.in) && !ends {
			return nil // a short read: the socket is empty, and what comes next is a new edge; but an end that is there is none
		}
	}
	event := interest(c) // asked for anew, what is left is an edge again
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.epoll, unix.EPOLL_CTL_MOD, c.fd, &event))
}

// take takes answers from what has come back. It reports whether the connection
// has then been replaced by another.
func (e *engine) take(c *client, p []byte, now time.Duration) (replaced bool, err error) {
	for len(p) > 0 {
		if c.underWay == 0 {
			return false, e.failed(c, errTooMuch)
		}
		n, state, err := c.reply.take(p)
		if err != nil {
			return false, e.failed(c, err)
		}
		p = p[n:]
		if state == partial {
			continue
		}
		e.count(c, state, now)
		if state == last || e.Reconnect && e.phase != opening {
			return true, e.dialAnew(c)
		}
	}
	return false, nil
}

// count counts the answer to the oldest message under way.
func (e *engine) count(c *client, state replyState, now time.Duration) {
	sentAt := c.sentAt[c.oldest]
	c.oldest = (c.oldest + 1) % e.Depth
	c.underWay--
	if e.phase == opening {
		e.opened++
		e.heard = now
		return
	}
	if e.Rate == 0 {
		c.due++
	} else {
		sentAt = e.dueOn(c.index, c.answered)
	}
	c.answered++
	if e.phase == measuring && (e.Rate == 0 || sentAt >= e.Warmup) {
		e.rec.record(now-sentAt, state)
	}
}

// recordUnanswered records, at a Rate, what was due but is not answered.
func (e *engine) recordUnanswered(now time.Duration) {
	if e.Rate == 0 {
		return
	}
	for i := range e.clients {
		e.Load.recordUnanswered(e.rec, i, e.clients[i].answered, now)
	}
}

// The system calls of the loop do not tell Go's scheduler, which would cost a third
// of it. A processor of Go's is kept from other goroutines meanwhile, but not for
// long: the sockets do not block, and a wait ends after its patience or with the
// signal by which the scheduler asks for the processor.

func rawWait(epoll int, events []unix.EpollEvent, milliseconds int) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(milliseconds), 0, 0)
	if errno != 0 {
		return 0 // a signal
	}
	return int(n)
}

// recv and send rather than read and write: they skip what files need.

func rawRead(fd int, p []byte, flags uintptr) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
	return int(n), errno
}

func rawWrite(fd int, p []byte) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}
