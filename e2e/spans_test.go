package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// A spanStore receives spans by OTLP over gRPC.
type spanStore struct {
	collector.UnimplementedTraceServiceServer
	address string

	mu   sync.Mutex
	keys []string
	got  []*otlp.Span
	of   map[*otlp.Span]string // the service.name
}

func newSpanStore(t *testing.T) *spanStore {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &spanStore{address: l.Addr().String(), of: make(map[*otlp.Span]string)}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return s
}

func (s *spanStore) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, headers.Get("api-key")...)
	for _, of := range request.ResourceSpans {
		service := ""
		for _, a := range of.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, in := range of.ScopeSpans {
			for _, span := range in.Spans {
				s.got = append(s.got, span)
				s.of[span] = service
			}
		}
	}
	return new(collector.ExportTraceServiceResponse), nil
}

// named returns a service's spans of a name.
func (s *spanStore) named(service, name string) (all []*otlp.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.got {
		if s.of[span] == service && span.Name == name {
			all = append(all, span)
		}
	}
	return all
}

func spanAttribute(s *otlp.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// tracesTo is what a configuration has to say.
func tracesTo(store *spanStore, service, ratio string) string {
	return fmt.Sprintf("version: 1\nadmin: {listen: 127.0.0.1:0}\n"+
		"telemetry: {traces: {otlp: \"grpc://%s\", ratio: %s, service: %s, headers: {api-key: k}}}\n", store.address, ratio, service)
}

// TestATraceGoesThroughTwoLevees has TLS end at one levee, which samples all, and is joined to
// another one, which samples none of its own accord.
func TestATraceGoesThroughTwoLevees(t *testing.T) {
	t.Parallel()
	store := newSpanStore(t)
	inner := start(t, "serve", "-c", write(t, "inner.yaml", tracesTo(store, "inner", "0")+`
listeners:
  - {name: inner, listen: ["127.0.0.1:0"], proxy_protocol: {from: [127.0.0.1/32]}, routes: [{handler: echo}]}
`))
	outer := start(t, "serve", "-c", write(t, "outer.yaml", tracesTo(store, "outer", "1")+`
listeners:
  - {name: outer, listen: ["127.0.0.1:0"], tls: {development: true}, routes: [{upstream: inner}]}
upstreams:
  - {name: inner, servers: ["`+inner.address()+`"], send_proxy: v2, send_traceparent: true}
`))
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(outer.find(&outer.stderr, `clients need (\S+) to trust them`))
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(pem)
	c, err := tls.Dial("tcp", outer.address(), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "hello")
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, p := range []*process{outer, inner} {
		p.signal(syscall.SIGTERM)
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}

	first, second := store.named("outer", "connection"), store.named("inner", "connection")
	if len(first) != 1 || len(second) != 1 { // health checks are the proxy's own, and nobody's connection
		t.Fatalf("%d and %d connections", len(first), len(second))
	}
	a, b := first[0], second[0]
	if string(a.TraceId) != string(b.TraceId) || string(b.ParentSpanId) != string(a.SpanId) || len(a.ParentSpanId) > 0 {
		t.Errorf("trace %x, span %x has trace %x, span %x below %x", a.TraceId, a.SpanId, b.TraceId, b.SpanId, b.ParentSpanId)
	}
	for span, want := range map[*otlp.Span]map[string]string{
		a: {"tls.protocol.version": "1.3", "server.address": "localhost", "client.address": "127.0.0.1", "levee.listener": "outer"},
		b: {"tls.protocol.version": "", "client.address": "127.0.0.1", "levee.listener": "inner", "levee.reason": "client_closed"},
	} {
		for key, value := range want {
			if got := spanAttribute(span, key); got != value {
				t.Errorf("%s is %q, want %q", key, got, value)
			}
		}
	}
	for _, name := range []string{"handshake", "route", "dial", "first_byte", "flow"} {
		if all := store.named("outer", name); len(all) != 1 || string(all[0].ParentSpanId) != string(a.SpanId) {
			t.Errorf("%s: %v", name, all)
		}
	}
	if all := store.named("inner", "proxy_header"); len(all) != 1 || string(all[0].ParentSpanId) != string(b.SpanId) {
		t.Errorf("proxy_header: %v", all)
	}
	if len(store.keys) == 0 || strings.Trim(strings.Join(store.keys, ""), "k") != "" {
		t.Errorf("keys %q", store.keys)
	}
}

// TestServersThatAreDownAreSpans has a connection try two that nobody listens at, and another
// one be refused a route.
func TestServersThatAreDownAreSpans(t *testing.T) {
	t.Parallel()
	store := newSpanStore(t)
	ports := freePorts(t, 2)
	p := start(t, "serve", "-c", write(t, "levee.yaml", tracesTo(store, "edge", "1")+fmt.Sprintf(`
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    routes: [{name: no-http, match: {protocol: http}, refuse: true}, {name: db, upstream: db}]
upstreams:
  - {name: db, servers: ["127.0.0.1:%s", "127.0.0.1:%s"], dial: {tries: 3}, health: {interval: off}}
`, ports[0], ports[1])))
	for _, text := range []string{"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "GET / HTTP/1.1\r\n\r\n"} {
		c, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, text)
		_, _ = io.ReadAll(c)
		c.Close()
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	ends := make(map[string]*otlp.Span)
	for _, s := range store.named("edge", "connection") {
		ends[spanAttribute(s, "error.type")] = s
		if s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR {
			t.Errorf("status %v", s.Status)
		}
	}
	down, refused := ends["upstream_unavailable"], ends["no_route"]
	if len(ends) != 2 || down == nil || refused == nil {
		t.Fatalf("they ended as %v", ends)
	}
	dials := store.named("edge", "dial")
	if len(dials) != 1 || string(dials[0].TraceId) != string(down.TraceId) {
		t.Fatalf("dials: %v", dials)
	}
	tries := store.named("edge", "connect")
	if len(tries) != 3 {
		t.Errorf("%d tries", len(tries))
	}
	servers := make(map[string]bool)
	for _, s := range tries {
		servers[spanAttribute(s, "levee.server")] = true
		if string(s.ParentSpanId) != string(dials[0].SpanId) || spanAttribute(s, "error.type") != "refused" || s.Kind != otlp.Span_SPAN_KIND_CLIENT {
			t.Errorf("a try: %v", s)
		}
		if s.StartTimeUnixNano < dials[0].StartTimeUnixNano-uint64(time.Millisecond) || s.EndTimeUnixNano > dials[0].EndTimeUnixNano+uint64(time.Millisecond) {
			t.Errorf("a try lies outside of the dialling: %v", s)
		}
	}
	if len(servers) != 2 {
		t.Errorf("tried were %v", servers)
	}
}
