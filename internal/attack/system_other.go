//go:build !linux

package attack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// prepareSocket has nothing to set here: ports are chosen when a socket is bound.
func prepareSocket(netip.Addr, int) func(network, address string, c syscall.RawConn) error {
	return nil
}

// ended cannot be seen here without reading.
func ended(*net.TCPConn) error { return nil }

// filesLeft is less than what Go raises the limit to on every system but Linux, where
// there is a limit.
func filesLeft() int { return 5_000 }

func processesOf(netip.AddrPort) Meter {
	return func(context.Context) (Vitals, error) {
		return Vitals{}, errors.New("processes are only looked at on Linux; name its admin address")
	}
}

// standBack is only done where it can be done for all threads.
func standBack() error { return nil }
