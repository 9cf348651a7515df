package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/telemetry/spans"
	"github.com/levee-net/levee/upstream"
)

// tracing makes spans of connections. Nil makes none.
type tracing struct {
	*spans.Tracer
	exporter *spans.Exporter
}

// startTracing has what telemetry.traces asks for come to life, unless this is only a check.
func (f *front) startTracing(cfg *config.Traces) error {
	if !cfg.On() {
		return nil
	}
	secure, err := receiverTLS(cfg)
	if err != nil {
		return located(cfg.Pos, fmt.Errorf("telemetry.traces: %w", err))
	}
	if f.env.lookOnly {
		return nil
	}
	exporter, err := spans.Export(context.Background(), spans.ExportOptions{
		Endpoint: cfg.OTLP,
		TLS:      secure,
		Headers:  cfg.Headers,
		Timeout:  cfg.Timeout,
		Queue:    cfg.Queue,
		Service:  cfg.Service,
		Version:  release(),
		Resource: cfg.Resource,
		Problem:  exportProblem(f.log),
	})
	if err != nil {
		return located(cfg.Pos, fmt.Errorf("telemetry.traces: %w", err))
	}
	ratio := cfg.Ratio
	if ratio == 0 {
		ratio = -1 // none but those of which a PROXY header says so
	}
	f.tracing = &tracing{spans.New(exporter.Provider(), spans.Options{Ratio: ratio}), exporter}
	f.registry.MustRegister(&spanMetrics{exporter})
	return nil
}

// receiverTLS returns nil for a receiver in plaintext.
func receiverTLS(cfg *config.Traces) (*tls.Config, error) {
	if !strings.HasPrefix(cfg.OTLP, "https:") && !strings.HasPrefix(cfg.OTLP, "grpcs:") {
		return nil, nil
	}
	roots, err := rootsOf(cfg.CA)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, err
}

// exportProblem logs that spans are lost, now and then.
func exportProblem(log *slog.Logger) func(error) {
	var mu sync.Mutex
	var last time.Time
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if !last.IsZero() && time.Since(last) < problemPause {
			return
		}
		last = time.Now()
		log.Warn("spans cannot be sent; levee_spans_dropped_total counts those that are lost", "err", err)
	}
}

// hooks returns nil where there is nothing to be told.
func (t *tracing) hooks() *levee.Trace {
	if t == nil {
		return nil
	}
	return t.Trace()
}

// TraceID is for logs and exemplars: "" for a connection that has no spans.
func (t *tracing) TraceID(c *levee.Conn) string {
	if t == nil {
		return ""
	}
	return t.Tracer.TraceID(c)
}

// sentBy returns what the upstream is told of a connection's trace, if it is to be.
func (t *tracing) sentBy(u *config.Upstream) func(*levee.Conn) levee.TraceParent {
	switch {
	case !u.SendTraceparent:
		return nil
	case t == nil: // what has come is passed on
		return (*levee.Conn).TraceParent
	}
	return t.TraceParent
}

// tries returns what makes spans of the tries to connect c to the upstream, or nil.
func (t *tracing) tries(c *levee.Conn, name string) func(upstream.Attempt) {
	if t == nil || !t.Sampled(c) {
		return nil
	}
	return func(a upstream.Attempt) {
		t.Dialed(c, spans.Dial{Upstream: name, Server: a.Server, Began: a.Began, Took: a.Took, Err: a.Err, Kind: a.Kind.String()})
	}
}

// lastSpans is how long the spans of the last connections may take to be sent: together with
// drain.timeout it has to stay under what a supervisor waits.
const lastSpans = 2 * time.Second

// end sends what waits.
func (t *tracing) end(log *slog.Logger) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastSpans)
	defer cancel()
	if err := t.exporter.Shutdown(ctx); err != nil {
		log.Warn("the last spans could not be sent", "err", err)
	}
}

// reportTracing says where spans go, and who can read them on the way.
func (g *generation) reportTracing(say func(warning bool, format string, args ...any)) {
	cfg := &g.cfg.Telemetry.Traces
	if !cfg.On() {
		return
	}
	say(false, "spans of %g%% of the connections go to %s", 100*cfg.Ratio, cfg.OTLP)
	at, err := url.Parse(cfg.OTLP)
	if err != nil || at.Scheme == "https" || at.Scheme == "grpcs" {
		return
	}
	if address, err := config.ParseAddress(at.Host); err == nil && !address.Loopback() {
		say(true, "spans go out in plaintext (telemetry.traces.otlp): who is in between can read clients' addresses, and the headers")
	}
}

var (
	spansExported = prometheus.NewDesc("levee_spans_exported_total", "Spans that the receiver has taken.", nil, nil)
	spansDropped  = prometheus.NewDesc("levee_spans_dropped_total",
		"Spans that were lost: the queue was full, or the receiver did not take them in time.", nil, nil)
	spansQueued = prometheus.NewDesc("levee_spans_queued", "Spans that wait, or are being sent.", nil, nil)
)

// spanMetrics tells at each scrape how it goes with sending spans.
type spanMetrics struct{ exporter *spans.Exporter }

// Describe implements prometheus.Collector.
func (m *spanMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *spanMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.exporter.Stats()
	ch <- prometheus.MustNewConstMetric(spansExported, prometheus.CounterValue, float64(s.Exported))
	ch <- prometheus.MustNewConstMetric(spansDropped, prometheus.CounterValue, float64(s.Dropped))
	ch <- prometheus.MustNewConstMetric(spansQueued, prometheus.GaugeValue, float64(s.Queued))
}
