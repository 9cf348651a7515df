package spans_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry/spans"
)

// A rig is a server whose connections become spans at a receiver.
type rig struct {
	*receiver
	exporter *spans.Exporter
	tracer   *spans.Tracer
	server   *levee.Server
	address  string
	ended    chan *levee.Conn
}

// newRig serves srv on a port of its own.
func newRig(t testing.TB, srv *levee.Server, ratio float64) *rig {
	t.Helper()
	r := &rig{receiver: newReceiver(t, "grpc", nil), server: srv, ended: make(chan *levee.Conn, 1000)}
	r.exporter = export(t, r.receiver, spans.ExportOptions{Queue: 100_000})
	r.tracer = spans.New(r.exporter.Provider(), spans.Options{Ratio: ratio})
	srv.Trace = levee.Traces(srv.Trace, r.tracer.Trace(), &levee.Trace{Closed: func(c *levee.Conn, _ levee.End) { r.ended <- c }})
	l, err := levee.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return r
}

func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

// life is the spans of one connection.
type life struct {
	t    testing.TB
	conn *otlp.Span
	all  map[string][]*otlp.Span // by name
}

// story waits for the next connection to end, and returns its spans.
func (r *rig) story(t testing.TB) *life {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("no connection has ended")
	}
	flush(t, r.exporter)
	l := &life{t: t, all: make(map[string][]*otlp.Span)}
	for _, s := range r.spans() {
		l.all[s.Name] = append(l.all[s.Name], s)
	}
	if len(l.all["connection"]) != 1 {
		t.Fatalf("%d spans of connections", len(l.all["connection"]))
	}
	l.conn = l.all["connection"][0]
	l.check()
	return l
}

// check looks at what holds for every connection.
func (l *life) check() {
	l.t.Helper()
	parents := map[string]*otlp.Span{"": l.conn}
	if dials := l.all["dial"]; len(dials) == 1 {
		parents["connect"] = dials[0]
	}
	for name, all := range l.all {
		for _, s := range all {
			if s == l.conn {
				continue
			}
			parent := parents[name]
			if parent == nil {
				parent = l.conn
			}
			if string(s.TraceId) != string(l.conn.TraceId) || string(s.ParentSpanId) != string(parent.SpanId) || string(s.SpanId) == string(l.conn.SpanId) {
				l.t.Errorf("%s is not a child of %s", name, parent.Name)
			}
			if s.StartTimeUnixNano < l.conn.StartTimeUnixNano || s.EndTimeUnixNano < s.StartTimeUnixNano || s.EndTimeUnixNano > l.conn.EndTimeUnixNano {
				l.t.Errorf("%s lies outside of its connection", name)
			}
		}
	}
}

// phases returns the names of the connection's children in order, and checks that they are
// those that are wanted.
func (l *life) phases(want ...string) {
	l.t.Helper()
	if len(l.all) != len(want)+1 {
		l.t.Errorf("%d kinds of spans", len(l.all))
	}
	last := uint64(0)
	for _, name := range want {
		all := l.all[name]
		if len(all) == 0 {
			l.t.Errorf("no %s", name)
			continue
		}
		if all[0].StartTimeUnixNano < last {
			l.t.Errorf("%s begins too early", name)
		}
		last = all[0].StartTimeUnixNano
	}
}

func attributes(s *otlp.Span) map[string]string {
	all := make(map[string]string)
	for _, a := range s.Attributes {
		v := a.Value
		switch {
		case v.GetStringValue() != "":
			all[a.Key] = v.GetStringValue()
		case v.GetDoubleValue() != 0:
			all[a.Key] = fmt.Sprint(v.GetDoubleValue())
		default:
			all[a.Key] = fmt.Sprint(v.GetIntValue(), v.GetBoolValue())
		}
	}
	return all
}

// has checks attributes; "?" is any value, "" is none.
func has(t testing.TB, s *otlp.Span, want map[string]string) {
	t.Helper()
	got := attributes(s)
	for key, value := range want {
		if v, there := got[key]; v != value && (value != "?" || !there) {
			t.Errorf("%s of %s is %q, want %q", key, s.Name, v, value)
		}
	}
}

func isError(s *otlp.Span) bool { return s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR }

var echo = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
	_, err := io.Copy(c, c)
	return err
})

