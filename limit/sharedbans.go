package limit

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// A message is for the other machines: a ban, or that it was lifted.
type message struct {
	ban    Ban
	lifted time.Time // when; zero if it is a ban
}

const (
	tellTimeout = 5 * time.Second
	tellAgain   = time.Second // after a failure
	tellAtMost  = time.Minute // of a lift
)

// Run tells the other machines of bans, and has them tell of theirs, until ctx ends; it
// returns ctx's error. Without Shared it only waits.
func (b *Bans) Run(ctx context.Context) error {
	b.init()
	if b.Shared == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	watched := make(chan struct{})
	go b.watch(ctx, watched) // ends with ctx
	for ctx.Err() == nil {
		m, ok := b.nextMessage()
		switch {
		case !ok:
			select {
			case <-ctx.Done():
			case <-b.wake:
			}
		case !b.tell(ctx, m):
			pause(ctx, tellAgain)
		}
	}
	<-watched
	return ctx.Err()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (b *Bans) watch(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	for ctx.Err() == nil {
		b.Shared.Watch(ctx, b.hear)
		pause(ctx, tellAgain) // it should not have returned
	}
}

// tellLocked queues a message; a newer one of the same prefix takes the place of what has not been told.
func (b *Bans) tellLocked(m message) {
	if b.Shared == nil {
		return
	}
	for i := 1; i < len(b.news); i++ {
		if b.news[i].ban.Prefix == m.ban.Prefix {
			b.news[i] = m
			return
		}
	}
	if len(b.news) >= maxNews {
		b.untold++
		b.err = errBehind
		return
	}
	b.news = append(b.news, m)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// nextMessage returns the first message that is still worth telling.
func (b *Bans) nextMessage() (m message, ok bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.news) > 0 {
		m = b.news[0]
		stale := !now.Before(m.ban.Until) || !m.lifted.IsZero() && now.Sub(m.lifted) > tellAtMost
		if !stale {
			return m, true
		}
		b.untold++
		b.news = b.news[1:]
	}
	return message{}, false
}

// tell tells the first message, and takes it from the queue if that went well.
func (b *Bans) tell(ctx context.Context, m message) bool {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	var err error
	if m.lifted.IsZero() {
		err = b.Shared.Ban(ctx, m.ban)
	} else {
		err = b.Shared.Lift(ctx, m.ban.Prefix)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	if err != nil {
		return false
	}
	b.news = b.news[1:]
	if r := b.records[m.ban.Prefix]; r != nil && r.Ban == m.ban {
		r.told = time.Now()
	}
	return true
}

// atOnce is how many of the others' bans are taken over in one go: whoever is about to ban somebody
// waits for that, and may be accepting connections.
const atOnce = 128

// hear puts in force what the other machines have, and ends what they had and have no more.
func (b *Bans) hear(theirs []Ban, asOf time.Time) {
	now := time.Now()
	if size := orDefault(b.Size, defaultBans); len(theirs) > size { // those that end first are not for here
		theirs = slices.SortedFunc(slices.Values(theirs), func(x, y Ban) int { return y.Until.Compare(x.Until) })[:size]
	}
	there := make(map[netip.Prefix]bool, len(theirs))
	for some := range slices.Chunk(theirs, atOnce) {
		for _, ban := range b.adopt(some, there, asOf, now) {
			b.changed(ban)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for prefix, r := range b.records {
		if !there[prefix] && r.knownElsewhere(asOf) && r.inForce(now) {
			b.removeLocked(r)
		}
	}
}

// knownElsewhere reports whether the other machines had the ban before asOf: then they have it still, or it was lifted.
func (r *record) knownElsewhere(asOf time.Time) bool {
	return r.seen || !r.told.IsZero() && !r.told.After(asOf)
}

// adopt takes over bans of the other machines, notes which there are, and returns those that are news.
func (b *Bans) adopt(some []Ban, there map[netip.Prefix]bool, asOf, now time.Time) (fresh []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	untold := b.untoldLocked()
	for _, ban := range some {
		prefix, err := canonical(ban.Prefix, "")
		if err != nil || prefix.Bits() == 0 || !now.Before(ban.Until) {
			continue
		}
		m, later := untold[prefix]
		if later && !m.lifted.IsZero() {
			continue
		}
		ban.Prefix, ban.Why = prefix, line(ban.Why)
		there[prefix] = true
		if !later && b.adoptLocked(ban, asOf, now) {
			fresh = append(fresh, ban)
		}
	}
	return fresh
}

// untoldLocked returns the last that the others are still to be told, by prefix.
func (b *Bans) untoldLocked() map[netip.Prefix]message {
	untold := make(map[netip.Prefix]message)
	for _, m := range b.news {
		untold[m.ban.Prefix] = m
	}
	return untold
}

// adoptLocked takes over a ban of the other machines, and reports whether it is news.
func (b *Bans) adoptLocked(ban Ban, asOf, now time.Time) bool {
	r := b.records[ban.Prefix]
	switch {
	case r == nil || !r.inForce(now) || r.shadow:
		b.putLocked(&record{Ban: ban, forget: ban.Until, seen: true})
		return true
	case r.told.After(asOf): // what they had before it, perhaps
	case !r.Until.Equal(ban.Until):
		b.putLocked(&record{Ban: ban, times: r.times, forget: ban.Until.Add(r.forget.Sub(r.Until)), seen: true})
	default:
		r.seen = true
	}
	return false
}
