package upstream

import (
	"time"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

// Breaker is when a server's circuit breaker opens, so that it gets no connections, and
// how it closes again. Either of the two limits opens it.
type Breaker struct {
	// Failures is how many failures in a row open it. Zero means 5, negative any
	// number.
	Failures int

	// Rate is the share of failures within Window that opens it, if there were at least
	// Volume connections. Zero means 0.5, 20 and 10 seconds; a negative Rate any share.
	Rate   float64
	Volume int
	Window time.Duration

	// Open is how long it stays open at first. It doubles each time it opens again
	// soon, up to MaxOpen. Zero means 10 seconds and a minute.
	Open    time.Duration
	MaxOpen time.Duration

	// Probes is how many connections have to succeed then, while it is half-open, for it
	// to close. The first of them goes alone. Zero means 3.
	Probes int
}

func (b Breaker) settings() breaker.Settings {
	return breaker.Settings{
		Failures: b.Failures,
		Rate:     b.Rate,
		Volume:   b.Volume,
		Window:   b.Window,
		Open:     b.Open,
		MaxOpen:  b.MaxOpen,
		Probes:   b.Probes,
	}
}

// A BreakerState is a circuit breaker's state. Its numbers are those of metrics.
type BreakerState uint8

// The states.
const (
	BreakerClosed   = BreakerState(breaker.Closed)   // 0: connections pass
	BreakerHalfOpen = BreakerState(breaker.HalfOpen) // 1: a few do, to see what becomes of them
	BreakerOpen     = BreakerState(breaker.Open)     // 2: none do
)

// String returns the state's word: closed, half_open or open.
func (s BreakerState) String() string { return breaker.State(s).String() }
