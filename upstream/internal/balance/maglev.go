package balance

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// A table is Maglev's lookup table. It is made from the names and the weights alone, so
// that every front door has the same. Weights that have changed make it anew: at a pick,
// at most once a refresh. That pick allocates, and takes a few milliseconds.
type table struct {
	alphabetic []int // the servers, in the order of their names
	born       time.Time
	due        atomic.Int64 // nanoseconds since it was born, when the weights are looked at again
	filled     atomic.Pointer[filled]
}

// filled is a table for certain weights. It is not changed.
type filled struct {
	slots   []int32 // servers
	weights []float64
}

const refresh = time.Second // weights seldom change, and a table costs milliseconds

// tableSize is prime, so that every step through a table visits all of it. It is the same
// for any number of servers: nearly every key moves when it changes. A server's share is
// off by one slot at most, with 1000 servers by 1.5 %. A table takes 256 KiB.
const tableSize = 65537

func newTable(names rendezvous, peers []Peer) *table {
	t := &table{born: time.Now(), alphabetic: make([]int, len(peers))}
	for i := range t.alphabetic {
		t.alphabetic[i] = i
	}
	slices.SortStableFunc(t.alphabetic, func(a, b int) int { return cmp.Compare(peers[a].Name(), peers[b].Name()) })
	t.due.Store(int64(refresh))
	t.fill(names, peers)
	return t
}

// lookUp returns the key's server, usable or not.
func (t *table) lookUp(names rendezvous, peers []Peer, key uint64) int {
	now, due := int64(time.Since(t.born)), t.due.Load()
	if now >= due && t.due.CompareAndSwap(due, now+int64(refresh)) {
		t.fill(names, peers)
	}
	return int(t.filled.Load().slots[mix(key)%tableSize])
}

// fill makes the table for the present weights, if it is not for these already.
func (t *table) fill(names rendezvous, peers []Peer) {
	last := t.filled.Load()
	if last != nil && !changed(last.weights, peers) {
		return
	}
	weights, sum := make([]float64, len(peers)), 0.0
	for i, p := range peers {
		weights[i] = weightOf(p)
	}
	for _, i := range t.alphabetic { // in this order, as sums of floats depend on it
		sum += weights[i]
	}
	t.filled.Store(&filled{t.place(names, weights, sum/float64(len(peers))), weights})
}

func changed(weights []float64, peers []Peer) bool {
	for i, p := range peers {
		if weightOf(p) != weights[i] {
			return true
		}
	}
	return false
}

// place has the servers take slots in turn, each the next free one in an order of its
// own, until there is none. In a round a server of mean weight takes one; the others in
// proportion, at least one of all.
func (t *table) place(names rendezvous, weights []float64, mean float64) []int32 {
	const free = -1
	slots := make([]int32, tableSize)
	for i := range slots {
		slots[i] = free
	}
	at, taken := make([]int, len(names)), make([]float64, len(names))
	for i, name := range names {
		at[i] = int(name % tableSize)
	}
	left := tableSize
	for round := 1.0; ; round++ {
		for _, i := range t.alphabetic {
			step := int(mix(names[i])%(tableSize-1)) + 1
			for target := math.Ceil(round * weights[i] / mean); taken[i] < target; taken[i]++ {
				for slots[at[i]] != free {
					if at[i] += step; at[i] >= tableSize {
						at[i] -= tableSize
					}
				}
				slots[at[i]] = int32(i)
				left--
				if left == 0 {
					return slots
				}
			}
		}
	}
}
