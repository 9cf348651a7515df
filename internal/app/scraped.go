package app

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// A scraped registry answers scrapes, until it is frozen: then it goes on telling what it told last. A process that has left
// its counts to another is frozen, or a scrape that it still answers would tell of more than the next one, by the other; and to
// Prometheus a count that falls has begun anew.
type scraped struct {
	registry *prometheus.Registry

	mu     sync.RWMutex
	frozen bool
	last   []*dto.MetricFamily
	err    error
}

// Gather implements prometheus.Gatherer.
func (s *scraped) Gather() ([]*dto.MetricFamily, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.frozen {
		return s.last, s.err
	}
	return s.registry.Gather()
}

// freeze waits for scrapes that are under way.
func (s *scraped) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = s.registry.Gather()
	s.frozen = true
}

func (s *scraped) thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen, s.last, s.err = false, nil, nil
}