func TestAConnectionIsASpanWithItsPhases(t *testing.T) {
	r := newRig(t, &levee.Server{Name: "main", Handler: echo}, 1)
	before := time.Now()
	c := r.dial(t)
	local := netip.MustParseAddrPort(c.LocalAddr().String())
	server := netip.MustParseAddrPort(r.address)
	sent := 0
	for time.Since(before) < 20*time.Millisecond {
		_, _ = io.WriteString(c, "hello")
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		sent += 5
	}
	c.Close()
	l := r.story(t)
	l.phases("route", "first_byte", "flow")
	has(t, l.conn, map[string]string{
		"client.address": "127.0.0.1", "client.port": fmt.Sprint(local.Port(), false), "network.transport": "tcp", "network.type": "ipv4",
		"network.peer.address": "127.0.0.1", "network.peer.port": fmt.Sprint(local.Port(), false),
		"server.address": "127.0.0.1", "server.port": fmt.Sprint(server.Port(), false),
		"levee.listener": "main", "levee.reason": "client_closed", "levee.engine": "goroutine", "levee.conn": "?",
		"levee.bytes.in": fmt.Sprint(sent, false), "levee.bytes.out": fmt.Sprint(sent, false),
		"error.type": "", "tls.protocol.version": "", "tls.established": "", "levee.upstream": "",
	})
	if isError(l.conn) || l.conn.Kind != otlp.Span_SPAN_KIND_SERVER || len(l.conn.ParentSpanId) > 0 {
		t.Errorf("%v", l.conn)
	}
	if began := time.Unix(0, int64(l.conn.StartTimeUnixNano)); began.Before(before.Add(-time.Second)) || began.After(time.Now()) {
		t.Errorf("it began at %v, and was dialled at %v", began, before)
	}
	flow := l.all["flow"][0]
	if took := time.Duration(flow.EndTimeUnixNano - flow.StartTimeUnixNano); took <= 0 || took > time.Since(before) {
		t.Errorf("it flowed for %v", took)
	}
	if flow.EndTimeUnixNano != l.conn.EndTimeUnixNano {
		t.Error("it flowed not to its end")
	}
}

// joins joins to an address.
type joins struct {
	address string
	dialled func(c *levee.Conn, began time.Time, err error)
}

func (j *joins) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, j)
}

func (j *joins) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	c.SetRoute("db")
	c.SetTarget(&levee.Target{Upstream: "postgres", Server: j.address}, 1)
	began := time.Now()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", j.address)
	j.dialled(c, began, err)
	return levee.Upstream{Conn: conn}, err
}

func TestAJoinedConnectionWithTLSTellsOfItsUpstream(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	go func() { // ends with the listener, and its only connection
		if c, err := upstream.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("db.example.com")
	config.NextProtos = []string{"postgresql"}
	j := &joins{address: upstream.Addr().String()}
	r := newRig(t, &levee.Server{Handler: j, TLSConfig: config}, 1)
	j.dialled = func(c *levee.Conn, began time.Time, err error) {
		r.tracer.Dialed(c, spans.Dial{Upstream: "postgres", Server: j.address, Began: began, Took: time.Since(began), Err: err})
	}
	own := ca.ClientConfig("db.example.com")
	own.NextProtos = []string{"postgresql"}
	c := tls.Client(r.dial(t), own)
	_, _ = io.WriteString(c, "hello")
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	_, _ = io.ReadAll(c)
	c.Close()
	l := r.story(t)
	l.phases("handshake", "route", "dial", "connect", "first_byte", "flow")
	has(t, l.conn, map[string]string{
		"server.address": "db.example.com", "tls.protocol.name": "tls", "tls.protocol.version": "1.3", "tls.established": "0 true",
		"tls.next_protocol": "postgresql", "tls.cipher": tls.CipherSuiteName(c.ConnectionState().CipherSuite), "tls.resumed": "0 false",
		"levee.route": "db", "levee.upstream": "postgres", "levee.server": j.address, "levee.tries": "1 false", "levee.reason": "client_closed",
	})
	connect := l.all["connect"][0]
	has(t, connect, map[string]string{"server.address": "127.0.0.1", "server.port": "?", "network.transport": "tcp", "levee.upstream": "postgres", "error.type": ""})
	if connect.Kind != otlp.Span_SPAN_KIND_CLIENT || isError(connect) || isError(l.conn) {
		t.Errorf("%v, %v", connect, l.conn.Status)
	}
}

func TestEveryTryToDialIsASpan(t *testing.T) {
	j := &joins{address: "127.0.0.1:1"}
	var r *rig
	ready := make(chan struct{})
	j.dialled = func(c *levee.Conn, began time.Time, err error) {
		<-ready
		for _, server := range []string{j.address, "db-2.example.com:5432", "db-3", "unix:/run/db.sock"} {
			r.tracer.Dialed(c, spans.Dial{Server: server, Began: began, Took: time.Microsecond, Err: err, Kind: "refused"})
		}
	}
	r = newRig(t, &levee.Server{Handler: j}, 1)
	close(ready)
	_, _ = io.ReadAll(r.dial(t))
	l := r.story(t)
	l.phases("route", "dial", "connect")
	has(t, l.conn, map[string]string{"levee.reason": "upstream_unavailable", "error.type": "upstream_unavailable"})
	has(t, l.all["dial"][0], map[string]string{"error.type": "upstream_unavailable"})
	if !isError(l.conn) || !isError(l.all["dial"][0]) || isError(l.all["route"][0]) || !strings.Contains(l.conn.Status.Message, "refused") {
		t.Errorf("%v, %v", l.conn.Status, l.all["dial"][0].Status)
	}
	if len(l.all["connect"]) != 4 {
		t.Fatalf("%d tries", len(l.all["connect"]))
	}
	seen := make(map[string]bool)
	for _, s := range l.all["connect"] {
		has(t, s, map[string]string{"error.type": "refused"})
		seen[attributes(s)["server.address"]] = isError(s)
	}
	for _, server := range []string{"127.0.0.1", "db-2.example.com", "db-3", "/run/db.sock"} {
		if !seen[server] {
			t.Errorf("no failed try of %s: %v", server, seen)
		}
	}
}

// nowhere is a Router that knows no way.
type nowhere struct{ err error }

func (nowhere) ServeTCP(context.Context, *levee.Conn) error { return nil }

func (n nowhere) Route(context.Context, *levee.Conn) (levee.Handler, error) { return nil, n.err }

func TestAConnectionThatFindsNoRouteIsAnError(t *testing.T) {
	r := newRig(t, &levee.Server{Handler: nowhere{errors.New("no such name \"x\xff\n\x1b[2J" + strings.Repeat("é", 1000))}}, 1)
	_, _ = io.ReadAll(r.dial(t))
	l := r.story(t)
	l.phases("route")
	has(t, l.conn, map[string]string{"levee.reason": "no_route", "error.type": "no_route"})
	text := l.conn.Status.Message
	if !isError(l.conn) || !strings.HasPrefix(text, `no such name "x??`) || len(text) > 400 || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\n") {
		t.Errorf("%q", text)
	}
	has(t, l.all["route"][0], map[string]string{"error.type": "no_route"})
	if !isError(l.all["route"][0]) {
		t.Error("the route is no error")
	}
}

