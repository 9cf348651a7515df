package upstream

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A spec is a Server that has been looked at.
type spec struct {
	name      string
	addresses []address
	weight    float64
	tier      int
	tls       *tls.Config // nil: plaintext
}

// inspect returns the servers' specs, or an error that names the first one that is
// wrong.
func (p *Pool) inspect(servers []Server) ([]*spec, error) {
	if p.Balance > Maglev {
		return nil, fmt.Errorf("unknown balance %v", p.Balance)
	}
	specs := make([]*spec, len(servers))
	seen := make(map[string]bool, len(servers))
	for i, server := range servers {
		s, err := p.inspectOne(server)
		switch {
		case err != nil && s.name == "":
			return nil, fmt.Errorf("server %d: %w", i+1, err)
		case err != nil:
			return nil, fmt.Errorf("server %s: %w", s.name, err)
		case seen[s.name]:
			return nil, fmt.Errorf("server %s: there are two of this name", s.name)
		}
		seen[s.name] = true
		specs[i] = s
	}
	return specs, nil
}

func (p *Pool) inspectOne(server Server) (*spec, error) {
	s := &spec{name: server.Name, weight: float64(server.Weight), tier: server.Tier}
	texts := server.Addresses
	switch {
	case s.name == "" && len(texts) == 0:
		return s, errors.New("it has neither name nor address")
	case s.name == "":
		s.name = texts[0]
	case len(texts) == 0:
		texts = []string{s.name}
	}
	switch {
	case server.Weight < 0:
		return s, fmt.Errorf("weight %d is negative", server.Weight)
	case server.Tier < 0:
		return s, fmt.Errorf("tier %d is negative", server.Tier)
	case server.Weight == 0:
		s.weight = 1
	}
	for _, text := range texts {
		a, err := parseAddress(text)
		if err != nil {
			return s, err
		}
		s.addresses = append(s.addresses, a)
	}
	return s, p.dress(s, server.ServerName)
}

// dress gives s the TLS configuration of its own.
func (p *Pool) dress(s *spec, serverName string) error {
	if p.TLS == nil {
		return nil
	}
	s.tls = p.TLS.Clone()
	if s.tls.ServerName == "" {
		s.tls.ServerName = cmp.Or(serverName, hostOf(s.name))
	}
	if s.tls.ServerName == "" && !s.tls.InsecureSkipVerify {
		return errors.New("it has no host that a certificate could be for: TLS needs a ServerName")
	}
	if s.tls.ClientSessionCache == nil {
		s.tls.ClientSessionCache = tls.NewLRUClientSessionCache(8) // one server: a few tickets for dials at once
	}
	return nil
}

// hostOf returns the host that a server's name has, with a port or without.
func hostOf(name string) string {
	if strings.HasPrefix(name, unixPrefix) {
		return ""
	}
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name, _, _ = strings.Cut(name, "%") // no certificate is for a zone
	return strings.Trim(name, "[]")
}

const unixPrefix = "unix:"

// An address is where a server is, looked at once instead of at each dial.
type address struct {
	text   string         // as it was told, which is what errors say
	host   string         // to be looked up; or empty
	socket netip.AddrPort // if there is nothing to look up; the port in any case
	path   string         // of a Unix socket; or empty
}

// String returns the address as dials and errors want it.
func (a address) String() string { return a.text }

// parseAddress reads "10.0.0.7:5432", "[2001:db8::7]:5432", "db.example.com:5432" or
// "unix:/run/postgresql/.s.PGSQL.5432".
func parseAddress(text string) (address, error) {
	if path, ok := strings.CutPrefix(text, unixPrefix); ok {
		if path == "" {
			return address{}, fmt.Errorf("address %q: no path", text)
		}
		return address{text: text, path: path}, nil
	}
	host, digits, err := net.SplitHostPort(text)
	if err != nil {
		if wrong, ok := errors.AsType[*net.AddrError](err); ok {
			return address{}, fmt.Errorf("address %q: %s", text, wrong.Err)
		}
		return address{}, fmt.Errorf("address %q: %w", text, err)
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	switch {
	case err != nil || port == 0:
		return address{}, fmt.Errorf("address %q: the port is a number from 1 to 65535", text)
	case host == "":
		return address{}, fmt.Errorf("address %q: no host", text)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return socketAddress(netip.AddrPortFrom(ip.Unmap(), uint16(port))), nil
	}
	return address{text: text, host: host, socket: netip.AddrPortFrom(netip.Addr{}, uint16(port))}, nil
}

func socketAddress(socket netip.AddrPort) address {
	return address{text: socket.String(), socket: socket}
}

// A family is what a happy dial alternates between.
type family uint8

const (
	unixFamily family = iota
	ipv4
	ipv6
)

func (a address) family() family {
	switch {
	case a.path != "":
		return unixFamily
	case a.socket.Addr().Is4():
		return ipv4
	default:
		return ipv6
	}
}
