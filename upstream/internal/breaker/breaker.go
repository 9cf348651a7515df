// Package breaker says when to leave a server alone. Its secret is what a few outcomes
// say of a server: when they are bad enough to stop, how long to wait, and with how few
// attempts to find out whether it is well again. A [Budget] says the same of retries.
//
//	b := breaker.New(breaker.Settings{}, nil)
//	if !b.Allow() {
//		return errLeftAlone
//	}
//	c, err := dial()
//	if err != nil {
//		b.Done(breaker.Failure)
//		return err
//	}
//	b.Done(breaker.Success)
//
// A breaker is closed as long as the server is well. Enough failures open it: the server
// gets nothing. After a while it is half-open: one attempt is let through, then a few,
// and what becomes of them closes or opens it.
//
// It is written by hand because the library at hand (failsafe-go 0.9.8) counts failures
// in a row or their share, not both; lets all probes through at once; and takes an
// attempt from before it opened, that ends while it is half-open, for a probe.
package breaker

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Settings say when a breaker opens and closes. Zero values are the documented defaults.
type Settings struct {
	// Failures is how many failures in a row open it. Zero means 5; negative means that
	// no number does.
	Failures int

	// Rate is the share of failures within Window that opens it, if there were at least
	// Volume outcomes. Zero means 0.5; negative means that no share does.
	Rate float64
	// Volume is how many outcomes say something about a share. Zero means 20; negative
	// means that one does.
	Volume int
	// Window is how long an outcome counts for Rate, to within a tenth. Zero or less means
	// 10 seconds.
	Window time.Duration

	// Open is how long it stays open at first. Each time that it opens again this doubles,
	// until it has been closed for MaxOpen in between. Zero means 10 seconds; negative
	// means that it is half-open at once.
	Open time.Duration
	// MaxOpen is how long it stays open at most. Zero means 60 seconds; negative, or less
	// than Open, means Open: it does not double.
	MaxOpen time.Duration

	// Probes is how many successes close it when it is half-open. The first is awaited
	// alone; after it up to so many attempts are let through at once. Zero means 3;
	// negative means 1.
	Probes int
}

const longest = 100 * 365 * 24 * time.Hour // for now + Open not to overflow

// withDefaults returns the settings with the defaults in the place of zeros.
func (s Settings) withDefaults() Settings {
	s.Failures = or(s.Failures, 5, math.MaxInt)
	s.Rate = or(s.Rate, 0.5, math.Inf(1))
	s.Volume = or(s.Volume, 20, 1)
	s.Window = or(s.Window, 10*time.Second, 10*time.Second)
	s.Open = min(or(s.Open, 10*time.Second, 0), longest)
	s.MaxOpen = min(max(or(s.MaxOpen, time.Minute, s.Open), s.Open), longest)
	s.Probes = or(s.Probes, 3, 1)
	return s
}

// or returns the value, or what stands for zero, or what stands for less.
func or[T int | float64 | time.Duration](value, zero, negative T) T {
	switch {
	case value == 0:
		return zero
	case value < 0:
		return negative
	}
	return value
}

// A State is what a breaker lets through. Its number is what metrics show.
type State uint8

// The states.
const (
	Closed   State = 0 // everything
	HalfOpen State = 1 // probes
	Open     State = 2 // nothing
)

// String returns the state's word: closed, half_open or open.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half_open"
	case Open:
		return "open"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// An Outcome is what an attempt says of the server.
type Outcome uint8

// The outcomes.
const (
	Success Outcome = iota
	Failure
	Ignored // nothing: the client gave up, say
)

// A Breaker is the circuit breaker of one server. Its methods may be called from any
// goroutine.
type Breaker struct {
	terms   Settings // without zeros
	changed func(from, to State)
	born    time.Time // the instants below are counted from here

	// admits is from when on Allow says yes, in nanoseconds: 0 is at once, forever is never.
	// It says in one load what the fields below say under the lock.
	admits atomic.Int64

	mu     sync.Mutex
	state  State
	row    int           // Closed: failures since the last success
	recent window        // Closed: successes and failures
	since  time.Duration // Closed: when it was closed
	until  time.Duration // Open: when it is half-open
	pause  time.Duration // how long it is open next
	proofs int           // HalfOpen: successes

	// Done does not say whose attempt it is about. So once it has opened, it waits for
	// those that are under way before it lets a probe through: while there are strangers,
	// a Done is about one of them, and afterwards about a probe.
	underway  int // attempts that were allowed, and of which Done has not been told
	strangers int // those among them that were allowed before it opened

	news    []change // which changed has not been told yet; a few per Open, however slow it is
	telling bool     // somebody is about to
}

