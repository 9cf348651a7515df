package upstream

import (
	"context"
	"sync"
	"time"
)

// A deadlineContext is context.WithDeadline, but makes its timer only when somebody waits
// for its end. Connecting to a server that is near waits for nothing, and a timer costs as
// much as two system calls.
type deadlineContext struct {
	context.Context // its parent
	until           time.Time

	mu      sync.Mutex
	awaited context.Context // has the timer; nil until somebody waits
	stop    context.CancelFunc
}

// Deadline returns its own deadline, or its parent's if that is earlier.
func (c *deadlineContext) Deadline() (time.Time, bool) {
	if at, ok := c.Context.Deadline(); ok && at.Before(c.until) {
		return at, true
	}
	return c.until, true
}

// Done returns what is closed at its end.
func (c *deadlineContext) Done() <-chan struct{} { return c.await().Done() }

// Err says why it has ended, nil if it has not.
func (c *deadlineContext) Err() error { return c.await().Err() }

// Value has context.Cause find the one with the timer.
func (c *deadlineContext) Value(key any) any {
	c.mu.Lock()
	awaited := c.awaited
	c.mu.Unlock()
	if awaited != nil {
		return awaited.Value(key)
	}
	return c.Context.Value(key)
}

func (c *deadlineContext) await() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaited == nil {
		c.awaited, c.stop = context.WithDeadline(c.Context, c.until)
	}
	return c.awaited
}

// cancel ends the timer, and for those who wait the context. Nobody must begin to wait
// after it.
func (c *deadlineContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		c.stop()
	}
}
