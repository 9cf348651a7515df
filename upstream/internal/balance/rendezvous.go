package balance

import "math"

// rendezvous is weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted
// Distributed Hash Tables", SPAA 2005): a key has a score with each server, and goes to
// the highest. A score depends on that server alone, so what happens to another one can
// only move keys to it or away from it. It is the hash of each server's name.
type rendezvous []uint64

func newRendezvous(peers []Peer) rendezvous {
	names := make(rendezvous, len(peers))
	for i, p := range peers {
		names[i] = HashString(p.Name())
	}
	return names
}

func (names rendezvous) pick(peers []Peer, key uint64, usable func(i int) bool) int {
	best, highest := -1, 0.0
	for i, name := range names {
		// The highest of n scores changes ln n times on the way: few are asked whether
		// they are usable.
		if s := score(key, name, weightOf(peers[i])); s > highest && usable(i) {
			best, highest = i, s
		}
	}
	return best
}

// score is exponentially distributed in effect: the highest of several is a server's in
// proportion to its weight.
func score(key, name uint64, weight float64) float64 {
	const bits = 52 // one less than a float64 has: with the half it is exact, and neither 0 nor 1
	uniform := (float64(mix(key^name)>>(64-bits)) + 0.5) / (1 << bits)
	return weight / -math.Log(uniform)
}
