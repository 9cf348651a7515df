package levee

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// An exodus is in which order, and when, a server's connections are asked to leave, and are told to hasten when the
// time is running out: the quiet ones are asked first, and the oldest are hastened first.
type exodus struct {
	server *Server
	turns  []summons // those to come
	haste  bool      // they are to hasten
	late   time.Time // when the time is running out; zero if it does not
	over   time.Time // when it is
}

// A summons is when a connection is told.
type summons struct {
	conn *Conn
	at   time.Time
}

const (
	crowdLeaves = 1000            // connections that may all come back at once
	hasteTime   = 5 * time.Second // before the deadline, at most
	spreadShare = 5               // of the time, the part in which all are asked to leave, and the one to hasten
)

func (s *Server) exodus(ctx context.Context) *exodus {
	e := &exodus{server: s}
	now, left := time.Now(), s.inForce.Load().limits.drain
	if deadline, ok := ctx.Deadline(); ok {
		left = max(0, deadline.Sub(now))
		e.over = deadline
		e.late = deadline.Add(-min(hasteTime, left/spreadShare))
	}
	conns := s.Conns()
	spread := s.drainSpread(len(conns), left)
	if spread > 0 {
		conns = s.quietFirst()
	}
	e.inTurn(conns, now, spread)
	return e
}

// drainSpread returns how long it takes to ask so many, who are cut when the time that is left is over.
func (s *Server) drainSpread(conns int, left time.Duration) time.Duration {
	spread, share := s.inForce.Load().limits.drainSpread, time.Duration(2)
	if spread == 0 {
		spread, share = time.Duration(max(0, conns-crowdLeaves))*time.Millisecond, spreadShare
	}
	if left >= 0 {
		spread = min(spread, left/share)
	}
	return max(0, spread)
}

// quietFirst returns the open connections: first those on which nothing has moved for the longest time, and last those
// that are at work.
func (s *Server) quietFirst() []*Conn {
	seen := slices.Collect(s.Sights())
	slices.SortFunc(seen, func(a, b Sight) int {
		switch {
		case a.Moved.IsZero() == b.Moved.IsZero():
			return a.Moved.Compare(b.Moved)
		case a.Moved.IsZero():
			return 1
		}
		return -1
	})
	conns := make([]*Conn, len(seen))
	for i := range seen {
		conns[i] = seen[i].Conn
	}
	return conns
}

// inTurn has all told within the time from then on, each at a random moment of its part of it.
func (e *exodus) inTurn(conns []*Conn, from time.Time, within time.Duration) {
	e.turns = make([]summons, len(conns))
	for i, c := range conns {
		part := (float64(i) + rand.Float64()) / float64(len(conns)) //nolint:gosec // spreads load, keeps no secret
		e.turns[i] = summons{c, from.Add(time.Duration(part * float64(within)))}
	}
}

// goOn tells those whose turn has come, and returns when to go on.
func (e *exodus) goOn() (wait time.Duration) {
	now := time.Now()
	if !e.late.IsZero() && !e.haste && !now.Before(e.late) {
		e.tell(len(e.turns))
		e.haste = true
		e.inTurn(oldestFirst(e.server.Conns()), e.late, e.over.Sub(e.late)/2)
	}
	due, _ := slices.BinarySearchFunc(e.turns, now, func(t summons, now time.Time) int {
		if t.at.After(now) {
			return 1
		}
		return -1
	})
	e.tell(due)
	wait = tooLong
	if len(e.turns) > 0 {
		wait = time.Until(e.turns[0].at)
	}
	if !e.late.IsZero() && !e.haste {
		wait = min(wait, time.Until(e.late))
	}
	return wait
}

// tell tells the next of them.
func (e *exodus) tell(many int) {
	next := e.turns[:many]
	e.turns = e.turns[many:]
	if e.haste {
		for _, t := range next {
			t.conn.hasten()
		}
		return
	}
	askToLeave(next)
}

// askToLeave asks first and tells the Trace afterwards, on the side: a hook that blocks delays neither the others nor
// the deadline.
func askToLeave(next []summons) {
	var told []*Conn
	for _, t := range next {
		if t.conn.ask(Drained, nil) {
			told = append(told, t.conn)
		}
	}
	if len(told) > 0 {
		go tellAllDraining(told) // ends with the last hook; each connection's Closed waits for its own
	}
}

func tellAllDraining(conns []*Conn) {
	for _, c := range conns {
		c.tellDraining()
	}
}

// oldestFirst sorts them.
func oldestFirst(conns []*Conn) []*Conn {
	slices.SortFunc(conns, func(a, b *Conn) int { return cmp.Compare(a.id, b.id) })
	return conns
}

// hasten has a joined connection that was asked to leave be content with less of a quiet moment.
func (c *Conn) hasten() {
	if reason, _ := c.asked(); reason == ReasonNone {
		return
	}
	c.endCourtesy()
	switch onLoop, s := c.place(); {
	case onLoop:
		c.looped.hasten()
	case s != nil:
		if j := s.joint.Load(); j != nil {
			j.hasty.Store(true)
			j.leaveInQuiet()
		}
	}
}
