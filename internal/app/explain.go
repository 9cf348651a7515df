package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/route"
)

func explainCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:  "explain",
		Usage: "say what a configuration would do with a connection, and which lines are why",
		UsageText: `levee explain -c FILE --src IP [--listener NAME | --port N] [--sni NAME] [--alpn P[,P]] [--client IDENTITY] [--bytes-file FILE]

levee explain -c levee.yaml --src 192.0.2.7 --sni db.example.com
levee explain -c levee.yaml --src 192.0.2.7 --plaintext --bytes-file first-bytes`,
		Description: `The decision is the server's own, for a connection in memory: nothing is listened on or dialled.
With --sni, --alpn, --client or --tls the client speaks TLS, and the bytes of --bytes-file are what that carries. With
--plaintext, or with --bytes-file alone, they are what comes over the wire, a TLS hello perhaps. Without any of these it
speaks TLS where the listener requires it.`,
		OnUsageError: usageError,
		Flags: []cli.Flag{
			fileFlag(),
			&cli.StringFlag{Name: "src", Usage: "the client's `IP` address", Local: true},
			&cli.StringFlag{Name: "listener", Usage: "the listener's `NAME`, if there are several", Local: true},
			&cli.IntFlag{Name: "port", Usage: "the `PORT` that it comes in on, if there are several", Local: true},
			&cli.StringFlag{Name: "sni", Usage: "the server's `NAME` that it asks for", Local: true},
			&cli.StringFlag{Name: "alpn", Usage: "the application `PROTOCOLS` that it offers, with commas between them", Local: true},
			&cli.StringFlag{Name: "client", Usage: "whom its certificate is for: `IDENTITY` is a URI, or a name", Local: true},
			&cli.StringFlag{Name: "bytes-file", Usage: "a `FILE` with the first bytes that it sends", TakesFile: true, Local: true},
			&cli.BoolFlag{Name: "tls", Usage: "it speaks TLS", HideDefault: true, Local: true},
			&cli.BoolFlag{Name: "plaintext", Usage: "it does not", HideDefault: true, Local: true},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			cfg, err := load(c)
			if err != nil {
				return err
			}
			q, err := question(c, cfg)
			if err != nil {
				return err
			}
			env.lookOnly = true
			f, err := assemble(cfg, env)
			if err != nil {
				return err
			}
			g := f.now.Load()
			a, err := g.ask(ctx, q)
			if err != nil {
				return exit(exitNotStart, err)
			}
			for _, line := range g.explain(q, a) {
				fmt.Fprintln(env.Stdout, line)
			}
			return nil
		},
	}
}

// A query is a connection to be explained.
type query struct {
	source   netip.Addr
	listener int // its index
	address  netip.AddrPort

	tls    bool
	sni    string
	alpn   []string
	client string
	first  []byte
}

// maxFirst is more than a router ever looks at.
const maxFirst = 128 << 10

// question reads the command line.
func question(c *cli.Command, cfg *config.Config) (q query, err error) {
	if c.String("src") == "" {
		return q, usage(c, "explain: from where? say --src IP")
	}
	if q.source, err = netip.ParseAddr(c.String("src")); err != nil {
		return q, usage(c, "explain: --src: %q is not an IP address", c.String("src"))
	}
	q.source = q.source.Unmap().WithZone("")
	if q.listener, q.address, err = questionListener(c, cfg); err != nil {
		return q, err
	}
	l := &cfg.Listeners[q.listener]
	q.sni, q.client = c.String("sni"), c.String("client")
	if alpn := c.String("alpn"); alpn != "" {
		q.alpn = strings.Split(alpn, ",")
	}
	for _, p := range q.alpn {
		if p == "" || len(p) > 255 {
			return q, usage(c, "explain: --alpn: %q is not the name of a protocol", p)
		}
	}
	if file := c.String("bytes-file"); file != "" {
		if q.first, err = readFirst(file); err != nil {
			return q, exit(exitUsage, fmt.Errorf("--bytes-file: %w", err))
		}
	}
	asked := c.Bool("tls") || c.IsSet("sni") || c.IsSet("alpn") || c.IsSet("client")
	switch {
	case asked && c.Bool("plaintext"):
		return q, usage(c, "explain: --plaintext beside what only TLS has; leave one of them out")
	case asked && l.TLS.Mode == config.TLSOff:
		return q, usage(c, "explain: listener %s has tls.mode off; there is only plaintext", l.Name)
	case asked:
		q.tls = true
	case c.Bool("plaintext") || q.first != nil:
	default:
		q.tls = l.TLS.Mode == config.TLSTerminate || l.TLS.Mode == config.TLSPassthrough
	}
	return q, nil
}

