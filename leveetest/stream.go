package leveetest

import (
	"bytes"
	"sync"
	"time"
)

// stream is one direction of a connection: the bytes that were written and not
// yet read, and who is waiting for what. The connection's mutex guards it.
type stream struct {
	changed  sync.Cond // anything below, or the state of the connection's ends
	unread   bytes.Buffer
	capacity int

	finished bool // the writing end has sent its FIN: nothing follows unread
	deaf     bool // the reading end has called CloseRead
	writing  bool // a Write is under way; others wait, so that none lands in its middle

	readDeadline, writeDeadline deadline
}

func newStream(mu *sync.Mutex, capacity int) *stream {
	s := &stream{capacity: capacity}
	s.changed.L = mu
	return s
}

func (s *stream) roomLocked() int { return s.capacity - s.unread.Len() }

// putLocked takes as much of p as there is room for.
func (s *stream) putLocked(p []byte) int {
	n := min(len(p), s.roomLocked())
	if n > 0 {
		s.unread.Write(p[:n])
		s.changed.Broadcast()
	}
	return n
}

// takeLocked moves what is there into p.
func (s *stream) takeLocked(p []byte) int {
	n, _ := s.unread.Read(p) // its only error is EOF when empty, and then n is 0
	s.changed.Broadcast()
	return n
}

// deadline is a point in time after which waiting is over. The mutex of the
// condition that it is set with guards it.
type deadline struct {
	timer  *time.Timer
	passed bool
}

// setLocked moves the deadline to t, and wakes whoever waits on changed now and
// again when t has come. The zero time means never.
func (d *deadline) setLocked(t time.Time, changed *sync.Cond) {
	d.stopLocked()
	d.passed = false
	if wait := time.Until(t); t.IsZero() {
		// no deadline
	} else if wait <= 0 {
		d.passed = true
	} else {
		d.startLocked(wait, changed)
	}
	changed.Broadcast()
}

func (d *deadline) startLocked(wait time.Duration, changed *sync.Cond) {
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		changed.L.Lock()
		defer changed.L.Unlock()
		if d.timer == timer { // else it was moved while this call waited for the lock
			d.passed = true
			changed.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
