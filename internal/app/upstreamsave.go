package app

import (
	"fmt"

	"github.com/levee-net/levee/internal/saved"
	"github.com/levee-net/levee/upstream"
)

const (
	pastPoolsVersion = 1
	mostPastPools    = 16 << 20 // bytes
)

// savedPast is what has been counted under an upstream's name, but by the pool that serves it: that hands on its own.
type savedPast struct {
	Retries         int64             `json:"retries"`
	BudgetExhausted int64             `json:"budget_exhausted"`
	Refused         int64             `json:"refused"`
	Queued          int64             `json:"queued"`
	TurnedAway      int64             `json:"turned_away"`
	Servers         []savedPastServer `json:"servers"`
}

type savedPastServer struct {
	Name        string           `json:"name"`
	Dials       int64            `json:"dials"`
	Failures    map[string]int64 `json:"failures"` // by kind
	EarlyCloses int64            `json:"early_closes"`
	Sent        int64            `json:"sent"`
	Received    int64            `json:"received"`
}

// Save returns for the next process what has been counted in the past, also in that of the process before.
func (m *upstreamMetrics) Save() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]savedPast, len(m.pools))
	for name, pools := range m.pools {
		past := withPast(m.inherited[name], m.past[name])
		for _, p := range pools[:len(pools)-1] {
			past = withPast(past, p.Stats())
		}
		all[name] = savePast(past)
	}
	return saved.Write(pastPoolsVersion, all)
}

// Restore takes over what the process before has saved, in place of what an earlier Restore has. An error changes nothing.
func (m *upstreamMetrics) Restore(b []byte) error {
	all, _, err := saved.Read[map[string]savedPast](b, pastPoolsVersion, mostPastPools)
	if err != nil {
		return fmt.Errorf("what upstreams have counted: %w", err)
	}
	inherited := make(map[string]upstream.Stats, len(all))
	for name, past := range all {
		inherited[name] = past.stats()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inherited = inherited
	return nil
}

func savePast(s upstream.Stats) savedPast {
	to := savedPast{Retries: s.Retries, BudgetExhausted: s.BudgetExhausted, Refused: s.Refused, Queued: s.Queued, TurnedAway: s.TurnedAway}
	for _, server := range s.Servers {
		failures := make(map[string]int64, len(server.Failures))
		for kind, n := range server.Failures {
			failures[kind.String()] = n
		}
		to.Servers = append(to.Servers, savedPastServer{server.Name, server.Dials, failures, server.EarlyCloses, server.Sent, server.Received})
	}
	return to
}

func (from savedPast) stats() upstream.Stats {
	saved.Counts(&from.Retries, &from.BudgetExhausted, &from.Refused, &from.Queued, &from.TurnedAway)
	s := upstream.Stats{Retries: from.Retries, BudgetExhausted: from.BudgetExhausted, Refused: from.Refused, Queued: from.Queued, TurnedAway: from.TurnedAway}
	for _, server := range from.Servers {
		saved.Counts(&server.Dials, &server.EarlyCloses, &server.Sent, &server.Received)
		failures := make(map[upstream.FailureKind]int64)
		for _, kind := range upstream.FailureKinds() {
			n := server.Failures[kind.String()]
			saved.Counts(&n)
			failures[kind] = n
		}
		s.Servers = append(s.Servers, upstream.ServerStats{
			Name: server.Name, Dials: server.Dials, Failures: failures, EarlyCloses: server.EarlyCloses, Sent: server.Sent, Received: server.Received,
		})
	}
	return s
}