func readFirst(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFirst))
	if content == nil {
		content = []byte{}
	}
	return content, err
}

// questionListener finds the listener, and the address that the connection comes in on.
func questionListener(c *cli.Command, cfg *config.Config) (listener int, address netip.AddrPort, err error) {
	name, port := c.String("listener"), c.Int("port")
	type place struct {
		listener int
		address  netip.AddrPort
	}
	var places []place
	var names []string
	ports := make(map[uint16]bool)
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		names = append(names, l.Name)
		for _, a := range l.Listen {
			at := addressOf(a)
			if (name == "" || name == l.Name) && (port == 0 || int(at.Port()) == port) {
				places = append(places, place{i, at})
				ports[at.Port()] = true
			}
		}
	}
	differ := slices.ContainsFunc(places, func(p place) bool { return p.listener != places[0].listener })
	switch {
	case name != "" && !slices.Contains(names, name):
		return 0, address, usage(c, "explain: --listener: there is no %q; there are %s", name, strings.Join(names, ", "))
	case len(places) == 0:
		return 0, address, usage(c, "explain: --port: nothing listens on %d", port)
	case differ && name == "":
		return 0, address, usage(c, "explain: which listener? say --port N, or --listener NAME: %s", strings.Join(names, ", "))
	case len(ports) > 1:
		return 0, address, usage(c, "explain: listener %s has several ports; say --port N", cfg.Listeners[places[0].listener].Name)
	}
	return places[0].listener, places[0].address, nil
}

// addressOf is an address that a connection to a listener's may have.
func addressOf(a config.Address) netip.AddrPort {
	host, port, _ := net.SplitHostPort(a.Address) // the configuration has been checked
	n, _ := strconv.ParseUint(port, 10, 16)
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.IsUnspecified() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(ip, uint16(n))
}

// explain tells what was answered, a line for each thing.
func (g *generation) explain(q query, a answer) (lines []string) {
	l := &g.cfg.Listeners[q.listener]
	say := func(what, text string, where ...config.Position) {
		lines = append(lines, fmt.Sprintf("%-9s %s%s", what, text, inLines(where)))
	}
	say("client", q.inWords())
	say("listener", fmt.Sprintf("%s, %s", l.Name, q.address), l.Pos)
	for _, from := range l.ProxyProtocol.From {
		if from.Contains(q.source) {
			say("header", "it begins with a PROXY header, and its client is whom that names", l.ProxyProtocol.Pos)
			break
		}
	}
	if err := g.limits.denies(q.listener, q.source); err != nil {
		say("refused", levee.Denied.String()+": "+err.Error(), g.limits.deniedAt(q.listener, q.source)...)
		return lines
	}
	if t := a.terms; t != nil {
		say("tls", a.endInWords(), tlsLines(l, t, a)...)
		for _, line := range t.inWords() {
			say("clients", strings.TrimPrefix(line, "clients "), t.cfg.ClientCA[0].Pos)
		}
	}
	if a.refused != nil {
		if a.route >= 0 {
			say("route", routeName(l, a.route), l.Routes[a.route].Pos)
		}
		text, where := g.refusalInWords(q, &a)
		say("refused", text, where...)
		return lines
	}
	r := &l.Routes[a.route]
	switch {
	case a.terms != nil:
	case q.tls && l.TLS.Mode == config.TLSOff, !a.sealed:
		say("tls", "none", l.TLS.Pos)
	case r.TLS.Mode == config.TLSPassthrough:
		say("tls", "is passed through", r.TLS.Pos)
	default:
		say("tls", "is passed through", l.TLS.Pos)
	}
	say("route", routeName(l, a.route)+matchInWords(&r.Match), r.Pos, r.Match.Pos)
	if a.hungry {
		say("note", "it was decided as if the client sent nothing more; with more in --bytes-file another route may have it")
	}
	for _, text := range g.limits.of(q.listener, a.route) {
		say("limits", text.text, text.pos)
	}
	say("timeouts", timeoutsInWords(l.Timeouts), l.Timeouts.Pos)
	if r.Upstream == "" {
		say("handler", string(r.Handler), r.Pos)
		return lines
	}
	for i := range g.cfg.Upstreams {
		if u := &g.cfg.Upstreams[i]; u.Name == r.Upstream {
			say("upstream", upstreamInWords(u), r.Pos, u.Pos)
		}
	}
	return lines
}

