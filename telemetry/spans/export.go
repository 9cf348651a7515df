package spans

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc/credentials"
)

// ExportOptions say where spans are sent, and as whose.
type ExportOptions struct {
	// Endpoint is the receiver: http://HOST:PORT or https://HOST:PORT for OTLP over HTTP, at
	// /v1/traces if there is no path, or grpc://HOST:PORT or grpcs://HOST:PORT for OTLP over
	// gRPC. It must be given.
	Endpoint string

	// TLS is for https and grpcs. Nil is what the system trusts.
	TLS *tls.Config

	// Headers go along with each request, such as a key that the receiver asks for. They are
	// in no error.
	Headers map[string]string

	// Timeout is how long a batch of spans may take to be sent, further tries included. Zero
	// means 10 seconds.
	Timeout time.Duration

	// Interval is how long a span may wait for others to be sent with it. Zero means 5 seconds.
	Interval time.Duration

	// Queue is how many spans may wait, those that are being sent included, at about 1 KiB
	// each. What comes when there are so many is dropped, and counted. Zero means 4096.
	Queue int

	// Service is service.name, and Version service.version. Resource is what else is said of
	// where the spans come from. What is empty comes from OTEL_SERVICE_NAME and
	// OTEL_RESOURCE_ATTRIBUTES, if these are set; else Service is levee.
	Service, Version string
	Resource         map[string]string

	// Problem, if not nil, is called when a batch could not be sent, or not all of it was
	// taken: up to every few milliseconds while a receiver refuses. The error is short, but
	// may quote what the receiver said.
	Problem func(error)
}

// An Exporter sends spans to a receiver of OTLP. However that is doing, those who end a span
// never wait. Its methods may be called from several goroutines.
type Exporter struct {
	provider *sdktrace.TracerProvider
	problem  func(error)
	most     int64

	queued, exported, dropped atomic.Int64

	to   sdktrace.SpanExporter
	idle func() // closes what is kept open for the next batch

	cut  context.Context // ends when nothing more is to be sent
	stop context.CancelFunc
	gone chan struct{} // closed when nothing more is
}

const (
	sendTimeout  = 10 * time.Second
	sendInterval = 5 * time.Second
	sendQueue    = 4096
	sendBatch    = 512

	firstRetry, lastRetry = 500 * time.Millisecond, 5 * time.Second
)

// Export returns an Exporter that has its own goroutine, which Shutdown ends. It does not
// connect yet: a receiver may come later, and go. The error tells what is wrong with o.
func Export(ctx context.Context, o ExportOptions) (*Exporter, error) {
	client, idle, err := clientOf(&o)
	if err != nil {
		return nil, err
	}
	origin, err := resourceOf(ctx, &o)
	if err != nil {
		return nil, err
	}
	to, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, err
	}
	e := &Exporter{to: to, idle: idle, problem: o.Problem, most: int64(cmp.Or(o.Queue, sendQueue)), gone: make(chan struct{})}
	e.cut, e.stop = context.WithCancel(context.Background())
	batches := sdktrace.NewBatchSpanProcessor(sender{e},
		sdktrace.WithMaxQueueSize(int(e.most)),
		sdktrace.WithMaxExportBatchSize(min(sendBatch, int(e.most))),
		sdktrace.WithBatchTimeout(cmp.Or(o.Interval, sendInterval)),
		sdktrace.WithExportTimeout(cmp.Or(o.Timeout, sendTimeout)),
	)
	e.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(valve{batches, e}),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())), // a Tracer has sampled before
		sdktrace.WithIDGenerator(IDs{}),
		sdktrace.WithResource(origin),
	)
	return e, nil
}

// Provider returns what a [Tracer] is made with. Other spans of the program may be made with
// it as well.
func (e *Exporter) Provider() *sdktrace.TracerProvider { return e.provider }

// ExportStats count spans since the start.
type ExportStats struct {
	Queued   int64 // now: waiting, or being sent
	Exported int64 // taken by the receiver
	Dropped  int64 // lost for want of room in the queue, or as the receiver did not take them
}

