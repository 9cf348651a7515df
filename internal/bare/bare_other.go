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

// TryWrite writes nothing.
func (*Conn) TryWrite([]byte) int { return 0 }

// Detach has no socket to give.
func (*Conn) Detach() (fd int, ok bool) { return -1, false }

// NetConn returns net's own connection.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// dialer connects where a bare socket is not to be had.
func dialer(local netip.AddrPort) *net.Dialer {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveIdle, Count: keepAliveCount,
	}}
	d.SetMultipathTCP(false)
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	return d
}
