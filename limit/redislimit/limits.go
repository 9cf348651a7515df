package redislimit

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
)

// Limits is a limit.Shared in Redis. Its methods may be called from several goroutines.
type Limits struct {
	// Client is the connection to Redis. It stays the caller's, who closes it after use.
	Client rueidis.Client

	// Reach connects, and is used if Client is nil: it is called again until it returns a client.
	// It may take until ctx ends, a second.
	Reach func(ctx context.Context) (rueidis.Client, error)

	// Prefix is what the keys begin with, in braces, for all machines alike. Empty means levee:limit.
	Prefix string

	// Timeout is how long Claim waits for an answer. A Redis that takes longer is left alone
	// until it is faster. Zero means 50 milliseconds.
	Timeout time.Duration

	// Lease is how long the connections of a machine count after it has died. It is renewed three times
	// as often. It should be the same on all machines. Zero means 15 seconds.
	Lease time.Duration

	// MaxWaiting is how many claims may wait for Redis. Beyond that Claim returns ErrBusy. Zero means 4,096.
	MaxWaiting int

	// Changed is called by Run when Redis begins to ail, and when it has recovered: about once a second
	// each, if it goes on like that. It must not block. It may be nil.
	Changed func(State)

	health health

	mu      sync.Mutex
	running bool
	waiting []*ask // in the order in which they came
	counts  counts
	refused refusals
	stats   Stats
	wake    chan struct{} // holds one when there is something to do
}

var _ limit.Shared = (*Limits)(nil)

// What Claim returns when the machine has to decide alone, beside what ails Redis and the context's error.
var (
	// ErrBusy says that too many claims wait already.
	ErrBusy = errors.New("redislimit: too many connections wait for Redis")
	// ErrLate says that Redis has not answered in time.
	ErrLate = errors.New("redislimit: Redis has not answered in time")
	// ErrNotRunning says that Run has not been called, or has returned.
	ErrNotRunning = errors.New("redislimit: not running")
	// ErrTooMany says that one connection has more than 64 claims.
	ErrTooMany = errors.New("redislimit: too many claims for one connection")
)

const (
	mostClaims = 64          // of a connection
	patience   = time.Second // for an answer that no connection waits for, and between tries to reach Redis
)

func (l *Limits) timeout() time.Duration { return positive(l.Timeout, 50*time.Millisecond) }
func (l *Limits) lease() time.Duration   { return positive(l.Lease, 15*time.Second) }

// positive returns d, or what it is by default.
func positive[T cmp.Ordered](d, byDefault T) T {
	var zero T
	if d > zero {
		return d
	}
	return byDefault
}

// An ask is the claims of one connection, which wait for an answer. Limits.mu guards it until it is over.
type ask struct {
	claims  []claim
	answer  chan struct{} // closed when it is over, unless nobody waits any more
	over    bool
	refused int
	err     error
}

// Claim is limit.Shared's. It returns within Timeout, and at once while Redis ails. What it
// has granted has to be given back with Release. After an error nothing is held: see Hold.
func (l *Limits) Claim(ctx context.Context, claims []limit.Claim) (refused int, err error) {
	switch {
	case len(claims) == 0:
		return -1, nil
	case len(claims) > mostClaims:
		return -1, ErrTooMany
	}
	a, refused, err := l.ask(l.prepare(claims))
	if a == nil {
		return refused, err
	}
	late := time.NewTimer(l.timeout())
	defer late.Stop()
	select {
	case <-a.answer:
	case <-late.C:
		l.giveUp(a, ErrLate)
	case <-ctx.Done():
		l.giveUp(a, context.Cause(ctx))
	}
	return a.refused, a.err
}

// ask lines claims up for the next round trip, unless the answer is known.
func (l *Limits) ask(claims []claim) (a *ask, refused int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Claims++
	if i := l.refused.first(claims, time.Now()); i >= 0 {
		l.stats.RefusedHere++
		return nil, i, nil
	}
	switch {
	case !l.running:
		err = ErrNotRunning
	case l.health.err() != nil:
		err = l.health.err()
	case len(l.waiting) >= positive(l.MaxWaiting, 4096):
		l.stats.Busy++
		err = ErrBusy
	}
	if err != nil {
		l.stats.Alone++
		return nil, -1, err
	}
	a = &ask{claims: claims, answer: make(chan struct{}), refused: -1}
	l.waiting = append(l.waiting, a)
	l.rouse()
	return a, -1, nil
}

// rouse has Run look for something to do. Before Run there is nobody to rouse.
func (l *Limits) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// giveUp has the machine decide alone, unless there is an answer by now.
func (l *Limits) giveUp(a *ask, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !a.over {
		l.stats.Late++
		l.overLocked(a, -1, err)
	}
}

func (l *Limits) overLocked(a *ask, refused int, err error) {
	switch {
	case err != nil:
		l.stats.Alone++
	case refused >= 0:
		l.stats.Refused++
	default:
		l.stats.Granted++
	}
	a.over, a.refused, a.err = true, refused, err
	close(a.answer)
}

// Release is limit.Shared's. It gives back what Claim has granted, or Hold has counted, and never waits.
func (l *Limits) Release(claims []limit.Claim) {
	l.count(claims, -1)
}

// Hold counts connections that were let in without an answer: because Claim returned an error
// and the machine's own limits had no objection, or because they were taken over from
// another process. They are to be given back with Release like those that were granted.
// It does not wait.
func (l *Limits) Hold(claims []limit.Claim) {
	l.count(claims, 1)
}

func (l *Limits) count(claims []limit.Claim, by int) {
	prepared := l.prepare(claims)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range prepared {
		if c.most > 0 {
			l.counts.add(c.openKey, by)
		}
	}
	l.rouse()
}

// State says whether the machines share their limits at this time. Before Run they do not.
func (l *Limits) State() State { return l.health.now() }

// Stats are what has happened since the beginning, and how much there is.
type Stats struct {
	Claims      uint64 // calls of Claim
	Granted     uint64 // by Redis
	Refused     uint64 // by Redis
	RefusedHere uint64 // because Redis had said until when
	Alone       uint64 // that ended in an error, those of the next two among them
	Busy        uint64 // that found MaxWaiting claims waiting
	Late        uint64 // that had no answer within Timeout, or their context's time
	RoundTrips  uint64 // scripts that were run for all of that

	Waiting int // claims
	Keys    int // that Redis is told the open connections of
}

// Stats returns the counts so far.
func (l *Limits) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	stats := l.stats
	stats.Waiting, stats.Keys = len(l.waiting), l.counts.len()
	return stats
}