// Stats returns the counts.
func (e *Exporter) Stats() ExportStats {
	return ExportStats{Queued: e.queued.Load(), Exported: e.exported.Load(), Dropped: e.dropped.Load()}
}

// Shutdown sends what waits, until ctx ends, and returns when nothing is being sent any more.
// What is left then is dropped, which is an error. Spans that end later are dropped, too.
func (e *Exporter) Shutdown(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, e.stop)
	err := e.provider.Shutdown(ctx)
	unhook()
	e.stop()
	<-e.gone
	left := e.queued.Swap(0)
	e.dropped.Add(left)
	if err != nil {
		return fmt.Errorf("spans that waited were dropped: %w", err)
	}
	return nil
}

// A valve lets so many spans into the queue that this has always room: what it would drop
// it would not count.
type valve struct {
	sdktrace.SpanProcessor
	exporter *Exporter
}

func (v valve) OnEnd(s sdktrace.ReadOnlySpan) {
	e := v.exporter
	switch {
	case !s.SpanContext().IsSampled(): // recorded for somebody else
		return
	case e.queued.Add(1) > e.most:
		e.queued.Add(-1)
		e.dropped.Add(1)
		return
	}
	v.SpanProcessor.OnEnd(s)
}

// A sender sends batches, and counts what became of them. It keeps errors from OpenTelemetry,
// which would print them.
type sender struct{ *Exporter }

func (s sender) ExportSpans(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.cut, cancel)()
	err := s.to.ExportSpans(ctx, batch)
	n := int64(len(batch))
	s.queued.Add(-n)
	if err == nil {
		s.exported.Add(n)
		return nil
	}
	lost := n
	if rejected, partly := rejectedOf(err); partly {
		lost = min(max(rejected, 0), n) // as the receiver says, which may say anything
	}
	s.dropped.Add(lost)
	s.exported.Add(n - lost)
	if s.problem != nil {
		s.problem(fmt.Errorf("%d spans dropped: %w", lost, brief(err)))
	}
	return nil
}

// rejectedOf returns how many spans a receiver has not taken that has taken the others, if err is nothing
// but that. OpenTelemetry's error for it is internal to the clients, so it is known by its name and shape. It is not known by its text,
// as whatever an error quotes is the receiver's.
func rejectedOf(err error) (n int64, partly bool) {
	switch of := err.(type) { //nolint:errorlint // it is taken apart
	case interface{ Unwrap() error }:
		return rejectedOf(of.Unwrap())
	case interface{ Unwrap() []error }:
		for _, each := range of.Unwrap() {
			more, ok := rejectedOf(each)
			if !ok {
				return 0, false
			}
			n, partly = n+more, true
		}
		return n, partly
	}
	v := reflect.ValueOf(err)
	if v.Kind() != reflect.Struct || v.Type().Name() != "PartialSuccess" {
		return 0, false
	}
	rejected := v.FieldByName("RejectedItems")
	if !rejected.IsValid() || !rejected.CanInt() {
		return 0, false
	}
	return rejected.Int(), true
}

func (s sender) Shutdown(ctx context.Context) error {
	defer close(s.gone)
	defer s.idle()
	return s.to.Shutdown(ctx)
}

// longestError is what is passed on of an error: receivers answer with whole pages.
const longestError = 300

func brief(err error) error {
	text := err.Error()
	if len(text) <= longestError {
		return err
	}
	return errors.New(strings.ToValidUTF8(text[:longestError], "") + "…")
}

// An endpoint is where a receiver is.
type endpoint struct {
	grpc, secure bool
	host, path   string
}

