package limit

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/saved"
)

const (
	savedVersion = 1
	mostSaved    = 64 << 20 // bytes
	mostAccounts = 1 << 16  // of a table; each is up to 100 bytes

	longestDebt = 10 * time.Minute // that a client's bytes are believed to be owing
)

// savedScope is what a scope has counted and what clients have taken, for that of another process.
type savedScope struct {
	Totals  savedDecisions          `json:"totals"`
	Taken   savedAccount            `json:"taken"`   // by all
	Clients map[string]savedClients `json:"clients"` // by name
}

type savedClients struct {
	By        Key            `json:"by"`
	Decisions savedDecisions `json:"decisions"`
	Evicted   int64          `json:"evicted"`
	Crowded   int64          `json:"crowded"`
	Table     savedTable     `json:"table"`
}

// savedDecisions are how often was allowed, refused, and would have been refused in Shadow, by the word of a kind.
type savedDecisions map[string][3]int64

// A savedTable is the accounts that have something to make up for, the heaviest first, and what their tags were made with.
type savedTable struct {
	Key      hashKey        `json:"key"`
	Accounts []savedAccount `json:"accounts"`
}

// A savedAccount is a tag, and how long it will take to make up for what was taken: new connections, handshakes, bytes up
// and down, in nanoseconds.
type savedAccount [5]uint64

// Save returns what the scope's connections have taken of its rates and what has been decided, for Restore in the process
// that goes on in place of this one. Open connections are not part of it: they are counted where they go, see
// [Gate.Readmit]. Of each Clients up to 65,536 are remembered, those first that have most to make up for. It is
// nobody else's to see: who has it could find addresses that crowd each other out of what is remembered.
func (s *Scope) Save() ([]byte, error) {
	s.init()
	now := time.Now()
	state := savedScope{Totals: s.totals.save(), Clients: make(map[string]savedClients)}
	s.sum.mu.Lock()
	state.Taken, _ = s.sum.accounts[0].save(0, s.totals.since(now))
	s.sum.mu.Unlock()
	for _, c := range s.Clients {
		state.Clients[c.name()] = savedClients{
			By: c.By, Decisions: c.each.save(), Evicted: c.table.evicted.Load(), Crowded: c.table.crowded.Load(),
			Table: c.table.save(c.each.since(now)),
		}
	}
	return saved.Write(savedVersion, state)
}

// Restore takes over what another process has saved. What that has decided is added to what is decided here, in place of
// what an earlier Restore has added. What its clients have taken they have taken here as well, but no more than
// the limits here allow anybody to take: for that it has to come before the scope is in use, and may be called
// again later. Clients that are told apart by something else now have taken nothing. An error changes nothing.
func (s *Scope) Restore(b []byte) error {
	s.init()
	state, age, err := saved.Read[savedScope](b, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("limits of %s: %w", cmp.Or(s.Name, "levee"), err)
	}
	now := time.Now()
	s.totals.inherit(state.Totals)
	s.sum.mu.Lock()
	s.sum.accounts[0].inherit(&state.Taken, s.totals.since(now), age, s.totals.mostTaken())
	s.sum.mu.Unlock()
	for _, c := range s.Clients {
		from, ok := state.Clients[c.name()]
		if !ok || from.By != c.By {
			continue
		}
		c.each.inherit(from.Decisions)
		c.table.inherit(&from, c.each.since(now), age, c.each.mostTaken())
	}
	return nil
}

func (c *Clients) name() string { return cmp.Or(c.Name, "client") }

func (l *law) save() savedDecisions {
	all := make(savedDecisions)
	for k := connections; k < kinds; k++ {
		c := &l.counts[k]
		if n := [3]int64{c.allowed.Load(), c.refused.Load(), c.wouldRefuse.Load()}; n != [3]int64{} {
			all[kindWords[k]] = n
		}
	}
	return all
}

// inherit adds what another process has decided.
func (l *law) inherit(now savedDecisions) {
	for k := connections; k < kinds; k++ {
		c, n := &l.counts[k], now[kindWords[k]]
		l.inherited[k].set(n[:], &c.allowed, &c.refused, &c.wouldRefuse)
	}
}

// inherited is what another process has counted, of some counts.
type inherited struct {
	mu     sync.Mutex
	counts []int64
}

// set adds to counts what another process has counted, in place of what was added before.
func (h *inherited) set(now []int64, counts ...*atomic.Int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.counts
	h.counts = slices.Clone(now)
	for i, count := range counts {
		saved.Counts(&h.counts[i])
		by := h.counts[i]
		if before != nil {
			by -= before[i]
		}
		count.Add(by)
	}
}

// taken are bounds of what an account may have to make up for, in nanoseconds, as in a savedAccount.
type taken [4]uint64

