package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/levee-net/levee/internal/bare"
)

// sources are local addresses, by family.
type sources [ipv6 + 1][]netip.Addr

func sortSources(addrs []netip.Addr) (s sources) {
	for _, addr := range addrs {
		addr = addr.Unmap()
		f := ipv6
		if addr.Is4() {
			f = ipv4
		}
		s[f] = append(s[f], addr)
	}
	return s
}

// connectSocket makes a socket and connects it, from the next local address that has a
// port left if there are several.
func (p *Pool) connectSocket(ctx context.Context, to address) (net.Conn, error) {
	if to.path != "" {
		return new(net.Dialer).DialContext(ctx, "unix", to.path)
	}
	from := p.terms.sources[to.family()]
	if len(from) == 0 {
		return connectTCP(ctx, netip.AddrPort{}, to.socket)
	}
	turn := int(p.nextSource.Add(1) % uint32(len(from)))
	for i := range from {
		local := netip.AddrPortFrom(from[(turn+i)%len(from)], 0)
		conn, err := connectTCP(ctx, local, to.socket)
		if err == nil || !isOneOf(err, portErrors) {
			return conn, err
		}
		if i == len(from)-1 {
			return nil, sourceError(local.Addr(), err)
		}
	}
	panic("unreachable: the last address returns")
}

// sourceError says of an address that it could not be connected from.
func sourceError(local netip.Addr, err error) error {
	call, ok := errors.AsType[*os.SyscallError](err)
	switch {
	case ok && call.Syscall == "bind":
		return fmt.Errorf("source %v: %w; is it an address of this machine?", local, call.Err)
	case ok:
		return fmt.Errorf("source %v: %w", local, call.Err)
	}
	return err
}

// connectTCP spares Go's netpoller until somebody reads or writes: an event loop never
// does.
func connectTCP(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	conn, err := bare.Dial(ctx, from, to)
	if err != nil {
		return nil, err // not conn: a nil *bare.Conn is no nil net.Conn
	}
	return conn, nil
}

// netsOwn returns the connection that net would have made.
func netsOwn(conn net.Conn) net.Conn {
	if b, ok := conn.(*bare.Conn); ok {
		if own := b.NetConn(); own != nil {
			return own
		}
	}
	return conn
}
