package config

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/levee-net/levee/internal/servername"
)

// Route is what becomes of the connections that match: a handler, an upstream, or nothing.
type Route struct {
	Pos      Position
	Name     string // may be empty
	Match    Match
	TLS      TLS // its Mode is empty where TLS is as the listener has it
	Handler  Handler
	Upstream string // the name of one of Config.Upstreams
	Refuse   bool
	Limits   RouteLimits
}

// Proxies reports whether a route of the listener leads to an upstream.
func (l *Listener) Proxies() bool {
	return slices.ContainsFunc(l.Routes, func(r Route) bool { return r.Upstream != "" })
}

// Handler is a handler that comes with levee.
type Handler string

// The handlers that come with levee.
const (
	HandlerEcho    Handler = "echo"
	HandlerDiscard Handler = "discard"
	HandlerHello   Handler = "hello"
	HandlerACME    Handler = "acme"
)

func (r *Route) keys() []key {
	return []key{
		{
			"name", optional,
			parsed[string]{
				p: &r.Name, parse: parseName, format: verbatim,
				wants: "a name such as db", pattern: namePattern,
			},
			"What logs and levee explain call this route: up to 63 of a-z, 0-9, _ and -, unique in its listener.",
		},
		{
			"match", optional,
			object{of: &r.Match, pos: &r.Match.Pos, filled: true},
			"What a connection must look like: all that stands here. A route without it takes every connection.",
		},
		{
			"tls", optional,
			routeTLS{&r.TLS},
			"What becomes of TLS on this route, where that is not what the listener says: passthrough, or settings of its own. " +
				"What those leave out is the listener's; the client_ settings are taken all together.",
		},
		{
			"handler", optional,
			choice[Handler]{p: &r.Handler, options: words(HandlerEcho, HandlerDiscard, HandlerHello, HandlerACME)},
			"echo sends back what it reads, discard throws it away, hello answers HTTP requests with a greeting, acme answers an authority's http-01 challenges and sends other requests to https. Excludes upstream.",
		},
		{
			"upstream", optional,
			parsed[string]{
				p: &r.Upstream, parse: parseName, format: verbatim,
				wants: "the name of an upstream", pattern: namePattern,
			},
			"The name of the upstream whose servers get the connection. Excludes handler.",
		},
		{
			"refuse", optional,
			boolean{&r.Refuse},
			"Ends the connection, in TLS with an alert. Excludes handler and upstream.",
		},
		{
			"limits", optional,
			object{of: &r.Limits, pos: &r.Limits.Pos},
			"How much this route takes on, of what its listener does.",
		},
	}
}

// Match is what a connection must look like: all of what is given. The zero Match takes every connection.
type Match struct {
	Pos       Position
	SNI       []Word
	SNIRegexp string
	ALPN      []Word
	Protocol  []Protocol
	Prefix    []Word
	Source    []netip.Prefix
	LocalPort []int
	Client    []Word
}

// Protocol is what the first bytes of a connection say it speaks.
type Protocol string

// The protocols that are told apart by their first bytes.
const (
	ProtocolHTTP     Protocol = "http"
	ProtocolTLS      Protocol = "tls"
	ProtocolSSH      Protocol = "ssh"
	ProtocolPostgres Protocol = "postgres"
	ProtocolRedis    Protocol = "redis"
	ProtocolMQTT     Protocol = "mqtt"
)

func (m *Match) keys() []key {
	return []key{
		{
			"sni", optional,
			wordsOf(&m.SNI, "names such as db.example.com", "a name such as db.example.com", notPattern),
			"The server name that the client asks for: names, or patterns such as *.example.com, in which * is one label.",
		},
		{
			"sni_regexp", optional,
			text(&m.SNIRegexp, `a regular expression such as "db-[0-9]+\\.example\\.com"`, 1000, notRegexp),
			"A regular expression (RE2) that the whole server name has to match, in any case.",
		},
		{
			"alpn", optional,
			wordsOf(&m.ALPN, "protocols such as h2", "a protocol such as h2", notALPN),
			"The application protocol: the one agreed on where TLS ends here, one that the client offers where it passes through.",
		},
		{
			"protocol", optional,
			some[Protocol]{list[Protocol]{p: &m.Protocol, of: "protocols such as http", item: func(p *Protocol) value {
				return choice[Protocol]{p: p, options: words(ProtocolHTTP, ProtocolTLS, ProtocolSSH, ProtocolPostgres, ProtocolRedis, ProtocolMQTT)}
			}}},
			"What the first bytes speak, inside of TLS where that ends here: http (also HTTP/2), ssh, postgres, redis or mqtt. tls is a TLS handshake.",
		},
		{
			"prefix", optional,
			wordsOf(&m.Prefix, `first bytes such as "SSH-" or "hex:0a0b"`, `first bytes such as "SSH-" or "hex:0a0b"`, notPrefix),
			"The first bytes, inside of TLS where that ends here: as text, or hex: and their digits.",
		},
		{
			"source", optional,
			some[netip.Prefix]{list[netip.Prefix]{p: &m.Source, of: "prefixes such as 10.0.0.0/8", item: sourcePrefix}},
			"Where the client is: prefixes or single addresses.",
		},
		{
			"local_port", optional,
			some[int]{list[int]{p: &m.LocalPort, of: "ports such as 5432", item: func(p *int) value {
				return integer{p: p, min: 1, max: 65535}
			}}},
			"The port that the connection came in on, one of the listener's.",
		},
		{
			"client", optional,
			wordsOf(&m.Client, "identities such as spiffe://example.com/billing", "an identity such as spiffe://example.com/billing", hasControl),
			"Who the client's certificate says it is: a URI, a DNS name or the common name. Needs client_ca.",
		},
	}
}

