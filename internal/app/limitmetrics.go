package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/limit"
)

// limitMetrics tells at each scrape what limits have decided. It counts nothing itself.
type limitMetrics struct{ limits *limiting }

func describeLimit(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("levee_"+name, help, labels, nil)
}

var (
	decisionsDesc = describeLimit("limit_decisions_total",
		"Decisions of limits, by decision: allowed; refused, which of a bandwidth is made to wait; would_refuse, in shadow.", "limit", "decision")
	clientsDesc        = describeLimit("limit_clients", "Clients that limits remember.", "limit")
	clientsMostDesc    = describeLimit("limit_clients_max", "Clients that there is room for (limits.clients).", "limit")
	clientsEvictedDesc = describeLimit("limit_clients_evicted_total", "Clients that were forgotten for want of room, though they had a rate to make up for.", "limit")
	clientsCrowdedDesc = describeLimit("limit_clients_crowded_total", "Connections that were counted together with those of other clients, for want of room.", "limit")
	prefixesDesc       = describeLimit("limit_prefixes", "Prefixes on lists, by kind: allow or deny.", "list", "kind")
	bansDesc           = describeLimit("bans_active", "Bans in force.")
	bansMadeDesc       = describeLimit("bans_made_total", "Bans that refusals have made, also in shadow, where they keep nobody out.")
	bansDroppedDesc    = describeLimit("bans_dropped_total", "Bans that ended early, for want of room.")
	sharedUpDesc       = describeLimit("shared_limits_up", "Whether limits or bans are shared with other machines at present: 1, or 0 while each decides alone.", "what")
	sharedAskedDesc    = describeLimit("shared_limits_asked_total", "Connections about which the other machines were asked, by answer: in_time, or none.", "answer")
)

// Describe implements prometheus.Collector.
func (m *limitMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *limitMetrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	for _, d := range m.limits.decisions() {
		counter(decisionsDesc, d.Allowed, d.Limit, "allowed")
		counter(decisionsDesc, d.Refused, d.Limit, "refused")
		counter(decisionsDesc, d.WouldRefuse, d.Limit, "would_refuse")
	}
	for _, s := range m.limits.scopes {
		for _, t := range s.Stats().Clients {
			gauge(clientsDesc, float64(t.Used), t.Name)
			gauge(clientsMostDesc, float64(t.Entries), t.Name)
			counter(clientsEvictedDesc, t.Evicted, t.Name)
			counter(clientsCrowdedDesc, t.Crowded, t.Name)
		}
	}
	for _, l := range m.limits.lists {
		s := l.Stats()
		gauge(prefixesDesc, float64(s.Allow), s.Decisions.Limit, "allow")
		gauge(prefixesDesc, float64(s.Deny), s.Decisions.Limit, "deny")
	}
	bans := m.limits.bans.Stats()
	gauge(bansDesc, float64(bans.Active))
	counter(bansMadeDesc, bans.Made)
	counter(bansDroppedDesc, bans.Dropped)
	for what, err := range m.limits.ailing() {
		up := 1.0
		if err != nil {
			up = 0
		}
		gauge(sharedUpDesc, up, what)
	}
	if asked := m.limits.asked(); m.limits.shared != nil {
		counter(sharedAskedDesc, asked.Asked-asked.Failed, "in_time")
		counter(sharedAskedDesc, asked.Failed, "none")
	}
}

// decisions are those of all limits.
func (l *limiting) decisions() (all []limit.Decisions) {
	for _, s := range l.scopes {
		all = append(all, s.Stats().Limits...)
	}
	for _, list := range l.lists {
		all = append(all, list.Stats().Decisions)
	}
	return append(all, l.bans.Stats().Decisions)
}

// ailing returns what is shared, each with what ails it, if anything.
func (l *limiting) ailing() map[string]error {
	all := make(map[string]error)
	if l.shared != nil {
		all["limits"] = l.shared.State().Err
	}
	if l.sharedBans != nil {
		all["bans"] = l.sharedBans.State().Err
	}
	return all
}

// asked sums up what became of the questions to the other machines.
func (l *limiting) asked() (all limit.SharedStats) {
	for _, g := range l.gates {
		s := g.Stats().Shared
		all.Asked, all.Failed = all.Asked+s.Asked, all.Failed+s.Failed
		if s.LastError != nil && (all.LastError == nil || s.FailingSince.Before(all.FailingSince)) {
			all.FailingSince, all.LastError = s.FailingSince, s.LastError
		}
	}
	return all
}