func TestADrainedConnectionTellsWhenItWasAsked(t *testing.T) {
	next := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		for c.Next() {
			if _, err := c.Read(make([]byte, 10)); err != nil {
				return err
			}
			if _, err := io.WriteString(c, "hello"); err != nil {
				return err
			}
		}
		return nil
	})
	r := newRig(t, &levee.Server{Handler: next}, 1)
	c := r.dial(t)
	_, _ = io.WriteString(c, "hello")
	_, _ = io.ReadFull(c, make([]byte, 5))
	go func() { _, _ = io.ReadAll(c); c.Close() }() // ends with the drain
	if err := r.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := r.story(t)
	l.phases("route", "first_byte", "flow", "drain")
	has(t, l.conn, map[string]string{"levee.reason": "drained", "error.type": ""})
	if isError(l.conn) {
		t.Error("it is an error")
	}
}

func TestAHandshakeThatFailsIsAnErrorThere(t *testing.T) {
	ca := leveetest.NewCA(t)
	r := newRig(t, &levee.Server{Handler: echo, TLSConfig: ca.ServerConfig("a.example.com")}, 1)
	c := r.dial(t)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	_, _ = io.ReadAll(c)
	c.Close()
	l := r.story(t)
	l.phases("handshake")
	has(t, l.conn, map[string]string{"levee.reason": "tls_failed", "error.type": "tls_failed", "tls.established": "0 false", "tls.protocol.version": "", "server.address": "127.0.0.1"})
	if !isError(l.conn) || !isError(l.all["handshake"][0]) {
		t.Errorf("%v, %v", l.conn.Status, l.all["handshake"][0].Status)
	}
}

const parentText = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"

// headerWith is a PROXY v2 header of 198.51.100.7:4711 with a traceparent in it.
func headerWith(parent string) string {
	addresses := "\xc6\x33\x64\x07\xc6\x33\x64\x08\x12\x67\x00\x50"
	tlv := string([]byte{levee.TraceParentTLV, 0, byte(len(parent))}) + parent
	return "\r\n\r\n\x00\r\nQUIT\n\x21\x11" + string([]byte{0, byte(len(addresses + tlv))}) + addresses + tlv
}

