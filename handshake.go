package levee

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// StartTLS makes a TLS handshake, as the server, on a connection in plaintext: for a
// [Router] that chooses the configuration, or lets some connections pass undecrypted,
// and for protocols that begin TLS by a command, as SMTP's STARTTLS does. From then on
// the connection is as if Server.TLSConfig had been config.
//
// Bytes that were peeked at, and not read, are the handshake's: the client's hello. What
// else a client has sent ahead is not TLS and fails the handshake; so nothing of it can
// be taken for something that came encrypted.
//
// Within the arrival its deadline stays in force; a handler has Server.ArrivalTimeout
// anew. Only the goroutine that reads may call it, while nobody writes. A handshake that
// fails ends the connection with reason tls_failed, and the error says so.
func (c *Conn) StartTLS(config *tls.Config) error {
	if config == nil {
		return errors.New("StartTLS: no configuration")
	}
	s, err := c.bytes()
	switch {
	case err != nil:
		return err
	case s.tls != nil:
		return errors.New("StartTLS: TLS is in place already")
	}
	if !s.arriving {
		limit := c.set.limits.arrival
		if limit > 0 {
			s.wire.setPhase(time.Now().Add(limit))
		}
		defer s.wire.setPhase(time.Time{})
	}
	if err := s.handshake(config); err != nil {
		_ = s.failed(TLSFailed, err)
		return c.end.Load()
	}
	return nil
}

// handshake puts TLS in place.
func (s *stream) handshake(config *tls.Config) error {
	if err := s.wire.await(); err != nil {
		return err
	}
	if err := s.conn.reach(StageHandshake); err != nil {
		return err
	}
	began := time.Now()
	s.conn.reached(handshakeBegun)
	s.wire.sealed = true
	_ = stretch(0)
	handshake := tls.Server(&s.wire, config)
	err := s.wire.throughTurnstile(&s.conn.server.handshakes, handshake.Handshake) // bounded by the wire's deadline; a context would cost a goroutine
	if hook := s.conn.server.trace().Handshake; hook != nil {
		hook(s.conn, time.Since(began), err)
	}
	if err != nil {
		return err
	}
	s.conn.reached(handshakeDone)
	s.tls, s.terms = handshake, config
	s.conn.secured.Store(true)
	return s.conn.reach(StageSecured)
}

// stretch has the goroutine's stack grow at once to what a handshake takes. It begins with
// 2 KiB and would be copied each time that it doubles. It is called when the client has
// spoken: one that is silent costs no more for it.
//
//go:noinline
func stretch(i int) byte {
	var room [handshakeStack]byte
	return room[i]
}

const handshakeStack = 9 << 10 // bytes, which makes it 16 KiB

// throughTurnstile makes a handshake while it is let in. Whenever it has to wait for the peer
// it leaves: a peer that is slow, or silent, keeps nobody from the processor.
func (w *wire) throughTurnstile(t *turnstile, handshake func() error) error {
	if t.most.Load() <= 0 {
		return handshake()
	}
	if err := w.enterTurnstile(t); err != nil {
		return err
	}
	defer func() {
		if w.turnstile != nil {
			w.turnstile = nil
			t.leave()
		}
	}()
	return handshake()
}

// enterTurnstile waits until it is let in, within the present phase.
func (w *wire) enterTurnstile(t *turnstile) error {
	w.mu.Lock()
	until := w.phase
	w.mu.Unlock()
	if !t.enter(sourceOf(w.conn.ClientAddr().Addr()), until) {
		return w.conn.cut(ArrivalTimeout, nil)
	}
	w.turnstile = t
	return nil
}

// readOutside reads what is there, and where there is nothing waits outside the turnstile.
func (w *wire) readOutside(p []byte) (int, error) {
	if w.direct() != nil {
		if n, err := w.readNow(p); err != errWouldBlock {
			return n, err
		}
	}
	t := w.turnstile
	w.turnstile = nil
	t.leave()
	n, err := w.raw.Read(p)
	n, err = w.count(p, n, err)
	if err != nil {
		return n, err
	}
	if err := w.enterTurnstile(t); err != nil {
		return 0, err // with bytes it would be for the next read to tell, and what they complete be computed first
	}
	return n, nil
}

