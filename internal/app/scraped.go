package app

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/levee-net/levee/internal/saved"
)

// A scraped registry answers scrapes, until it is frozen: then it goes on telling what it told last. A process that has left
// its counts to another is frozen, or a scrape that it still answers would tell of more than the next one, by the other; and to
// Prometheus a count that falls has begun anew. It is also what hands on the counts of those who cannot.
type scraped struct {
	registry *prometheus.Registry

	mu        sync.RWMutex
	inherited map[string]int64 // by series
	frozen    bool
	last      []*dto.MetricFamily
	err       error
}

// carried are the counters that nobody else hands on to the next process. Their labels are there from the start.
var carried = []string{
	"levee_access_log_left_out_total",
	"levee_admin_refused_total",
	"levee_certificate_problems_total",
	"levee_log_dropped_total",
	"levee_reloads_total",
	"levee_shared_limits_asked_total",
	"levee_spans_dropped_total",
	"levee_spans_exported_total",
}

// Gather implements prometheus.Gatherer.
func (s *scraped) Gather() ([]*dto.MetricFamily, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.frozen {
		return s.last, s.err
	}
	return s.gatherLocked()
}

// gatherLocked adds what was inherited to the series that there are.
func (s *scraped) gatherLocked() ([]*dto.MetricFamily, error) {
	families, err := s.registry.Gather()
	eachCarried(families, func(series string, c *dto.Counter) {
		if n := s.inherited[series]; n > 0 {
			sum := c.GetValue() + float64(n)
			c.Value = &sum           // and not where it points to, which may be the collector's
			c.CreatedTimestamp = nil // it was by another process, and not from zero in this one
		}
	})
	return families, err
}

// eachCarried calls do with all series of the counters that are handed on.
func eachCarried(families []*dto.MetricFamily, do func(series string, c *dto.Counter)) {
	for _, family := range families {
		if !slices.Contains(carried, family.GetName()) {
			continue
		}
		for _, m := range family.GetMetric() {
			series := strings.Builder{}
			series.WriteString(family.GetName())
			for _, label := range m.GetLabel() { // they are sorted
				fmt.Fprintf(&series, " %s=%q", label.GetName(), label.GetValue())
			}
			if c := m.GetCounter(); c != nil {
				do(series.String(), c)
			}
		}
	}
}

const (
	carriedVersion = 1
	mostCarried    = 1 << 20 // bytes
)

// Save returns the counts that are handed on, also those that have come to be since the process was frozen.
func (s *scraped) Save() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	families, err := s.gatherLocked()
	if len(families) == 0 && err != nil {
		return nil, err
	}
	counts := make(map[string]int64)
	eachCarried(families, func(series string, c *dto.Counter) { counts[series] = int64(c.GetValue()) })
	return saved.Write(carriedVersion, counts)
}

// Restore adds what another process has saved to what is told here, in place of what an earlier Restore has added. An error
// changes nothing.
func (s *scraped) Restore(b []byte) error {
	counts, _, err := saved.Read[map[string]int64](b, carriedVersion, mostCarried)
	if err != nil {
		return fmt.Errorf("counters: %w", err)
	}
	for series, n := range counts {
		saved.Counts(&n)
		counts[series] = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = counts
	return nil
}

// freeze waits for scrapes that are under way.
func (s *scraped) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = s.gatherLocked()
	s.frozen = true
}

func (s *scraped) thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen, s.last, s.err = false, nil, nil
}