type change struct{ from, to State }

const forever = math.MaxInt64

// New returns a closed breaker. changed, which may be nil, is told of each change of
// state, of one after the other and in their order, without a lock held: it may call the
// breaker. It runs in the goroutine that called a method and caused or noticed a change,
// or is telling of an earlier one.
func New(s Settings, changed func(from, to State)) *Breaker {
	s = s.withDefaults()
	return &Breaker{terms: s, changed: changed, born: time.Now(), recent: newWindow(s.Window), pause: s.Open}
}

// Allow reports whether an attempt may be made. If so, exactly one Done has to follow,
// and soon: one that is half-open lets no other attempt through before.
func (b *Breaker) Allow() bool {
	b.lock()
	defer b.unlock()
	allowed := b.admitsLocked() == 0
	if allowed {
		b.underway++
	}
	return allowed
}

// Ready reports whether Allow would say yes. It takes no lock, and while the breaker is
// closed it does not ask for the time either.
func (b *Breaker) Ready() bool {
	at := b.admits.Load()
	return at == 0 || b.now() >= time.Duration(at)
}

// Done tells what became of an attempt that was allowed. It may take its time about a
// success: as long as it is not known whether the server drops the connection at once, a
// probe has not succeeded. An attempt that was allowed before the breaker opened changes
// nothing until it is closed again.
func (b *Breaker) Done(o Outcome) {
	now := b.lock()
	defer b.unlock()
	b.underway = max(b.underway-1, 0)
	switch {
	case b.strangers > 0:
		b.strangers--
	case b.state == HalfOpen:
		b.judgeLocked(now, o)
	case b.state == Closed:
		b.countLocked(now, o)
	}
}

// Report tells of something that was not an attempt of its own, such as the early end of
// a connection whose attempt was a success. It counts while the breaker is closed. One
// that is not has its probes to decide about it.
func (b *Breaker) Report(o Outcome) {
	now := b.lock()
	defer b.unlock()
	if b.state == Closed {
		b.countLocked(now, o)
	}
}

// State returns the state. An open breaker whose time is over is half-open, whether
// somebody asks Allow or not; asking here is enough for changed to be told.
func (b *Breaker) State() State {
	b.lock()
	defer b.unlock()
	return b.state
}

// Until returns when an open breaker will be half-open, and the zero time if it is not
// open.
func (b *Breaker) Until() time.Time {
	b.lock()
	defer b.unlock()
	if b.state != Open {
		return time.Time{}
	}
	return b.born.Add(b.until)
}

// Trip opens the breaker as failures would. It changes nothing if it is open.
func (b *Breaker) Trip() {
	now := b.lock()
	defer b.unlock()
	if b.state != Open {
		b.openLocked(now)
	}
}

// Reset closes the breaker and forgets all failures, and how often it has opened.
func (b *Breaker) Reset() {
	now := b.lock()
	defer b.unlock()
	b.closeLocked(now)
	b.pause = b.terms.Open
}

// A Snapshot is what a breaker knows, for one in another process.
type Snapshot struct {
	State     State         `json:"state"`
	Row       int           `json:"row"`       // failures since the last success
	Good      int           `json:"good"`      // within Window
	Bad       int           `json:"bad"`       // the same
	Steady    time.Duration `json:"steady"`    // how long it has been closed
	Left      time.Duration `json:"left"`      // of the time that it is open
	Pause     time.Duration `json:"pause"`     // how long it is open next
	Successes int           `json:"successes"` // since it is half-open
}

// Snapshot returns what the breaker knows, but for the attempts that are under way.
func (b *Breaker) Snapshot() Snapshot {
	now := b.lock()
	defer b.unlock()
	s := Snapshot{State: b.state, Row: b.row, Pause: b.pause, Successes: b.proofs}
	s.Good, s.Bad = b.recent.counts(now)
	switch b.state {
	case Closed:
		s.Steady = now - b.since
	case Open:
		s.Left = b.until - now
	}
	return s
}

