package breaker_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

// A model is a breaker that forgets nothing: it has a list of all that happened, and knows
// which attempt is which.
type model struct {
	breaker.Settings
	now      time.Duration
	state    breaker.State
	events   []event         // since it was closed
	attempts []int           // those under way: how often it had opened when they were allowed
	opened   int             // how often
	lengths  []time.Duration // of each time it was open, since it was well for long
	until    time.Duration
	closed   time.Duration // when
	proofs   int
	told     []string
}

type event struct {
	at      time.Duration
	failure bool
}

func (m *model) pass(d time.Duration) {
	m.now += d
}

func (m *model) look() {
	if m.state == breaker.Open && m.now >= m.until {
		m.turn(breaker.HalfOpen)
		m.proofs = 0
	}
}

func (m *model) turn(to breaker.State) {
	if m.state != to {
		m.told = append(m.told, fmt.Sprintf("%v to %v", m.state, to))
	}
	m.state = to
}

func (m *model) open() {
	if m.state == breaker.Closed && m.now-m.closed >= m.MaxOpen {
		m.lengths = nil
	}
	length := m.Open
	for range m.lengths {
		length = min(2*length, m.MaxOpen)
	}
	m.lengths = append(m.lengths, length)
	m.until = m.now + length
	m.opened++
	m.turn(breaker.Open)
}

func (m *model) close() {
	m.events, m.closed = nil, m.now
	m.turn(breaker.Closed)
}

func (m *model) ready() bool {
	halfOpen := m.state == breaker.HalfOpen || m.state == breaker.Open && m.now >= m.until
	if !halfOpen {
		return m.state == breaker.Closed
	}
	probes := 0
	for _, before := range m.attempts {
		if before < m.opened {
			return false
		}
		probes++
	}
	if m.state == breaker.Open || m.proofs == 0 {
		return probes == 0
	}
	return probes < m.Probes
}

func (m *model) allow() bool {
	m.look()
	if !m.ready() {
		return false
	}
	m.attempts = append(m.attempts, m.opened)
	return true
}

func (m *model) done(attempt int, o breaker.Outcome) {
	m.look()
	before := m.attempts[attempt]
	m.attempts = slices.Delete(m.attempts, attempt, attempt+1)
	switch {
	case m.state == breaker.Closed:
		m.count(o)
	case m.state == breaker.HalfOpen && before == m.opened:
		switch o {
		case breaker.Failure:
			m.open()
		case breaker.Success:
			m.proofs++
			if m.proofs == m.Probes {
				m.close()
			}
		}
	}
}

func (m *model) report(o breaker.Outcome) {
	m.look()
	if m.state == breaker.Closed {
		m.count(o)
	}
}

func (m *model) count(o breaker.Outcome) {
	if o == breaker.Ignored {
		return
	}
	m.events = append(m.events, event{m.now, o == breaker.Failure})
	if o == breaker.Success {
		return
	}
	row := 0
	for i := len(m.events) - 1; i >= 0 && m.events[i].failure; i-- {
		row++
	}
	all, failures := 0, 0
	for _, e := range m.events {
		if step := m.Window / 10; e.at/step > m.now/step-10 {
			all++
			if e.failure {
				failures++
			}
		}
	}
	byRow := m.Failures > 0 && row >= m.Failures
	byRate := m.Rate > 0 && all >= m.Volume && float64(failures) >= m.Rate*float64(all)
	if byRow || byRate {
		m.open()
	}
}

// A step is what is done to both.
type step struct {
	what    string
	outcome breaker.Outcome
	which   int // of the attempts under way
	wait    time.Duration
}

var anyStep = rapid.Custom(func(t *rapid.T) step {
	return step{
		what: rapid.SampledFrom([]string{
			"allow", "allow", "allow", "allow", "allow", "allow", "done", "done", "done", "done", "done", "done",
			"report", "report", "wait", "wait", "wait", "wait", "state", "state", "trip", "reset",
		}).Draw(t, "what"),
		outcome: rapid.SampledFrom([]breaker.Outcome{
			breaker.Success, breaker.Success, breaker.Failure, breaker.Failure, breaker.Ignored,
		}).Draw(t, "outcome"),
		which: rapid.IntRange(0, 100).Draw(t, "which"),
		wait:  time.Duration(rapid.IntRange(0, 100).Draw(t, "wait")) * 100 * time.Millisecond,
	}
})

