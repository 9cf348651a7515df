package telemetry_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

// observe returns the metrics of servers that it makes report to them.
func observe(servers ...*levee.Server) *prometheus.Registry {
	registry := prometheus.NewPedanticRegistry()
	metrics := telemetry.NewMetrics(registry)
	for _, s := range servers {
		s.Trace = levee.Traces(metrics.Trace(), s.Trace)
		metrics.Watch(s)
	}
	return registry
}

// serve serves in memory until the test ends.
func serve(t *testing.T, srv *levee.Server) *leveetest.Listener {
	t.Helper()
	l := leveetest.Listen()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return l
}

func dial(t *testing.T, l *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A moody handler does what the first byte says, and echoes the rest.
var moody = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
	mood := make([]byte, 1)
	if _, err := io.ReadFull(c, mood); err != nil {
		return err
	}
	switch mood[0] {
	case 'e':
		return errors.New("an error of its own")
	case 'p':
		panic("a bug")
	case 'b': // bye
		return nil
	}
	_, err := io.Copy(c, c)
	return err
})

func TestNamesAndLabelsAreAsDocumented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{Name: "public", Handler: moody, MaxConns: 100, Logger: discard, Gate: &after{most: 5}}
		registry := observe(srv)
		l := serve(t, srv)
		for _, text := range []string{"e", "p", "p", "b"} {
			io.WriteString(dial(t, l), text)
		}
		stays := dial(t, l)
		io.WriteString(stays, "x12345")
		io.ReadFull(stays, make([]byte, 5))
		dial(t, l)
		// A connection takes a moment to leave.
		time.Sleep(10 * time.Millisecond) // virtual time

		want := `
# HELP levee_accept_errors_total Accepts that failed, such as for a lack of file descriptors.
# TYPE levee_accept_errors_total counter
levee_accept_errors_total{listener="public"} 0
# HELP levee_accept_queue_length Connections that wait in the kernel to be accepted.
# TYPE levee_accept_queue_length gauge
levee_accept_queue_length{listener="public"} 0
# HELP levee_accept_queue_limit Connections that the kernel lets wait to be accepted.
# TYPE levee_accept_queue_limit gauge
levee_accept_queue_limit{listener="public"} 0
# HELP levee_bytes_total Bytes on the wire, TLS included: in is from clients, out is to them.
# TYPE levee_bytes_total counter
levee_bytes_total{direction="in",listener="public"} 10
levee_bytes_total{direction="out",listener="public"} 5
# HELP levee_connections_accepted_total Connections accepted.
# TYPE levee_connections_accepted_total counter
levee_connections_accepted_total{listener="public"} 5
# HELP levee_connections_active Connections that are open.
# TYPE levee_connections_active gauge
levee_connections_active{listener="public"} 1
# HELP levee_connections_arriving Connections without a handler yet: in TLS handshakes, say.
# TYPE levee_connections_arriving gauge
levee_connections_arriving{listener="public"} 0
# HELP levee_connections_closed_total Connections ended, by reason.
# TYPE levee_connections_closed_total counter
`
		ended := map[levee.CloseReason]int{levee.HandlerError: 1, levee.HandlerPanic: 2, levee.HandlerClosed: 1}
		for _, reason := range levee.CloseReasons() {
			want += fmt.Sprintf("levee_connections_closed_total{listener=%q,reason=%q} %d\n", "public", reason, ended[reason])
		}
		want += `# HELP levee_connections_max Connections that may be open; +Inf if any number may.
# TYPE levee_connections_max gauge
levee_connections_max{listener="public"} 100
# HELP levee_connections_refused_total Connections turned away at the door, by reason.
# TYPE levee_connections_refused_total counter
levee_connections_refused_total{listener="public",reason="denied"} 1
levee_connections_refused_total{listener="public",reason="limited"} 0
levee_connections_refused_total{listener="public",reason="overloaded"} 0
# HELP levee_handler_panics_total Panics caught in handlers, hooks and TLS callbacks.
# TYPE levee_handler_panics_total counter
levee_handler_panics_total{listener="public"} 2
# HELP levee_handlers_slow_total Calls of a handler that were taken off their event loop, as they took too long.
# TYPE levee_handlers_slow_total counter
levee_handlers_slow_total{listener="public"} 0
# HELP levee_loop_lag_seconds How long something that was due on an event loop had to wait for it, at worst, of late.
# TYPE levee_loop_lag_seconds gauge
levee_loop_lag_seconds{listener="public"} 0
# HELP levee_handshakes_waiting TLS handshakes that wait for others to be done.
# TYPE levee_handshakes_waiting gauge
levee_handshakes_waiting{listener="public"} 0
`
		names := []string{
			"levee_accept_errors_total", "levee_accept_queue_length", "levee_accept_queue_limit", "levee_bytes_total",
			"levee_connections_accepted_total", "levee_connections_active", "levee_connections_arriving", "levee_connections_closed_total",
			"levee_connections_max", "levee_connections_refused_total", "levee_handler_panics_total", "levee_handlers_slow_total", "levee_loop_lag_seconds", "levee_handshakes_waiting",
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), names...); err != nil {
			t.Error(err)
		}
		others := []string{"levee_build_info", "levee_connection_duration_seconds", "levee_handshake_duration_seconds", "levee_phase_duration_seconds", "levee_tcp_round_trip_seconds", "levee_tcp_retransmits"}
		for _, family := range gather(t, registry) {
			if !slices.Contains(names, family.GetName()) && !slices.Contains(others, family.GetName()) {
				t.Errorf("%s is not documented here", family.GetName())
			}
		}
	})
}

