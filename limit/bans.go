package limit

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/levee-net/levee"
)

// Bans keep out for a while whoever is refused again and again, and whom an operator says.
//
// A client (an IPv4 address or an IPv6 /64) has so many Refusals, one of which is forgiven
// every Within/Refusals. With the last it is banned: for For, and each time again for twice
// as long as the time before, up to Max; unless as much time has passed since that ban as it lasted. Refusals by
// limits of each client by address count, and connections that end for one of Reasons. Refusals by
// totals and by what clients may have in common do not, nor what happens before a PROXY
// header has been read: those are not the client's doing.
//
// The zero value is ready to use. Its fields must not be changed then; for others see [Bans.Set]. Methods may be called
// from several goroutines.
type Bans struct {
	Name     string        // in Stats; "" means "bans"
	Refusals int           // zero means 100
	Within   time.Duration // zero means a minute
	For      time.Duration // zero means 10 minutes
	Max      time.Duration // zero means a day

	// Mode is for the bans that refusals make: Shadow counts them, and keeps nobody out; with
	// Off there are none. Those by hand, and those of other machines, are in force in any case.
	Mode Mode

	// Reasons are the ends of connections that count as refusals. Nil means arrival_timeout,
	// tls_failed and proxy_header_refused; empty means none. Who must send a PROXY header is one of ours,
	// whatever comes instead.
	Reasons []levee.CloseReason

	// Size is how many bans there may be. For one more, that which would end first ends now. Zero
	// means 65,536.
	Size int
	// Entries is how many clients' refusals are remembered, as in [Clients.Entries]. Zero means
	// 65,536.
	Entries int

	// Changed, if it is set, is called after a ban, with no lock held: connections that are
	// there may have to go (see [Gate.Denies]). It must not block.
	Changed func(Ban)

	// Shared, if it is set, is told of bans that are made here, and tells of others'. Run
	// does so.
	Shared SharedBans

	once    sync.Once
	epoch   time.Time
	strikes *table
	terms   atomic.Pointer[banTerms]
	bad     [256]bool // by reason

	refused, wouldRefuse atomic.Int64
	inherited            inherited                           // what in these another process has counted
	inForce              atomic.Pointer[bart.Table[*record]] // and some that have just ended; it is changed by making another

	mu      sync.Mutex
	records map[netip.Prefix]*record
	ends    endings
	made    int64
	dropped int64
	untold  int64
	before  [3]int64 // what in made, dropped and untold another process has counted
	err     error
	news    []message // for the other machines; the first is being told
	wake    chan struct{}
}

// banTerms are the fields that Set changes, with their defaults.
type banTerms struct {
	refusals    int
	cadence     cadence
	first, most time.Duration
	mode        Mode
}

func (b *Bans) newTerms() *banTerms {
	t := &banTerms{refusals: orDefault(b.Refusals, defaultRefusals), first: orDefault(b.For, defaultBan), most: orDefault(b.Max, defaultMaxBan), mode: b.Mode}
	interval := max(1, int64(orDefault(b.Within, defaultWithin))/int64(t.refusals))
	t.cadence = cadence{interval: interval, tolerance: interval * int64(t.refusals-2)} // all but the last pass
	return t
}

// Set has bans be made by the Refusals, Within, For, Max and Mode of another, which is itself
// not in use, from the next refusal on. What there are stay as they are, those in shadow too.
func (b *Bans) Set(like *Bans) {
	b.init()
	b.terms.Store(like.newTerms())
}

// A record is a ban, and after its end what is remembered of it.
type record struct {
	Ban
	times  int       // how often the client was banned by refusals, in a row
	forget time.Time // when that is no longer remembered
	shadow bool      // it keeps nobody out
	seen   bool      // the other machines have told of it
	told   time.Time // when they had been told of it; zero if they have not
	place  int       // in endings
	err    error
}

// A BanError says who is kept out, until when and why.
type BanError struct{ Ban Ban }

// Error returns a sentence such as "banned: 192.0.2.7/32 until 2027-01-02T15:04:05Z: 100 refusals".
func (e *BanError) Error() string {
	return fmt.Sprintf("banned: %s until %s: %s", e.Ban.Prefix, e.Ban.Until.UTC().Format(time.RFC3339), e.Ban.Why)
}

// Is reports whether target is ErrBanned.
func (e *BanError) Is(target error) bool { return target == ErrBanned }

