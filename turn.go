package levee

import (
	"sync"
	"sync/atomic"
)

// A turn is what a goroutine takes to write, so that no other's bytes land among
// its own, or to accept. It is a mutex whose waiters wait at a channel: testing/synctest's time
// stands still for a goroutine that waits for a mutex. Taken without a rival it
// costs two additions.
type turn struct {
	takers atomic.Int32 // the one that has it, and those that wait
	once   sync.Once
	queue  chan struct{} // an element when it is passed on; made when somebody waits
}

func (t *turn) take() {
	if t.takers.Add(1) > 1 {
		<-t.line()
	}
}

func (t *turn) give() {
	if t.takers.Add(-1) > 0 {
		t.line() <- struct{}{} // does not block: only who has the turn can pass it on
	}
}

// taken reports whether somebody has it.
func (t *turn) taken() bool { return t.takers.Load() > 0 }

func (t *turn) line() chan struct{} {
	t.once.Do(func() { t.queue = make(chan struct{}, 1) })
	return t.queue
}
