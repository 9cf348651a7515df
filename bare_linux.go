package levee

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/internal/reactor"
)

// Where nothing has to be read before a connection is served (no TLS, no PROXY
// header, no routing), and an event loop serves it, it needs neither a goroutine
// nor net's state around its socket. So it is accepted without them.

// A tcpListener is net's, but lets its server accept bare sockets: then its deadline
// and its close have to be heard of where net's Accept is not waiting.
type tcpListener struct {
	*net.TCPListener

	mu       sync.Mutex
	deadline time.Time
	bell     *reactor.Bell // rings for bare sockets; nil if nobody wants any
}

func ownListener(l *net.TCPListener) net.Listener {
	return &tcpListener{TCPListener: l}
}

// Close takes the bell away first: once the listener is closed, the number of its
// socket may be another's.
func (l *tcpListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bell != nil {
		l.bell.Take()
		defer l.bell.Ring()
		l.bell = nil
	}
	return l.TCPListener.Close()
}

// hang has the loops ring for those who come.
func (l *tcpListener) hang(sock syscall.RawConn, loops *reactor.Reactor) (rung <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := sock.Control(func(fd uintptr) { l.bell, err = loops.Hang(int(fd)) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	return l.bell.C, nil
}

func (l *tcpListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	if l.bell != nil {
		l.bell.Ring()
	}
	return l.TCPListener.SetDeadline(t)
}

// await waits for a ring: somebody has come, or the deadline was changed, or the
// listener closed. It returns os.ErrDeadlineExceeded when the deadline has passed.
func (l *tcpListener) await(rung <-chan struct{}) error {
	l.mu.Lock()
	deadline := l.deadline
	l.mu.Unlock()
	if deadline.IsZero() {
		<-rung
		return nil
	}
	left := time.Until(deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-rung:
		return nil
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

// A bareListener accepts connections that go to an event loop at once. It is for
// one acceptor at a time.
type bareListener struct {
	listener *tcpListener
	server   *Server
	base     context.Context
	service  *service
	of       *settings // whose service it is
	addr     net.Addr
	local    net.Addr // every connection's; nil where each has its own
	sock     syscall.RawConn
	attempt  func(fd uintptr) // made once: a closure per connection would be garbage
	rung     <-chan struct{}

	inRow int // accepted since others had a chance
	fd    int
	peer  netip.AddrPort
	err   error
}

// acceptsInRow is how many connections are accepted before those that are there get
// their turn: a crowd of newcomers does not hold them up for more than that.
const acceptsInRow = 16

// takeBare returns nil if no loop can serve the listener's connections.
func (s *Server) takeBare(base context.Context, listener net.Listener) *bareListener {
	l, isOurs := listener.(*tcpListener)
	if !isOurs {
		return nil
	}
	loops := s.eventLoops()
	sock, err := l.SyscallConn()
	if err != nil || loops == nil {
		return nil
	}
	b := &bareListener{listener: l, server: s, base: base, addr: l.Addr(), sock: sock}
	if own := addrPort(b.addr); own.IsValid() && !own.Addr().IsUnspecified() {
		b.local = b.addr
	}
	if b.rung, err = l.hang(sock, loops); err != nil {
		return nil
	}
	b.attempt = func(fd uintptr) { b.fd, b.peer, b.err = bare.Accept(int(fd)) }
	return b
}

// accept waits for the next connection. It returns errNotBare if that is to be accepted otherwise.
func (b *bareListener) accept() (*Conn, error) {
	if b.inRow++; b.inRow == acceptsInRow {
		b.inRow = 0
		runtime.Gosched()
	}
	for {
		if !b.server.inForce.Load().takesBare() {
			return nil, errNotBare
		}
		err := b.sock.Control(b.attempt)
		if err == nil {
			err = b.err
		}
		if err == unix.EAGAIN {
			b.inRow = 0
			if err = b.listener.await(b.rung); err == nil {
				continue
			}
		}
		var c *Conn
		if err == nil {
			c, err = b.conn()
		}
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: b.addr.Network(), Addr: b.addr, Err: err}
		}
		return c, nil
	}
}

// conn returns what was just accepted. If it needs an arrival, as it has not a moment ago, it
// is as if it had not been accepted bare.
func (b *bareListener) conn() (*Conn, error) {
	c := newBareConn(b.server, b.fd, b.local, b.peer)
	c.looped.by = b.serviceBy(c.set)
	if !c.set.takesBare() {
		s, err := c.streamOfBare()
		if err != nil {
			c.set.letGo()
			return nil, err
		}
		s.isNew()
	}
	if b.service.stepper != nil {
		c.looped.state.Store(fresh | unserved)
	}
	return c, nil
}

// serviceBy returns the service of all that come by the same settings.
func (b *bareListener) serviceBy(t *settings) *service {
	if b.of != t {
		b.of, b.service = t, &service{stepper: t.stepper, joiner: t.joiner, base: b.base}
	}
	return b.service
}

// newBareConn returns a bare socket's connection. A local address of nil is the socket's own.
func newBareConn(s *Server, fd int, local net.Addr, peer netip.AddrPort) *Conn {
	if local == nil {
		local = tcpAddr(bare.Local(fd))
	}
	c := new(Conn)
	c.init(s, local, tcpAddr(peer))
	c.looped.bare = int32(fd) //nolint:gosec // descriptors are small
	return c
}

// takeWaiting accepts a connection that is only to be turned away, however its like are
// accepted. It returns nil if there is none.
func (d *door) takeWaiting() *Conn {
	sock, err := d.listener.(syscall.Conn).SyscallConn() // of a kind whose queue the kernel counts
	if err != nil {
		return nil
	}
	fd, peer := -1, netip.AddrPort{}
	if e := sock.Control(func(l uintptr) { fd, peer, err = bare.Accept(int(l)) }); e != nil || err != nil {
		return nil
	}
	c := newBareConn(d.server, fd, nil, peer)
	c.looped.by = &service{base: d.ctx}
	return c
}

// tcpAddr is net.TCPAddrFromAddrPort with one allocation.
func tcpAddr(from netip.AddrPort) net.Addr {
	ip := from.Addr()
	if !ip.Is4() {
		return net.TCPAddrFromAddrPort(from)
	}
	a := new(struct {
		net.TCPAddr
		four [4]byte
	})
	a.four = ip.As4()
	a.IP, a.Port = a.four[:], int(from.Port())
	return &a.TCPAddr
}