// notPattern says why s cannot be a server's name, or a pattern for some.
func notPattern(s string) error {
	if _, err := servername.ParsePattern(s); err != nil {
		return fmt.Errorf("%s is neither a name nor a pattern such as *.example.com", quote(s))
	}
	return nil
}

func notRegexp(s string) error {
	if err := hasControl(s); err != nil {
		return err
	}
	if _, err := regexp.Compile(s); err != nil {
		return fmt.Errorf("%s is not a regular expression: %s", quote(s), strconv.QuoteToGraphic(clip(strings.TrimPrefix(err.Error(), "error parsing regexp: "))))
	}
	return nil
}

const hexPrefix = "hex:"

func notPrefix(s string) error {
	digits, isHex := strings.CutPrefix(s, hexPrefix)
	most := len(s)
	if isHex {
		decoded, err := hex.DecodeString(digits)
		if err != nil || len(decoded) == 0 {
			return fmt.Errorf("%s is not hex: and an even number of hexadecimal digits", quote(s))
		}
		most = len(decoded)
	}
	if most > maxPrefix {
		return fmt.Errorf("has %d bytes; the most is %d", most, maxPrefix)
	}
	return nil
}

// maxPrefix is more than any protocol needs to be known by, and is held for every connection that is arriving.
const maxPrefix = 1024

// Prefixes returns the first bytes that match, decoded.
func (m *Match) Prefixes() []string {
	decoded := Texts(m.Prefix)
	for i, text := range decoded {
		if digits, ok := strings.CutPrefix(text, hexPrefix); ok {
			content, _ := hex.DecodeString(digits) // notPrefix made sure
			decoded[i] = string(content)
		}
	}
	return decoded
}

// Any reports whether the match takes every connection.
func (m *Match) Any() bool {
	return !m.byHello() && len(m.Protocol)+len(m.Prefix)+len(m.Source)+len(m.LocalPort)+len(m.Client) == 0
}

// byHello reports whether the match looks for something in a TLS client's hello.
func (m *Match) byHello() bool { return len(m.SNI)+len(m.ALPN) > 0 || m.SNIRegexp != "" }

// first is the part of the match that is known before TLS has ended.
func (m Match) first() Match {
	m.Prefix, m.Client = nil, nil
	if !slices.Contains(m.Protocol, ProtocolTLS) {
		m.Protocol = nil
	}
	return m
}

// canonical is the match with its names and bytes in their one form.
func (m Match) canonical() Match {
	m.SNI, m.Prefix = slices.Clone(m.SNI), slices.Clone(m.Prefix)
	for i := range m.SNI {
		if p, err := servername.ParsePattern(m.SNI[i].Text); err == nil {
			m.SNI[i].Text = p.String()
		}
	}
	for i, p := range m.Prefixes() {
		m.Prefix[i].Text = p
	}
	return m
}

// covers reports whether whatever matches the other matches m too, both of them canonical. It may say no where a yes is
// hard to tell.
func (m *Match) covers(other *Match) bool {
	return coversAll(m.SNI, other.SNI, func(a, b Word) bool { return coversName(a.Text, b.Text) }) &&
		(m.SNIRegexp == "" || m.SNIRegexp == other.SNIRegexp) &&
		coversAll(m.ALPN, other.ALPN, func(a, b Word) bool { return a.Text == b.Text }) &&
		coversAll(m.Protocol, other.Protocol, func(a, b Protocol) bool { return a == b }) &&
		coversAll(m.Prefix, other.Prefix, func(a, b Word) bool { return strings.HasPrefix(b.Text, a.Text) }) &&
		coversAll(m.Source, other.Source, func(a, b netip.Prefix) bool { return a.Bits() <= b.Bits() && a.Contains(b.Addr()) }) &&
		coversAll(m.LocalPort, other.LocalPort, func(a, b int) bool { return a == b }) &&
		coversAll(m.Client, other.Client, func(a, b Word) bool { return a.Text == b.Text })
}