// mostTaken returns what anybody can have taken of the limits that are in force.
func (l *law) mostTaken() (most taken) {
	t := l.terms.Load()
	for w := range t.numbers {
		n := &t.numbers[w]
		most[0] = max(most[0], n.rate.most())
		most[1] = max(most[1], n.handshakes.most())
		for i, nsPerByte := range n.nsPerByte {
			if nsPerByte > 0 {
				most[2+i] = uint64(longestDebt)
			}
		}
	}
	return most
}

// most is how far ahead of the time an account can be.
func (c cadence) most() uint64 { return uint64(c.tolerance + c.interval) } //nolint:gosec // neither is negative

// save returns what the account has to make up for, and whether there is anything.
func (a *account) save(tag uint64, now int64) (s savedAccount, some bool) {
	s[0] = tag
	for i, tat := range [4]int64{a.rate, a.handshakes, a.bytes[0].Load(), a.bytes[1].Load()} {
		if tat > now {
			s[1+i], some = uint64(tat-now), true
		}
	}
	return s, some
}

// inherit has the account make up for what was taken of one in another process, some time ago.
func (a *account) inherit(s *savedAccount, now int64, ago time.Duration, most taken) {
	var left taken
	for i := range left {
		if n := min(s[1+i], most[i]); n > uint64(ago) {
			left[i] = n - uint64(ago)
		}
	}
	at := func(i int) int64 { return now + int64(left[i]) } //nolint:gosec // it is bounded by most
	if left[0] > 0 {
		a.rate = max(a.rate, at(0))
	}
	if left[1] > 0 {
		a.handshakes = max(a.handshakes, at(1))
	}
	for i := range a.bytes {
		if left[2+i] > 0 {
			raise(&a.bytes[i], at(2+i))
		}
	}
}

func raise(n *atomic.Int64, to int64) {
	for have := n.Load(); have < to && !n.CompareAndSwap(have, to); have = n.Load() {
	}
}

// save returns the table's accounts that have something to make up for.
func (t *table) save(now int64) savedTable {
	var all []savedAccount
	for i := range t.sets {
		s := &t.sets[i]
		s.mu.Lock()
		for j, tag := range s.tags {
			if saved, some := s.accounts[j].save(tag, now); some && tag != 0 {
				all = append(all, saved)
			}
		}
		s.mu.Unlock()
	}
	slices.SortFunc(all, func(x, y savedAccount) int { return cmp.Compare(y.forgiven(), x.forgiven()) })
	return savedTable{t.key, all[:min(len(all), mostAccounts)]}
}

func (s *savedAccount) forgiven() uint64 { return max(s[1], s[2], s[3], s[4]) }

// inherit takes over accounts of another process's table. One that is in use can do so only if it has done
// so before: a key has another tag in each.
func (t *table) inherit(from *savedClients, now int64, ago time.Duration, most taken) {
	t.inherited.set([]int64{from.Evicted, from.Crowded}, &t.evicted, &t.crowded)
	if !t.takesKey(from.Table.Key) {
		return
	}
	accounts := from.Table.Accounts[:min(len(from.Table.Accounts), mostAccounts)]
	for i := range slices.Backward(accounts) { // the heaviest last: it takes the place of others, where there is no room
		if a := &accounts[i]; a[0] != 0 {
			t.inheritOne(a, now, ago, most)
		}
	}
}

func (t *table) inheritOne(a *savedAccount, now int64, ago time.Duration, most taken) {
	var news account
	if news.inherit(a, now, ago, most); news.forgiven() <= now {
		return
	}
	s := t.set(a[0])
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := t.open(s, a[0], now); i < ways { // the common account is of nobody
		s.accounts[i].inherit(a, now, ago, most)
	}
}

// takesKey has the table's tags made with that key, and reports whether they are.
func (t *table) takesKey(key hashKey) bool {
	if t.key == key {
		return true
	}
	for i := range t.sets {
		s := &t.sets[i]
		s.mu.Lock()
		used := s.tags != [ways]uint64{}
		s.mu.Unlock()
		if used {
			return false
		}
	}
	if key == (hashKey{}) { // of nothing, or of somebody who would have us know no better
		return false
	}
	t.key = key
	return true
}

// savedLists is what lists have decided.
type savedLists struct {
	Allowed     int64 `json:"allowed"`
	Refused     int64 `json:"refused"`
	WouldRefuse int64 `json:"would_refuse"`
}

// Save returns what the lists have decided, for Restore in the process that goes on in place of this one.
func (l *Lists) Save() ([]byte, error) {
	return saved.Write(savedVersion, savedLists{l.counts.allowed.Load(), l.counts.refused.Load(), l.counts.wouldRefuse.Load()})
}

