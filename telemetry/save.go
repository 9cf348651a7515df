package telemetry

import (
	"fmt"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/saved"
)

const (
	savedVersion = 1
	mostSaved    = 16 << 20 // bytes
)

// savedMetrics are what has been counted and observed, for the process that goes on with that.
type savedMetrics struct {
	Servers    map[string]savedStats     `json:"servers"` // by name
	Histograms map[string]savedHistogram `json:"histograms"`
}

type savedStats struct {
	Counts  map[string]int64 `json:"counts"`  // by their words in growing
	Closed  map[string]int64 `json:"closed"`  // by reason
	Refused map[string]int64 `json:"refused"` // by reason
}

// A savedHistogram is of cells with something in them, by the upper bound that they had: another process may have others.
type savedHistogram struct {
	Born  int64           `json:"born"`  // in nanoseconds since 1970
	Sum   int64           `json:"sum"`   // in microseconds
	Cells map[int64]int64 `json:"cells"` // in nanoseconds
}

// Save returns what has been counted and observed, for Restore in the process that goes on in place of this one: the counts
// of the servers that are watched, by their names, and all histograms but their exemplars.
func (m *Metrics) Save() ([]byte, error) {
	state := savedMetrics{Servers: make(map[string]savedStats), Histograms: make(map[string]savedHistogram)}
	for _, server := range m.collect() {
		state.Servers[server.name] = saveStats(server.stats)
	}
	for name, h := range m.histograms() {
		state.Histograms[name] = h.save()
	}
	return saved.Write(savedVersion, state)
}

// Restore adds what another process has saved to what is counted and observed here, in place of what an earlier Restore
// has added. So it may be called with what that process had counted when this one began to serve, lest a
// counter fall and be taken for one that has begun anew, and once more when that one has ended. The counts show when there
// is a server of the name. An error changes nothing.
func (m *Metrics) Restore(b []byte) error {
	state, _, err := saved.Read[savedMetrics](b, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inherited = make(map[string]levee.Stats, len(state.Servers))
	for name, s := range state.Servers {
		m.inherited[name] = s.stats()
	}
	for name, h := range m.histograms() {
		h.inherit(state.Histograms[name])
	}
	return nil
}

// histograms returns all of them, by the words that they are saved by.
func (m *Metrics) histograms() map[string]*histogram {
	all := map[string]*histogram{
		"duration": m.durations, "handshake": m.handshakes, "tcp_round_trip": m.roundTrips, "tcp_retransmits": m.retransmits,
	}
	for p, h := range m.phases {
		if h != nil {
			all["phase "+levee.Phase(p).String()] = h //nolint:gosec // it is one
		}
	}
	return all
}

func saveStats(s levee.Stats) savedStats {
	to := savedStats{Counts: make(map[string]int64), Closed: make(map[string]int64), Refused: make(map[string]int64)}
	for word, of := range growing {
		to.Counts[word] = *of(&s)
	}
	for reason, n := range s.Closed {
		to.Closed[reason.String()] = n
	}
	for reason, n := range s.Refused {
		to.Refused[reason.String()] = n
	}
	return to
}

func (from *savedStats) stats() levee.Stats {
	s := levee.Stats{Closed: make(map[levee.CloseReason]int64), Refused: make(map[levee.CloseReason]int64)}
	for word, of := range growing {
		*of(&s) = counted(from.Counts[word])
	}
	for _, reason := range levee.CloseReasons() {
		if n := counted(from.Closed[reason.String()]); n > 0 {
			s.Closed[reason] = n
		}
		if n := counted(from.Refused[reason.String()]); n > 0 {
			s.Refused[reason] = n
		}
	}
	return s
}

func counted(n int64) int64 {
	saved.Counts(&n)
	return n
}

func (h *histogram) save() savedHistogram {
	s := savedHistogram{Born: h.born.Load(), Sum: h.sum.Load(), Cells: make(map[int64]int64)}
	for i, upTo := range h.upTo {
		if n := h.cells[i].Load(); n > 0 {
			s.Cells[int64(upTo)] = int64(n) //nolint:gosec // not so many
		}
	}
	return s
}

// mostObserved is what a cell is believed to have: the sum of all is far from an overflow.
const mostObserved = 1 << 50

// inherit adds what another process has observed, in place of what was added before.
func (h *histogram) inherit(now savedHistogram) {
	before := h.inherited
	saved.Counts(&now.Sum)
	for upTo, n := range now.Cells {
		now.Cells[upTo] = min(max(n, 0), mostObserved)
	}
	h.inherited = now
	h.sum.Add(now.Sum - before.Sum)
	added := make(map[int]int64) // by cell; all at once, as a scrape may look at it meanwhile
	for upTo, n := range now.Cells {
		added[h.cellOf(time.Duration(max(upTo, 0)))] += n
	}
	for upTo, n := range before.Cells {
		added[h.cellOf(time.Duration(max(upTo, 0)))] -= n
	}
	for cell, n := range added {
		h.cells[cell].Add(uint64(n)) //nolint:gosec // the sum is not negative
	}
	if now.Born > 0 {
		h.born.Store(min(h.born.Load(), now.Born))
	}
}
