package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

// ServerSource is an entry of an upstream's servers: one server, or where to learn of several.
type ServerSource struct {
	Pos Position
	ServerAddress
	Name   string // empty is the address
	Weight int
	Tier   int
}

// ServerAddress is where a server is, or where that can be learnt.
type ServerAddress struct {
	Kind    string // KindAddress and so on
	Address string // what the kind needs, without the scheme
}

// What an entry of servers can be.
const (
	KindAddress = "address" // one server: ip:port, or unix: and an absolute path
	KindName    = "name"    // one server: host:port, which is looked up
	KindDNS     = "dns"     // host:port, of which every address is a server
	KindSRV     = "srv"     // the name of SRV records
	KindFile    = "file"    // the absolute path of a list
)

func (s *ServerSource) keys() []key {
	return []key{
		{"address", required, s.location(), serverDoc},
		{
			"weight", optional,
			integer{p: &s.Weight, def: 1, min: 1, max: 256},
			"The server's share beside the others'.",
		},
		{
			"tier", optional,
			integer{p: &s.Tier, min: 0, max: 9},
			"0 for the servers that are used first. Those of a higher tier stand by until too few of the lower ones are well.",
		},
		{
			"name", optional, text(&s.Name, "a name such as db1.example.com", 253, notServerName),
			"What metrics and logs call the server, unique in its upstream. With TLS and no server_name the certificate must be for it. Without it, the address.",
		},
	}
}

const serverDoc = "host:port or unix: and an absolute path: one server. dns://host:port: every address of the name. " +
	"dns+srv://name: what its SRV records say. file:///path: a list that is watched."

const serverPattern = `^(unix:/.+|file:///.+|dns://.+:[0-9]{1,5}|dns\+srv://.+|[^/]+:[0-9]{1,5})$`

func (s *ServerSource) location() parsed[ServerAddress] {
	return parsed[ServerAddress]{
		p: &s.ServerAddress, parse: parseServer, format: ServerAddress.String,
		wants: "an address such as 10.0.0.7:5432", pattern: serverPattern,
	}
}

// server is an entry of servers: only the address, or a mapping.
type server struct{ *ServerSource }

func (s server) mapping() object { return object{of: s.ServerSource, pos: &s.Pos} }

func (s server) read(r *reader, path string, n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		s.mapping().read(r, path, n)
		return
	}
	s.absent()
	s.Pos = r.at(n)
	s.location().read(r, path, n)
}

func (s server) absent() { s.mapping().absent() }

func (s server) write() *yaml.Node {
	if s.Name == "" && s.Weight == 1 && s.Tier == 0 {
		return s.location().write()
	}
	return s.mapping().write()
}

func (s server) schema() *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s.location().schema(), s.mapping().schema()}}
}

func (s server) takes() string { return s.location().takes() }

// single reports whether the entry is one server.
func (a ServerAddress) single() bool { return a.Kind == KindAddress || a.Kind == KindName }

// String returns the address as the configuration writes it.
func (a ServerAddress) String() string {
	switch a.Kind {
	case KindDNS:
		return dnsScheme + a.Address
	case KindSRV:
		return srvScheme + a.Address
	case KindFile:
		return fileScheme + a.Address
	}
	return a.Address
}

// identity is the same for two ways to write one address.
func (a ServerAddress) identity() string {
	if a.Kind == KindAddress || a.Kind == KindFile {
		return a.String()
	}
	return strings.TrimSuffix(strings.Replace(strings.ToLower(a.String()), ".:", ":", 1), ".") // a complete name's dot
}

const (
	unixScheme = "unix:"
	dnsScheme  = "dns://"
	srvScheme  = "dns+srv://"
	fileScheme = "file://"
)

// parseServer reads an entry of servers.
func parseServer(s string) (ServerAddress, error) {
	if path, ok := strings.CutPrefix(s, unixScheme); ok {
		return parseUnix(s, path)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return parseHostPort(s)
	}
	switch scheme + "://" {
	case dnsScheme:
		return parseDNS(s, rest)
	case srvScheme:
		return parseSRV(s, rest)
	case fileScheme:
		return parseServerFile(s, rest)
	case "kubernetes://", "consul://":
		return ServerAddress{}, fmt.Errorf("%s: this build has no discovery by %s; the Go module upstream/%s has it, for a program of your own", quote(s), scheme, scheme)
	}
	if near := nearest(scheme, []string{"dns+srv", "dns", "file"}); near != "" {
		return ServerAddress{}, fmt.Errorf("%s: unknown scheme %s; did you mean %q?", quote(s), quote(scheme), near)
	}
	return ServerAddress{}, fmt.Errorf("%s: unknown scheme %s; write host:port without one, or dns://, dns+srv:// or file://", quote(s), quote(scheme))
}