// refusalInWords says why the connection was refused, and where it is written if that is not the route's own lines.
func (g *generation) refusalInWords(q query, a *answer) (text string, where []config.Position) {
	l := &g.cfg.Listeners[q.listener]
	why := a.refused
	if ended, ok := errors.AsType[*levee.CloseError](why); ok && ended.Cause != nil {
		why = ended.Cause
	} else if of, ok := errors.AsType[*route.Error](why); ok {
		why = of.Err
	}
	t := g.secured[q.listener].ending(l, a.route)
	if a.reason == levee.TLSFailed && t != nil {
		where = []config.Position{t.cfg.Pos}
		if c, err := t.getCertificate(&tls.ClientHelloInfo{ServerName: q.sni}); c == nil && err == nil {
			why = fmt.Errorf("no certificate is for %q", q.sni)
		}
	}
	return a.reason.String() + ": " + why.Error(), where
}

func (q query) inWords() string {
	text := q.source.String()
	switch {
	case !q.tls:
		text += ", without TLS of its own"
	case q.sni == "":
		text += ", in TLS for no name"
	default:
		text += fmt.Sprintf(", in TLS for %q", q.sni)
	}
	if len(q.alpn) > 0 {
		text += fmt.Sprintf(", offering %q", q.alpn)
	}
	if q.client != "" {
		text += fmt.Sprintf(", as %q", q.client)
	}
	if q.first != nil {
		text += fmt.Sprintf(", sending %d bytes", len(q.first))
	}
	return text
}

// endInWords says how TLS ended.
func (a *answer) endInWords() string {
	text := "ends here"
	switch {
	case a.terms.cfg.Development:
		text += ", with a certificate of the development CA"
	case a.terms.cfg.ACME.Given():
		text += ", with a certificate by ACME"
	}
	if c := a.certificate(); c != nil {
		text += ", with " + c.Cert
	}
	if a.alpn != "" {
		text += fmt.Sprintf(", for %q", a.alpn)
	}
	return text
}

// certificate is the one that the client was shown; nil for the development CA's.
func (a *answer) certificate() *config.Certificate {
	if a.terms.files == nil || a.leaf == nil {
		return nil
	}
	for i, info := range a.terms.files.Certificates() {
		if info.Serial == a.leaf.SerialNumber.Text(16) {
			return &a.terms.cfg.Certificates[i]
		}
	}
	return nil
}

func tlsLines(l *config.Listener, t *terms, a answer) []config.Position {
	where := []config.Position{l.TLS.Pos}
	if t.cfg.Pos != l.TLS.Pos {
		where = append(where, t.cfg.Pos)
	}
	if c := a.certificate(); c != nil {
		where = append(where, c.Pos)
	}
	return where
}

// inLines writes positions as file:line, each line once; nowhere is a default.
func inLines(where []config.Position) string {
	if len(where) == 0 {
		return ""
	}
	var texts []string
	for _, p := range where {
		if text := fmt.Sprintf("%s:%d", p.File, p.Line); p.Line > 0 && !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 0 {
		return " (default)"
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

// matchInWords says by what a route was chosen.
func matchInWords(m *config.Match) string {
	var by []string
	for _, key := range []struct {
		name  string
		given bool
	}{
		{"sni", len(m.SNI) > 0},
		{"sni_regexp", m.SNIRegexp != ""},
		{"alpn", len(m.ALPN) > 0},
		{"protocol", len(m.Protocol) > 0},
		{"prefix", len(m.Prefix) > 0},
		{"source", len(m.Source) > 0},
		{"local_port", len(m.LocalPort) > 0},
		{"client", len(m.Client) > 0},
	} {
		if key.given {
			by = append(by, key.name)
		}
	}
	if len(by) == 0 {
		return ", which takes every connection"
	}
	return ", by " + strings.Join(by, ", ")
}