func TestMetricsFollowPrometheusConventions(t *testing.T) {
	srv := &levee.Server{Name: "public", Handler: moody}
	problems, err := testutil.GatherAndLint(observe(srv))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestBuildInfoIsOne(t *testing.T) {
	for _, family := range gather(t, observe()) {
		if family.GetName() != "levee_build_info" {
			continue
		}
		m := family.Metric[0]
		if m.GetGauge().GetValue() != 1 || len(m.Label) != 2 || !strings.HasPrefix(m.Label[0].GetValue(), "go1") {
			t.Errorf("%v", m)
		}
		return
	}
	t.Error("there is none")
}

func TestServerWithoutACapSaysSo(t *testing.T) {
	srv := &levee.Server{Name: "a", Handler: moody, MaxConns: -1}
	if got := value(t, gather(t, observe(srv)), "levee_connections_max", "a"); !math.IsInf(got, 1) {
		t.Errorf("%v", got)
	}
}

func TestEachServerHasItsOwnCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &levee.Server{Name: "a", Handler: moody}, &levee.Server{Name: "b", Handler: moody}
		registry := observe(a, b)
		la := serve(t, a)
		serve(t, b)
		dial(t, la)
		synctest.Wait()
		families := gather(t, registry)
		if got := value(t, families, "levee_connections_active", "a"); got != 1 {
			t.Errorf("a: %v", got)
		}
		if got := value(t, families, "levee_connections_active", "b"); got != 0 {
			t.Errorf("b: %v", got)
		}
	})
}

func TestTimesAreRecorded(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{Name: "a", Handler: moody, TLSConfig: ca.ServerConfig("x"), ArrivalTimeout: 7 * time.Second}
		registry := observe(srv)
		l := serve(t, srv)
		dial(t, l) // silent: no handshake begins
		late := dial(t, l)
		late.Write([]byte{22, 3, 1}) // a handshake that never ends

		time.Sleep(time.Minute) // virtual time
		for name, want := range map[string]uint64{"levee_connection_duration_seconds": 2, "levee_handshake_duration_seconds": 1} {
			h := histogram(t, gather(t, registry), name)
			if h.GetSampleCount() != want || math.Abs(h.GetSampleSum()-7*float64(want)) > 0.01 {
				t.Errorf("%s: %d in %v s", name, h.GetSampleCount(), h.GetSampleSum())
			}
		}
	})
}