const (
	defaultRefusals = 100
	defaultWithin   = time.Minute
	defaultBan      = 10 * time.Minute
	defaultMaxBan   = 24 * time.Hour
	defaultBans     = 1 << 16
	maxNews         = 1024
	maxWhy          = 200 // bytes
)

func (b *Bans) init() {
	b.once.Do(func() {
		b.epoch = time.Now()
		b.strikes = newTable(orDefault(b.Entries, defaultBans))
		b.terms.Store(b.newTerms())
		reasons := b.Reasons
		if reasons == nil {
			reasons = []levee.CloseReason{levee.ArrivalTimeout, levee.TLSFailed, levee.ProxyHeaderRefused}
		}
		for _, r := range reasons {
			b.bad[r] = true
		}
		b.records = make(map[netip.Prefix]*record)
		b.inForce.Store(new(bart.Table[*record]))
		b.wake = make(chan struct{}, 1)
	})
}

// Ban keeps the clients of a prefix out for a while. It replaces a ban of the same prefix. Why
// is a short line.
func (b *Bans) Ban(prefix netip.Prefix, d time.Duration, why string) error {
	b.init()
	prefix, err := canonical(prefix, "")
	switch {
	case err != nil:
		return fmt.Errorf("ban: %w", err)
	case prefix.Bits() == 0:
		return fmt.Errorf("ban %s: it would keep everybody out", prefix)
	case d <= 0:
		return fmt.Errorf("ban %s: for %s is for no time", prefix, d)
	}
	ban := Ban{Prefix: prefix, Until: time.Now().Add(d), Why: line(why)}
	b.mu.Lock()
	b.putLocked(&record{Ban: ban, forget: ban.Until})
	b.tellLocked(message{ban: ban})
	b.mu.Unlock()
	b.changed(ban)
	return nil
}

// Lift ends the ban of a prefix, forgets that there was one, and reports whether it was in force.
func (b *Bans) Lift(prefix netip.Prefix) bool {
	b.init()
	prefix, err := canonical(prefix, "")
	if err != nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.records[prefix]
	if r == nil {
		return false
	}
	inForce := r.inForce(time.Now())
	b.removeLocked(r)
	if inForce {
		b.tellLocked(message{ban: r.Ban, lifted: time.Now()})
	}
	return inForce
}

// List returns up to n of the bans that are in force, those first that end first; all of
// them if n is 0.
func (b *Bans) List(n int) []Ban {
	b.init()
	now := time.Now()
	b.mu.Lock()
	var all []Ban
	for _, r := range b.ends {
		if r.inForce(now) {
			all = append(all, r.Ban)
		}
	}
	b.mu.Unlock()
	slices.SortFunc(all, func(x, y Ban) int {
		return cmp.Or(x.Until.Compare(y.Until), x.Prefix.Compare(y.Prefix))
	})
	if n > 0 && len(all) > n {
		all = slices.Clone(all[:n])
	}
	return all
}

// Denies returns a *[BanError] if addr is kept out, or nil.
func (b *Bans) Denies(addr netip.Addr) error {
	b.init()
	if r := b.find(addr, time.Now()); r != nil && !r.shadow {
		return r.err
	}
	return nil
}

// decide reports whether to keep out a connection that wants to come in.
func (b *Bans) decide(addr netip.Addr, now time.Time) bool {
	b.init()
	switch r := b.find(addr, now); {
	case r == nil:
		return false
	case r.shadow:
		b.wouldRefuse.Add(1)
		return false
	}
	b.refused.Add(1)
	return true
}

// find returns the ban that keeps addr out.
func (b *Bans) find(addr netip.Addr, now time.Time) *record {
	if !addr.IsValid() {
		return nil
	}
	addr = lookedUp(addr)
	r, ok := b.inForce.Load().Lookup(addr)
	if !ok || r.inForce(now) && !r.shadow {
		return r
	}
	// It has ended, or is but a shadow, and there may be another around it.
	var shadow *record
	for _, r := range b.inForce.Load().Supernets(netip.PrefixFrom(addr, addr.BitLen())) {
		switch {
		case !r.inForce(now):
		case !r.shadow:
			return r
		case shadow == nil:
			shadow = r
		}
	}
	return shadow
}

func (r *record) inForce(now time.Time) bool { return now.Before(r.Until) }

// counts reports whether to end so is a strike.
func (b *Bans) counts(reason levee.CloseReason) bool {
	b.init()
	return b.bad[reason]
}

