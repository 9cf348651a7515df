package app_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

// A collector is a receiver of OTLP over HTTP that keeps what it gets as it comes: package
// telemetry/spans tests what is in it.
type collector struct {
	*httptest.Server

	mu      sync.Mutex
	got     bytes.Buffer
	headers http.Header
}

func newCollector(t *testing.T, hang <-chan struct{}) *collector {
	t.Helper()
	c := new(collector)
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		<-hang
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got.Write(body)
		c.headers = r.Header
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) count(text string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Count(c.got.Bytes(), []byte(text))
}

// tracing is plain with spans of every connection.
func tracing(url, more string) string {
	return "telemetry: {traces: {otlp: \"" + url + "\", ratio: 1, headers: {api-key: a-secret}" + more + "}}\n" + plain
}

func TestConnectionsBecomeSpansAndTheLastOnesAreSentAtTheEnd(t *testing.T) {
	leveetest.CheckLeaks(t)
	open := make(chan struct{})
	close(open)
	c := newCollector(t, open)
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", tracing(c.URL, ", service: edge, resource: {stage: testing}")))
	for range 3 {
		echoOnce(t, r.address())
	}
	_, metrics := get(t, r.admin("/metrics"))
	for _, want := range []string{"levee_spans_dropped_total 0", "levee_spans_exported_total ", "levee_spans_queued "} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	r.signals <- os.Interrupt
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for text, want := range map[string]int{"client_closed": 3, "levee.listener": 3, "edge": 1, "stage": 1} {
		if got := c.count(text); got != want {
			t.Errorf("%q came %d times, want %d", text, got, want)
		}
	}
	if got := c.headers.Get("api-key"); got != "a-secret" {
		t.Errorf("the header was %q", got)
	}
	if strings.Contains(r.stdout.String()+r.stderr.String(), "a-secret") {
		t.Error("the secret is told")
	}
}

func TestAReceiverThatHangsKeepsNobodyFromLeaving(t *testing.T) {
	leveetest.CheckLeaks(t)
	open := make(chan struct{})
	c := newCollector(t, open)
	t.Cleanup(func() { close(open) }) // before the collector is closed, which waits
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", tracing(c.URL, "")))
	echoOnce(t, r.address())
	began := time.Now()
	r.signals <- os.Interrupt
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
	r.find(&r.stderr, `the last spans could not be sent`)
}

func TestTheReportSaysWhereSpansGo(t *testing.T) {
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", write(t, "levee.yaml", tracing("grpc://otel.example.com:4317", "")))
	for _, want := range []string{
		"spans of 100% of the connections go to grpc://otel.example.com:4317\n",
		"warning: spans go out in plaintext (telemetry.traces.otlp): who is in between can read clients' addresses, and the headers\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the report lacks %q:\n%s%s", want, stdout, stderr)
		}
	}
	if code != 0 || strings.Contains(stdout+stderr, "a-secret") {
		t.Errorf("exit code %d, and\n%s%s", code, stdout, stderr)
	}
	code, _, stderr = result(t, app.Env{}, "check", "-c", write(t, "levee.yaml", tracing("https://otel.example.com:4318", ", ca: missing.pem")))
	if code != 2 || !strings.Contains(stderr, "levee.yaml:1:21: telemetry.traces: ") || !strings.Contains(stderr, "missing.pem") {
		t.Errorf("exit code %d, and %s", code, stderr)
	}
}
