package levee

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A stallWatch ends a joined connection whose upstream has taken nothing for
// WriteStallTimeout though it was being written to. It goes by what the kernel knows: a
// write is told of room only once there is a good deal of it, for which a slow upstream
// may need longer than it may stall. Nor does it interrupt a write, after which
// crypto/tls would be of no use any more.
//
// One timer does for all writes. It looks, when it fires, whether one is under way.
type stallWatch struct {
	joint *joint
	raw   net.Conn // under TLS
	limit time.Duration
	blind bool // the kernel does not tell

	began atomic.Int64 // clock when the write that is under way began, 0 if none is
	armed atomic.Bool

	mu      sync.Mutex
	timer   *time.Timer // ended by stop
	stopped bool
	taken   uint64        // as the kernel counted when last asked
	sent    int64         // by joint
	since   time.Duration // clock at the last progress that is known of
}

// newStallWatch returns nil where there is no limit, or a deadline does as well: it
// breaks nothing, and tells of the bytes that have been taken.
func newStallWatch(j *joint) *stallWatch {
	limit, raw := j.stream.conn.set.limits.writeStall, socketUnder(j.far)
	_, sealed := j.far.(*tls.Conn)
	_, told := taken(raw)
	if limit <= 0 || !told && !sealed {
		return nil
	}
	return &stallWatch{joint: j, raw: raw, limit: limit, blind: !told}
}

// piece returns as much of p as is to be written at once, so that what has been taken of
// it shows.
func (w *stallWatch) piece(p []byte) []byte {
	if w == nil || !w.blind {
		return p
	}
	return p[:min(len(p), chunkSize)]
}

// begin says that a write begins.
func (w *stallWatch) begin() {
	if w == nil {
		return
	}
	now := w.joint.stream.wire.clock()
	w.began.Store(max(1, int64(now)))
	if w.armed.Swap(true) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = now
	w.armLocked()
}

// end says that it is over.
func (w *stallWatch) end() {
	if w != nil {
		w.began.Store(0)
	}
}

func (w *stallWatch) armLocked() {
	switch interval := w.limit / reactor.StallLooks; {
	case w.stopped:
	case w.timer == nil:
		w.timer = time.AfterFunc(interval, w.look)
	default:
		w.timer.Reset(interval)
	}
}

func (w *stallWatch) look() {
	w.armed.Store(false) // first: a write that begins behind the next line arms it
	began := time.Duration(w.began.Load())
	if began == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now, sent := w.joint.stream.wire.clock(), w.joint.sent.Load()
	taken, _ := taken(w.raw)
	if taken != w.taken || sent != w.sent {
		w.taken, w.sent, w.since = taken, sent, now
	}
	if now-max(w.since, began) >= w.limit {
		w.joint.stall()
		return
	}
	w.armed.Store(true)
	w.armLocked()
}

func (w *stallWatch) stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// stall ends a connection whose upstream takes nothing: what is not taken is not kept.
func (j *joint) stall() {
	j.stream.conn.ends(UpstreamStalled, nil)
	j.stream.wire.stopPacing()
	abort(j.far)
	abort(j.stream.wire.raw)
}
