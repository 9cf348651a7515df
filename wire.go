package levee

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A wire is the socket under a Conn: bytes, counts and deadlines, below TLS.
// It is the net.Conn that crypto/tls reads and writes, and the one that a Conn
// without TLS uses directly.
//
// Its deadlines cost nothing while bytes flow. The kernel-facing deadline is
// armed once, at or before the moment that matters, and looked at only when it
// fires: if there has been progress since, it is armed anew and the read or
// write goes on. So a connection in full flow pays for two clock readings a
// round trip, and never for a timer.
type wire struct {
	raw  net.Conn
	conn *Conn
	held held

	read, written atomic.Int64  // bytes
	eof           atomic.Bool   // the peer has closed its side
	broken        atomic.Uint32 // CloseReason: what the network did to it
	shut          atomic.Bool   // we have closed ours

	// Guarded by mu; here, where there is room for them.
	joined       bool // to an upstream
	kernelReads  bool // the kernel copies from it, or to it: the handler's
	kernelWrites bool // own deadline is armed and none of levee's
	unpaced      bool // what has to wait for a Pacer does no more

	waitingSince atomic.Int64 // clock when the wait for the peer began, less the time between its parts
	waited       atomic.Int64 // how long the parts of the wait that are over took
	moved        atomic.Int64 // bytes in both directions when the first part began
	wroteAt      atomic.Int64 // clock when a write last ended or made progress

	readArmed, writeArmed atomic.Bool
	waiting, leaving      atomic.Bool            // in a wait that a request to leave may interrupt; asked to leave
	wanted, between       atomic.Bool            // by whoever would have it move, which interrupts such a wait, too; in Next, where it may
	screening             atomic.Bool            // a PROXY header would be an intrusion: look before the first byte is used
	sealed                bool                   // TLS lies above: what is written are records
	impatient             bool                   // reads return errWouldBlock instead of waiting; the reader's own
	pace                  atomic.Pointer[pacing] // what it is kept to; nil for most
	veil                  *veil                  // crypto/tls's, once an event loop has the socket; nil until then

	turn  turn       // of those that write
	ready *readiness // how to wait for bytes without holding memory; made at the first wait

	turnstile *turnstile // that a handshake is within; nil when it is not

	// What follows is not in use while bytes flow.

	mu        sync.Mutex
	userRead  time.Time // what the handler asked for
	userWrite time.Time
	phase     time.Time     // absolute end of the arrival's present phase; zero once it is over
	message   time.Time     // when the message that has begun has to be complete; zero if none has
	armedFor  time.Time     // what the deadline for reads was armed for last; zero is never
	changed   chan struct{} // closed when what limits such a wait does; nil if nobody waits
	signature []byte        // what the first bytes still lack to be a PROXY header's; see screen

	pen     sync.Mutex // held while writing records, so that none overtakes the backlog
	backlog []byte     // the rest of the records that a deadline cut short; see sealed.go
}

// clock is the server's: what a deadline costs per byte moved is one reading of it.
func (w *wire) clock() time.Duration { return w.conn.server.clock() }

// errWouldBlock is what an impatient read returns. It is Temporary so that
// crypto/tls does not take it for the end.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// errAskedToLeave ends a wait that a request to leave interrupted.
var errAskedToLeave = errors.New("asked to leave")

// errWanted ends a wait in which the connection might move.
var errWanted = errors.New("wanted by another process")

// Read reads held bytes first and then the socket.
func (w *wire) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // nil has a meaning of its own to readSocket
	}
	if w.veil != nil {
		return w.veil.read(p)
	}
	if w.held.some.Load() {
		n, ok, err := w.held.take(p)
		if n == blockSize && n < len(p) && !w.impatient {
			n += w.readBehind(p[n:])
		}
		if ok {
			return n, err
		}
	}
	return w.readSocket(p)
}

