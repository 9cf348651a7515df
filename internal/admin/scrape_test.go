package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A slowCollector has a great deal to tell, once its scraper has gone.
type slowCollector struct {
	desc    *prometheus.Desc
	begun   chan struct{}
	goOn    chan struct{}
	problem error
}

func (c *slowCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *slowCollector) Collect(ch chan<- prometheus.Metric) {
	if c.problem != nil {
		ch <- prometheus.NewInvalidMetric(c.desc, c.problem)
		return
	}
	close(c.begun)
	<-c.goOn
	for i := range 100_000 {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, fmt.Sprint(i, strings.Repeat("x", 100)))
	}
}

// lockedBuffer may be written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestAScraperThatLeavesIsNoError(t *testing.T) {
	registry, log := prometheus.NewRegistry(), new(lockedBuffer)
	c := &slowCollector{
		desc:  prometheus.NewDesc("many", "Many.", []string{"x"}, nil),
		begun: make(chan struct{}), goOn: make(chan struct{}),
	}
	registry.MustRegister(c)
	s := &Server{Metrics: registry, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	answered := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(answered)
		context.AfterFunc(r.Context(), func() { close(c.goOn) }) // once it has been noticed
		s.scrapes().ServeHTTP(w, r)
	}))
	defer web.Close()
	conn, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-c.begun
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	select {
	case <-answered:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on and on")
	}
	if text := log.String(); strings.Contains(text, "level=ERROR") {
		t.Error(text)
	}
}

func TestWhatIsWrongWithMetricsIsLogged(t *testing.T) {
	registry, log := prometheus.NewRegistry(), new(lockedBuffer)
	registry.MustRegister(&slowCollector{desc: prometheus.NewDesc("many", "Many.", nil, nil), problem: errors.New("a bug")})
	s := &Server{Metrics: registry, Log: slog.New(slog.NewTextHandler(log, nil))}
	s.scrapes().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "a bug") {
		t.Errorf("%q", text)
	}
}

func TestOnlyWhatTheScraperDidIsAtDebug(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{context.Canceled, "DEBUG"},
		{fmt.Errorf("write: %w", net.ErrClosed), "DEBUG"},
		{http.ErrHandlerTimeout, "DEBUG"},
		{errors.New("another"), "ERROR"},
	} {
		log := new(lockedBuffer)
		scrapeLog{slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}.Println("error encoding", test.err)
		if text := log.String(); !strings.Contains(text, "level="+test.want) || !strings.Contains(text, test.err.Error()) {
			t.Errorf("%v: %s", test.err, text)
		}
	}
}

func TestScrapersGetOpenMetricsIfTheyAsk(t *testing.T) {
	s := &Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	s.scrapes().ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text") {
		t.Error(got)
	}
}
