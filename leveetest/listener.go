package leveetest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Listener is the listening end of an in-memory network, and the way to dial
// it. Make one with [Listen] or [Network.Listen]. Its methods may be called by
// several goroutines at once.
type Listener struct {
	addr            *net.TCPAddr
	backlog, buffer int

	mu       sync.Mutex
	changed  sync.Cond // anything below
	queue    []*Conn   // server ends, the oldest first
	failures []error
	deadline deadline
	dialled  int
	closed   bool
}

// Accept waits for the next connection; its dynamic type is *Conn. Errors are
// those given to FailAccepts, and within *net.OpError os.ErrDeadlineExceeded
// or net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, l.opError("accept", net.ErrClosed)
		case l.deadline.passed:
			return nil, l.opError("accept", os.ErrDeadlineExceeded)
		case len(l.failures) > 0:
			return nil, l.takeFailureLocked()
		case len(l.queue) > 0:
			return l.takeConnLocked(), nil
		}
		l.changed.Wait()
	}
}

func (l *Listener) takeFailureLocked() error {
	err := l.failures[0]
	l.failures = l.failures[1:]
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // a wrapped one is the caller's own dress
		return l.opError("accept", os.NewSyscallError("accept", errno))
	}
	return err
}

func (l *Listener) takeConnLocked() *Conn {
	conn := l.queue[0]
	l.queue = l.queue[1:]
	l.changed.Broadcast() // a Dial may wait for the room
	return conn
}

// FailAccepts makes the next calls of Accept return errs, one each, before any
// connection; an Accept that is blocked returns the first at once. A bare
// [syscall.Errno] such as syscall.EMFILE is wrapped in an *net.OpError as package
// net would; every other error is returned as it is.
func (l *Listener) FailAccepts(errs ...error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, errs...)
	l.changed.Broadcast()
}

// Queued returns how many connections wait to be accepted.
func (l *Listener) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// Dial connects to the listener from 127.0.0.1 and a port of its own. It
// returns as soon as the connection is in the queue, as connect(2) does, and
// blocks while the queue is full. Errors, within *net.OpError:
// syscall.ECONNREFUSED if the listener is or gets closed, ctx.Err() if the
// context ends first.
func (l *Listener) Dial(ctx context.Context) (*Conn, error) {
	return l.DialFrom(ctx, netip.AddrPort{})
}

// DialFrom is Dial from an address of the caller's choice: it is what the
// server sees as RemoteAddr. Port 0 means one that the listener chooses; the
// zero AddrPort means what Dial does.
func (l *Listener) DialFrom(ctx context.Context, from netip.AddrPort) (*Conn, error) {
	stop := context.AfterFunc(ctx, l.wake)
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case ctx.Err() != nil:
			return nil, l.opError("dial", ctx.Err())
		case l.closed:
			return nil, l.opError("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED))
		case len(l.queue) < l.backlog:
			return l.enqueueLocked(from), nil
		}
		l.changed.Wait()
	}
}

// DialContext is Dial in the shape that [net/http.Transport] and others ask for.
// Every network and address leads to this listener.
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := l.Dial(ctx)
	if err != nil {
		return nil, err // not conn: a nil *Conn makes a net.Conn that is not nil
	}
	return conn, nil
}

func (l *Listener) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
}

func (l *Listener) enqueueLocked(from netip.AddrPort) *Conn {
	if !from.Addr().IsValid() {
		from = netip.AddrPortFrom(loopback, from.Port())
	}
	if from.Port() == 0 {
		from = netip.AddrPortFrom(from.Addr(), uint16(firstClientPort+l.dialled%clientPorts))
		l.dialled++
	}
	client, server := connect(net.TCPAddrFromAddrPort(from), l.addr, l.buffer)
	l.queue = append(l.queue, server)
	l.changed.Broadcast()
	return client
}

// Close ends every blocked Accept with net.ErrClosed and every blocked Dial with
// syscall.ECONNREFUSED, and resets the connections that nobody has accepted.
// Accepted connections live on. A second Close returns net.ErrClosed within
// *net.OpError.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.opError("close", net.ErrClosed)
	}
	l.closed = true
	l.deadline.stopLocked()
	for _, conn := range l.queue {
		conn.Reset()
	}
	l.queue = nil
	l.changed.Broadcast()
	return nil
}

// Addr returns the listener's address, a *net.TCPAddr that the caller must not
// change.
func (l *Listener) Addr() net.Addr { return l.addr }

// SetDeadline sets when Accept gives up, also one that is blocked. The zero
// time means never. The only error is net.ErrClosed within *net.OpError.
func (l *Listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.opError("set", net.ErrClosed)
	}
	l.deadline.setLocked(t, &l.changed)
	return nil
}

func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: l.addr, Err: err}
}