// Restore has the breaker know what another one did, a while ago. It believes nothing that its settings do
// not allow. Of attempts that are under way it will hear nothing, and that it is not closed is no change to be
// told.
func (b *Breaker) Restore(s Snapshot, ago time.Duration) {
	now := b.lock()
	defer b.unlock()
	b.row = min(max(s.Row, 0), b.terms.Failures-1)
	b.recent = newWindow(b.terms.Window)
	if ago < b.terms.Window {
		b.recent.put(now, min(max(s.Good, 0), math.MaxInt32), min(max(s.Bad, 0), math.MaxInt32))
	}
	b.pause = min(max(s.Pause, b.terms.Open), b.terms.MaxOpen)
	b.strangers = b.underway
	switch s.State {
	case Open:
		b.until = now + min(max(max(s.Left, 0)-ago, 0), b.terms.MaxOpen)
		b.state = Open
	case HalfOpen:
		b.proofs = min(max(s.Successes, 0), b.terms.Probes-1)
		b.state = HalfOpen
	default:
		b.strangers = 0
		b.since = now - min(max(s.Steady, 0), longest) - min(ago, longest)
		b.state = Closed
	}
}

func (b *Breaker) now() time.Duration { return time.Since(b.born) }

// lock locks, and notices that an open breaker's time is over.
func (b *Breaker) lock() (now time.Duration) {
	b.mu.Lock()
	now = b.now()
	if b.state == Open && now >= b.until {
		b.proofs = 0
		b.turnLocked(HalfOpen)
	}
	return now
}

// unlock unlocks, once it has told what has changed; unless somebody is telling already,
// who then goes on with that.
func (b *Breaker) unlock() {
	defer b.mu.Unlock()
	b.admits.Store(b.admitsLocked())
	if b.telling {
		return
	}
	b.telling = true
	defer func() { b.telling = false }() // if changed panics too
	for len(b.news) > 0 {
		next := b.news[0]
		b.news = b.news[1:]
		b.tellUnlocked(next)
	}
}

func (b *Breaker) tellUnlocked(c change) {
	b.mu.Unlock()
	defer b.mu.Lock()
	b.changed(c.from, c.to)
}

// admitsLocked returns from when on Allow says yes if nothing else happens.
func (b *Breaker) admitsLocked() int64 {
	atOnce := 1
	if b.proofs > 0 {
		atOnce = b.terms.Probes
	}
	switch {
	case b.state == Closed:
		return 0
	case b.strangers > 0:
		return forever
	case b.state == Open:
		return int64(b.until)
	case b.underway < atOnce:
		return 0
	}
	return forever
}

// countLocked takes an outcome into account while the breaker is closed. A success never
// opens it, be it the one that makes up the Volume.
func (b *Breaker) countLocked(now time.Duration, o Outcome) {
	switch o {
	case Success:
		b.row = 0
		b.recent.add(now, int(Success))
	case Failure:
		b.row++
		b.recent.add(now, int(Failure))
		good, bad := b.recent.counts(now)
		if b.row >= b.terms.Failures || good+bad >= b.terms.Volume && float64(bad) >= b.terms.Rate*float64(good+bad) {
			b.openLocked(now)
		}
	}
}

// judgeLocked takes a probe's outcome into account.
func (b *Breaker) judgeLocked(now time.Duration, o Outcome) {
	switch o {
	case Success:
		b.proofs++
		if b.proofs >= b.terms.Probes {
			b.closeLocked(now)
		}
	case Failure:
		b.openLocked(now)
	}
}

func (b *Breaker) openLocked(now time.Duration) {
	if b.state == Closed && now-b.since >= b.terms.MaxOpen {
		b.pause = b.terms.Open
	}
	b.until = now + b.pause
	b.pause = min(2*b.pause, b.terms.MaxOpen)
	b.strangers = b.underway
	b.turnLocked(Open)
}

func (b *Breaker) closeLocked(now time.Duration) {
	b.since = now
	b.row = 0
	b.recent = newWindow(b.terms.Window)
	b.strangers = 0
	b.turnLocked(Closed)
}

func (b *Breaker) turnLocked(to State) {
	if b.changed != nil && b.state != to {
		b.news = append(b.news, change{b.state, to})
	}
	b.state = to
}
