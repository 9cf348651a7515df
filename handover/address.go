package handover

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// boundTo returns what tells whether a socket is bound as one would be that listened on the address, or nil if
// that says too little: a port of 0 is another each time.
func boundTo(ctx context.Context, address string) func(net.Addr) bool {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return func(at net.Addr) bool { return at.Network() == "unix" && samePath(at.String(), path) }
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil || port == 0 {
		return nil
	}
	hosts := addressesOf(ctx, host)
	return func(at net.Addr) bool {
		tcp, ok := at.(*net.TCPAddr)
		if !ok || tcp.Port != port {
			return false
		}
		bound := tcp.AddrPort().Addr().Unmap()
		for _, host := range hosts {
			if host == bound || host.IsUnspecified() && bound.IsUnspecified() { // net listens on :: for 0.0.0.0 too
				return true
			}
		}
		return false
	}
}

// addressesOf returns what a host may be bound as: the first address that net would take, which is an IPv4 one if
// there is any.
func addressesOf(ctx context.Context, host string) []netip.Addr {
	if host == "" {
		return []netip.Addr{netip.IPv6Unspecified()}
	}
	if literal, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{literal.Unmap()}
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil // listening anew says what is wrong
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all
}

func samePath(a, b string) bool {
	if a == b {
		return true
	}
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}
