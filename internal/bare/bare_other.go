//go:build !linux

package bare

import (
	"context"
	"net"
	"net/netip"
)

// A Conn is one of net's own.
type Conn struct{ net.Conn }

// Dial connects to remote, from local unless that is the zero AddrPort.
func Dial(ctx context.Context, local, remote netip.AddrPort) (*Conn, error) {
	conn, err := dialer(local).DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, err
	}
	return &Conn{conn}, nil
}

// Detach has no socket to give.
func (*Conn) Detach() (fd int, ok bool) { return -1, false }

// NetConn returns net's own connection.
func (c *Conn) NetConn() net.Conn { return c.Conn }
