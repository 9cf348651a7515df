package breaker

import (
	"sync"
	"time"
)

// A Budget bounds retries to a share of the recent first tries, so that they do not bury
// servers that are in trouble already. Its methods may be called from any goroutine.
type Budget struct {
	share float64
	floor float64
	born  time.Time

	mu     sync.Mutex
	recent window // first tries, retries
}

// NewBudget returns a budget that has not seen any tries. It allows retries up to a share
// of the first tries, or up to the floor, whichever is more, both within the window, which
// it keeps to within a tenth. Zero means 0.2, 3 and 10 seconds; a negative share or floor
// allows none by itself; a negative window means 10 seconds.
func NewBudget(share float64, floor int, length time.Duration) *Budget {
	return &Budget{
		share:  or(share, 0.2, 0),
		floor:  float64(or(floor, 3, 0)),
		born:   time.Now(),
		recent: newWindow(or(length, 10*time.Second, 10*time.Second)),
	}
}

const (
	try   = 0
	retry = 1
)

// Try tells of a first try.
func (b *Budget) Try() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recent.add(time.Since(b.born), try)
}

// Retry reports whether there may be a retry, and if so counts it.
func (b *Budget) Retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Since(b.born)
	tries, retries := b.recent.counts(now)
	if float64(retries+1) > max(b.floor, b.share*float64(tries)) {
		return false
	}
	b.recent.add(now, retry)
	return true
}
