package app

import (
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// A change is in what lets connections in: whoever would not be let in any more has to go. It is embedded in who
// looks after that.
type change struct {
	news  chan struct{}             // holds one when there has been a change that was not looked at
	since atomic.Pointer[time.Time] // when there was the last, if ever
}

// changed says that something else is in force.
func (n *change) changed() {
	now := time.Now()
	n.since.Store(&now)
	select {
	case n.news <- struct{}{}:
	default:
	}
}

// overtook reports whether the last change may have overtaken a connection that has just arrived: it was let in by what
// was in force before, and a sweep has not seen it.
func (n *change) overtook(c *levee.Conn) bool {
	since := n.since.Load()
	return since != nil && !c.Accepted().After(*since)
}

// forbid ends a connection that would not be let in, if it has not ended, and reports whether it has.
func forbid(c *levee.Conn, err error) bool {
	if err == nil || c.Reason() != levee.ReasonNone {
		return false
	}
	c.Forbid(err)
	return true
}
