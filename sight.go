package levee

import (
	"cmp"
	"iter"
	"slices"
	"time"
)

// A Sight is what shows of an open connection to somebody who does not serve it.
type Sight struct {
	Conn     *Conn
	Arriving bool // it has no handler yet
	Draining bool // it has been asked to leave
	OnLoop   bool // an event loop serves it, and no goroutine

	// Moved is when a byte last moved in either direction, or when the connection was
	// accepted. It is zero while that does not show: its handler is at work, or it waits
	// for a [Pacer].
	Moved time.Time

	// Held is how many bytes of the server's memory hold what has come from the client and
	// has not been taken, or has not been written yet.
	Held int
}

// Sights shows the open connections, in no order: each that is open all the while once, and
// those that come or go meanwhile or not. It looks at every one, and waits for event loops up
// to a tenth of a second, so it is for the pace of an operator. The connections may be used
// as those of [Server.Conns].
func (s *Server) Sights() iter.Seq[Sight] {
	return func(yield func(Sight) bool) {
		conns := s.Conns()
		onLoops := s.movedOnLoops() // later, so that it has those that go to one before
		slices.SortFunc(onLoops, func(a, b movedConn) int { return cmp.Compare(a.id, b.id) })
		for _, c := range conns {
			if c.over() {
				continue
			}
			if !yield(c.sight(onLoops)) {
				return
			}
		}
	}
}

// A movedConn is when a byte last moved on a connection, by the server's clock.
type movedConn struct {
	id uint64
	at time.Duration
}

// sight returns what shows; onLoops are sorted by id.
func (c *Conn) sight(onLoops []movedConn) Sight {
	c.mu.Lock()
	onLoop, stream := c.onLoop, c.stream.Load()
	draining := c.isAskedLocked()
	c.mu.Unlock()
	seen := Sight{Conn: c, Arriving: c.life.at[routed].Load() == 0, Draining: draining, Held: c.holdsIn(onLoop, stream)}
	moved, known := time.Duration(0), false
	switch {
	case onLoop:
		seen.OnLoop = true
		i, found := slices.BinarySearchFunc(onLoops, c.id, func(m movedConn, id uint64) int { return cmp.Compare(m.id, id) })
		if known = found; known {
			moved = max(onLoops[i].at, c.accepted)
		}
	case stream != nil:
		moved, known = stream.lastMoved()
	default: // it goes to a loop, by way of a dial or not
		moved, known = c.accepted, true
	}
	if known {
		seen.Moved = c.server.epoch.Add(moved)
	}
	return seen
}
