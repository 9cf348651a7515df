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
	if err == nil {
		b.news = b.news[1:]
	}
	return err == nil
}

// atOnce is how many of the others' bans are taken over in one go: whoever is about to ban somebody
// waits for that, and may be accepting connections.
const atOnce = 128

// hear puts in force what the other machines have, and ends what they had and have no more.
func (b *Bans) hear(theirs []Ban) {
	now := time.Now()
	if size := orDefault(b.Size, defaultBans); len(theirs) > size { // those that end first are not for here
		theirs = slices.SortedFunc(slices.Values(theirs), func(x, y Ban) int { return y.Until.Compare(x.Until) })[:size]
	}
	there := make(map[netip.Prefix]bool, len(theirs))
	for some := range slices.Chunk(theirs, atOnce) {
		for _, ban := range b.adopt(some, there, now) {
			b.changed(ban)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for prefix, r := range b.records {
		if r.seen && !there[prefix] && r.inForce(now) {
			b.removeLocked(r)
		}
	}
}

// adopt takes over bans of the other machines, notes which there are, and returns those that are news.
func (b *Bans) adopt(some []Ban, there map[netip.Prefix]bool, now time.Time) (fresh []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lifting := b.liftingLocked()
	for _, ban := range some {
		prefix, err := canonical(ban.Prefix, "")
		if err != nil || prefix.Bits() == 0 || !now.Before(ban.Until) || lifting[prefix] {
			continue
		}
		ban.Prefix, ban.Why = prefix, line(ban.Why)
		there[prefix] = true
		if b.adoptLocked(ban, now) {
			fresh = append(fresh, ban)
		}
	}
	return fresh
}

// liftingLocked returns what the others are still to be told was lifted.
func (b *Bans) liftingLocked() map[netip.Prefix]bool {
	lifting := make(map[netip.Prefix]bool)
	for _, m := range b.news {
		lifting[m.ban.Prefix] = !m.lifted.IsZero()
	}
	return lifting
}

// adoptLocked takes over a ban of the other machines, and reports whether it is news.
func (b *Bans) adoptLocked(ban Ban, now time.Time) bool {
	r := b.records[ban.Prefix]
	if r == nil || !r.inForce(now) || r.shadow {
		b.putLocked(&record{Ban: ban, forget: ban.Until, seen: true})
		return true
	}
	if r.seen && !r.Until.Equal(ban.Until) {
		b.putLocked(&record{Ban: ban, times: r.times, forget: ban.Until.Add(r.forget.Sub(r.Until)), seen: true})
		return false
	}
	r.seen = true
	return false
}
