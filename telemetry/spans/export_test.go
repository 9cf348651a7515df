package spans_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry/spans"
)

// work ends that many spans.
func work(e *spans.Exporter, n int) {
	tracer := e.Provider().Tracer("work")
	for i := range n {
		_, span := tracer.Start(context.Background(), strconv.Itoa(i))
		span.End()
	}
}

func TestSpansArriveByEveryProtocol(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, scheme := range protocols {
		t.Run(scheme, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			o := spans.ExportOptions{
				Headers: map[string]string{"api-key": "secret"},
				Service: "edge", Version: "v9", Resource: map[string]string{"deployment.environment.name": "test"},
			}
			var secure *tls.Config
			if strings.HasSuffix(scheme, "s") {
				secure, o.TLS = ca.ServerConfig("127.0.0.1"), ca.ClientConfig("127.0.0.1")
				secure.NextProtos = []string{"h2"}
				if scheme == "https" {
					secure.NextProtos = nil
				}
			}
			r := newReceiver(t, scheme, secure)
			e := export(t, r, o)
			work(e, 3)
			if err := e.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if got := r.spans(); len(got) != 3 || got[0].Name != "0" {
				t.Errorf("%d spans came: %v", len(got), got)
			}
			for key, want := range map[string]string{"service.name": "edge", "service.version": "v9", "deployment.environment.name": "test", "telemetry.sdk.language": "go"} {
				if got := r.resource[key]; got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if got := r.headers["api-key"]; len(got) != 1 || got[0] != "secret" {
				t.Errorf("the header came as %q", got)
			}
			if got := e.Stats(); got != (spans.ExportStats{Exported: 3}) {
				t.Errorf("counted %+v", got)
			}
		})
	}
}

func TestTheEnvironmentSaysWhatNobodyElseDoes(t *testing.T) {
	t.Setenv("OTEL_SERVICE_NAME", "of-the-environment")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=of-the-environment,region=eu")
	// These are for programs that have no configuration of their own.
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://192.0.2.1:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=of-the-environment")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	for service, want := range map[string]string{"": "of-the-environment", "edge": "edge"} {
		r := newReceiver(t, "http", nil)
		e := export(t, r, spans.ExportOptions{Service: service, Resource: map[string]string{"deployment.environment.name": "said"}})
		work(e, 1)
		flush(t, e)
		if r.resource["service.name"] != want || r.resource["region"] != "eu" || r.resource["deployment.environment.name"] != "said" {
			t.Errorf("the resource is %v", r.resource)
		}
		if len(r.headers["api-key"]) > 0 {
			t.Error("a header came from the environment")
		}
	}
}

// problems collects what an Exporter complains of.
type problems struct {
	mu  sync.Mutex
	all []error
}

func (p *problems) add(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, err)
}

func (p *problems) list() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

func TestAReceiverThatIsOverloadedIsAskedAgain(t *testing.T) {
	for _, scheme := range protocols[:2] {
		r := newReceiver(t, scheme, nil)
		r.failures = 2
		e := export(t, r, spans.ExportOptions{})
		work(e, 5)
		flush(t, e)
		if got := e.Stats(); got != (spans.ExportStats{Exported: 5}) || r.asked != 3 || len(r.spans()) != 5 {
			t.Errorf("%s: counted %+v, after %d requests", scheme, got, r.asked)
		}
	}
}

func TestWhatAReceiverRefusesIsCountedAndTold(t *testing.T) {
	for _, scheme := range protocols[:2] {
		for _, partly := range []bool{false, true} {
			var told problems
			r := newReceiver(t, scheme, nil)
			if partly {
				r.partial = 1
			} else {
				r.refuses = true
			}
			e := export(t, r, spans.ExportOptions{Headers: map[string]string{"api-key": "secret"}, Problem: told.add})
			work(e, 5)
			flush(t, e)
			want := spans.ExportStats{Dropped: 5}
			if partly {
				requests := int64(r.asked) // of each of which it has refused one span
				want = spans.ExportStats{Exported: 5 - requests, Dropped: requests}
			}
			if got := e.Stats(); got != want {
				t.Errorf("%s: counted %+v, want %+v", scheme, got, want)
			}
			all := told.list()
			if len(all) == 0 {
				t.Errorf("%s, partly %t: nothing was told", scheme, partly)
			}
			for _, err := range all {
				if text := err.Error(); len(text) > 400 || strings.Contains(text, "secret") {
					t.Errorf("%s: %s", scheme, text)
				}
			}
		}
	}
}