// strike counts a refusal of a client, and bans it with the last that it has.
func (b *Bans) strike(addr netip.Addr) {
	b.init()
	t := b.terms.Load()
	if t.mode == Off || !addr.IsValid() {
		return
	}
	addr = lookedUp(addr)
	now := time.Now()
	if r := b.find(addr, now); r != nil { // what comes while it is kept out, in Shadow too, or has come in before, is all one
		return
	}
	tag := b.strikes.address(addr, prefixBits[one])
	if !b.exhausted(t.cadence, b.strikes.set(tag), tag, int64(now.Sub(b.epoch))) {
		return
	}
	ban := b.punish(t, clientPrefix(addr, prefixBits[one]), now)
	if t.mode == Enforce {
		b.changed(ban)
	}
}

// exhausted takes one of a client's refusals and reports whether it was the last.
func (b *Bans) exhausted(cadence cadence, s *set, tag uint64, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.accounts[b.strikes.open(s, tag, now)]
	after, ok := cadence.next(a.rate, now)
	if ok {
		a.rate = after
	} else {
		a.rate = now // it begins anew after the ban
	}
	return !ok
}

// punish bans a client, for longer each time.
func (b *Bans) punish(t *banTerms, prefix netip.Prefix, now time.Time) Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	times := 0
	if before := b.records[prefix]; before != nil && now.Before(before.forget) {
		times = before.times
	}
	d := min(t.first, t.most)
	for range times {
		d = min(2*d, t.most)
	}
	b.made++
	ban := Ban{Prefix: prefix, Until: now.Add(d), Why: fmt.Sprintf("%d refusals", t.refusals)}
	b.putLocked(&record{Ban: ban, times: min(times+1, 60), forget: ban.Until.Add(d), shadow: t.mode == Shadow})
	if t.mode == Enforce {
		b.tellLocked(message{ban: ban})
	}
	return ban
}

// putLocked puts a ban in force, in place of one of the same prefix, or else of that which ends first if
// there are too many.
func (b *Bans) putLocked(r *record) {
	now := time.Now()
	r.err = &BanError{r.Ban}
	if before := b.records[r.Prefix]; before != nil {
		b.removeLocked(before)
	}
	for len(b.ends) > 0 && !now.Before(b.ends[0].forget) {
		b.removeLocked(b.ends[0])
	}
	for size := orDefault(b.Size, defaultBans); len(b.ends) >= size; {
		if b.ends[0].inForce(now) {
			b.dropped++
		}
		b.removeLocked(b.ends[0])
	}
	b.records[r.Prefix] = r
	heap.Push(&b.ends, r)
	b.inForce.Store(b.inForce.Load().InsertPersist(r.Prefix, r))
}

func (b *Bans) removeLocked(r *record) {
	delete(b.records, r.Prefix)
	heap.Remove(&b.ends, r.place)
	b.inForce.Store(b.inForce.Load().DeletePersist(r.Prefix))
}

func (b *Bans) changed(ban Ban) {
	if b.Changed != nil {
		b.Changed(ban)
	}
}

// Stats returns the counts of bans.
func (b *Bans) Stats() BanStats {
	b.init()
	now := time.Now()
	stats := BanStats{Decisions: Decisions{
		Limit: cmp.Or(b.Name, "bans"), Refused: b.refused.Load(), WouldRefuse: b.wouldRefuse.Load(),
	}}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.ends {
		if r.inForce(now) && !r.shadow {
			stats.Active++
		}
	}
	stats.Made, stats.Dropped, stats.Untold, stats.Err = b.made, b.dropped, b.untold, b.err
	return stats
}

// line makes a short line of what may hold anything.
func line(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxWhy {
		text = strings.ToValidUTF8(text[:maxWhy], "")
	}
	return text
}

// endings are records as a heap: what ends first is first.
type endings []*record

func (e endings) Len() int           { return len(e) }
func (e endings) Less(i, j int) bool { return e[i].Until.Before(e[j].Until) }
func (e endings) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].place, e[j].place = i, j
}

// Push is heap's.
func (e *endings) Push(x any) {
	r := x.(*record)
	r.place = len(*e)
	*e = append(*e, r)
}

// Pop is heap's.
func (e *endings) Pop() any {
	last := len(*e) - 1
	r := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	return r
}

var errBehind = errors.New("more bans than the other machines can be told")
