package admin

import (
	"sync"
	"time"
)

// A Feed is the simplest Events there is. Its zero value is ready.
type Feed struct {
	// Keep is how many events are remembered. Zero means 1024. It must not be changed once there is one.
	Keep int

	mu   sync.Mutex
	ring []Event // the event with id n is at (n-1) % Keep
	last uint64  // id
	more chan struct{}
}

const keepEvents = 1024

// Publish adds an event, and gives it its number, and the present time if it has none. What it refers to must not change
// any more. It does not wait for readers. It may be called by several goroutines.
func (f *Feed) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := f.keep()
	if f.ring == nil {
		f.ring = make([]Event, keep)
	}
	f.last++
	e.ID = f.last
	f.ring[(e.ID-1)%keep] = e
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

func (f *Feed) keep() uint64 {
	if f.Keep <= 0 {
		return keepEvents
	}
	return uint64(f.Keep)
}

// Last returns the number of the last event, 0 if there has been none.
func (f *Feed) Last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// After returns up to most events that came after the one with that number, the oldest first, and how many of them are not
// remembered any more. If there are none yet, more is closed when there are. A number that there has not been is that of
// another process's: all events are after it.
func (f *Feed) After(id uint64, most int) (events []Event, lost uint64, more <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id > f.last {
		id = 0
	}
	if id == f.last {
		if f.more == nil {
			f.more = make(chan struct{})
		}
		return nil, 0, f.more
	}
	keep := f.keep()
	first := id + 1
	if f.last >= keep {
		first = max(first, f.last-keep+1)
	}
	n := min(f.last-first+1, uint64(max(1, most))) //nolint:gosec // not negative
	events = make([]Event, 0, n)
	for at := first; at < first+n; at++ {
		events = append(events, f.ring[(at-1)%keep])
	}
	return events, first - id - 1, nil
}
