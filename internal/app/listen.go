package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"syscall"

	"github.com/levee-net/levee/internal/config"
)

// listen listens as levee.Listen does, or on the socket that this process was given for the address, and says what
// to do where that fails; instead is how to choose another address.
func (f *front) listen(ctx context.Context, address config.Address, instead string) (net.Listener, error) {
	l, err := f.env.process.Listen(ctx, address.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && address.Network == "unix":
		return nil, fmt.Errorf("%w; free it, or %s", err, instead)
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w%s; stop that, or %s", err, ownerInWords(address), instead)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w: this machine has no such address; %s", err, instead)
	case errors.Is(err, fs.ErrPermission) && address.Network == "tcp":
		return nil, fmt.Errorf("%w; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE", err)
	}
	return l, err
}

// ownerInWords names the process that has the port, where the system tells.
func ownerInWords(address config.Address) string {
	if address.Network != "tcp" {
		return ""
	}
	resolved, err := net.ResolveTCPAddr("tcp", address.Address)
	if err != nil {
		return ""
	}
	wanted := resolved.AddrPort()
	if !wanted.Addr().IsValid() { // no host is every address
		wanted = netip.AddrPortFrom(netip.IPv6Unspecified(), wanted.Port())
	}
	if owner := portOwner(wanted); owner != "" {
		return " by " + owner
	}
	return ""
}

// listenPrivately is listen for operators: a Unix socket is for its owner alone.
func (f *front) listenPrivately(ctx context.Context, address config.Address) (net.Listener, error) {
	const instead = "choose another with --admin"
	if address.Network != "unix" {
		return f.listen(ctx, address, instead)
	}
	restore := privateFiles()
	defer restore()
	return f.listen(ctx, address, instead)
}
