package app

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/telemetry"
	"github.com/levee-net/levee/upstream"
)

// upstreamMetrics are the metrics of pools. What a pool counts itself is read when a
// scrape asks; a server that has left takes its series along, so that there are never
// more than there are servers.
type upstreamMetrics struct {
	connecting *telemetry.Durations

	mu    sync.Mutex
	pools map[string][]*upstream.Pool // the newest last; those before have connections still
	past  map[string]upstream.Stats   // of those that are gone, while there is one of the name

	inherited map[string]upstream.Stats // of the process before: all but the newest of a name
}

var connectBounds = []time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

func newUpstreamMetrics(registry prometheus.Registerer) *upstreamMetrics {
	m := &upstreamMetrics{
		pools: make(map[string][]*upstream.Pool),
		past:  make(map[string]upstream.Stats),
		connecting: telemetry.NewDurations(registry, "levee_upstream_connect_duration_seconds",
			"How long a successful try to connect took, with the TLS handshake if there is one.", "upstream", connectBounds...),
	}
	registry.MustRegister(m)
	return m
}

// An upstreamMetric is one pool's.
type upstreamMetric struct {
	name       string
	connecting *telemetry.Durations
}

func (m *upstreamMetrics) of(name string) *upstreamMetric {
	m.connecting.Add(name)
	return &upstreamMetric{name, m.connecting}
}

func (m *upstreamMetric) dialed(_ string, took time.Duration, err error) {
	if err == nil {
		m.connecting.Observe(m.name, took)
	}
}

// watch has a pool's numbers told under a name, together with those of other pools that have it.
func (m *upstreamMetrics) watch(name string, pool *upstream.Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pools[name] = append(m.pools[name], pool)
}

// unwatch has a pool's numbers told no longer, but for what only grows, if another has its name.
func (m *upstreamMetrics) unwatch(name string, pool *upstream.Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.pools[name], func(p *upstream.Pool) bool { return p == pool })
	if len(left) == 0 {
		delete(m.pools, name)
		delete(m.past, name)
		delete(m.inherited, name)
		m.connecting.Remove(name)
		return
	}
	m.pools[name] = left
	var present []upstream.ServerStats
	for _, p := range left {
		present = append(present, p.Stats().Servers...)
	}
	m.past[name] = over(withPast(m.past[name], pool.Stats()), present)
}

// over is what is left of the numbers of a pool that is gone, for those servers that are present.
func over(s upstream.Stats, present []upstream.ServerStats) upstream.Stats {
	names := make(map[string]bool, len(present))
	for _, server := range present {
		names[server.Name] = true
	}
	s.Queue = 0
	s.Servers = slices.DeleteFunc(slices.Clone(s.Servers), func(s upstream.ServerStats) bool { return !names[s.Name] })
	for i := range s.Servers {
		s.Servers[i].Active = 0
	}
	return s
}

// statsLocked sums up all pools of a name. What cannot be summed up is the newest's.
func (m *upstreamMetrics) statsLocked(name string) upstream.Stats {
	all := m.past[name]
	for _, p := range m.pools[name] {
		all = withPast(all, p.Stats())
	}
	return withPast(over(m.inherited[name], all.Servers), all)
}

// withPast adds to a pool's numbers those of another before it.
func withPast(past, now upstream.Stats) upstream.Stats {
	now.Retries += past.Retries
	now.BudgetExhausted += past.BudgetExhausted
	now.Refused += past.Refused
	now.Queued += past.Queued
	now.TurnedAway += past.TurnedAway
	now.Queue += past.Queue
	for _, old := range past.Servers {
		i := slices.IndexFunc(now.Servers, func(s upstream.ServerStats) bool { return s.Name == old.Name })
		if i < 0 {
			now.Servers = append(now.Servers, old)
			continue
		}
		s := &now.Servers[i]
		s.Active += old.Active
		s.Dials += old.Dials
		s.EarlyCloses += old.EarlyCloses
		s.Sent += old.Sent
		s.Received += old.Received
		s.Failures = maps.Clone(s.Failures)
		for kind, n := range old.Failures {
			s.Failures[kind] += n
		}
	}
	return now
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"upstream"}, labels...), nil)
}

var (
	upstreamActive = describe("levee_upstream_connections_active",
		"Connections to the server, and dials under way.", "server")
	upstreamHealthy = describe("levee_upstream_healthy",
		"1 if the server passes its health checks, or has none; else 0.", "server")
	upstreamBreaker = describe("levee_breaker_state",
		"The server's circuit breaker: 0 closed, 1 half-open, 2 open.", "server")
	upstreamDials = describe("levee_upstream_dials_total",
		"Tries to connect, by what came of them: ok, or the kind of failure.", "server", "result")
	upstreamEarly = describe("levee_upstream_early_closes_total",
		"Connections that the server closed soon and without having sent a byte.", "server")
	upstreamBytes = describe("levee_upstream_bytes_total",
		"Bytes of connections that have ended: sent to the server, received from it.", "server", "direction")
	upstreamRetries = describe("levee_upstream_retries_total",
		"Tries that followed one that had failed.")
	upstreamBudget = describe("levee_upstream_retry_budget_exhausted_total",
		"Retries that there were not, because the retry budget was used up.")
	upstreamRefused = describe("levee_upstream_unavailable_total",
		"Connections for which no server could be had.")
	upstreamQueue = describe("levee_upstream_queue_length",
		"Connections that wait for a server below its cap.")
	upstreamQueued = describe("levee_upstream_queued_total",
		"Connections that had to wait for a server below its cap.")
	upstreamTurnedAway = describe("levee_upstream_queue_full_total",
		"Connections that found the queue full.")
)

// Describe is for prometheus.
func (m *upstreamMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		upstreamActive, upstreamHealthy, upstreamBreaker, upstreamDials, upstreamEarly, upstreamBytes,
		upstreamRetries, upstreamBudget, upstreamRefused, upstreamQueue, upstreamQueued, upstreamTurnedAway,
	} {
		out <- d
	}
}

// Collect is for prometheus.
func (m *upstreamMetrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.pools {
		collectPool(out, name, m.statsLocked(name))
	}
}

func collectPool(out chan<- prometheus.Metric, name string, stats upstream.Stats) {
	count := func(desc *prometheus.Desc, v int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), append([]string{name}, labels...)...)
	}
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
	}
	count(upstreamRetries, stats.Retries)
	count(upstreamBudget, stats.BudgetExhausted)
	count(upstreamRefused, stats.Refused)
	count(upstreamQueued, stats.Queued)
	count(upstreamTurnedAway, stats.TurnedAway)
	gauge(upstreamQueue, float64(stats.Queue))
	for _, s := range stats.Servers {
		gauge(upstreamActive, float64(s.Active), s.Name)
		gauge(upstreamHealthy, oneIf(s.Healthy), s.Name)
		gauge(upstreamBreaker, float64(s.Breaker), s.Name)
		ok := s.Dials
		for kind, n := range s.Failures {
			ok -= n
			count(upstreamDials, n, s.Name, kind.String())
		}
		count(upstreamDials, ok, s.Name, "ok")
		count(upstreamEarly, s.EarlyCloses, s.Name)
		count(upstreamBytes, s.Sent, s.Name, "sent")
		count(upstreamBytes, s.Received, s.Name, "received")
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
