package spans

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/levee-net/levee"
)

// What OpenTelemetry has no name for.
const (
	connKey        = attribute.Key("levee.conn")     // the connection's number, as in logs
	listenerKey    = attribute.Key("levee.listener") // the server's name
	reasonKey      = attribute.Key("levee.reason")   // the word for its end, always
	routeKey       = attribute.Key("levee.route")
	upstreamKey    = attribute.Key("levee.upstream")
	serverKey      = attribute.Key("levee.server")
	triesKey       = attribute.Key("levee.tries")
	engineKey      = attribute.Key("levee.engine")
	readKey        = attribute.Key("levee.bytes.in") // on the wire
	writtenKey     = attribute.Key("levee.bytes.out")
	rttKey         = attribute.Key("levee.tcp.rtt") // seconds
	retransmitsKey = attribute.Key("levee.tcp.retransmits")
)

// tell makes the spans of a connection that has ended.
func (t *Tracer) tell(c *levee.Conn, own levee.TraceParent, end *levee.End) {
	story, began := c.Story(), c.Accepted()
	_, span := t.tracer.Start(begin(c, own), "connection",
		trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(describe(c, &story, end)...))
	wrong := ""
	if end.Reason.IsAbnormal() {
		wrong = end.Reason.String()
		fail(span, wrong, end.Err)
	}
	span.End(trace.WithTimestamp(began.Add(end.Duration))) // before its children: of a queue that is nearly full it gets the last place

	below := trace.ContextWithSpan(context.Background(), span)
	var room [8]levee.Span
	for _, phase := range story.Spans(room[:0], end.Duration) {
		at := began.Add(phase.At)
		_, child := t.tracer.Start(t.inPhase(below, c, phase.Phase), phase.Phase.String(), trace.WithTimestamp(at))
		if wrong != "" && phase.At+phase.Took >= end.Duration { // it was in this one
			fail(child, wrong, nil)
		}
		child.End(trace.WithTimestamp(at.Add(phase.Took)))
	}
}

// begin returns the context that the connection's span begins in, with what is above it and
// the ids that it has.
func begin(c *levee.Conn, own levee.TraceParent) context.Context {
	ctx := withSpanID(context.Background(), own.SpanID)
	if parent := c.TraceParent(); parent.IsValid() {
		return trace.ContextWithRemoteSpanContext(ctx, contextOf(parent))
	}
	// A trace without a span above is one that begins here, with this id.
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: own.TraceID}))
}

// inPhase returns the context for a phase's span. That of the dialling has children already.
func (t *Tracer) inPhase(below context.Context, c *levee.Conn, p levee.Phase) context.Context {
	if p == levee.PhaseDial {
		return withSpanID(below, t.ids.dialID(c.ID()))
	}
	return below
}

// fail has a span say that it went wrong, in which word, and what was said of it.
func fail(span trace.Span, word string, err error) {
	text := ""
	if err != nil {
		text = plain(err.Error())
	}
	span.SetStatus(codes.Error, text)
	span.SetAttributes(semconv.ErrorTypeKey.String(word))
}

// describe returns what is to be known of the connection as a whole.
func describe(c *levee.Conn, s *levee.Story, end *levee.End) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, 32)
	all = append(all,
		connKey.Int64(int64(c.ID())), //nolint:gosec // it counts from 1
		reasonKey.String(end.Reason.String()),
		engineKey.String(s.Engine),
		readKey.Int64(end.Read), writtenKey.Int64(end.Written),
	)
	for _, named := range []struct {
		key   attribute.Key
		value string
	}{{listenerKey, c.Server().Name}, {routeKey, s.Route}, {upstreamKey, s.Upstream}, {serverKey, s.Server}} {
		if named.value != "" {
			all = append(all, named.key.String(plain(named.value)))
		}
	}
	if s.Tries > 0 {
		all = append(all, triesKey.Int(s.Tries))
	}
	if end.TCP != nil {
		all = append(all, rttKey.Float64(end.TCP.RTT.Seconds()), retransmitsKey.Int64(int64(end.TCP.Retransmits)))
	}
	return appendTLS(appendAddresses(all, c, hostName(s.ServerName)), c, s)
}