// readBehind reads what has arrived behind a block that was full, or a large
// message would take a read for each block. What fails is told by the next read.
func (w *wire) readBehind(p []byte) int {
	if m := w.meterIn(); m != nil { // with the block it makes up a chunk
		p = p[:max(0, min(len(p), m.chunk(copySize)-blockSize))]
	}
	if len(p) == 0 {
		return 0
	}
	n, err := w.readNow(p)
	switch err {
	case nil, errWouldBlock:
		return n
	case io.EOF:
		w.eof.Store(true)
	}
	w.held.fail(w.ended(err))
	return n
}

// peek is held.peek over the socket.
func (w *wire) peek(n int) ([]byte, error) { return w.held.peek(n, w.readSocket) }

// readSocket reads the socket, past what is held. A nil p stands for a block
// that is taken from the pool once there are bytes, and then held.
func (w *wire) readSocket(p []byte) (n int, err error) {
	if m := w.meterIn(); m != nil {
		if w.impatient && w.waits(m) {
			return 0, errWouldBlock
		}
		if err := w.abideRead(m); err != nil {
			return 0, err
		}
		p = p[:m.chunk(len(p))] // a nil one stays nil
	}
	w.startWaiting()
	for {
		switch {
		case p == nil:
			n, err = w.readAhead(true)
		case w.impatient:
			n, err = w.readNow(p)
		case w.turnstile != nil:
			n, err = w.readOutside(p)
		default:
			n, err = w.raw.Read(p)
			n, err = w.count(p, n, err)
		}
		if n > 0 || err == nil {
			return n, nil
		}
		if err != errWouldBlock {
			err = w.afterRead(err)
		}
		if err != nil {
			w.stopWaiting()
			return 0, err
		}
	}
}

