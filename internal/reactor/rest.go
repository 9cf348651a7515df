//go:build linux

package reactor

import "cmp"

// An Overhearer is the Owner of a pair that can tell by what the far connection sends whether the pair may leave
// without harm. Its methods are called by the loop: they must be quick, and must not panic.
type Overhearer interface {
	Owner

	// Overhear is given what the far connection has sent, and must not keep it; or nil for bytes that have gone
	// through a pipe, which nobody has seen. They are the answer's first if the near one has had its say since.
	Overhear(b []byte, first bool)

	// Rest is asked of a pair that is to leave.
	Rest() Rest
}

// What the bits and fields of calls, which a far connection has none of, mean for one.
const (
	hastened  = leaving // its pair, which is to leave, has not much time to
	overheard = 1       // dear: the owner is an Overhearer
)

func (r *Reactor) setQuiet(o Options) {
	r.quiet = cmp.Or(o.Quiet, QuietTime)
	r.deliver = int64(cmp.Or(o.Deliver, DeliverTime))
}

// Hasten has a pair that was asked to leave do so at less of a quiet moment: its time is running out. It may be
// called from any goroutine, and more than once, and does nothing to other connections.
func (c *Conn) Hasten() { c.loop.post(message{op: opHasten, conn: c}) }

// hasten is Hasten.
func (l *loop) hasten(c *Conn) bool {
	if c.peer == nil {
		return true
	}
	c.peer.set(hastened)
	return l.leaveInQuiet(c)
}

// isOverheard reports whether c is a far connection, and the owner listens.
func (c *Conn) isOverheard() bool { return c.owner == nil && c.dear == overheard }

// overhear has the owner listen to what c is about to have sent.
func (l *loop) overhear(c *Conn, b []byte) {
	if c.isOverheard() {
		near := c.peer
		near.owner.(Overhearer).Overhear(b, near.active > c.active)
	}
}

// rests returns what is known of a pair.
func (c *Conn) rests() Rest {
	if !c.peer.isOverheard() {
		return RestUnknown
	}
	return c.owner.(Overhearer).Rest()
}

// leaveInQuiet ends a pair that was asked to leave when it is at rest.
func (l *loop) leaveInQuiet(near *Conn) bool {
	if !near.is(leaving) || near.is(gone) {
		return true
	}
	if at := l.restsAt(near); l.now < at {
		l.wheel.put(near, at)
		return true
	}
	return l.endPair(near, Left, nil)
}

// leaveAtRest is leaveInQuiet after each thing that happens to a pair, if more is known of it than that it is quiet.
func (l *loop) leaveAtRest(near *Conn) bool {
	if !near.is(leaving) || !near.peer.isOverheard() {
		return true
	}
	return l.leaveInQuiet(near)
}

// restsAt returns when a pair is at rest if nothing happens until then, or when to look again: nothing has moved
// for a moment, and the far side has had the last word. As far as can be seen from outside, nobody waits for an
// answer then.
func (l *loop) restsAt(near *Conn) int64 {
	far, rest := near.peer, near.rests()
	hasty := far.is(hastened)
	quiet := int64(Quiet(l.reactor.quiet, rest, hasty))
	at := lastSent(near) + quiet
	switch {
	case rest == NotAtRest:
		return l.now + int64(l.reactor.quiet)
	case rest == AtRest && hasty: // it may have its next to say before it has acknowledged the answer
		if !near.is(paused) && !near.awaitsAnswer() && !near.owes() && unread(int(near.fd)) == 0 && !far.busy() {
			return l.now
		}
	case at > l.now: // the kernel is asked then
		return at
	case !near.is(paused) && !near.awaitsAnswer() && !near.busy() && !far.busy():
		return at
	}
	return max(at, l.now+max(quiet, wheelTick))
}

// awaitsAnswer reports whether the near one of a pair has sent something, and last.
func (c *Conn) awaitsAnswer() bool { return c.active > c.peer.active && c.read.Load() > 0 }

// busy reports whether bytes wait to be read, or for the peer to take them, be it here or
// in the kernel.
func (c *Conn) busy() bool { return c.owes() || sendQueue(int(c.fd)) > 0 || unread(int(c.fd)) > 0 }
