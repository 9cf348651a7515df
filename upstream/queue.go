package upstream

import (
	"container/list"
	"context"
	"errors"
	"time"
)

// A waiter is a Dial that waits for a free place.
type waiter struct {
	key    uint64
	tried  []*member
	served chan *member // capacity 1; gets one that has been seized, or nil when there is none left to wait for
}

var (
	errQueueFull = errors.New("too many wait for a free connection")
	errWaited    = errors.New("no connection became free in time")
)

// await waits in the queue until a server has been seized for this Dial, at most until
// the given time, which may be zero. It returns nil without an error when there is no
// server left that waiting would help with.
func (p *Pool) await(ctx context.Context, key uint64, tried []*member, until time.Time) (*member, error) {
	w := &waiter{key: key, tried: tried, served: make(chan *member, 1)}
	place, err := p.enqueue(w)
	if err != nil {
		return nil, err
	}
	p.Trace.queued()
	var over <-chan time.Time
	if patience := p.patience(until); patience >= 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case m := <-w.served:
		return m, nil
	case <-ctx.Done():
		err = whyEnded(ctx)
	case <-over:
		err = errWaited
	}
	if p.stepOut(place) {
		return nil, err
	}
	return <-w.served, nil // it was served meanwhile
}

// patience is how long to wait at most, or negative for as long as the context lasts.
func (p *Pool) patience(until time.Time) time.Duration {
	patience := p.terms.queueTimeout
	if until.IsZero() {
		return setting(patience, -1, -1)
	}
	left := max(0, time.Until(until))
	if patience > 0 {
		return min(patience, left)
	}
	return left
}

func (p *Pool) enqueue(w *waiter) (*list.Element, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.Len() >= p.terms.maxQueue {
		p.counts.turnedAway.Add(1)
		return nil, errQueueFull
	}
	place := p.queue.PushBack(w)
	p.waiting.Add(1) // before looking once more: whoever gives a place back from now on sees it
	p.serveQueueLocked()
	p.counts.queued.Add(1)
	return place, nil
}

// stepOut takes a waiter out of the queue, and reports whether it was still in it.
func (p *Pool) stepOut(place *list.Element) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := place.Value.(*waiter)
	if len(w.served) > 0 {
		return false
	}
	p.queue.Remove(place)
	p.waiting.Add(-1)
	return true
}

func (p *Pool) serveQueue() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serveQueueLocked()
}

// serveQueueLocked gives the waiters servers, in order, while there are any.
func (p *Pool) serveQueueLocked() {
	for place := p.queue.Front(); place != nil; {
		w, next := place.Value.(*waiter), place.Next()
		m, full := p.take(w.key, w.tried)
		switch {
		case m != nil || !full:
			p.queue.Remove(place)
			p.waiting.Add(-1)
			w.served <- m
		case len(w.tried) == 0:
			return // what this one cannot have, none behind it can
		}
		place = next
	}
}
