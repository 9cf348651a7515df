package upstream

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/levee-net/levee/internal/saved"
	"github.com/levee-net/levee/upstream/internal/breaker"
)

const (
	savedVersion  = 1
	mostSaved     = 16 << 20 // bytes
	mostServers   = 10_000
	longestReason = 1024 // bytes, of what a check has found
)

// savedPool is what a pool knows, for that of another process.
type savedPool struct {
	Counts  savedCounts   `json:"counts"`
	Servers []savedServer `json:"servers"`
}

type savedCounts struct {
	Queued     int64 `json:"queued"`
	TurnedAway int64 `json:"turned_away"`
	Retries    int64 `json:"retries"`
	BudgetOut  int64 `json:"budget_exhausted"`
	Refused    int64 `json:"refused"`
	GaveUp     int64 `json:"gave_up"`
}

type savedServer struct {
	Name    string           `json:"name"`
	Breaker breaker.Snapshot `json:"breaker"`
	Health  *savedHealth     `json:"health,omitempty"` // nil if there was no check
	Drained bool             `json:"drained,omitempty"`
	Rising  time.Duration    `json:"rising,omitempty"` // for how long it has started slowly; 0: it does not
	Latency time.Duration    `json:"latency,omitempty"`
	Counts  savedTally       `json:"counts"`
}

type savedHealth struct {
	Down     bool      `json:"down"`
	Contrary int       `json:"contrary"`
	At       time.Time `json:"at"`
	Error    string    `json:"error,omitempty"`
}

type savedTally struct {
	Dials       int64            `json:"dials"`
	Failures    map[string]int64 `json:"failures"`
	EarlyCloses int64            `json:"early_closes"`
	Sent        int64            `json:"sent"`
	Received    int64            `json:"received"`
}

// Save returns what the pool knows of its servers, for Restore in the process that goes on in place of this one: whether
// their breakers are open and for how much longer, what health checks and operators say, how long connecting
// takes, and all that is counted. Of more than 10,000 servers it is that of some.
func (p *Pool) Save() ([]byte, error) {
	p.start()
	p.decideDue()
	defer p.news.tell()
	state := savedPool{Counts: p.counts.save()}
	members, _ := p.everybody()
	for _, m := range members[:min(len(members), mostServers)] {
		state.Servers = append(state.Servers, m.save())
	}
	return saved.Write(savedVersion, state)
}

// Restore has the pool know what another process has saved. What that has counted is added to what is counted
// here, in place of what an earlier Restore has added. The rest is for before Run: while that runs it
// knows better. It may come before the first Update: what is said of a server holds once there is one of its name.
//
// Nothing that is said is believed beyond what the pool's fields allow. An error changes nothing.
func (p *Pool) Restore(b []byte) error {
	p.start()
	state, age, err := saved.Read[savedPool](b, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("upstream %s: %w", p.Name, err)
	}
	defer p.news.tell()
	p.mu.Lock()
	defer p.mu.Unlock()
	state.Counts.check()
	p.counts.add(&state.Counts, &p.inheritedCounts)
	p.inheritedCounts = state.Counts
	p.inherited, p.inheritedAt = make(map[string]savedServer), time.Now().Add(-age)
	for _, s := range state.Servers[:min(len(state.Servers), mostServers)] {
		m := p.members[s.Name]
		if m == nil {
			p.inherited[s.Name] = s
			continue
		}
		if !p.running.Load() {
			m.inherit(&s, age)
		}
		m.inheritCounts(&s.Counts)
	}
	p.reassessLocked()
	return nil
}

func (c *counts) save() savedCounts {
	return savedCounts{
		Queued: c.queued.Load(), TurnedAway: c.turnedAway.Load(), Retries: c.retries.Load(),
		BudgetOut: c.budgetOut.Load(), Refused: c.refused.Load(), GaveUp: c.gaveUp.Load(),
	}
}

func (c *savedCounts) check() {
	saved.Counts(&c.Queued, &c.TurnedAway, &c.Retries, &c.BudgetOut, &c.Refused, &c.GaveUp)
}

func (t *savedTally) check() {
	saved.Counts(&t.Dials, &t.EarlyCloses, &t.Sent, &t.Received)
	for kind, n := range t.Failures {
		saved.Counts(&n)
		t.Failures[kind] = n
	}
}

// add adds what another process has counted, of which some has been added before.
func (c *counts) add(now, before *savedCounts) {
	c.queued.Add(now.Queued - before.Queued)
	c.turnedAway.Add(now.TurnedAway - before.TurnedAway)
	c.retries.Add(now.Retries - before.Retries)
	c.budgetOut.Add(now.BudgetOut - before.BudgetOut)
	c.refused.Add(now.Refused - before.Refused)
	c.gaveUp.Add(now.GaveUp - before.GaveUp)
}

func (m *member) save() savedServer {
	s := savedServer{Name: m.name, Breaker: m.breaker.Snapshot(), Drained: m.drained.Load(), Latency: m.latency.Value()}
	if began := m.rising.Load(); began != 0 {
		s.Rising = max(1, m.pool.clock()-time.Duration(began))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := &m.health; !h.lastAt.IsZero() {
		s.Health = &savedHealth{Down: m.down.Load(), Contrary: h.contrary, At: h.lastAt}
		if h.last != nil {
			s.Health.Error = reasonOf(h.last.Error())
		}
	}
	t := &m.tally
	s.Counts = savedTally{Dials: t.dials, Failures: make(map[string]int64), EarlyCloses: t.earlyCloses, Sent: t.sent, Received: t.received}
	for kind, n := range t.failures {
		if n > 0 {
			s.Counts.Failures[FailureKind(kind).String()] = n
		}
	}
	return s
}

// reasonOf returns a text that is not too long.
func reasonOf(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), longestReason)], "")
}

// inherit has the server be what another process knew of it, a while ago.
func (m *member) inherit(s *savedServer, ago time.Duration) {
	terms := &m.pool.terms
	if s.Drained {
		m.drained.Store(true)
	}
	m.breaker.Restore(s.Breaker, ago)
	if s.Latency > 0 && m.latency.Value() == 0 {
		m.latency.Observe(min(s.Latency, longestLatency))
	}
	if s.Rising > 0 && s.Rising < terms.slowStart && ago < terms.slowStart {
		began := int64(m.pool.clock() - s.Rising - ago)
		if began == 0 { // which would be none
			began = -1
		}
		m.rising.Store(began)
	}
	if h := s.Health; h != nil && terms.checks {
		m.mu.Lock()
		defer m.mu.Unlock()
		enough := terms.health.Fall
		if h.Down {
			enough = terms.health.Rise
		}
		m.health = checkup{contrary: min(max(h.Contrary, 0), enough-1), lastAt: earlier(h.At, time.Now())}
		if h.Error != "" {
			m.health.last = errors.New(reasonOf(h.Error))
		}
		m.down.Store(h.Down)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// longestLatency is far longer than anybody waits.
const longestLatency = time.Hour

// inheritCounts adds what another process has counted, in place of what was added before.
func (m *member) inheritCounts(now *savedTally) {
	now.check()
	m.mu.Lock()
	defer m.mu.Unlock()
	t, before := &m.tally, &m.inherited
	t.dials += now.Dials - before.Dials
	t.earlyCloses += now.EarlyCloses - before.EarlyCloses
	t.sent += now.Sent - before.Sent
	t.received += now.Received - before.Received
	for i := range t.failures {
		kind := FailureKind(i).String()
		t.failures[i] += now.Failures[kind] - before.Failures[kind]
	}
	m.inherited = *now
}
