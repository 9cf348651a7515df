package app

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/saved"
	"github.com/levee-net/levee/limit"
)

// limitMetrics tells at each scrape what limits have decided. It counts nothing itself.
type limitMetrics struct{ front *front }

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
	limits := m.front.now.Load().limits
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	for _, d := range limits.decisions() {
		counter(decisionsDesc, d.Allowed, d.Limit, "allowed")
		counter(decisionsDesc, d.Refused, d.Limit, "refused")
		counter(decisionsDesc, d.WouldRefuse, d.Limit, "would_refuse")
	}
	for _, s := range limits.scopes {
		for _, t := range s.Stats().Clients {
			gauge(clientsDesc, float64(t.Used), t.Name)
			gauge(clientsMostDesc, float64(t.Entries), t.Name)
			counter(clientsEvictedDesc, t.Evicted, t.Name)
			counter(clientsCrowdedDesc, t.Crowded, t.Name)
		}
	}
	for _, l := range limits.lists {
		s := l.Stats()
		gauge(prefixesDesc, float64(s.Allow), s.Decisions.Limit, "allow")
		gauge(prefixesDesc, float64(s.Deny), s.Decisions.Limit, "deny")
	}
	bans := limits.bans.Stats()
	gauge(bansDesc, float64(bans.Active))
	counter(bansMadeDesc, bans.Made)
	counter(bansDroppedDesc, bans.Dropped)
	for what, err := range limits.ailing() {
		up := 1.0
		if err != nil {
			up = 0
		}
		gauge(sharedUpDesc, up, what)
	}
	if asked := limits.asked(); limits.shared != nil {
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
	all = append(all, l.bans.Stats().Decisions)
	l.past.add(all)
	return all
}

// The past is what limits have decided that are in force no more, while others have their names: what is
// counted does not become less.
type past struct {
	mu        sync.Mutex
	decisions map[string]limit.Decisions
	inherited map[string]limit.Decisions // what it was in the process before
	asked     limit.SharedStats
}

// add adds what has been decided to what has been since.
func (p *past) add(since []limit.Decisions) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range since {
		since[i] = plus(plus(since[i], p.decisions[since[i].Limit]), p.inherited[since[i].Limit])
	}
}

func plus(d, before limit.Decisions) limit.Decisions {
	d.Allowed, d.Refused, d.WouldRefuse = d.Allowed+before.Allowed, d.Refused+before.Refused, d.WouldRefuse+before.WouldRefuse
	return d
}

// Save returns the past for the next process. Limits that are in force are for themselves to save.
func (p *past) Save() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := maps.Clone(p.decisions)
	if all == nil {
		all = make(map[string]limit.Decisions)
	}
	for name, d := range p.inherited {
		all[name] = plus(all[name], d)
	}
	return saved.Write(pastVersion, all)
}

// Restore takes over the past of the process before, in place of what an earlier Restore has. An error changes nothing.
func (p *past) Restore(b []byte) error {
	all, _, err := saved.Read[map[string]limit.Decisions](b, pastVersion, mostPast)
	if err != nil {
		return fmt.Errorf("what limits have decided: %w", err)
	}
	for name, d := range all {
		saved.Counts(&d.Allowed, &d.Refused, &d.WouldRefuse)
		all[name] = d
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inherited = all
	return nil
}

const (
	pastVersion = 1
	mostPast    = 16 << 20 // bytes
)

// retire keeps what has been decided by that of the limits which is not part of the next.
func (l *limiting) retire(next *limiting) {
	p := l.past
	names := make(map[string]bool)
	for _, d := range next.decisions() {
		names[d.Limit] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := make(map[string]limit.Decisions)
	for name, d := range p.decisions {
		if names[name] {
			kept[name] = d
		}
	}
	keep := func(d limit.Decisions) {
		if names[d.Limit] {
			kept[d.Limit] = plus(d, kept[d.Limit])
		}
	}
	for _, s := range l.scopes {
		if !slices.Contains(next.scopes, s) {
			for _, d := range s.Stats().Limits {
				keep(d)
			}
		}
	}
	for _, list := range l.lists {
		if !slices.Contains(next.lists, list) {
			keep(list.Stats().Decisions)
		}
	}
	p.decisions = kept
	maps.DeleteFunc(p.inherited, func(name string, _ limit.Decisions) bool { return !names[name] })
	for _, g := range l.gates {
		if !slices.Contains(next.gates, g) {
			s := g.Stats().Shared
			p.asked.Asked, p.asked.Failed = p.asked.Asked+s.Asked, p.asked.Failed+s.Failed
		}
	}
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
	l.past.mu.Lock()
	all = l.past.asked
	l.past.mu.Unlock()
	for _, g := range l.gates {
		s := g.Stats().Shared
		all.Asked, all.Failed = all.Asked+s.Asked, all.Failed+s.Failed
		if s.LastError != nil && (all.LastError == nil || s.FailingSince.Before(all.FailingSince)) {
			all.FailingSince, all.LastError = s.FailingSince, s.LastError
		}
	}
	return all
}