// count counts what a read of the socket got, and has it screened where it must
// not be a PROXY header. An error that came with bytes will come again.
func (w *wire) count(p []byte, n int, err error) (int, error) {
	if n == 0 {
		return 0, err
	}
	w.read.Add(int64(n))
	w.spend(w.meterIn(), n)
	if w.screening.Load() {
		if err := w.screen(p[:n]); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// startWaiting notes that a wait for the peer begins now, or goes on if no byte
// has moved since the last one ended: a handler that polls with short deadlines of
// its own does not keep a silent peer alive, and what it does in between is not
// the peer's silence.
func (w *wire) startWaiting() {
	if moved := w.read.Load() + w.written.Load() + 1; moved != w.moved.Load() {
		w.moved.Store(moved)
		w.waited.Store(0)
	}
	w.waitingSince.Store(int64(w.clock()) - w.waited.Load())
	if !w.readArmed.Load() {
		_ = w.armRead()
	}
}

func (w *wire) stopWaiting() { w.waited.Store(int64(w.clock()) - w.waitingSince.Load()) }

// afterRead takes an error of a read that got nothing. It returns nil if the
// read is to be tried again.
func (w *wire) afterRead(err error) error {
	if err == io.EOF {
		w.eof.Store(true)
		return err
	}
	if !isTimeout(err) || w.conn.end.Load() != nil {
		return w.ended(err)
	}
	now := time.Now()
	w.mu.Lock()
	switch {
	case w.waiting.Load() && w.isWanted():
		w.mu.Unlock()
		return errWanted
	case w.waiting.Load() && w.leaving.Load():
		w.mu.Unlock()
		return errAskedToLeave
	case past(w.userRead, now):
		w.mu.Unlock()
		return w.ended(err)
	}
	limit, reason := w.readLimitLocked()
	w.mu.Unlock()
	if past(limit, now) {
		return w.conn.cut(reason, nil)
	}
	return w.ended(w.armRead())
}

// readLimitLocked returns when levee itself gives up on the peer, and as what.
func (w *wire) readLimitLocked() (time.Time, CloseReason) {
	if !w.phase.IsZero() {
		return w.phase, ArrivalTimeout
	}
	if limit, reason := w.silenceLimitLocked(); w.message.IsZero() || !limit.IsZero() && !limit.After(w.message) {
		return limit, reason
	}
	return w.message, MessageTimeout
}

// silenceLimitLocked returns when the peer has been silent for too long.
func (w *wire) silenceLimitLocked() (time.Time, CloseReason) {
	patience, reason := w.conn.set.limits.idle, IdleTimeout
	if w.joined {
		patience = w.conn.set.limits.joinedIdle
	}
	if w.shut.Load() {
		patience, reason = w.conn.set.limits.halfClosed, HalfClosedTimeout
	}
	patience = w.conn.server.patience(patience)
	if patience < 0 || w.kernelReads {
		return time.Time{}, ReasonNone
	}
	if w.turn.taken() {
		return time.Now().Add(patience), reason // WriteStallTimeout has its eye on the peer meanwhile
	}
	since := max(w.waitingSince.Load(), w.wroteAt.Load())
	if m := w.meterOut(); m != nil {
		since = max(since, m.until.Load()) // until then we may be who keeps silent
	}
	return w.at(since).Add(patience), reason
}

// beginMessage notes that the first bytes of a message have come, and not the last.
func (w *wire) beginMessage() {
	limit := w.conn.set.limits.message
	if limit <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.message = time.Now().Add(limit)
	if w.armedFor.IsZero() || w.armedFor.After(w.message) {
		_ = w.armReadLocked()
	}
}

// endMessage notes that there is none that has begun. The deadline is left: a needless look
// costs less.
func (w *wire) endMessage() {
	if w.message.IsZero() { // only the reader sets it
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.message = time.Time{}
}

// at is the time at which the clock showed that.
func (w *wire) at(clock int64) time.Time { return w.conn.server.epoch.Add(time.Duration(clock)) }

// armRead arms the kernel-facing read deadline for the earliest of all that
// may end a read.
func (w *wire) armRead() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.armReadLocked()
}

func (w *wire) armReadLocked() error {
	w.readArmed.Store(true)
	w.hasChangedLocked()
	if w.isInterrupted() {
		return w.raw.SetReadDeadline(longAgo)
	}
	limit, _ := w.readLimitLocked()
	w.armedFor = earliest(limit, w.userRead)
	return w.raw.SetReadDeadline(w.armedFor)
}

// Write writes all of p, as long as the peer takes some of it now and then.
func (w *wire) Write(p []byte) (int, error) {
	if w.veil != nil {
		return w.veil.write(p)
	}
	if w.sealed {
		return w.writeSealed(p)
	}
	return w.writeSocket(p)
}

// writeSocket writes all of p. It reads the clock when it is done; before that
// only when a deadline, which may be an old one, has interrupted it.
func (w *wire) writeSocket(p []byte) (int, error) {
	if !w.writeArmed.Load() {
		_ = w.armWrite(w.clock())
	}
	var since time.Duration // the last progress that is known of
	m := w.meterOut()
	for done := 0; ; {
		piece := p[done:]
		if m != nil && !w.sealed { // a record is written whole: writeTLS has waited
			waited, late := w.abide(m)
			if waited || late {
				since = w.clock()
			}
			if late {
				if err := w.afterWrite(w.timeout("write"), since); err != nil {
					return done, err
				}
				continue
			}
			piece = piece[:m.chunk(len(piece))]
		}
		n, err := w.raw.Write(piece)
		done += n
		w.written.Add(int64(n))
		w.spend(m, n)
		if err == nil || n > 0 || since == 0 {
			since = w.clock()
			w.wroteAt.Store(int64(since))
		}
		if err == nil {
			if done < len(p) {
				continue
			}
			return done, nil
		}
		if err = w.afterWrite(err, since); err != nil {
			return done, err
		}
	}
}

// afterWrite takes an error of a write whose last progress was at since. It
// returns nil if the write is to go on.
func (w *wire) afterWrite(err error, since time.Duration) error {
	if !isTimeout(err) || w.conn.end.Load() != nil {
		return w.ended(err)
	}
	now := time.Now()
	w.mu.Lock()
	user := w.userWrite
	limit, reason := w.writeLimitLocked(since)
	w.mu.Unlock()
	switch {
	case past(user, now):
		return w.ended(err)
	case past(limit, now):
		return w.conn.cut(reason, nil)
	}
	return w.ended(w.armWrite(since))
}

func (w *wire) writeLimitLocked(since time.Duration) (time.Time, CloseReason) {
	if !w.phase.IsZero() {
		return w.phase, ArrivalTimeout
	}
	if w.conn.set.limits.writeStall < 0 || w.kernelWrites {
		return time.Time{}, ReasonNone
	}
	return w.at(int64(since)).Add(w.conn.set.limits.writeStall), WriteStalled
}

func (w *wire) armWrite(since time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeArmed.Store(true)
	w.hasChangedLocked()
	limit, reason := w.writeLimitLocked(since)
	if reason == WriteStalled {
		// net.Conn tells of progress only when it returns.
		limit = earliest(limit, time.Now().Add(w.conn.set.limits.writeStall/reactor.StallLooks))
	}
	return w.raw.SetWriteDeadline(earliest(limit, w.userWrite))
}

// SetReadDeadline sets the handler's own read deadline; levee's stay in force.
func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	w.userRead = t
	w.mu.Unlock()
	return w.ended(w.armRead())
}

// SetWriteDeadline sets the handler's own write deadline; levee's stay in force.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.veil != nil { // crypto/tls's own, around a close_notify
		return nil
	}
	w.mu.Lock()
	w.userWrite = t
	w.mu.Unlock()
	return w.ended(w.armWrite(time.Duration(w.wroteAt.Load())))
}

