package leveetest

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	defaultBacklog = 128      // connections; the backlog that listen(2) callers have asked for since the nineties
	defaultBuffer  = 64 << 10 // bytes; small enough that a test fills it, large enough for a 16 KB TLS record and its neighbours

	firstListenerPort = 1024
	firstClientPort   = 32768 // where Linux begins its ephemeral ports
	clientPorts       = 28232 // 32768 to 60999, as in net.ipv4.ip_local_port_range
)

// Network holds the sizes of an in-memory network. The zero value is the one
// that [Listen] and [Pipe] use.
type Network struct {
	// Addr is the address of the listener, or of a pipe's server end.
	// Zero means 127.0.0.1 and a port that no other listener has had lately.
	Addr netip.AddrPort

	// Backlog is how many connections may wait to be accepted; a further Dial
	// blocks. Zero means 128; negative means no limit.
	Backlog int

	// Buffer is how many bytes one direction of a connection holds that were
	// written and not yet read; a further Write blocks. It stands for the
	// sender's and the receiver's socket buffer together.
	// Zero means 64 KiB; negative means no limit.
	Buffer int
}

// Listen returns a listener on a network of default size. It cannot fail.
func Listen() *Listener { return Network{}.Listen() }

// Pipe returns the two ends of an established connection over a network of
// default size. It cannot fail.
func Pipe() (client, server *Conn) { return Network{}.Pipe() }

// Listen returns a listener on this network. It cannot fail: two listeners may
// even have the same address, because a client dials the listener, not the
// address.
func (n Network) Listen() *Listener {
	l := &Listener{
		addr:    net.TCPAddrFromAddrPort(n.serverAddr()),
		backlog: orDefault(n.Backlog, defaultBacklog),
		buffer:  orDefault(n.Buffer, defaultBuffer),
	}
	l.changed.L = &l.mu
	return l
}

// Pipe returns the two ends of an established connection over this network. It
// cannot fail.
func (n Network) Pipe() (client, server *Conn) {
	serverAddr := net.TCPAddrFromAddrPort(n.serverAddr())
	clientAddr := netip.AddrPortFrom(loopback, firstClientPort)
	return connect(net.TCPAddrFromAddrPort(clientAddr), serverAddr, orDefault(n.Buffer, defaultBuffer))
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// listeners counts the addresses given out. It is global, against the house
// rule, because listeners made apart from each other must differ.
var listeners atomic.Uint32

func (n Network) serverAddr() netip.AddrPort {
	if n.Addr.IsValid() {
		return n.Addr
	}
	nth := (listeners.Add(1) - 1) % (firstClientPort - firstListenerPort)
	return netip.AddrPortFrom(loopback, uint16(firstListenerPort+nth))
}

func orDefault(size, otherwise int) int {
	switch {
	case size == 0:
		return otherwise
	case size < 0:
		return math.MaxInt
	}
	return size
}

// connect returns both ends of a new connection that holds buffer bytes each way.
func connect(clientAddr, serverAddr *net.TCPAddr, buffer int) (client, server *Conn) {
	mu := new(sync.Mutex)
	up, down := newStream(mu, buffer), newStream(mu, buffer)
	client = &Conn{local: clientAddr, remote: serverAddr, mu: mu, in: down, out: up}
	server = &Conn{local: serverAddr, remote: clientAddr, mu: mu, in: up, out: down}
	client.peer, server.peer = server, client
	return client, server
}
