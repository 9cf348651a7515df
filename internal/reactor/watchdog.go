//go:build linux

package reactor

import (
	"sync"
	"sync/atomic"
	"time"
)

// A watchdog takes loops away from calls that outlive their budget. It ticks while
// there is something to watch, and sleeps when all loops do.
type watchdog struct {
	asleep atomic.Bool
	awake  chan struct{}
	quit   chan struct{}
	over   sync.WaitGroup
}

// restful is after how many ticks without a call it sleeps.
const restful = 20

func (w *watchdog) start(r *Reactor) {
	w.awake, w.quit = make(chan struct{}, 1), make(chan struct{})
	w.over.Add(1)
	go w.run(r) // ends with stop
}

func (w *watchdog) stop() {
	if w.quit != nil {
		close(w.quit)
		w.over.Wait()
	}
}

// stir wakes the watchdog. A loop does so with every batch: most of the time it is
// one look at a flag.
func (w *watchdog) stir() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		select {
		case w.awake <- struct{}{}:
		default:
		}
	}
}

func (w *watchdog) run(r *Reactor) {
	defer w.over.Done()
	seen := make([]uint64, len(r.loops)) // the call each loop was in at the last tick
	batches := make([]uint64, len(r.loops))
	ticker := time.NewTicker(r.budget)
	defer ticker.Stop()
	quiet, before := 0, time.Now()
	looked := before // at the calls
	for {
		select {
		case <-w.quit:
			return
		case <-ticker.C:
		}
		now := time.Now()
		if now.Sub(looked) < r.budget/2 {
			continue // right behind a late tick: no call has outlived anything
		}
		if now.Sub(before) < 2*r.budget {
			r.lane.widen()
		}
		before = now
		quiet++
		for i, l := range r.loops {
			number := l.call.number.Load()
			if number != 0 && number == seen[i] && l.seize(number, looked) {
				number = 0
			}
			seen[i] = number
			if b := l.batches.Load(); b != batches[i] || number != 0 {
				batches[i], quiet = b, 0
			}
		}
		looked = time.Now() // and not before, as it may have waited for a processor
		if quiet < restful || r.lane.waits() {
			continue
		}
		w.asleep.Store(true)
		if r.stirred(batches) { // a loop that did not find it asleep yet
			w.asleep.Store(false)
			continue
		}
		ticker.Stop()
		select {
		case <-w.quit:
			return
		case <-w.awake:
		}
		ticker.Reset(r.budget)
		quiet, before = 0, time.Now()
		looked = before
	}
}

// stirred reports whether a loop has begun a batch since.
func (r *Reactor) stirred(since []uint64) bool {
	for i, l := range r.loops {
		if l.batches.Load() != since[i] {
			return true
		}
	}
	return false
}