// coversAll reports whether each of the others is covered by one of those that there are; none of them is no condition.
func coversAll[T any](those, others []T, covers func(a, b T) bool) bool {
	if len(those) == 0 {
		return true
	}
	return len(others) > 0 && !slices.ContainsFunc(others, func(b T) bool {
		return !slices.ContainsFunc(those, func(a T) bool { return covers(a, b) })
	})
}

func coversName(pattern, name string) bool {
	rest, wildcard := strings.CutPrefix(pattern, "*")
	first, ok := strings.CutSuffix(name, rest)
	return pattern == name || wildcard && ok && first != "" && !strings.Contains(first, ".")
}

// entries is how many there are in all lists together.
func (m *Match) entries() int {
	return len(m.SNI) + len(m.ALPN) + len(m.Protocol) + len(m.Prefix) + len(m.Source) + len(m.LocalPort) + len(m.Client)
}

// checkRoutes makes sure that every connection finds a route and every route can be found.
func (l *Listener) checkRoutes(ps *Problems, listener string) {
	path := listener + ".routes"
	if !ps.clean(path) {
		return
	}
	names := make(map[string]int)
	known := ps.keysKnown(listener) && ps.clean(listener+".tls") // else nothing can be told from it
	var o *order
	if known {
		o = newOrder(l)
	}
	for i := range l.Routes {
		r := &l.Routes[i]
		at := fmt.Sprintf("%s[%d]", path, i)
		if j, taken := names[r.Name]; taken {
			ps.add(r.Pos, at+".name", "%q is the name of routes[%d] already; names are unique", r.Name, j)
		} else if r.Name != "" {
			names[r.Name] = i
		}
		if !known {
			continue
		}
		l.checkRouteTLS(ps, r, at)
		l.checkMatch(ps, r, at+".match")
		if !ps.clean(at) {
			continue
		}
		if text, all := o.shadow(i); text != "" {
			ps.add(r.Pos, at, "is never reached: %s", text)
			if all {
				return // the routes after it are told the same when this has been put right
			}
		}
	}
	last := len(l.Routes) - 1
	if last >= 0 && ps.clean(path) && !l.Routes[last].Match.Any() {
		ps.add(l.Routes[last].Pos, fmt.Sprintf("%s[%d]", path, last), "has a match, and no route follows for the connections it leaves; add one without match, such as {refuse: true}")
	}
}

// A kind of connection: what a route takes of one it may not take of the other.
type kind int

const (
	inTLS kind = iota
	inPlaintext
)

// takes reports whether connections of the kind may come to the route.
func (l *Listener) takes(k kind, r *Route) bool {
	switch {
	case k == inTLS:
		return l.TLS.Mode != TLSOff
	case l.TLS.Mode == TLSOff:
		return true
	}
	return l.TLS.Mode == TLSOptional && r.TLS.Mode != TLSTerminate && !r.Match.byHello() && len(r.Match.Client) == 0
}

// An order is a listener's routes as connections come to them.
type order struct {
	listener *Listener
	matches  []Match  // canonical
	terms    []string // what TLS ends by; empty where it does not end here
	any      []int    // the routes that have no match
	left     int      // comparisons that may still be made
}

// mostComparisons bounds what a file may cost: they take a fifth of a second, and are those of 2,000 routes by one name
// each. Routes beyond them are not compared with those before, but for one that takes every connection.
const mostComparisons = 4_000_000

func newOrder(l *Listener) *order {
	o := &order{listener: l, left: mostComparisons}
	listeners := l.TLS.Terms()
	for i := range l.Routes {
		r := &l.Routes[i]
		terms := ""
		switch {
		case !l.Terminates(r):
		case r.TLS.Mode == "":
			terms = listeners
		default:
			t := l.TLSOf(r)
			terms = t.Terms()
		}
		if r.Match.Any() {
			o.any = append(o.any, i)
		}
		o.matches, o.terms = append(o.matches, r.Match.canonical()), append(o.terms, terms)
	}
	return o
}

// shadow says why no connection gets as far as the route, if none does, and whether that goes for all routes after it.
func (o *order) shadow(i int) (why string, all bool) {
	for _, k := range []kind{inTLS, inPlaintext} {
		if !o.listener.takes(k, &o.listener.Routes[i]) {
			continue
		}
		if why, all = o.shadowOf(k, i); why == "" {
			return "", false
		}
	}
	return why, all
}