func TestAReceiverThatRejectsWhatThereIsNotIsNotBelieved(t *testing.T) {
	for _, scheme := range protocols[:2] {
		for partial, want := range map[int64]spans.ExportStats{1 << 40: {Dropped: 5}, -3: {Exported: 5}, 0: {Exported: 5}} {
			r := newReceiver(t, scheme, nil)
			r.partial, r.warns = partial, true
			e := export(t, r, spans.ExportOptions{})
			work(e, 5)
			flush(t, e)
			if got := e.Stats(); got != want {
				t.Errorf("%s: %d rejected: counted %+v, want %+v", scheme, partial, got, want)
			}
		}
	}
}

func TestAReceiverThatIsAwayOrHangsDelaysNobody(t *testing.T) {
	for _, scheme := range protocols[:2] {
		for _, away := range []bool{false, true} {
			leveetest.CheckLeaks(t)
			r := newReceiver(t, scheme, nil)
			r.held = make(chan struct{})
			if away {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				r.url = scheme + "://" + l.Addr().String()
				l.Close() // nobody is there
			}
			e := export(t, r, spans.ExportOptions{Queue: 100, Timeout: time.Minute})
			began := time.Now()
			work(e, 10_000)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s: ending spans took %v", scheme, took)
			}
			got := e.Stats()
			if got.Queued > 100 || got.Queued < 50 || got.Exported != 0 || got.Dropped != 10_000-got.Queued {
				t.Errorf("%s: counted %+v", scheme, got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began = time.Now()
			if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: shut down with %v", scheme, err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("%s: shutting down took %v", scheme, took)
			}
			close(r.held)
			if got := e.Stats(); got != (spans.ExportStats{Dropped: 10_000}) {
				t.Errorf("%s: counted %+v at the end", scheme, got)
			}
			work(e, 5) // whoever comes later disturbs nobody
		}
	}
}

func TestAReceiverThatIsStartedAnewGetsEverything(t *testing.T) {
	for _, scheme := range protocols[:2] {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r := &receiver{url: scheme + "://" + l.Addr().String(), arrival: make(chan struct{}, 10)}
		e := export(t, r, spans.ExportOptions{})
		work(e, 5)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close() // it is going down
		r.serve(t, l, scheme, nil)
		flush(t, e)
		if got := e.Stats(); got != (spans.ExportStats{Exported: 5}) {
			t.Errorf("%s: counted %+v", scheme, got)
		}
	}
}

func TestAQueueThatWasFullHasRoomAgain(t *testing.T) {
	r := newReceiver(t, "grpc", nil)
	r.held = make(chan struct{})
	e := export(t, r, spans.ExportOptions{Queue: 100})
	work(e, 1000)
	close(r.held)
	flush(t, e)
	work(e, 100)
	flush(t, e)
	if got := e.Stats(); got.Queued != 0 || got.Exported < 200 || got.Exported+got.Dropped != 1100 || len(r.spans()) != int(got.Exported) {
		t.Errorf("counted %+v", got)
	}
}

func TestBadEndpointsAreToldAtOnce(t *testing.T) {
	for endpoint, want := range map[string]string{
		"":                               `unknown scheme ""`,
		"127.0.0.1:4318":                 "is no URL",
		"tcp://127.0.0.1:4318":           `unknown scheme "tcp"`,
		"http://127.0.0.1":               "needs a host and a port",
		"grpc://:4317":                   "needs a host and a port",
		"grpc://127.0.0.1:4317/v1":       "gRPC has no path",
		"http://127.0.0.1:4318/?a=b":     "more than a path",
		"http://user:hidden@127.0.0.1:1": "put those into a header",
		"http://127.0.0.1:hidden":        "is no URL",
	} {
		e, err := spans.Export(t.Context(), spans.ExportOptions{Endpoint: endpoint})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: %v, want %q", endpoint, err, want)
		}
		if err == nil {
			_ = e.Shutdown(t.Context())
		}
	}
	for _, endpoint := range []string{"http://127.0.0.1:4318", "grpc://127.0.0.1:4317"} {
		if _, err := spans.Export(t.Context(), spans.ExportOptions{Endpoint: endpoint, TLS: &tls.Config{}}); err == nil {
			t.Errorf("%s with TLS is taken", endpoint)
		}
	}
}
