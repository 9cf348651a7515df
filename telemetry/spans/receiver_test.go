package spans_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/levee-net/levee/telemetry/spans"
)

// A receiver takes spans by OTLP, as a collector does.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	url string

	mu       sync.Mutex
	asked    int           // requests
	failures int           // how many of the next ones fail, as of an overloaded receiver
	refuses  bool          // all of them, for good
	partial  int64         // how many spans of each one it does not take
	warns    bool          // it says so of none, too
	held     chan struct{} // if not nil, no answer before it is closed
	got      []*otlp.Span
	resource map[string]string
	headers  map[string][]string
	arrival  chan struct{}
}

var protocols = []string{"http", "grpc", "https", "grpcs"}

// newReceiver returns one that listens. The URL's scheme tells how.
func newReceiver(t testing.TB, scheme string, secure *tls.Config) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{url: scheme + "://" + l.Addr().String(), arrival: make(chan struct{}, 1000)}
	r.serve(t, l, scheme, secure)
	return r
}

func (r *receiver) serve(t testing.TB, l net.Listener, scheme string, secure *tls.Config) {
	done := make(chan struct{})
	var stop func()
	switch scheme {
	case "grpc", "grpcs":
		var options []grpc.ServerOption
		if secure != nil {
			options = append(options, grpc.Creds(credentials.NewTLS(secure)))
		}
		srv := grpc.NewServer(options...)
		collector.RegisterTraceServiceServer(srv, r)
		stop = srv.Stop
		go func() { defer close(done); _ = srv.Serve(l) }()
	default:
		if secure != nil {
			l = tls.NewListener(l, secure)
		}
		srv := &http.Server{Handler: r}
		stop = func() { _ = srv.Close() }
		go func() { defer close(done); _ = srv.Serve(l) }()
	}
	t.Cleanup(func() { stop(); <-done })
}

// Export is the gRPC service.
func (r *receiver) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	return r.take(ctx, request, headers)
}

// ServeHTTP is the same over HTTP.
func (r *receiver) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	body, err := io.ReadAll(hr.Body)
	request := new(collector.ExportTraceServiceRequest)
	if err != nil || hr.URL.Path != "/v1/traces" || proto.Unmarshal(body, request) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	headers := make(map[string][]string)
	for name, values := range hr.Header {
		headers[strings.ToLower(name)] = values
	}
	answer, err := r.take(hr.Context(), request, headers)
	switch status.Code(err) {
	case codes.OK:
		text, _ := proto.Marshal(answer)
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(text)
	case codes.Unavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, strings.Repeat("no key, no spans. ", 1000))
	}
}

func (r *receiver) take(ctx context.Context, request *collector.ExportTraceServiceRequest, headers map[string][]string) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	held := r.held
	r.asked++
	r.mu.Unlock()
	select {
	case r.arrival <- struct{}{}:
	default:
	}
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuses {
		return nil, status.Error(codes.PermissionDenied, strings.Repeat("no key, no spans. ", 1000))
	}
	if r.failures > 0 {
		r.failures--
		return nil, status.Error(codes.Unavailable, "later")
	}
	r.headers = headers
	r.resource = make(map[string]string)
	for _, of := range request.ResourceSpans {
		for _, a := range of.Resource.Attributes {
			r.resource[a.Key] = a.Value.GetStringValue()
		}
		for _, in := range of.ScopeSpans {
			r.got = append(r.got, in.Spans...)
		}
	}
	answer := new(collector.ExportTraceServiceResponse)
	if r.partial > 0 || r.warns {
		answer.PartialSuccess = &collector.ExportTracePartialSuccess{RejectedSpans: r.partial, ErrorMessage: "too old"}
	}
	return answer, nil
}

// spans returns what has come, in the order of their beginnings.
func (r *receiver) spans() []*otlp.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.got)
	slices.SortStableFunc(all, func(a, b *otlp.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return all
}

// export returns an Exporter to r that sends soon, and is shut down with the test.
func export(t testing.TB, r *receiver, o spans.ExportOptions) *spans.Exporter {
	t.Helper()
	o.Endpoint = r.url
	o.Interval = cmp.Or(o.Interval, 10*time.Millisecond)
	e, err := spans.Export(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = e.Shutdown(ctx)
	})
	return e
}

// flush has all that has ended arrive.
func flush(t testing.TB, e *spans.Exporter) {
	t.Helper()
	if err := e.Provider().ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
}
