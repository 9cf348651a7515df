package spans

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

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

// isOrdinary reports whether connections that end so have had what they wanted.
func isOrdinary(r levee.CloseReason) bool {
	switch r {
	case levee.ClientClosed, levee.HandlerClosed, levee.UpstreamClosed, levee.IdleTimeout, levee.LifetimeExpired, levee.Drained:
		return true
	}
	return false
}

// tell makes the spans of a connection that has ended.
func (t *Tracer) tell(c *levee.Conn, own levee.TraceParent, end levee.End) {
	story, began := c.Story(), c.Accepted()
	until := trace.WithTimestamp(began.Add(end.Duration))
	ctx, span := t.tracer.Start(t.begin(c, own), "connection",
		trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(describe(c, &story, &end)...))
	ordinary := isOrdinary(end.Reason)
	if !ordinary {
		span.SetStatus(codes.Error, statusOf(&end))
		span.SetAttributes(semconv.ErrorTypeKey.String(end.Reason.String()))
	}
	span.End(until) // before its children: of a queue that is nearly full it gets the last place

	var room [8]levee.Span
	phases := story.Spans(room[:0], end.Duration)
	for i, phase := range phases {
		in := ctx
		if phase.Phase == levee.PhaseDial {
			in = withSpanID(ctx, t.ids.dialID(c.ID()))
		} else {
			in = withSpanID(ctx, trace.SpanID{})
		}
		at := began.Add(phase.At)
		_, child := t.tracer.Start(in, phase.Phase.String(), trace.WithTimestamp(at))
		if !ordinary && i == len(phases)-1 && phase.At+phase.Took >= end.Duration { // it went wrong there
			child.SetStatus(codes.Error, "")
			child.SetAttributes(semconv.ErrorTypeKey.String(end.Reason.String()))
		}
		child.End(trace.WithTimestamp(at.Add(phase.Took)))
	}
}

// describe returns what is to be known of the connection as a whole.
func describe(c *levee.Conn, s *levee.Story, end *levee.End) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, 32)
	add := func(more ...attribute.KeyValue) { all = append(all, more...) }
	add(
		connKey.Int64(int64(c.ID())), //nolint:gosec // it counts from 1
		reasonKey.String(end.Reason.String()),
		engineKey.String(s.Engine),
		readKey.Int64(end.Read), writtenKey.Int64(end.Written),
	)
	for _, named := range []struct {
		key   attribute.Key
		value string
	}{
		{listenerKey, c.Server().Name},
		{routeKey, s.Route},
		{upstreamKey, s.Upstream},
		{serverKey, s.Server},
	} {
		if named.value != "" {
			add(named.key.String(named.value))
		}
	}
	if s.Tries > 0 {
		add(triesKey.Int(s.Tries))
	}
	if end.TCP != nil {
		add(rttKey.Float64(end.TCP.RTT.Seconds()), retransmitsKey.Int64(int64(end.TCP.Retransmits)))
	}
	return append(append(all, addresses(c)...), security(c, s)...)
}

// addresses returns who talks to whom. The client is who a PROXY header says, the peer who the
// socket is connected to.
func addresses(c *levee.Conn) []attribute.KeyValue {
	if c.PeerAddr().Network() == "unix" {
		return []attribute.KeyValue{semconv.NetworkTransportUnix, semconv.NetworkLocalAddress(c.LocalAddr().String())}
	}
	all := []attribute.KeyValue{semconv.NetworkTransportTCP}
	if client := c.ClientAddr(); client.IsValid() {
		kind := semconv.NetworkTypeIPv6
		if client.Addr().Is4() {
			kind = semconv.NetworkTypeIPv4
		}
		all = append(all, kind, semconv.ClientAddress(client.Addr().String()), semconv.ClientPort(int(client.Port())))
	}
	if host, port, ok := split(c.PeerAddr()); ok {
		all = append(all, semconv.NetworkPeerAddress(host), semconv.NetworkPeerPort(port))
	}
	if host, port, ok := split(c.LocalAddr()); ok {
		all = append(all, semconv.NetworkLocalAddress(host), semconv.NetworkLocalPort(port), semconv.ServerPort(port))
		if state := c.TLS(); state == nil || state.ServerName == "" {
			all = append(all, semconv.ServerAddress(host))
		}
	}
	return all
}

// security returns what TLS agreed on.
func security(c *levee.Conn, s *levee.Story) []attribute.KeyValue {
	if s.TLSVersion == 0 {
		return nil
	}
	version := strings.TrimPrefix(s.TLSName(), "TLS ")
	all := []attribute.KeyValue{semconv.TLSProtocolNameTLS, semconv.TLSProtocolVersion(version), semconv.TLSEstablished(s.HandshakeDone > 0)}
	if name := printable(s.ServerName); name != "" {
		all = append(all, semconv.ServerAddress(name), serverNameKey.String(name))
	}
	if s.ALPN != "" {
		all = append(all, semconv.TLSNextProtocol(s.ALPN))
	}
	if state := c.TLS(); state != nil {
		all = append(all, semconv.TLSResumed(state.DidResume), semconv.TLSCipher(cipherName(state.CipherSuite)))
	}
	return all
}

// split returns an address's host and port, if it has some.
func split(a net.Addr) (host string, port int, ok bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "", 0, false
	}
	at := tcp.AddrPort()
	return at.Addr().Unmap().String(), int(at.Port()), true
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
	own := t.TraceParent(c)
	if !own.Sampled {
		return
	}
	own.SpanID = t.ids.dialID(c.ID())
	ctx := trace.ContextWithSpanContext(t.background, contextOf(own))
	attributes := []attribute.KeyValue{semconv.NetworkTransportTCP, serverKey.String(d.Server)}
	if d.Upstream != "" {
		attributes = append(attributes, upstreamKey.String(d.Upstream))
	}
	attributes = append(attributes, serverOf(d.Server)...)
	_, span := t.tracer.Start(ctx, "connect",
		trace.WithTimestamp(d.Began), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	if d.Err != nil {
		span.SetStatus(codes.Error, cut(d.Err.Error()))
		span.SetAttributes(semconv.ErrorTypeKey.String(d.Kind))
	}
	span.End(trace.WithTimestamp(d.Began.Add(d.Took)))
}