// SetDeadline sets both.
func (w *wire) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

// setPhase gives the arrival's next phase its absolute end; a zero time ends
// the arrival. It belongs to the arriving goroutine: the deadlines are armed by
// the read or write that follows, if one does.
func (w *wire) setPhase(end time.Time) {
	w.mu.Lock()
	w.phase = end
	w.mu.Unlock()
	w.readArmed.Store(false)
	w.writeArmed.Store(false)
}

// askToLeave interrupts the wait for a next request, and every later one.
func (w *wire) askToLeave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving.Store(true)
	if w.waiting.Load() {
		_ = w.armReadLocked() // locked, or it could strike at the look that follows the wait
	}
}

// CloseWrite tells the peer that no more bytes will come.
func (w *wire) CloseWrite() error {
	half, ok := w.raw.(interface{ CloseWrite() error })
	if !ok {
		return &net.OpError{Op: "close write", Net: w.raw.LocalAddr().Network(), Addr: w.raw.RemoteAddr(), Err: errors.ErrUnsupported}
	}
	err := half.CloseWrite()
	w.wroteAt.Store(int64(w.clock())) // as if the end were a byte
	if !w.shut.Swap(true) {
		_ = w.armRead() // the half-closed limit is shorter than the idle one
	}
	return w.ended(err)
}

// Close closes the socket: crypto/tls calls it after its close_notify.
func (w *wire) Close() error {
	w.stopPacing()
	w.look()
	return w.raw.Close()
}
func (w *wire) LocalAddr() net.Addr  { return w.raw.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr { return w.raw.RemoteAddr() }

// ended replaces what the socket says by why levee ended the connection, if it
// did. If it did not, it notes whose doing the error was.
func (w *wire) ended(err error) error {
	if err == nil {
		return nil
	}
	if end := w.conn.end.Load(); end != nil {
		return end
	}
	if reason := reasonOf(err); reason != ReasonNone {
		w.broken.Store(uint32(reason))
	}
	return err
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// past reports whether the limit t is set and reached.
func past(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

// earliest returns the earlier of two limits, of which a zero one is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
