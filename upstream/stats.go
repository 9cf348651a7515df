package upstream

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// Stats are a pool's counts and its servers' states. Each number is right, but they are
// not taken at one instant.
type Stats struct {
	Servers []ServerStats // those last told of, by tier and in order; then those that left and still have connections

	Queue      int64 // Dials that wait for a free place now
	Queued     int64 // that had to, since the start
	TurnedAway int64 // because as many were waiting already as may

	Retries         int64
	BudgetExhausted int64 // retries that there were not, because the retry budget was used up
	Refused         int64 // Dials that ended with ErrUnavailable
	GaveUp          int64 // Dials whose context ended

	Panic []int // tiers of which so few servers are well that their health checks are not believed
}

// ServerStats are one server's.
type ServerStats struct {
	Name   string
	Tier   int
	Weight float64 // less than what was told while it starts slowly

	Healthy     bool      // by its health checks; true if there are none
	HealthError error     // of the last check
	Checked     time.Time // when that was; zero if there was none
	Drained     bool      // by Drain
	Left        bool      // not among the servers last told of; it is there until its last connection has ended
	Breaker     BreakerState

	Active   int64                 // connections, and dials under way
	Latency  time.Duration         // of connecting, without TLS: a moving average that rises to a peak at once; 0 if unknown
	Dials    int64                 // tries that are over
	Failures map[FailureKind]int64 // of these, those that brought no connection; every kind is present

	EarlyCloses    int64 // connections that the server closed within EarlyClose without having sent anything
	Sent, Received int64 // bytes of connections that have ended, as End counts them
}

// State is the one word for how the server stands: what speaks most against giving it
// connections, out of left, drained, breaker_open, down, half_open, or up.
func (s ServerStats) State() string {
	switch {
	case s.Left:
		return "left"
	case s.Drained:
		return "drained"
	case s.Breaker == BreakerOpen:
		return "breaker_open"
	case !s.Healthy:
		return "down"
	case s.Breaker == BreakerHalfOpen:
		return "half_open"
	}
	return "up"
}

// counts are a pool's, since the start.
type counts struct {
	queued, turnedAway, retries, budgetOut, refused, gaveUp atomic.Int64
}

// tally is a server's, since it was made.
type tally struct {
	dials          int64
	failures       [failureKinds]int64
	earlyCloses    int64
	sent, received int64
}

// Stats returns what there is to know. It looks at every server, so it is for the pace of
// a metrics scrape.
func (p *Pool) Stats() Stats {
	p.start()
	p.decideDue()
	defer p.news.tell()
	stats := Stats{
		Queue:           p.waiting.Load(),
		Queued:          p.counts.queued.Load(),
		TurnedAway:      p.counts.turnedAway.Load(),
		Retries:         p.counts.retries.Load(),
		BudgetExhausted: p.counts.budgetOut.Load(),
		Refused:         p.counts.refused.Load(),
		GaveUp:          p.counts.gaveUp.Load(),
	}
	members, tiers := p.everybody()
	for _, m := range members {
		stats.Servers = append(stats.Servers, m.stats())
	}
	for _, t := range tiers {
		some := slices.ContainsFunc(t.members, func(m *member) bool { return !m.drained.Load() })
		if some && p.terms.panics && !t.well.Load() {
			stats.Panic = append(stats.Panic, t.rank)
		}
	}
	return stats
}

// everybody returns the members in the order that Stats has them in, and the tiers.
func (p *Pool) everybody() ([]*member, []*tier) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var members, left []*member
	tiers := p.lineup.Load().tiers
	for _, t := range tiers {
		members = append(members, t.members...)
	}
	for _, m := range p.members {
		if m.left.Load() {
			left = append(left, m)
		}
	}
	slices.SortFunc(left, func(a, b *member) int { return cmp.Compare(a.name, b.name) })
	return append(members, left...), tiers
}

func (m *member) stats() ServerStats {
	s := m.spec.Load()
	m.mu.Lock()
	defer m.mu.Unlock()
	stats := ServerStats{
		Name:        m.name,
		Tier:        s.tier,
		Weight:      m.Weight(),
		Healthy:     !m.down.Load(),
		HealthError: m.health.last,
		Checked:     m.health.lastAt,
		Drained:     m.drained.Load(),
		Left:        m.left.Load(),
		Breaker:     BreakerState(m.breaker.State()),
		Active:      m.active.Load(),
		Latency:     m.latency.Value(),
		Dials:       m.tally.dials,
		Failures:    make(map[FailureKind]int64, failureKinds),
		EarlyCloses: m.tally.earlyCloses,
		Sent:        m.tally.sent,
		Received:    m.tally.received,
	}
	for kind, count := range m.tally.failures {
		stats.Failures[FailureKind(kind)] = count
	}
	return stats
}
