//go:build linux

package reactor

import "time"

// A Hurry is what a server under pressure has its loops cut short.
type Hurry struct {
	Idle    bool // Limits.Idle and HalfClosed, as Hurried does
	Goodbye bool // a peer that is still sending is not listened to before the close
	Narrow  bool // no more room in the kernel for a pair than it begins with
}

// Hurry has the loops cut short what it says, and no more than that, also for the
// connections that are there. It costs a message for each loop, which looks at all its
// connections if they have less time than before.
func (r *Reactor) Hurry(h Hurry) {
	for _, l := range r.loops {
		l.post(message{op: opAll, all: func(l *loop) { l.take(h) }})
	}
}

// take is a loop's Hurry. The wheel need not be told of more time: it looks, and
// finds that there is some.
func (l *loop) take(h Hurry) {
	before := l.hurry
	l.hurry = h
	less, narrower := h.Idle && !before.Idle, h.Narrow && !before.Narrow
	if !less && !narrower {
		return
	}
	for _, c := range l.conns {
		switch {
		case c == nil || c.owner == nil:
		case c.peer == nil:
			l.watch(c)
		case narrower && c.quick == wide:
			makeNarrow(c)
			fallthrough
		default:
			l.watchPair(c)
		}
	}
}

// idle returns how long a limit on silence is now.
func (l *loop) idle(limit time.Duration) time.Duration {
	if l.hurry.Idle {
		return Hurried(limit)
	}
	return limit
}

// A Sight is what a Survey shows of a connection, or of a pair.
type Sight struct {
	Owner Owner
	Moved time.Duration // when a byte last moved, since Epoch
}

// Epoch is when the loops' clock began.
func (r *Reactor) Epoch() time.Time { return r.epoch }

// Survey has each loop call tell with its connections, but for those that wait for a
// Pacer, have a call under way or are on their way out. It returns how many calls there will be:
// none after Close. tell must be quick, and must not panic.
func (r *Reactor) Survey(tell func([]Sight)) (calls int) {
	for _, l := range r.loops {
		if l.post(message{op: opAll, all: func(l *loop) { tell(l.survey()) }}) {
			calls++
		}
	}
	return calls
}

func (l *loop) survey() []Sight {
	seen := make([]Sight, 0, l.count())
	for _, c := range l.conns {
		switch {
		case c == nil || c.owner == nil:
		case c.peer != nil:
			if !c.waits() && !c.peer.waits() {
				l.askTaken(c)
				l.askTaken(c.peer)
				seen = append(seen, Sight{c.owner, time.Duration(lastSent(c))})
			}
		case !c.is(away|refused|parting) && !c.waits():
			l.askTaken(c)
			seen = append(seen, Sight{c.owner, time.Duration(c.active)})
		}
	}
	return seen
}

// count returns how many connections there are, and how many pairs twice.
func (l *loop) count() (n int) {
	for _, c := range l.conns {
		if c != nil && c.owner != nil {
			n++
		}
	}
	return n
}

// askTaken asks the kernel whether the peer has taken some of what waits for it.
func (l *loop) askTaken(c *Conn) {
	if !c.owes() || sendQueue(int(c.fd)) >= c.rest.queue {
		return
	}
	if c.peer != nil {
		l.waitFor(c)
		return
	}
	l.progress(c)
}