func parseUnix(entry, path string) (ServerAddress, error) {
	if strings.HasPrefix(path, "//") {
		return ServerAddress{}, fmt.Errorf("%s is not a URL; write %s", quote(entry), quote(unixScheme+"/"+strings.TrimLeft(path, "/")))
	}
	if err := checkSocket(entry, path); err != nil {
		return ServerAddress{}, err
	}
	return ServerAddress{KindAddress, entry}, nil
}

func parseHostPort(s string) (ServerAddress, error) {
	a, err := ParseAddress(s)
	if err != nil {
		return ServerAddress{}, err
	}
	host, port, _ := net.SplitHostPort(a.Address) // ParseAddress made sure
	ip, err := netip.ParseAddr(host)
	switch isIP := err == nil; {
	case port == "0":
		return ServerAddress{}, fmt.Errorf("%s: nobody listens on port 0; write the server's, from 1 to 65535", quote(s))
	case host == "" || isIP && ip.IsUnspecified():
		return ServerAddress{}, fmt.Errorf("%s has no host to connect to; for this machine write 127.0.0.1:%s", quote(s), port)
	case isIP:
		return ServerAddress{KindAddress, net.JoinHostPort(ip.Unmap().String(), port)}, nil
	}
	return ServerAddress{KindName, a.Address}, nil
}

func parseDNS(entry, s string) (ServerAddress, error) {
	a, err := parseHostPort(s)
	switch {
	case err != nil:
		return ServerAddress{}, fmt.Errorf("%s: %w", quote(entry), err)
	case a.Kind != KindName:
		return ServerAddress{}, fmt.Errorf("%s: there is nothing to look up; write %s", quote(entry), a.Address)
	}
	return ServerAddress{KindDNS, a.Address}, nil
}

func parseSRV(entry, s string) (ServerAddress, error) {
	if s == "" || !validHost(s) {
		return ServerAddress{}, fmt.Errorf("%s: %s is not the name of SRV records; write one such as dns+srv://_postgresql._tcp.example.com, without a port", quote(entry), quote(s))
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return ServerAddress{}, fmt.Errorf("%s: an address has no SRV records; write a name such as _postgresql._tcp.example.com", quote(entry))
	}
	return ServerAddress{KindSRV, s}, nil
}

func parseServerFile(entry, s string) (ServerAddress, error) {
	if !strings.HasPrefix(s, "/") {
		return ServerAddress{}, fmt.Errorf("%s: the path of a list of servers must be absolute, such as file:///etc/levee/servers", quote(entry))
	}
	if strings.HasSuffix(s, "/") {
		return ServerAddress{}, fmt.Errorf("%s names a folder, not a list of servers", quote(entry))
	}
	if err := hasControl(s); err != nil {
		return ServerAddress{}, err
	}
	return ServerAddress{KindFile, s}, nil
}

var serverName = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)

// notServerName says why s cannot be a server's name: a word that is as good in a metric's label as in a line of log.
func notServerName(s string) error {
	if !serverName.MatchString(s) {
		return fmt.Errorf("%s is not a server's name; use letters, digits, and . _ : -", quote(s))
	}
	return nil
}

// notAdminHost says why s cannot be a name of the admin address's.
func notAdminHost(s string) error {
	if _, err := netip.ParseAddr(s); err == nil || strings.EqualFold(s, "localhost") {
		return fmt.Errorf("%s: addresses and localhost are taken in any case; remove it", quote(s))
	}
	if !validHost(s) {
		return fmt.Errorf("%s is not a name; write one such as levee.example.com, without a port", quote(s))
	}
	return nil
}

func notHost(s string) error {
	if !validHost(s) {
		return fmt.Errorf("%s is neither an IP address nor a host name", quote(s))
	}
	return nil
}

// notHostHeader says why s cannot be a request's Host: it is a host, with a port or without.
func notHostHeader(s string) error {
	host := s
	if a, err := ParseAddress(s); err == nil {
		host, _, _ = net.SplitHostPort(a.Address)
	}
	if host == "" || !validHost(host) {
		return fmt.Errorf("%s is not a host; write one such as www.example.com, with a port or without", quote(s))
	}
	return nil
}

// notURLPath says why s cannot stand in the first line of an HTTP request.
func notURLPath(s string) error {
	if _, err := url.ParseRequestURI(s); err != nil || !strings.HasPrefix(s, "/") || strings.ContainsAny(s, " #") {
		return fmt.Errorf("%s is not a path; write one such as /healthz or /healthz?deep=1", quote(s))
	}
	return nil
}