// parseEndpoint reads an ExportOptions.Endpoint. Its errors do not quote what may be a secret.
func parseEndpoint(s string) (e endpoint, _ error) {
	u, err := url.Parse(s)
	if err != nil {
		return e, errors.New("otlp endpoint: is no URL")
	}
	switch u.Scheme {
	case "http", "https", "grpc", "grpcs":
	default:
		return e, fmt.Errorf("otlp endpoint: unknown scheme %q; there are http, https, grpc and grpcs", u.Scheme)
	}
	e = endpoint{
		grpc: strings.HasPrefix(u.Scheme, "grpc"), secure: strings.HasSuffix(u.Scheme, "s"),
		host: u.Host, path: strings.TrimSuffix(u.Path, "/"),
	}
	switch {
	case u.User != nil:
		return e, errors.New("otlp endpoint: has a user or a password in it; put those into a header")
	case u.Hostname() == "" || u.Port() == "":
		return e, errors.New("otlp endpoint: needs a host and a port, such as http://127.0.0.1:4318")
	case u.RawQuery != "" || u.Fragment != "":
		return e, errors.New("otlp endpoint: has more than a path")
	case e.grpc && e.path != "":
		return e, errors.New("otlp endpoint: gRPC has no path")
	}
	return e, nil
}

// clientOf returns what speaks OTLP, and what ends the connections that it keeps.
func clientOf(o *ExportOptions) (_ otlptrace.Client, idle func(), _ error) {
	at, err := parseEndpoint(o.Endpoint)
	switch {
	case err != nil:
		return nil, nil, err
	case o.TLS != nil && !at.secure:
		return nil, nil, errors.New("otlp endpoint: TLS is for https and grpcs")
	case at.grpc:
		return overGRPC(at, o), func() {}, nil
	}
	client, idle := overHTTP(at, o)
	return client, idle, nil
}

func overGRPC(at endpoint, o *ExportOptions) otlptrace.Client {
	security := otlptracegrpc.WithInsecure()
	if at.secure {
		security = otlptracegrpc.WithTLSCredentials(credentials.NewTLS(o.TLS))
	}
	return otlptracegrpc.NewClient(
		otlptracegrpc.WithEndpoint(at.host), security,
		otlptracegrpc.WithHeaders(o.Headers),
		otlptracegrpc.WithTimeout(cmp.Or(o.Timeout, sendTimeout)),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: true, InitialInterval: firstRetry, MaxInterval: lastRetry}),
	)
}

func overHTTP(at endpoint, o *ExportOptions) (_ otlptrace.Client, idle func()) {
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: sendTimeout}).DialContext,
		TLSClientConfig:     o.TLS,
		TLSHandshakeTimeout: sendTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConns:        1,
		IdleConnTimeout:     90 * time.Second,
	}
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpoint(at.host),
		otlptracehttp.WithURLPath(cmp.Or(at.path, "/v1/traces")),
		otlptracehttp.WithHeaders(o.Headers),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: firstRetry, MaxInterval: lastRetry}),
		otlptracehttp.WithHTTPClient(&http.Client{
			Transport: persistent{transport},
			Timeout:   cmp.Or(o.Timeout, sendTimeout),
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse // the headers are for this receiver alone
			},
		}),
	}
	if !at.secure {
		options = append(options, otlptracehttp.WithInsecure())
	}
	return otlptracehttp.NewClient(options...), transport.CloseIdleConnections
}

// persistent has the client try again, too, when a receiver is not there or breaks off, as one
// does that is being started anew.
type persistent struct{ http.RoundTripper }

func (p persistent) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := p.RoundTripper.RoundTrip(r)
	if err != nil && r.Context().Err() == nil {
		return nil, temporary{err}
	}
	return answer, err
}

type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

// Temporary is what package otlptracehttp asks.
func (temporary) Temporary() bool { return true }

func resourceOf(ctx context.Context, o *ExportOptions) (*resource.Resource, error) {
	var said []attribute.KeyValue
	if o.Service != "" {
		said = append(said, semconv.ServiceName(o.Service))
	}
	if o.Version != "" {
		said = append(said, semconv.ServiceVersion(o.Version))
	}
	for key, value := range o.Resource {
		said = append(said, attribute.String(key, value))
	}
	r, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("levee")),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(),
		resource.WithFromEnv(),
		resource.WithAttributes(said...), // what comes later prevails
	)
	if err != nil {
		return nil, fmt.Errorf("resource: %w", err)
	}
	return r, nil
}