// TestEveryScrapeAddsUp: what has been accepted is open or has been closed, at
// any moment.
func TestEveryScrapeAddsUp(t *testing.T) {
	srv := &levee.Server{Name: "a", Handler: moody, Logger: discard}
	registry := observe(srv)
	l := serve(t, srv)

	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				c, err := l.Dial(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(c, []string{"e", "p", "b", "xhello"}[n%4])
				if n%3 == 0 {
					c.Reset()
				}
				c.Close()
			}
		})
	}
	for n := 0; n < 30 || srv.Stats().Accepted < 1000; n++ {
		families := gather(t, registry)
		accepted, active := value(t, families, "levee_connections_accepted_total", "a"), value(t, families, "levee_connections_active", "a")
		if closed := value(t, families, "levee_connections_closed_total", "a"); accepted != active+closed {
			t.Fatalf("%v accepted, %v active, %v closed", accepted, active, closed)
		}
	}
	close(stop)
	clients.Wait()
	l.Close()
	srv.Shutdown(t.Context())
	families := gather(t, registry)
	accepted := value(t, families, "levee_connections_accepted_total", "a")
	if closed := value(t, families, "levee_connections_closed_total", "a"); accepted != closed || accepted < 1000 {
		t.Errorf("at the end %v accepted, %v closed", accepted, closed)
	}
	if n := histogram(t, families, "levee_connection_duration_seconds").GetSampleCount(); float64(n) != accepted {
		t.Errorf("%d durations", n)
	}
}

func gather(t *testing.T, registry *prometheus.Registry) []*dto.MetricFamily {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// value returns the sum of a listener's metrics of that name.
func value(t *testing.T, families []*dto.MetricFamily, name, listener string) (sum float64) {
	t.Helper()
	found := false
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.Metric {
			if m.Label[0].GetValue() == listener {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
				found = true
			}
		}
	}
	if !found {
		t.Fatalf("there is no %s of %s", name, listener)
	}
	return sum
}

func histogram(t *testing.T, families []*dto.MetricFamily, name string) *dto.Histogram {
	t.Helper()
	for _, family := range families {
		if family.GetName() == name {
			return family.Metric[0].GetHistogram()
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

func TestPhasesAreRecordedEachByItsName(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{Name: "a", Handler: moody, TLSConfig: ca.ServerConfig("x"), ArrivalTimeout: 7 * time.Second}
		registry := observe(srv)
		l := serve(t, srv)
		dial(t, l)                         // silent: no handshake begins
		dial(t, l).Write([]byte{22, 3, 1}) // a handshake that never ends

		time.Sleep(time.Minute) // virtual time
		for phase, want := range map[string]uint64{"route": 1, "handshake": 1, "dial": 0, "first_byte": 0, "drain": 0, "sniff": 0, "proxy_header": 0} {
			h := phaseHistogram(t, registry, phase)
			if h.GetSampleCount() != want || math.Abs(h.GetSampleSum()-7*float64(want)) > 0.01 {
				t.Errorf("%s: %d in %v s", phase, h.GetSampleCount(), h.GetSampleSum())
			}
			if len(h.Bucket) == 0 || h.Schema == nil {
				t.Errorf("%s is not classic and native at once", phase)
			}
		}
	})
}

func phaseHistogram(t *testing.T, registry *prometheus.Registry, phase string) *dto.Histogram {
	t.Helper()
	for _, family := range gather(t, registry) {
		if family.GetName() != "levee_phase_duration_seconds" {
			continue
		}
		for _, m := range family.Metric {
			if m.Label[0].GetValue() == phase {
				return m.GetHistogram()
			}
		}
	}
	t.Fatalf("there is no phase %s", phase)
	return nil
}

// Whatever strangers ask for, a server has as many series as before.
func TestStrangersMakeNoSeries(t *testing.T) {
	ca := leveetest.NewCA(t)
	srv := &levee.Server{Name: "a", Handler: moody, Logger: discard, TLSConfig: ca.ServerConfig("x", "*.example.com")}
	registry := observe(srv)
	series := func() (n int) {
		for _, family := range gather(t, registry) {
			n += len(family.Metric)
		}
		return n
	}
	before := series()
	l := serve(t, srv)
	for i := range 50 {
		config := ca.ClientConfig(fmt.Sprintf("n%d.example.com", i))
		raw := dial(t, l)
		if i%2 == 0 {
			io.WriteString(raw, fmt.Sprintf("rubbish %d", i))
			raw.CloseWrite()
			continue
		}
		c := tls.Client(raw, config)
		io.WriteString(c, []string{"e", "p", "b"}[i%3])
		io.ReadAll(c)
	}
	srv.Shutdown(t.Context())
	if after := series(); after != before || srv.Stats().Accepted != 50 {
		t.Errorf("%d series became %d, by %d connections", before, after, srv.Stats().Accepted)
	}
}

func TestAConnectionsTraceIsAnExemplar(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	metrics := telemetry.NewMetrics(registry)
	id := "4bf92f3577b34da6a3ce929d0e0e4736"
	metrics.TraceID = func(*levee.Conn) string { return id }
	c := ended(t)
	metrics.Trace().Closed(c, levee.End{Duration: 2 * time.Second})
	id = strings.Repeat("x", 1000) // not worth a panic
	metrics.Trace().Closed(c, levee.End{Duration: 20 * time.Second})
	h := histogram(t, gather(t, registry), "levee_connection_duration_seconds")
	var found []string
	for _, b := range h.Bucket {
		if e := b.GetExemplar(); e != nil {
			found = append(found, fmt.Sprint(e.Label[0].GetName(), "=", e.Label[0].GetValue(), " ", e.GetValue()))
		}
	}
	if want := "[trace_id=4bf92f3577b34da6a3ce929d0e0e4736 2]"; fmt.Sprint(found) != want || h.GetSampleCount() != 2 {
		t.Errorf("%v, want %s", found, want)
	}
}

func TestAnEndCostsMetricsNoMemory(t *testing.T) {
	trace := telemetry.NewMetrics(prometheus.NewPedanticRegistry()).Trace()
	c := ended(t)
	end := levee.End{Reason: levee.ClientClosed, Duration: time.Second, TCP: &levee.TCPInfo{RTT: time.Millisecond}}
	trace.Closed(c, end) // the first makes the buckets
	for name, f := range map[string]func(){
		"Closed":    func() { trace.Closed(c, end) },
		"Handshake": func() { trace.Handshake(c, time.Millisecond, nil) },
		"Sample":    func() { trace.Sample(c) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkMetrics(b *testing.B) {
	trace := telemetry.NewMetrics(prometheus.NewPedanticRegistry()).Trace()
	c := ended(b)
	b.Run("Closed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			trace.Closed(c, levee.End{Duration: time.Second})
		}
	})
	b.Run("Sample", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			trace.Sample(c)
		}
	})
}

// A listener that is taken out of a configuration and put back has another server, while the first one drains.
func TestServersOfOneNameAreOneAndWhatIsCountedDoesNotBecomeLess(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	metrics := telemetry.NewMetrics(registry)
	accepted := func(want string) {
		t.Helper()
		if want != "" {
			want = "# HELP levee_connections_accepted_total Connections accepted.\n# TYPE levee_connections_accepted_total counter\n" +
				"levee_connections_accepted_total{listener=\"a\"} " + want + "\n"
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "levee_connections_accepted_total"); err != nil {
			t.Error(err)
		}
	}
	served := func(n int) *levee.Server {
		s := &levee.Server{Name: "a", Handler: moody}
		metrics.Watch(s)
		l := serve(t, s)
		for range n {
			c := dial(t, l)
			if _, err := io.WriteString(c, "."); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		for s.Stats().Accepted < int64(n) {
			runtime.Gosched()
		}
		return s
	}
	first, second := served(2), served(3)
	accepted("5")
	_ = first.Close()
	accepted("5")
	metrics.Unwatch(first)
	metrics.Unwatch(first)
	accepted("5")
	third := served(1)
	accepted("6")
	_ = second.Close()
	metrics.Unwatch(second)
	accepted("6")
	metrics.Unwatch(third)
	accepted("")
	served(1)
	accepted("1")
}