// Restore adds what the lists of another process have decided to what is decided here, in place of what an earlier
// Restore has added. An error changes nothing.
func (l *Lists) Restore(b []byte) error {
	state, _, err := saved.Read[savedLists](b, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("lists: %w", err)
	}
	l.inherited.set([]int64{state.Allowed, state.Refused, state.WouldRefuse}, &l.counts.allowed, &l.counts.refused, &l.counts.wouldRefuse)
	return nil
}

// savedBans is what bans there are, and what is remembered of clients that may be banned.
type savedBans struct {
	Bans        []savedBan `json:"bans"`
	Strikes     savedTable `json:"strikes"`
	Refused     int64      `json:"refused"`
	WouldRefuse int64      `json:"would_refuse"`
	Made        int64      `json:"made"`
	Dropped     int64      `json:"dropped"`
	Untold      int64      `json:"untold"`
}

type savedBan struct {
	Prefix netip.Prefix `json:"prefix"`
	Until  time.Time    `json:"until"`
	Forget time.Time    `json:"forget"` // how often it was
	Times  int          `json:"times"`
	Why    string       `json:"why"`
	Shadow bool         `json:"shadow,omitempty"`
	Shared bool         `json:"shared,omitempty"` // the other machines know of it
}

// Save returns the bans, also those in shadow and those that have ended and count for the next, what
// clients have left of their Refusals, and what is counted; for Restore in the process that goes on in place of this one. It is up to
// some 300 bytes for each of Size, and as much nobody else's to see as what [Scope.Save] returns.
func (b *Bans) Save() ([]byte, error) {
	b.init()
	state := savedBans{Refused: b.refused.Load(), WouldRefuse: b.wouldRefuse.Load(), Strikes: b.strikes.save(int64(time.Since(b.epoch)))}
	b.mu.Lock()
	state.Made, state.Dropped, state.Untold = b.made, b.dropped, b.untold
	for _, r := range b.ends {
		state.Bans = append(state.Bans, savedBan{r.Prefix, r.Until, r.forget, r.times, r.Why, r.shadow, r.seen || !r.told.IsZero()})
	}
	b.mu.Unlock()
	return saved.Write(savedVersion, state)
}

// Restore puts the bans of another process in force that have not ended, beside those that there are; of two of a prefix that
// which ends later. Those that end first have to go where Size is less than there are. What has been counted
// is added, in place of what an earlier Restore has added. What clients have left of their Refusals is for before
// the first of them; of [Clients] the same is said at [Scope.Restore]. Changed is not called. The machines
// of Shared are told of what they have not been told by the other process. An error changes nothing.
func (b *Bans) Restore(bytes []byte) error {
	b.init()
	state, age, err := saved.Read[savedBans](bytes, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("bans: %w", err)
	}
	b.inherited.set([]int64{state.Refused, state.WouldRefuse}, &b.refused, &b.wouldRefuse)
	t := b.terms.Load()
	b.strikes.inherit(&savedClients{Table: state.Strikes}, int64(time.Since(b.epoch)), age, taken{t.cadence.most()})
	b.mu.Lock()
	b.inheritCountsLocked([3]int64{state.Made, state.Dropped, state.Untold})
	b.mu.Unlock()
	for some := range slices.Chunk(state.Bans, atOnce) {
		b.inheritBans(some, t)
	}
	return nil
}

func (b *Bans) inheritCountsLocked(now [3]int64) {
	for i, n := range []*int64{&b.made, &b.dropped, &b.untold} {
		saved.Counts(&now[i])
		*n += now[i] - b.before[i]
	}
	b.before = now
}

func (b *Bans) inheritBans(some []savedBan, t *banTerms) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range some {
		r, ok := some[i].record(t, now)
		if !ok || !now.Before(r.forget) {
			continue
		}
		if have := b.records[r.Prefix]; have != nil && !have.forget.Before(r.forget) {
			continue
		}
		b.putLocked(r)
		if !r.seen && !r.shadow && r.inForce(now) {
			b.tellLocked(message{ban: r.Ban})
		}
	}
}

// record returns the ban in the form in which it is kept.
func (s *savedBan) record(t *banTerms, now time.Time) (*record, bool) {
	prefix, err := canonical(s.Prefix, "")
	if err != nil || prefix.Bits() == 0 {
		return nil, false
	}
	until := earlier(s.Until, now.Add(longestBan))
	return &record{
		Ban:    Ban{Prefix: prefix, Until: until, Why: line(s.Why)},
		times:  min(max(s.Times, 0), 60),
		forget: later(until, earlier(s.Forget, until.Add(t.most))),
		shadow: s.Shadow,
		seen:   s.Shared,
	}, true
}

// longestBan is for ever.
const longestBan = 100 * 365 * 24 * time.Hour

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
