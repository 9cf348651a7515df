// Package bare connects to TCP servers without Go's netpoller and without net's state
// around the socket: what goes to an event loop needs neither, and they are a third of
// what a connection costs.
//
// What Dial returns is a net.Conn like any other, and becomes one of net's own the first
// time that it is used as one. Whoever takes the socket by Detach before that spares both.
package bare

import (
	"net"
	"net/netip"
	"time"
)

// Probing of a connection that nothing comes over, which tells the dead from the silent.
const (
	keepAliveIdle  = 15 * time.Second
	keepAliveCount = 9
)

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

// dialError is what net would have made of it.
func dialError(local, remote netip.AddrPort, err error) error {
	e := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(remote), Err: err}
	if local.IsValid() {
		e.Source = net.TCPAddrFromAddrPort(local)
	}
	return e
}
