package levee

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync/atomic"
	"time"
)

// sources count newcomers by where they come from: when some have to be turned away, one that
// floods is to be who pays for it. It is a sketch, so that strangers cannot make it grow:
// two rows of counters, by hashes that nobody can foresee, of which the lesser is nearer the truth.
// The counters are halved every so often, and so what is long ago is forgotten.
type sources struct {
	every  time.Duration // they are halved
	rows   [2]sourceRow
	looked atomic.Int64  // clock when was last looked what is usual
	halved atomic.Int64  // clock
	usual  atomic.Uint64 // bits of how many come from where a newcomer does, on the average of newcomers
}

type sourceRow struct {
	seed   maphash.Seed
	counts [256]atomic.Uint32
}

const lookEvery = 100 * time.Millisecond

func (s *sources) init(every time.Duration) {
	s.every = every
	for i := range s.rows {
		s.rows[i].seed = maphash.MakeSeed()
	}
}

// crowding counts a newcomer, and returns how crowded it is where it comes from: 1 is as
// usual for a newcomer. So if all come from one place, or each from another, it is 1 for all of
// them; and the average over newcomers is about 1 in any case.
func (s *sources) crowding(from netip.Addr, now time.Duration) float64 {
	if at := s.looked.Load(); int64(now)-at > int64(lookEvery) && s.looked.CompareAndSwap(at, int64(now)) {
		s.look(now)
	}
	from = sourceOf(from)
	n := uint32(math.MaxUint32)
	for i := range s.rows {
		row := &s.rows[i]
		n = min(n, row.counts[maphash.Comparable(row.seed, from)%uint64(len(row.counts))].Add(1))
	}
	usual := math.Float64frombits(s.usual.Load())
	switch {
	case usual == 0:
		return 1
	case float64(n) < usual/4: // it is another who floods
		return 0
	}
	return float64(n) / usual
}

// sourceOf returns what stands for all addresses that one client has at least: an IPv4 address,
// or an IPv6 /64.
func sourceOf(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); !addr.Is6() {
		return addr
	}
	whole, _ := addr.WithZone("").Prefix(64)
	return whole.Addr()
}

// look looks what is usual, and halves as often as it is time to.
func (s *sources) look(now time.Duration) {
	at := s.halved.Load()
	times := (int64(now) - at) / int64(s.every)
	if times > 0 && !s.halved.CompareAndSwap(at, int64(now)) {
		times = 0 // somebody else is about it
	}
	s.halve(times)
}

// halve halves so many times, which may be none. It also looks what is usual.
func (s *sources) halve(times int64) {
	var all, squares float64
	for i := range s.rows {
		for j := range s.rows[i].counts {
			c := &s.rows[i].counts[j]
			n := c.Load() >> max(times-1, 0)
			for old := c.Load(); times > 0 && !c.CompareAndSwap(old, old>>times); { // others may add to it, and halve it too
				old = c.Load()
			}
			all += float64(n)
			squares += float64(n) * float64(n)
		}
	}
	s.usual.Store(math.Float64bits(0.75 * squares / max(all, 1))) // from half to all of it until the next time
}
