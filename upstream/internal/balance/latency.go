package balance

import (
	"math"
	"sync"
	"time"
)

// memory is the time after which 1/e of what was observed is left. It is Finagle's.
const memory = 10 * time.Second

// A Latency is a moving average that is quick to believe bad news: it rises to a peak at
// once, and goes down exponentially, with a time constant of 10 s, towards what is
// observed (Finagle's and Linkerd's peak EWMA). Where nothing is observed it goes down
// towards 0: a server that was avoided for being slow is tried again.
//
// The zero Latency has observed nothing. Its methods may be called from any goroutine.
type Latency struct {
	mu    sync.Mutex
	value float64 // nanoseconds, as of then
	then  time.Time
}

// Observe takes another measurement into account. One below 1 ns counts as 1 ns: it is
// known.
func (l *Latency) Observe(d time.Duration) {
	now, observed := time.Now(), float64(max(d, 1))
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.leftLocked(now)
	l.value = max(observed, l.value*left+observed*(1-left))
	l.then = now
}

// Value returns the average, decayed as of now. It is 0 if nothing has been observed, or
// nothing for so long that it says nothing.
func (l *Latency) Value() time.Duration {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(math.Round(l.value * l.leftLocked(now)))
}

// leftLocked returns how much of the value is left now.
func (l *Latency) leftLocked(now time.Time) float64 {
	if l.value == 0 {
		return 0
	}
	return math.Exp(-max(0, now.Sub(l.then).Seconds()) / memory.Seconds())
}
