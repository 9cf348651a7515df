package levee

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A Pacer keeps bytes to a rate. limit.Bucket is one. Its methods are called from several
// goroutines, also for one connection; and by event loops, which whatever they do holds up:
// they must be quick, and must not block or panic.
//
// To keep a rate it should let some 20 milliseconds' worth of bytes go at once: a connection
// is not always there in the moment in which it might go on.
type Pacer interface {
	// Chunk is how many bytes may be moved at once, at most. It is at least 1. Below 16 KiB
	// bulk is copied that would stay inside the kernel else. Connections that share a Pacer
	// take turns of a chunk, which are even where it is no more than 32 KiB.
	Chunk() int
	// Spend is told of n bytes that have been moved, and returns how long to wait before
	// more are. It may be more than Chunk: by what TLS adds, by a flight of its handshake, or
	// by what a [Stepper] has answered at once. A wait of less than a millisecond is left
	// out; it shows in the next, as the Pacer counts what has not been waited for.
	Spend(n int) time.Duration
}

// Pace keeps what comes from the client to in, and what goes to it to out: on the wire, so
// with what TLS adds. Nil is no limit. A Pacer that several connections have they share.
//
// It must be called before the connection is served: by a [Gate], by a [Router], in
// [Trace.Accepted] or in [Trace.Serving]; and holds wherever the connection is served then.
// What has been read or written before is not counted.
//
// A connection that has to wait is not read, and holds no buffer for that; of one that is
// joined to an upstream, or copied from with io.Copy, neither is what its bytes come from. A
// Stepper's connection is not read while either direction has to wait. A Write blocks. None of
// the server's timeouts takes that for silence, and whatever ends the connection ends the wait; so
// does its client's reset of it, on Linux over TCP.
// So does a request to leave where there is nothing to be answered any more, and for [Conn.Next].
func (c *Conn) Pace(in, out Pacer) {
	if s := c.stream.Load(); s != nil {
		s.wire.keepTo(in, out)
		return
	}
	c.looped.keepTo(in, out)
}

// pacing is what a wire is kept to.
type pacing struct{ in, out meter }

// A meter keeps one direction of a wire to a Pacer.
type meter struct {
	pacer Pacer
	out   bool
	until atomic.Int64 // clock when more may be moved
}

// keepTo is Conn.Pace.
func (w *wire) keepTo(in, out Pacer) {
	if in == nil && out == nil {
		w.pace.Store(nil)
		return
	}
	w.pace.Store(&pacing{in: meter{pacer: in}, out: meter{pacer: out, out: true}})
}

// pacers returns what keepTo was given.
func (w *wire) pacers() (in, out Pacer) {
	if p := w.pace.Load(); p != nil {
		return p.in.pacer, p.out.pacer
	}
	return nil, nil
}

// meterIn returns what is read's, nil if there is no limit, or no wire.
func (w *wire) meterIn() *meter {
	if w == nil {
		return nil
	}
	if p := w.pace.Load(); p != nil && p.in.pacer != nil {
		return &p.in
	}
	return nil
}

// meterOut returns what is written's, nil if there is no limit, or no wire.
func (w *wire) meterOut() *meter {
	if w == nil {
		return nil
	}
	if p := w.pace.Load(); p != nil && p.out.pacer != nil {
		return &p.out
	}
	return nil
}

// wireOf returns what w writes to, if it is a connection, else nil.
func wireOf(w io.Writer) *wire {
	if c, ok := w.(*Conn); ok {
		if s, err := c.bytes(); err == nil {
			return &s.wire
		}
	}
	return nil
}

// chunk returns how many of n bytes may be moved at once.
func (m *meter) chunk(n int) int {
	if m == nil {
		return n
	}
	return min(n, max(1, m.pacer.Chunk()))
}

// spend pays for n bytes that have been moved.
func (w *wire) spend(m *meter, n int) {
	if m == nil || n == 0 {
		return
	}
	if wait := m.pacer.Spend(n); wait >= reactor.LeastWait {
		m.until.Store(int64(w.clock() + wait))
	}
}

// waits reports whether no more may be moved yet.
func (w *wire) waits(m *meter) bool { return m != nil && m.until.Load() > int64(w.clock()) }

// abide waits until more may be moved, and reports whether it had to. It waits no longer than a
// read or a write would, and is late if that is because of a deadline.
func (w *wire) abide(m *meter) (waited, late bool) {
	for w.waits(m) {
		limit, changed := w.patience(m)
		if changed == nil {
			break
		}
		if past(limit, time.Now()) {
			return waited, true
		}
		waited = true
		left := min(time.Duration(m.until.Load())-w.clock(), resetLook)
		if !limit.IsZero() {
			left = min(left, time.Until(limit))
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
			if left == resetLook && wasReset(w.raw) {
				w.stopPacing()
			}
		case <-changed:
		}
		timer.Stop()
	}
	return waited, false
}

// resetLook is how often a connection that waits is looked at, as nobody reads, who would notice: what
// it owes is not to keep its place for a client that has gone.
const resetLook = time.Second

// patience returns the deadline of a wait, and what is closed when that may have changed: nil if
// the wait is over.
func (w *wire) patience(m *meter) (limit time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unpaced || !m.out && w.isInterrupted() {
		return limit, nil
	}
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	if m.out {
		return earliest(w.phase, w.userWrite), w.changed
	}
	return earliest(w.phase, w.userRead), w.changed
}

// hasChangedLocked has those who wait look at their patience again.
func (w *wire) hasChangedLocked() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// stopPacing ends every wait for a Pacer: the socket is closed, or there is nothing more to wait for.
func (w *wire) stopPacing() {
	if w.pace.Load() == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unpaced = true
	w.hasChangedLocked()
}

// abideRead is abide for a read, which waits outside of the turnstile that a handshake is within.
func (w *wire) abideRead(m *meter) error {
	t := w.turnstile
	if t != nil && w.waits(m) {
		w.turnstile = nil
		t.leave()
	}
	for {
		waited, late := w.abide(m)
		if waited && !w.message.IsZero() {
			w.beginMessage() // it was not the client who took so long
		}
		if !late {
			break
		}
		if err := w.afterRead(w.timeout("read")); err != nil {
			return err
		}
	}
	if t != nil && w.turnstile == nil {
		return w.enterTurnstile(t)
	}
	return nil
}
