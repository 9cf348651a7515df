package levee

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/reactor"
)

// Where nothing has to be read before a connection is served (no TLS, no PROXY
// header, no routing), and an event loop serves it, it needs neither a goroutine
// nor net's state around its socket. So it is accepted without them.

// A tcpListener is net's. Its server can also have a second descriptor of it, to
// accept bare sockets from.
type tcpListener struct {
	*net.TCPListener

	mu     sync.Mutex
	bare   *os.File // the second descriptor; nil until asked for
	closed bool
}

func ownListener(l *net.TCPListener) net.Listener { return &tcpListener{TCPListener: l} }

// second returns the second descriptor, as a file in Go's poller. A listener's own
// can be waited for by Accept only.
func (l *tcpListener) second() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if l.bare != nil {
		return l.bare, nil
	}
	sock, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := duplicate(sock)
	if fd < 0 {
		return nil, syscall.EMFILE
	}
	l.bare = os.NewFile(uintptr(fd), "listener")
	return l.bare, nil
}

// Close closes both descriptors.
func (l *tcpListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bare != nil && !l.closed {
		_ = l.bare.Close()
	}
	l.closed = true
	return l.TCPListener.Close()
}

// SetDeadline sets that of Accept, by whichever descriptor.
func (l *tcpListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bare != nil {
		_ = l.bare.SetReadDeadline(t)
	}
	return l.TCPListener.SetDeadline(t)
}

// A bareListener accepts connections that go to an event loop at once. It is for
// one acceptor at a time.
type bareListener struct {
	door    *door
	stepper Stepper
	addr    net.Addr
	local   net.Addr // every connection's; nil where each has its own
	sock    syscall.RawConn
	attempt func(fd uintptr) bool // made once: a closure per connection would be garbage

	fd   int
	peer netip.AddrPort
	err  error
}

// takeBare returns nil if connections need an arrival, or no loop can serve them.
func (d *door) takeBare() *bareListener {
	s := d.server
	l, isOurs := d.listener.(*tcpListener)
	stepper, canStep := s.Handler.(Stepper)
	_, isRouter := s.Handler.(Router)
	if !isOurs || !canStep || isRouter || s.TLSConfig != nil || len(s.ProxyFrom) > 0 || s.eventLoops() == nil {
		return nil
	}
	file, err := l.second()
	if err != nil {
		return nil
	}
	sock, err := file.SyscallConn()
	if err != nil {
		return nil
	}
	b := &bareListener{door: d, stepper: stepper, addr: l.Addr(), sock: sock}
	if own := addrPort(b.addr); own.IsValid() && !own.Addr().IsUnspecified() {
		b.local = b.addr
	}
	b.attempt = func(fd uintptr) bool {
		b.fd, b.peer, b.err = reactor.Accept(int(fd))
		return b.err != unix.EAGAIN
	}
	return b
}

// accept waits for the next connection.
func (b *bareListener) accept() (*Conn, error) {
	err := b.sock.Read(b.attempt)
	if err == nil {
		err = b.err
	}
	switch {
	case errors.Is(err, os.ErrClosed):
		err = net.ErrClosed
		fallthrough
	case err != nil:
		return nil, &net.OpError{Op: "accept", Net: b.addr.Network(), Addr: b.addr, Err: err}
	}
	local := b.local
	if local == nil {
		local = tcpAddr(reactor.Local(b.fd))
	}
	c := new(Conn)
	c.init(b.door.server, local, tcpAddr(b.peer))
	c.looped.stepper, c.looped.bare, c.looped.fresh = b.stepper, int32(b.fd), true //nolint:gosec // descriptors are small
	c.stepped.Store(true)
	return c, nil
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
