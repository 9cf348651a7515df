package limit

import (
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
)

// A table keeps the accounts of strangers, of whom there may be any number, in a memory that does not grow.
//
// A key's hash names one set, and there one of its accounts. The hash has a secret key, so nobody can choose
// addresses that meet in one set; and two keys are taken for one if all 64 bits of theirs are
// the same. An account with open connections stays where it is until they are closed; any other gives way to a
// newcomer, the one first that is forgiven first. If that has been, forgetting it makes no difference.
type table struct {
	key              hashKey
	sets             []set
	evicted, crowded atomic.Int64
	inherited        inherited // what in these another process has counted
}

const ways = 16 // with half of the accounts in use, one set in 250 is full

type set struct {
	mu       sync.Mutex
	tags     [ways]uint64      // hashes; 0 is nobody's account
	accounts [ways + 1]account // the last is the common one of all for whom there was no room
}

func newTable(entries int) *table {
	return &table{key: newHashKey(), sets: make([]set, max(1, (entries+ways-1)/ways))}
}

// set returns the set that the key with that hash has its account in.
func (t *table) set(tag uint64) *set {
	i, _ := bits.Mul64(tag, uint64(len(t.sets)))
	return &t.sets[i]
}

// open returns the place of the key's account in its set, which is locked, and makes room for it if need be.
func (t *table) open(s *set, tag uint64, now int64) int {
	free := -1
	for i, have := range &s.tags {
		if have == tag {
			return i
		}
		if have == 0 && free < 0 {
			free = i
		}
	}
	if free < 0 {
		if free = t.evict(s, now); free == ways {
			return ways
		}
	}
	s.tags[free] = tag
	return free
}

// evict returns an account that it has cleared, or the common one.
func (t *table) evict(s *set, now int64) int {
	first, at := ways, int64(0)
	for i := range ways {
		a := &s.accounts[i]
		if a.open > 0 {
			continue
		}
		if forgiven := a.forgiven(); first == ways || forgiven < at {
			first, at = i, forgiven
		}
	}
	if first == ways {
		t.crowded.Add(1)
		return ways
	}
	if at > now {
		t.evicted.Add(1)
	}
	s.accounts[first].clear()
	return first
}

// used returns how many accounts remember something.
func (t *table) used(now int64) int {
	n := 0
	for i := range t.sets {
		s := &t.sets[i]
		s.mu.Lock()
		for j := range ways {
			if a := &s.accounts[j]; a.open > 0 || a.forgiven() > now {
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}

// address returns the hash of the first bits of an address, which is not IPv4 in IPv6. All of IPv4 count.
func (t *table) address(addr netip.Addr, n int) uint64 {
	var key [17]byte
	a := addr.As16()
	if addr.Is4() {
		n = 32
		copy(key[1:], a[:])
	} else {
		copy(key[1:], a[:n/8])
	}
	key[0] = byte(n) // none of these begins a name
	return tagOf(hash(t.key, key[:]))
}

// name returns the hash of a name.
func (t *table) name(s string) uint64 { return tagOf(hash(t.key, s)) }

// tagOf keeps hashes away from 0. That it makes one of two makes them no easier to find.
func tagOf(hash uint64) uint64 { return max(hash, 1) }