// A turnstile lets so many through at the same time, and has the others wait: in order, until
// those who come first would wait too long. Then it is better to serve the newest, whose
// client is the least likely to have given up. Those of a source that has had many of the last
// turns let others go first, or who floods would have everybody wait.
type turnstile struct {
	most   atomic.Int64 // not positive: any number; written under mu
	breath breath

	mu      sync.Mutex
	inside  int
	waiting []*visitor        // in the order of their coming
	last    [turns]netip.Addr // sources of those who have entered last
	turn    int               // the one of them that is the oldest
}

type visitor struct {
	source netip.Addr
	came   time.Time
	enter  chan struct{} // closed when it may
}

const (
	turns        = 16  // that are remembered
	manyTurns    = 4   // of them
	farthestBack = 256 // how many of those who wait are looked at for one of another source
)

// tooLongAtTurnstile is how long somebody may have waited before the newest go first.
const tooLongAtTurnstile = 100 * time.Millisecond

// enter waits until there is room, and reports false if there is none by the given time.
// A zero time is never.
func (t *turnstile) enter(source netip.Addr, until time.Time) bool {
	t.mu.Lock()
	if t.hasRoomLocked() {
		t.inside++
		t.noteLocked(source)
		t.mu.Unlock()
		return true
	}
	v := &visitor{source, time.Now(), make(chan struct{})}
	t.waiting = append(t.waiting, v)
	t.mu.Unlock()
	if !t.await(v, until) {
		return false
	}
	t.breath.take() // one handshake wakes the next: Go would let nobody else in between, nor see that somebody came
	return true
}

// await waits until v may enter, and reports false if it gives up.
func (t *turnstile) await(v *visitor, until time.Time) bool {
	if until.IsZero() {
		<-v.enter
		return true
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-v.enter:
		return true
	case <-timer.C:
		return !t.giveUp(v)
	}
}

// giveUp takes v off the waiting, and reports whether it was still there.
func (t *turnstile) giveUp(v *visitor) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, v)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return i >= 0
}

// leave makes room, which goes to one who waits.
func (t *turnstile) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inside--
	t.serveLocked()
}

// resize changes how many may be inside. Those who are stay.
func (t *turnstile) resize(most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.most.Store(int64(most))
	t.serveLocked()
}

// hasRoomLocked reports whether one more may be inside.
func (t *turnstile) hasRoomLocked() bool {
	most := t.most.Load()
	return most <= 0 || int64(t.inside) < most
}

// serveLocked lets in those who wait, as far as there is room.
func (t *turnstile) serveLocked() {
	for len(t.waiting) > 0 && t.hasRoomLocked() {
		i := t.nextLocked()
		t.noteLocked(t.waiting[i].source)
		t.inside++
		close(t.waiting[i].enter)
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
}

// nextLocked returns which of those who wait is to enter.
func (t *turnstile) nextLocked() int {
	next := 0
	if time.Since(t.waiting[0].came) > tooLongAtTurnstile {
		next = len(t.waiting) - 1
	}
	if !t.hasHadManyLocked(t.waiting[next].source) {
		return next
	}
	for back := range min(len(t.waiting), farthestBack) {
		if i := len(t.waiting) - 1 - back; !t.hasHadManyLocked(t.waiting[i].source) {
			return i
		}
	}
	return next
}

func (t *turnstile) noteLocked(source netip.Addr) {
	t.last[t.turn] = source
	t.turn = (t.turn + 1) % turns
}

// hasHadManyLocked reports whether a source has had many of the last turns.
func (t *turnstile) hasHadManyLocked(source netip.Addr) bool {
	had := 0
	for _, s := range t.last {
		if s == source {
			had++
		}
	}
	return had >= manyTurns
}

// queued returns how many wait.
func (t *turnstile) queued() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting)
}