func TestBreakerDoesWhatItsModelDoes(t *testing.T) {
	reached := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		seconds := func(least, most int, label string) time.Duration {
			return time.Duration(rapid.IntRange(least, most).Draw(rt, label)) * time.Second
		}
		s := breaker.Settings{
			Failures: rapid.SampledFrom([]int{-1, 1, 2, 3, 4}).Draw(rt, "failures"),
			Rate:     rapid.SampledFrom([]float64{-1, 0.3, 0.5, 1}).Draw(rt, "rate"),
			Volume:   rapid.IntRange(1, 6).Draw(rt, "volume"),
			Window:   seconds(1, 10, "window"),
			Open:     seconds(1, 5, "open"),
			Probes:   rapid.IntRange(1, 4).Draw(rt, "probes"),
		}
		s.MaxOpen = s.Open + seconds(0, 20, "max open")
		script := rapid.SliceOfN(anyStep, 100, 300).Draw(rt, "script")
		difference := ""
		synctest.Test(t, func(*testing.T) { difference = compare(s, script, reached) })
		if difference != "" {
			rt.Fatal(difference)
		}
	})
	for _, change := range []string{
		"closed to open", "open to half_open", "half_open to open", "half_open to closed", "open to closed",
	} {
		if reached[change] < 20 {
			t.Errorf("%s was tried %d times: the scripts are too tame", change, reached[change])
		}
	}
}

// compare plays the script to a breaker and to its model, and returns where they differ.
func compare(s breaker.Settings, script []step, reached map[string]int) string {
	m := &model{Settings: s}
	began := time.Now()
	var told []string
	b := breaker.New(s, func(from, to breaker.State) { told = append(told, fmt.Sprintf("%v to %v", from, to)) })
	for i, step := range script {
		switch step.what {
		case "allow":
			if got, want := b.Allow(), m.allow(); got != want {
				return fmt.Sprintf("step %d: Allow says %v", i, got)
			}
		case "done":
			if len(m.attempts) == 0 {
				continue
			}
			b.Done(step.outcome)
			m.done(m.attemptToEnd(step.which), step.outcome)
		case "report":
			b.Report(step.outcome)
			m.report(step.outcome)
		case "wait":
			time.Sleep(step.wait) // virtual time
			m.pass(step.wait)
		case "state":
			m.look()
			if got := b.State(); got != m.state {
				return fmt.Sprintf("step %d: %v, want %v", i, got, m.state)
			}
		case "trip":
			b.Trip()
			m.look()
			if m.state != breaker.Open {
				m.open()
			}
		case "reset":
			b.Reset()
			m.look()
			m.close()
			m.lengths = nil
		}
		if got, want := b.Ready(), m.ready(); got != want {
			return fmt.Sprintf("step %d: Ready says %v", i, got)
		}
		if !slices.Equal(told, m.told) {
			return fmt.Sprintf("step %d: told %q, want %q", i, told, m.told)
		}
		if step.which%3 != 0 {
			continue // Until notices, too: not after each step
		}
		m.look()
		want := time.Time{}
		if m.state == breaker.Open {
			want = began.Add(m.until)
		}
		if got := b.Until(); !got.Equal(want) {
			return fmt.Sprintf("step %d: until %v, want %v", i, got, want)
		}
	}
	for _, change := range told {
		reached[change]++
	}
	return ""
}

// attemptToEnd picks one of the attempts under way, whichever they are: the breaker is
// not told which, and cannot mistake a stranger for a probe, as both are never there.
func (m *model) attemptToEnd(which int) int { return which % len(m.attempts) }

func TestBudgetDoesWhatItsModelDoes(t *testing.T) {
	refused, granted := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		share := rapid.SampledFrom([]float64{0.1, 0.25, 0.5, 1, 1.5}).Draw(rt, "share")
		floor := rapid.IntRange(1, 4).Draw(rt, "floor")
		window := time.Duration(rapid.IntRange(1, 10).Draw(rt, "window")) * time.Second
		script := rapid.SliceOfN(rapid.IntRange(0, 10), 50, 300).Draw(rt, "script")
		difference := ""
		synctest.Test(t, func(*testing.T) {
			b, began := breaker.NewBudget(share, floor, window), time.Now()
			var tries, retries []time.Duration
			recent := func(events []time.Duration) (n float64) {
				for _, at := range events {
					if step := window / 10; at/step > time.Since(began)/step-10 {
						n++
					}
				}
				return n
			}
			for i, what := range script {
				now := time.Since(began)
				switch {
				case what < 5:
					b.Try()
					tries = append(tries, now)
				case what < 9:
					want := recent(retries)+1 <= float64(floor) || recent(retries)+1 <= share*recent(tries)
					if got := b.Retry(); got != want {
						difference = fmt.Sprintf("step %d: Retry says %v", i, got)
						return
					}
					if want {
						retries = append(retries, now)
						granted++
					} else {
						refused++
					}
				default:
					time.Sleep(window * time.Duration(what-8) / 7) // virtual time
				}
			}
		})
		if difference != "" {
			rt.Fatal(difference)
		}
	})
	if refused < 100 || granted < 100 {
		t.Errorf("%d granted, %d refused: the scripts are too tame", granted, refused)
	}
}
