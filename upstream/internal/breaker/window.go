package breaker

import "time"

const steps = 10

// A window counts events of two kinds that were not long ago. It forgets them a tenth of
// its length at a time, so that it takes the same memory for any number of them.
type window struct {
	step   time.Duration
	newest int64 // step
	events [steps][2]int
}

func newWindow(length time.Duration) window {
	return window{step: max(length/steps, 1)}
}

func (w *window) add(now time.Duration, kind int) {
	w.forget(now)
	w.events[w.newest%steps][kind]++
}

// put adds several at once, which are remembered as long as if they had just been.
func (w *window) put(now time.Duration, first, second int) {
	w.forget(now)
	e := &w.events[w.newest%steps]
	e[0] += first
	e[1] += second
}

func (w *window) counts(now time.Duration) (first, second int) {
	w.forget(now)
	for _, e := range w.events {
		first += e[0]
		second += e[1]
	}
	return first, second
}

func (w *window) forget(now time.Duration) {
	newest := int64(now / w.step)
	for range min(newest-w.newest, steps) {
		w.newest++
		w.events[w.newest%steps] = [2]int{}
	}
	w.newest = newest
}