func TestATraceGoesOnFromThePROXYHeader(t *testing.T) {
	for _, ratio := range []float64{-1, 1} {
		for _, sampled := range []bool{false, true} {
			srv := &levee.Server{Handler: echo, ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
			r := newRig(t, srv, ratio)
			parent := parentText + "0"
			if sampled {
				parent = parentText + "1"
			}
			c := r.dial(t)
			_, _ = io.WriteString(c, headerWith(parent)+"hello")
			_, _ = io.ReadFull(c, make([]byte, 5))
			c.Close()
			if !sampled { // whatever the ratio
				conn := <-r.ended
				flush(t, r.exporter)
				if n := len(r.spans()); n != 0 || r.tracer.TraceID(conn) != "" || r.tracer.TraceParent(conn).Sampled {
					t.Errorf("ratio %v: %d spans", ratio, n)
				}
				if got := r.tracer.TraceParent(conn).String(); got[:36] != parent[:36] || got[53:] != "00" {
					t.Errorf("it is passed on as %s", got)
				}
				continue
			}
			l := r.story(t)
			l.phases("proxy_header", "route", "first_byte", "flow")
			if got := hex.EncodeToString(l.conn.TraceId) + "-" + hex.EncodeToString(l.conn.ParentSpanId); got != parent[3:52] {
				t.Errorf("it is part of %s, want %s", got, parent)
			}
			has(t, l.conn, map[string]string{"client.address": "198.51.100.7", "client.port": "4711 false", "network.peer.address": "127.0.0.1"})
		}
	}
}

func TestWhoeverAsksIsToldTheIDsThatSpansWillHave(t *testing.T) {
	told := make(chan string, 2)
	var r *rig
	handler := levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		_, span := r.exporter.Provider().Tracer("app").Start(r.tracer.Context(ctx, c), "query")
		told <- r.tracer.TraceID(c)
		told <- r.tracer.TraceParent(c).String()
		span.End()
		return nil
	})
	ready := make(chan struct{})
	r = newRig(t, &levee.Server{Handler: levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		<-ready
		return handler(ctx, c)
	})}, 1)
	close(ready)
	_, _ = io.ReadAll(r.dial(t))
	id, parent := <-told, <-told
	l := r.story(t)
	if want := fmt.Sprintf("00-%x-%x-01", l.conn.TraceId, l.conn.SpanId); id != parent[3:35] || parent != want {
		t.Errorf("told %s and %s, want %s", id, parent, want)
	}
	l.phases("route", "first_byte", "query") // checks that it is a child
}

func TestConnectionsThatAreNotSampledCostNothing(t *testing.T) {
	r := newRig(t, &levee.Server{Handler: echo}, -1)
	c := r.dial(t)
	_, _ = io.WriteString(c, "hello")
	_, _ = io.ReadFull(c, make([]byte, 5))
	c.Close()
	conn := <-r.ended
	trace := r.tracer.Trace()
	if n := testing.AllocsPerRun(1000, func() {
		if trace.Sample(conn) || r.tracer.TraceID(conn) != "" || r.tracer.TraceParent(conn).Sampled {
			t.Error("it is sampled")
		}
		r.tracer.Dialed(conn, spans.Dial{Server: "127.0.0.1:1"})
		trace.Closed(conn, levee.End{Reason: levee.ClientClosed})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	flush(t, r.exporter)
	if n := len(r.spans()); n != 0 {
		t.Errorf("%d spans", n)
	}
}

func TestAReceiverThatHangsDelaysNoConnection(t *testing.T) {
	r := newRig(t, &levee.Server{Handler: echo}, 1)
	r.mu.Lock()
	r.held = make(chan struct{})
	r.mu.Unlock()
	slowest := time.Duration(0)
	for range 500 {
		began := time.Now()
		c := r.dial(t)
		_, _ = io.WriteString(c, "hello")
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		<-r.ended
		slowest = max(slowest, time.Since(began))
	}
	if slowest > 3*time.Second {
		t.Errorf("one took %v", slowest)
	}
	if got := r.exporter.Stats(); got.Exported != 0 || got.Queued < 500 {
		t.Errorf("counted %+v", got)
	}
	close(r.held)
}

func BenchmarkClosed(b *testing.B) {
	for name, ratio := range map[string]float64{"unsampled": -1, "sampled": 1} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, &levee.Server{Handler: echo}, ratio)
			c := r.dial(b)
			_, _ = io.WriteString(c, "hello")
			_, _ = io.ReadFull(c, make([]byte, 5))
			c.Close()
			conn := <-r.ended
			trace := r.tracer.Trace()
			b.ReportAllocs()
			for b.Loop() {
				trace.Closed(conn, levee.End{Reason: levee.ClientClosed, Duration: time.Second})
			}
		})
	}
}
