package levee

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A turnstile lets so many through at the same time, and has the others wait: in order, until
// those who come first would wait too long. Then it is better to serve the newest, whose
// client is the least likely to have given up. Those of a source that has had many of the last
// turns let others go first, or who floods would have everybody wait. And who comes back, when
// a second or more has gone by since a first handshake, need not wait behind a crowd that nobody
// has seen before: strangers and regulars take turns.
type turnstile struct {
	most   atomic.Int64 // not positive: any number; written under mu
	breath breath

	mu        sync.Mutex
	inside    int
	entered   int64     // so far
	breathing bool      // somebody lets others go
	breathed  time.Time // when that was over last
	strangers line
	regulars  line
	favoured  bool              // the last to enter was a regular
	last      [turns]netip.Addr // sources of those who have entered last
	turn      int               // the one of them that is the oldest
	familiar  *familiar         // nil until somebody has been served
}

// A line is who waits, in the order of their coming.
type line []*visitor

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

// enter waits until there is room, and reports false if there is none by the given time. A zero time is never.
//
// Who has entered lets those go first, if it is time, who are not here for a handshake. One handshake wakes the next, or many have
// begun at once and each finds room as the one before it has left: Go would let nobody else in between, nor see that somebody came.
func (t *turnstile) enter(source netip.Addr, until time.Time) bool {
	if v := t.enterOrQueue(source); v != nil && !t.await(v, until) {
		return false
	}
	t.letOthersGo()
	return true
}

// breathEvery is for how long handshakes are computed, one after the other, before all others have their turn.
const breathEvery = time.Millisecond

// letOthersGo does, if it is time.
func (t *turnstile) letOthersGo() {
	t.mu.Lock()
	due := !t.breathing && time.Since(t.breathed) >= breathEvery
	t.breathing = t.breathing || due
	t.mu.Unlock()
	if !due {
		return
	}
	t.breath.take()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.breathing, t.breathed = false, time.Now() // by now, or a turn that takes long would leave no time for handshakes
}

// enterOrQueue enters if there is room, and else returns who waits.
func (t *turnstile) enterOrQueue(source netip.Addr) *visitor {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hasRoomLocked() {
		t.admitLocked(source)
		return nil
	}
	v := &visitor{source, time.Now(), make(chan struct{})}
	l := t.lineForLocked(v)
	*l = append(*l, v)
	return v
}

// lineForLocked returns where a visitor is to wait. Who floods is no regular.
func (t *turnstile) lineForLocked(v *visitor) *line {
	if t.familiar.with(v.source, v.came) && !t.hasHadManyLocked(v.source) {
		return &t.regulars
	}
	return &t.strangers
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
	for _, l := range []*line{&t.strangers, &t.regulars} {
		if i := slices.Index(*l, v); i >= 0 {
			*l = slices.Delete(*l, i, i+1)
			return true
		}
	}
	return false
}

// leave makes room, which goes to one who waits.
func (t *turnstile) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inside--
	t.serveLocked()
}

// remember notes that a handshake with a source has succeeded.
func (t *turnstile) remember(source netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.familiar == nil {
		t.familiar = newFamiliar()
	}
	t.familiar.note(source, time.Now())
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
	for t.queuedLocked() > 0 && t.hasRoomLocked() {
		l, i := t.nextLocked()
		v := (*l)[i]
		*l = slices.Delete(*l, i, i+1)
		t.favoured = l == &t.regulars
		t.admitLocked(v.source)
		close(v.enter)
	}
}

// nextLocked returns which of those who wait is to enter: of the line whose turn it is,
// unless only the other has one who has not had many turns.
func (t *turnstile) nextLocked() (*line, int) {
	first, second := &t.regulars, &t.strangers
	if t.favoured {
		first, second = second, first
	}
	i, fair := t.nextOfLocked(*first)
	if fair {
		return first, i
	}
	if j, fair := t.nextOfLocked(*second); fair || len(*first) == 0 {
		return second, j
	}
	return first, i
}

// nextOfLocked returns which of a line is to enter, and whether it is one who has not had many
// turns. There is none such in an empty line.
func (t *turnstile) nextOfLocked(l line) (next int, fair bool) {
	if len(l) == 0 {
		return 0, false
	}
	if time.Since(l[0].came) > tooLongAtTurnstile {
		next = len(l) - 1
	}
	if !t.hasHadManyLocked(l[next].source) {
		return next, true
	}
	for back := range min(len(l), farthestBack) {
		if i := len(l) - 1 - back; !t.hasHadManyLocked(l[i].source) {
			return i, true
		}
	}
	return next, false
}

func (t *turnstile) admitLocked(source netip.Addr) {
	t.inside++
	t.entered++
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

// load returns how many wait, and how many have entered so far.
func (t *turnstile) load() (queued int, entered int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queuedLocked(), t.entered
}

func (t *turnstile) queuedLocked() int { return len(t.strangers) + len(t.regulars) }

// familiar remembers sources that have been served before: as many as it has places, whoever
// comes. A source has one place, by a hash that nobody can foresee, and loses it to another only
// when it has not been seen for a while: ever new addresses drive nobody out.
type familiar struct {
	seed   maphash.Seed
	began  time.Time
	places [4096]acquaintance
}

type acquaintance struct {
	fingerprint uint32        // the rest of the hash; a stranger passes for somebody else once in four billion times
	first, last time.Duration // since began; a place is empty while last is 0
}

const (
	familiarAfter = time.Second // one visit is no acquaintance: a flood from ever new addresses is of such
	forgottenIn   = time.Minute // if another wants the place
)

func newFamiliar() *familiar { return &familiar{seed: maphash.MakeSeed(), began: time.Now()} }

// place returns where a source would be, and what tells it from others there.
func (f *familiar) place(source netip.Addr) (a *acquaintance, fingerprint uint32) {
	h := maphash.Comparable(f.seed, source)
	return &f.places[h%uint64(len(f.places))], uint32(h >> 32)
}

func (f *familiar) note(source netip.Addr, now time.Time) {
	a, fingerprint := f.place(source)
	at := max(now.Sub(f.began), 1)
	switch {
	case a.last > 0 && a.fingerprint == fingerprint:
		a.last = at
	case a.last == 0 || at-a.last > forgottenIn:
		*a = acquaintance{fingerprint, at, at}
	}
}

// with reports whether a source has been served before. A nil one knows nobody.
func (f *familiar) with(source netip.Addr, now time.Time) bool {
	if f == nil {
		return false
	}
	a, fingerprint := f.place(source)
	return a.last > 0 && a.fingerprint == fingerprint && now.Sub(f.began)-a.first >= familiarAfter
}
