package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// parsePrefix reads a prefix, or an address, which is the prefix that has no other.
func parsePrefix(text string) (netip.Prefix, error) {
	address, length, cut := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("not an address or a prefix")
	case !cut:
		return canonical(netip.PrefixFrom(addr.WithZone(""), addr.BitLen()), addr.Zone())
	}
	bits, ok := parseLength(length)
	switch {
	case !ok:
		return netip.Prefix{}, errors.New("not an address or a prefix")
	case bits > addr.BitLen():
		return netip.Prefix{}, errors.New("prefix length out of range")
	}
	return canonical(netip.PrefixFrom(addr.WithZone(""), bits), addr.Zone())
}

// parseLength reads a number of up to three digits.
func parseLength(text string) (n int, ok bool) {
	if text == "" || len(text) > 3 || len(text) > 1 && text[0] == '0' {
		return 0, false
	}
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// canonical returns the prefix in the one form in which addresses are looked up: IPv4 in IPv6 is IPv4.
func canonical(p netip.Prefix, zone string) (netip.Prefix, error) {
	switch {
	case !p.IsValid():
		return netip.Prefix{}, errors.New("not a valid prefix")
	case zone != "":
		return netip.Prefix{}, errors.New("a zone is of no address elsewhere")
	case p.Addr().Is4In6() && p.Bits() >= 96:
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	case p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("a prefix of IPv4 in IPv6 has at least 96 bits")
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("the address has bits beyond the prefix; is it %s, or %s?", p.Masked(), p.Addr())
	}
	return p, nil
}

// lookedUp returns an address in the form in which it is looked up.
func lookedUp(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }
