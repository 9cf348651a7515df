package telemetry

import (
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
)

// Metrics are the Prometheus metrics of one or more servers. Its methods may be
// called from several goroutines.
//
// The names and labels are part of levee's interface. Every set of label values
// is bounded: listener is a server's Name, reason a levee.CloseReason, phase a levee.Phase.
// Nothing that a stranger sends becomes a label.
type Metrics struct {
	// TraceID returns the id of a connection's trace, or "". Where there is one the durations of
	// connections have it as an exemplar, by the name of trace_id; it takes 1 to 119 characters. It
	// may be nil, and must not be changed once Trace has been called.
	TraceID func(c *levee.Conn) string

	durations   *histogram
	handshakes  *histogram
	phases      [256]*histogram // by phase; nil ones are of none
	roundTrips  *histogram
	retransmits *histogram   // of which each counts as a second
	looks       atomic.Int64 // of the kernel, since the last scrape

	mu        sync.Mutex
	servers   []*levee.Server
	past      map[string]levee.Stats // of those that are watched no more, while there is one of the name
	inherited map[string]levee.Stats // of those of another process, the same
}

// NewMetrics registers the metrics. It panics if registry has them already.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	const ms, s = time.Millisecond, time.Second
	m := &Metrics{
		durations: newHistogram("levee_connection_duration_seconds",
			"Time from accept to close of the connections that have ended.", nil,
			ms, 10*ms, 100*ms, s, 10*s, 60*s, 600*s, 3600*s, 86400*s),
		handshakes: newHistogram("levee_handshake_duration_seconds",
			"Time that TLS handshakes took, failed ones included.", nil,
			ms/2, ms, 5*ms/2, 5*ms, 10*ms, 25*ms, 50*ms, 100*ms, 250*ms, 500*ms, s, 5*s/2, 5*s, 10*s),
		roundTrips: newHistogram("levee_tcp_round_trip_seconds",
			"Round-trip time to clients, smoothed, as the kernel had it at the end of connections: of the first 500 between two scrapes, and of those that ended badly.", nil,
			ms/20, ms/10, ms/4, ms/2, ms, 5*ms/2, 5*ms, 10*ms, 25*ms, 50*ms, 100*ms, 250*ms, 500*ms, s),
		retransmits: newHistogram("levee_tcp_retransmits",
			"Segments that the kernel had to send to a client again, in all of a connection's life: of the same connections.", nil,
			0, s, 2*s, 5*s, 10*s, 50*s, 250*s, 1000*s),
	}
	for _, p := range levee.Phases() {
		if p == levee.PhaseFlow { // which is what is left of the duration
			continue
		}
		m.phases[p] = newHistogram("levee_phase_duration_seconds",
			"Time that connections spent in a phase of their life that is over.", prometheus.Labels{"phase": p.String()},
			ms/10, ms/2, ms, 5*ms, 10*ms, 50*ms, 100*ms, 500*ms, s, 5*s, 10*s, 60*s)
		registry.MustRegister(m.phases[p])
	}
	registry.MustRegister(m.durations, m.handshakes, m.roundTrips, m.retransmits, buildInfo(), (*counts)(m))
	return m
}

// Trace returns the hooks that record times.
func (m *Metrics) Trace() *levee.Trace {
	return &levee.Trace{
		Handshake: func(_ *levee.Conn, took time.Duration, _ error) { m.handshakes.observe(took) },
		Closed:    m.closed,
		Sample:    func(*levee.Conn) bool { return m.looks.Load() < looksPerScrape && m.looks.Add(1) <= looksPerScrape },
	}
}

// looksPerScrape is how many connections the kernel is asked about between two scrapes. To bound them by time
// would cost each connection a reading of the clock.
const looksPerScrape = 500

func (m *Metrics) closed(c *levee.Conn, end levee.End) {
	m.observeDuration(c, end.Duration)
	moments := c.Moments()
	var room [8]levee.Span
	for _, s := range moments.Spans(room[:0], end.Duration) {
		if phase := m.phases[s.Phase]; phase != nil {
			phase.observe(s.Took)
		}
	}
	if end.TCP != nil {
		m.roundTrips.observe(end.TCP.RTT)
		m.retransmits.observe(time.Duration(end.TCP.Retransmits) * time.Second)
	}
}

func (m *Metrics) observeDuration(c *levee.Conn, d time.Duration) {
	if m.TraceID != nil {
		if id := m.TraceID(c); id != "" && len(id) <= longestTraceID {
			m.durations.observeTrace(d, id)
			return
		}
	}
	m.durations.observe(d)
}

// longestTraceID is what an exemplar has room for beside its label's name.
const longestTraceID = prometheus.ExemplarMaxRunes - len("trace_id")

// Watch adds a server to those whose counts a scrape shows. Those of the same Name are
// shown as one, whose counts are the sums of theirs.
func (m *Metrics) Watch(s *levee.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = append(m.servers, s)
}

// Unwatch takes a server, which has ended, out again. If another of its Name is watched the
// counts go on from where they are, or else they are gone.
func (m *Metrics) Unwatch(s *levee.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.servers, s)
	if i < 0 {
		return
	}
	m.servers = slices.Delete(m.servers, i, i+1)
	if !slices.ContainsFunc(m.servers, func(other *levee.Server) bool { return other.Name == s.Name }) {
		delete(m.past, s.Name)
		delete(m.inherited, s.Name)
		return
	}
	if m.past == nil {
		m.past = make(map[string]levee.Stats)
	}
	m.past[s.Name] = m.past[s.Name].Add(countsOf(s.Stats()))
}

// growing are the counts that only grow, by the words that they are saved by. Closed and Refused are others.
var growing = map[string]func(*levee.Stats) *int64{
	"accepted":      func(s *levee.Stats) *int64 { return &s.Accepted },
	"adopted":       func(s *levee.Stats) *int64 { return &s.Adopted },
	"moved":         func(s *levee.Stats) *int64 { return &s.Moved },
	"read":          func(s *levee.Stats) *int64 { return &s.Read },
	"written":       func(s *levee.Stats) *int64 { return &s.Written },
	"panics":        func(s *levee.Stats) *int64 { return &s.Panics },
	"accept_errors": func(s *levee.Stats) *int64 { return &s.AcceptErrors },
	"slow_steps":    func(s *levee.Stats) *int64 { return &s.SlowSteps },
}

// countsOf returns what only grows.
func countsOf(s levee.Stats) levee.Stats {
	counts := levee.Stats{Closed: s.Closed, Refused: s.Refused}
	for _, of := range growing {
		*of(&counts) = *of(&s)
	}
	return counts
}

// named are the counts of all servers of a name, of as nearly the same instant as can be.
type named struct {
	name  string
	stats levee.Stats
}

// collect returns the counts of all servers. Under the lock, or those of a server that is just
// being taken out would be missing, or there twice.
func (m *Metrics) collect() (all []named) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, server := range m.servers {
		i := slices.IndexFunc(all, func(n named) bool { return n.name == server.Name })
		if i < 0 {
			i = len(all)
			all = append(all, named{server.Name, m.beforeLocked(server.Name)})
		}
		all[i].stats = all[i].stats.Add(server.Stats())
	}
	return all
}

// Before returns what servers of a name have counted that are not watched any more, and those of the
// processes before this one; see [Metrics.Restore]. With the Stats of those that are watched it is what the metrics tell.
func (m *Metrics) Before(name string) levee.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.beforeLocked(name)
}

func (m *Metrics) beforeLocked(name string) levee.Stats { return m.inherited[name].Add(m.past[name]) }

// counts is the part of Metrics that is read from the servers at each scrape. All
// of one server's are of the same instant.
type counts Metrics

// description is a metric that is read from a server's counts.
type description struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(levee.Stats) float64
}

var descriptions = []description{
	describe("levee_connections_active", "Connections that are open.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return float64(s.Active) }),
	describe("levee_connections_arriving", "Connections without a handler yet: in TLS handshakes, say.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return float64(s.Arriving) }),
	describe("levee_connections_max", "Connections that may be open; +Inf if any number may.", prometheus.GaugeValue, maxConns),
	describe("levee_connections_accepted_total", "Connections accepted.", prometheus.CounterValue,
		func(s levee.Stats) float64 { return float64(s.Accepted) }),
	describe("levee_accept_errors_total", "Accepts that failed, such as for a lack of file descriptors.", prometheus.CounterValue,
		func(s levee.Stats) float64 { return float64(s.AcceptErrors) }),
	describe("levee_accept_queue_length", "Connections that wait in the kernel to be accepted.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return float64(s.QueueLength) }),
	describe("levee_accept_queue_limit", "Connections that the kernel lets wait to be accepted.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return float64(s.QueueLimit) }),
	describe("levee_handshakes_waiting", "TLS handshakes that wait for others to be done.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return float64(s.HandshakesWaiting) }),
	describe("levee_loop_lag_seconds", "How long something that was due on an event loop had to wait for it, at worst, of late.", prometheus.GaugeValue,
		func(s levee.Stats) float64 { return s.LoopLag.Seconds() }),
	describe("levee_handler_panics_total", "Panics caught in handlers, hooks and TLS callbacks.", prometheus.CounterValue,
		func(s levee.Stats) float64 { return float64(s.Panics) }),
	describe("levee_handlers_slow_total", "Calls of a handler that were taken off their event loop, as they took too long.", prometheus.CounterValue,
		func(s levee.Stats) float64 { return float64(s.SlowSteps) }),
}

var (
	closedDesc = prometheus.NewDesc("levee_connections_closed_total",
		"Connections ended, by reason.", []string{"listener", "reason"}, nil)
	refusedDesc = prometheus.NewDesc("levee_connections_refused_total",
		"Connections turned away at the door, by reason.", []string{"listener", "reason"}, nil)
	bytesDesc = prometheus.NewDesc("levee_bytes_total",
		"Bytes on the wire, TLS included: in is from clients, out is to them.", []string{"listener", "direction"}, nil)
)

func describe(name, help string, kind prometheus.ValueType, value func(levee.Stats) float64) description {
	return description{prometheus.NewDesc(name, help, []string{"listener"}, nil), kind, value}
}

// Describe implements prometheus.Collector.
func (c *counts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d.desc
	}
	ch <- closedDesc
	ch <- refusedDesc
	ch <- bytesDesc
}

// Collect implements prometheus.Collector.
func (c *counts) Collect(ch chan<- prometheus.Metric) {
	c.looks.Store(0)
	for _, server := range (*Metrics)(c).collect() {
		stats := server.stats
		for _, d := range descriptions {
			ch <- prometheus.MustNewConstMetric(d.desc, d.kind, d.value(stats), server.name)
		}
		for reason, n := range stats.Closed {
			ch <- prometheus.MustNewConstMetric(closedDesc, prometheus.CounterValue, float64(n), server.name, reason.String())
		}
		for reason, n := range stats.Refused {
			ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(n), server.name, reason.String())
		}
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(stats.Read), server.name, "in")
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(stats.Written), server.name, "out")
	}
}

func maxConns(s levee.Stats) float64 {
	if s.MaxConns < 0 {
		return math.Inf(1)
	}
	return float64(s.MaxConns)
}

// buildInfo is a constant 1 whose labels say what is running.
func buildInfo() prometheus.Collector {
	version, goVersion := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = info.Main.Version, info.GoVersion
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "levee_build_info",
		Help:        "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": goVersion},
	})
	info.Set(1)
	return info
}