// appendAddresses says who talks to whom. The client is who a PROXY header says, the peer whom
// the socket is connected to, and the server what the client asked for in TLS, if that can be a
// name, else where it came in.
func appendAddresses(all []attribute.KeyValue, c *levee.Conn, asked string) []attribute.KeyValue {
	if c.PeerAddr().Network() == "unix" {
		all = append(all, semconv.NetworkTransportUnix)
	} else {
		all = append(all, semconv.NetworkTransportTCP)
	}
	if client := c.ClientAddr(); client.IsValid() {
		kind := semconv.NetworkTypeIPv6
		if client.Addr().Is4() {
			kind = semconv.NetworkTypeIPv4
		}
		all = append(all, kind, semconv.ClientAddress(client.Addr().String()), semconv.ClientPort(int(client.Port())))
	}
	if host, port, ok := hostPort(c.PeerAddr()); ok {
		all = append(all, semconv.NetworkPeerAddress(host), semconv.NetworkPeerPort(port))
	}
	if host, port, ok := hostPort(c.LocalAddr()); ok {
		all = append(all, semconv.NetworkLocalAddress(host), semconv.NetworkLocalPort(port),
			semconv.ServerAddress(cmp.Or(asked, host)), semconv.ServerPort(port))
	}
	return all
}

func appendTLS(all []attribute.KeyValue, c *levee.Conn, s *levee.Story) []attribute.KeyValue {
	if s.HandshakeBegun == 0 {
		return all
	}
	all = append(all, semconv.TLSEstablished(s.HandshakeDone > 0))
	if state := c.TLS(); state != nil {
		all = append(all,
			semconv.TLSProtocolNameTLS, semconv.TLSProtocolVersion(strings.TrimPrefix(s.TLSName(), "TLS ")),
			semconv.TLSCipher(tls.CipherSuiteName(state.CipherSuite)), semconv.TLSResumed(state.DidResume))
	}
	if s.ALPN != "" {
		all = append(all, semconv.TLSNextProtocol(plain(s.ALPN)))
	}
	return all
}

// hostPort returns an address's host and port, if it has some.
func hostPort(a net.Addr) (host string, port int, ok bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "", 0, false
	}
	at := tcp.AddrPort()
	return at.Addr().Unmap().String(), int(at.Port()), true
}

// hostName returns s, which a stranger may have chosen, if it can be a host's name, else "".
func hostName(s string) string {
	notOfNames := func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		return !letter && !('0' <= r && r <= '9') && r != '-' && r != '.' && r != '_'
	}
	if strings.ContainsFunc(s, notOfNames) {
		return ""
	}
	return s
}

// plain returns what may be a stranger's text in a form that can stand anywhere: short, and
// printable. A byte that is no UTF-8 would have the whole batch refused.
func plain(s string) string {
	const longest = 300
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// A Dial is a try to connect to an upstream.
type Dial struct {
	Upstream, Server string // as the server calls itself: an address, or a name
	Began            time.Time
	Took             time.Duration
	Err              error  // nil if it brought a connection
	Kind             string // of Err, in a word of a bounded set, such as "refused"
}

// Dialed makes a span of a try to connect for c, below that of its dialling. It is called as
// soon as the try is over.
func (t *Tracer) Dialed(c *levee.Conn, d Dial) {
	if !t.Sampled(c) {
		return
	}
	own := t.TraceParent(c)
	own.SpanID = t.ids.dialID(c.ID())
	attributes := []attribute.KeyValue{serverKey.String(plain(d.Server))}
	if d.Upstream != "" {
		attributes = append(attributes, upstreamKey.String(plain(d.Upstream)))
	}
	_, span := t.tracer.Start(trace.ContextWithSpanContext(context.Background(), contextOf(own)), "connect",
		trace.WithTimestamp(d.Began), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(appendServer(attributes, d.Server)...))
	if d.Err != nil {
		fail(span, d.Kind, d.Err)
	}
	span.End(trace.WithTimestamp(d.Began.Add(d.Took)))
}

// appendServer says where a server is, if its name does.
func appendServer(all []attribute.KeyValue, server string) []attribute.KeyValue {
	if path, ok := strings.CutPrefix(server, "unix:"); ok {
		return append(all, semconv.NetworkTransportUnix, semconv.ServerAddress(plain(path)))
	}
	all = append(all, semconv.NetworkTransportTCP)
	host, service, err := net.SplitHostPort(server)
	if err != nil {
		return append(all, semconv.ServerAddress(plain(server)))
	}
	all = append(all, semconv.ServerAddress(plain(host)))
	if port, err := strconv.ParseUint(service, 10, 16); err == nil {
		all = append(all, semconv.ServerPort(int(port)))
	}
	return all
}
