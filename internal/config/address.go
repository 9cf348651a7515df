package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Address is where something listens, in the words of net.Listen.
type Address struct {
	Pos     Position
	Network string // tcp or unix; empty is off
	Address string // host:port, or the path of a unix socket
}

// String returns the address as the configuration writes it.
func (a Address) String() string {
	switch a.Network {
	case "":
		return "off"
	case "unix":
		return "unix:" + a.Address
	}
	return a.Address
}

// Off reports whether nothing listens there.
func (a Address) Off() bool { return a.Network == "" }

// Loopback reports whether only this machine can reach the address: a loopback address, the name localhost, or a unix
// socket. Other names count as reachable from elsewhere: what they resolve to may change.
func (a Address) Loopback() bool {
	if a.Network != "tcp" {
		return a.Network == "unix"
	}
	host, _ := a.split()
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// split returns the port and one spelling of the host: no IPv4 in IPv6, 127.0.0.1 for localhost, "" for every address.
func (a Address) split() (host, port string) {
	host, port, _ = net.SplitHostPort(a.Address) // ParseAddress made sure
	host = strings.ToLower(host)
	if host == "localhost" {
		return "127.0.0.1", port // which is what net.Listen prefers too
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host, port
	}
	if ip = ip.Unmap(); ip.IsUnspecified() {
		return "", port // net.Listen takes 0.0.0.0 for both families, like [::] and ""
	}
	return ip.String(), port
}

const (
	addressPattern = `^.*:[0-9]{1,5}$`
	adminPattern   = `^(off|unix:/.+|.*:[0-9]{1,5})$`
	prefixPattern  = `^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$`
)

func listenAddress(a *Address) value {
	return parsed[Address]{
		p: a, pos: &a.Pos, parse: ParseAddress, format: Address.String,
		wants: "an address such as 127.0.0.1:8080", pattern: addressPattern,
	}
}

func sourcePrefix(p *netip.Prefix) value {
	return parsed[netip.Prefix]{
		p: p, parse: parsePrefix, format: netip.Prefix.String,
		wants: "a prefix such as 10.0.0.0/8", pattern: prefixPattern,
	}
}

func sourceAddress(ip *netip.Addr) value {
	return parsed[netip.Addr]{
		p: ip, parse: parseSource, format: netip.Addr.String,
		wants: "an address such as 10.0.0.1", pattern: `^[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]*)?$`,
	}
}

// hostname is what can be looked up. An all-digit last label is left out: 10.0.0 or 300.1.2.3 is a mistyped address.
var hostname = regexp.MustCompile(`^([A-Za-z0-9_-]{1,63}\.)*([A-Za-z0-9_-]*[A-Za-z_-][A-Za-z0-9_-]*)\.?$`)

var zone = regexp.MustCompile(`^[A-Za-z0-9._-]*$`)

// ParseAddress reads host:port. An empty host is every address of the machine; a port is a number, 0 a free one.
func ParseAddress(s string) (Address, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Address{}, notHostPort(s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || len(port) > len("65535") {
		return Address{}, fmt.Errorf("%s: port %s is not a number from 0 to 65535", quote(s), quote(port))
	}
	if !validHost(host) {
		return Address{}, fmt.Errorf("%s: %s is neither an IP address nor a host name", quote(s), quote(host))
	}
	return Address{Network: "tcp", Address: net.JoinHostPort(host, strconv.FormatUint(n, 10))}, nil
}

func validHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return zone.MatchString(ip.Zone())
	}
	return host == "" || len(host) <= 253 && hostname.MatchString(host)
}

// notHostPort says which part of host:port s lacks.
func notHostPort(s string) error {
	switch _, err := netip.ParseAddr(s); {
	case s == "":
		return errors.New("is empty; write an address such as 127.0.0.1:8080")
	case err == nil && strings.Contains(s, ":") && validHost(s):
		return fmt.Errorf("%s has no port; write [%s]:8080", quote(s), clip(s))
	case strings.Count(s, ":") > 1:
		return fmt.Errorf("%s is not host:port; an IPv6 address goes in brackets, such as [::1]:8080", quote(s))
	case validHost(s):
		return fmt.Errorf("%s has no port; write %s:8080", quote(s), clip(s))
	}
	return fmt.Errorf("%s is not an address; write one such as 127.0.0.1:8080", quote(s))
}

// maxSocketPath is Linux's sockaddr_un.sun_path without its closing zero. Longer paths fail to bind with no more than
// "invalid argument".
const maxSocketPath = 107

// ParseAdminAddress reads what admin.listen takes: host:port, unix: and an absolute path, or off.
func ParseAdminAddress(s string) (Address, error) {
	if s == "off" {
		return Address{}, nil
	}
	path, ok := strings.CutPrefix(s, "unix:")
	if !ok {
		return ParseAddress(s)
	}
	if err := checkSocket(s, path); err != nil {
		return Address{}, err
	}
	return Address{Network: "unix", Address: path}, nil
}

// checkSocket says what keeps path, of the setting s, from being that of a unix socket.
func checkSocket(s, path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("%s: the path of a unix socket must be absolute, such as unix:/run/levee/admin.sock", quote(s))
	case hasControl(path) != nil:
		return hasControl(path)
	case path == "/":
		return fmt.Errorf("%s names a folder, not a socket", quote(s))
	case len(path) > maxSocketPath:
		return fmt.Errorf("%s: the path of a unix socket has at most %d bytes, this has %d", quote(s), maxSocketPath, len(path))
	}
	return nil
}

// parsePrefix reads a prefix, or an address as the prefix that holds it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s is not a prefix; write one such as 10.0.0.0/8, or an address", quote(s))
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is IPv4 in IPv6; write the IPv4 prefix", quote(s))
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond its length; write %s", quote(s), p.Masked())
	}
	return p, nil
}

// parseSource reads an address of this machine to connect from.
func parseSource(s string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	switch ip = ip.Unmap(); {
	case err != nil || !zone.MatchString(ip.Zone()):
		return netip.Addr{}, fmt.Errorf("%s is not an IP address; write one such as 10.0.0.1, without a port", quote(s))
	case ip.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%s is no address of its own; leave source out, and the system picks one", quote(s))
	case ip.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is a multicast address, which nothing can connect from", quote(s))
	}
	return ip, nil
}
