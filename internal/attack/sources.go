package attack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// DefaultPrefix is where rotating attackers come from: a prefix for local use. As
// root, `ip -6 route add local fd4c:6576:6565::/48 dev lo` makes it this machine's.
var DefaultPrefix = netip.MustParsePrefix("fd4c:6576:6565::/48")

// lacksLoopback says why attackers cannot come from any address of 127.0.0.0/8.
func (t *target) lacksLoopback(ctx context.Context) string {
	if !t.addr.Addr().Is4() || !t.addr.Addr().IsLoopback() {
		return "the server is not on 127.0.0.0/8"
	}
	if !t.reachableFrom(ctx, loopbackSource(t, 1)) {
		return "this system has not all of 127.0.0.0/8"
	}
	return ""
}

// lacksPrefix says why attackers cannot come from the IPv6 prefix.
func (t *target) lacksPrefix(ctx context.Context) string {
	if !t.addr.Addr().Is6() {
		return "the server is not on IPv6"
	}
	if !t.reachableFrom(ctx, from48(t, 1)) {
		return fmt.Sprintf("addresses of %s are not this machine's (as root: ip -6 route add local %s dev lo)", t.prefix, t.prefix)
	}
	return ""
}

func (t *target) reachableFrom(ctx context.Context, source netip.Addr) bool {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	c, err := t.dial(ctx, source, 0)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// loopbackSource is another address of 127.1.0.0 to 127.64.255.255 for each attacker,
// before they come round again.
func loopbackSource(_ *target, number int64) netip.Addr {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], 127<<24|1<<16+uint32(number)%(64<<16))
	return netip.AddrFrom4(ip)
}

// from64 is another address of one /64 for each attacker.
func from64(t *target, number int64) netip.Addr {
	ip := t.prefix.Addr().As16()
	binary.BigEndian.PutUint64(ip[8:], uint64(number)<<16|1)
	return netip.AddrFrom16(ip)
}

// from48 is an address of another /64 for each attacker.
func from48(t *target, number int64) netip.Addr {
	ip := t.prefix.Addr().As16()
	binary.BigEndian.PutUint16(ip[6:], uint16(number))
	ip[15] = 1
	return netip.AddrFrom16(ip)
}