func (o *order) shadowOf(k kind, i int) (why string, all bool) {
	for _, j := range o.any {
		if j < i && o.listener.takes(k, &o.listener.Routes[j]) {
			return fmt.Sprintf("routes[%d] has no match and takes every connection; move that one to the end", j), true
		}
	}
	for j := range o.matches[:i] {
		match, decides := o.matches[j], false
		if o.left -= 1 + match.entries()*o.matches[i].entries(); o.left < 0 {
			break
		}
		if !o.listener.takes(k, &o.listener.Routes[j]) {
			continue
		}
		if k == inTLS && o.terms[j] != "" && o.terms[j] != o.terms[i] {
			match, decides = match.first(), true // the first that may match by the hello decides what becomes of TLS
		}
		if k == inTLS && slices.Contains(match.Protocol, ProtocolTLS) {
			match.Protocol = nil
		}
		switch {
		case !match.covers(&o.matches[i]):
		case decides && !o.matches[j].covers(&o.matches[i]):
			return fmt.Sprintf("routes[%d] decides for the same connections what becomes of their TLS, before what it carries is known; give both the same tls", j), false
		default:
			return fmt.Sprintf("routes[%d] takes the same connections", j), false
		}
	}
	return "", false
}

// checkMatch finds what no connection of the listener can look like.
func (l *Listener) checkMatch(ps *Problems, r *Route, path string) {
	m := &r.Match
	if !ps.clean(path) || !ps.clean(path[:strings.LastIndexByte(path, '.')]+".tls") {
		return
	}
	off := l.TLS.Mode == TLSOff
	whole := l.TLSOf(r)
	passed := !off && !l.Terminates(r)
	switch {
	case off && m.byHello():
		ps.add(m.Pos, path, "%s is what TLS clients ask for, yet the listener's tls.mode is off; set that to terminate, optional or passthrough", m.helloKey())
	case len(m.Client) > 0 && passed:
		ps.add(m.Client[0].Pos, path+".client", "tls passthrough never sees the client's certificate; let TLS end here, or remove this")
	case len(m.Client) > 0 && (off || len(whole.ClientCA) == 0):
		ps.add(m.Client[0].Pos, path+".client", "without client_ca, no client shows a certificate; add that to tls")
	}
	if passed {
		l.checkPassed(ps, m, path)
	} else if !off {
		checkALPN(ps, m, &whole, path)
	}
	if len(m.LocalPort) == 0 {
		return
	}
	ports, free := l.ports()
	for i, port := range m.LocalPort {
		if !free && !ports[port] {
			ps.add(m.Pos, fmt.Sprintf("%s.local_port[%d]", path, i), "the listener has no port %d", port)
		}
	}
}

func (m *Match) helloKey() string {
	switch {
	case len(m.SNI) > 0:
		return "sni"
	case m.SNIRegexp != "":
		return "sni_regexp"
	}
	return "alpn"
}

// checkPassed finds what TLS hides that is not ended here.
func (l *Listener) checkPassed(ps *Problems, m *Match, path string) {
	for _, p := range m.Protocol {
		if p != ProtocolTLS {
			ps.add(m.Pos, path+".protocol", "tls passthrough never sees what TLS carries, such as %s; let TLS end here, or remove this", p)
			return
		}
	}
	for i, p := range m.Prefixes() {
		if !strings.HasPrefix(p, "\x16") {
			ps.add(m.Prefix[i].Pos, fmt.Sprintf("%s.prefix[%d]", path, i), "tls passthrough never sees what TLS carries; let TLS end here, or remove this")
		}
	}
}

// checkALPN finds protocols that would never be agreed on.
func checkALPN(ps *Problems, m *Match, t *TLS, path string) {
	agreed := Texts(t.ALPN)
	for i, w := range m.ALPN {
		if slices.Contains(agreed, w.Text) {
			continue
		}
		at, near := fmt.Sprintf("%s.alpn[%d]", path, i), ""
		if len(ps.List) < maxProblems { // else it is only counted
			near = nearest(w.Text, agreed)
		}
		switch {
		case len(agreed) == 0:
			ps.add(w.Pos, at, "%s is never agreed on, as tls has no alpn; add alpn: [%s] there", quote(w.Text), w.Text)
		case near != "":
			ps.add(w.Pos, at, "%s is never agreed on; did you mean %q, of tls.alpn?", quote(w.Text), near)
		default:
			ps.add(w.Pos, at, "%s is never agreed on; tls.alpn has %s", quote(w.Text), quoteAll(agreed))
		}
	}
}

// ports returns the ports that connections come in on, and whether there may be others.
func (l *Listener) ports() (ports map[int]bool, others bool) {
	ports = make(map[int]bool)
	for _, a := range l.Listen {
		_, text, err := net.SplitHostPort(a.Address)
		port, _ := strconv.Atoi(text)
		others = others || err != nil || port == 0 // could not be read, or is a free one
		ports[port] = true
	}
	return ports, others
}
