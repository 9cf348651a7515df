package balance

import "math/rand/v2"

// leastConnections returns the server with the fewest connections for its weight. Where
// several have none, weights still count; and no server is the first that every front
// door thinks of after a restart.
func leastConnections(peers []Peer, usable func(i int) bool) int {
	best, least, tied := -1, 0.0, 0.0
	for i, p := range peers {
		if !usable(i) {
			continue
		}
		w := weightOf(p)
		load := float64(p.Active()) / w
		switch {
		case best < 0 || load < least:
			best, least, tied = i, load, w
		case load == least:
			tied += w
			if rand.Float64()*tied < w {
				best = i
			}
		}
	}
	return best
}

// lighterOfTwo draws two servers and returns the one that has less to do.
//
// A server that has not been connected to lately cannot be judged. Were it taken to be
// quicker than the others, every pick that draws it would go there until the first
// connect is over, which with a server that hangs takes long; were it taken to be slower,
// it would never be tried. As it is taken to be as quick as its rival, it gets no more
// than makes their connections equal.
func lighterOfTwo(peers []Peer, usable func(i int) bool) int {
	a := draw(len(peers), -1, usable)
	if a < 0 {
		return -1
	}
	b := draw(len(peers), a, usable)
	if b < 0 {
		return a
	}
	latencyA, latencyB := peers[a].Latency(), peers[b].Latency()
	if latencyA <= 0 || latencyB <= 0 {
		latencyA, latencyB = 1, 1
	}
	if burden(peers[b], float64(latencyB)) < burden(peers[a], float64(latencyA)) {
		return b
	}
	return a
}

// burden is what one more connection would make of the server's load.
func burden(p Peer, latency float64) float64 {
	return latency * float64(p.Active()+1) / weightOf(p)
}

// draw returns one of the n servers that are usable, each as likely as the other, or -1.
// It never returns the one that is taken.
func draw(n, taken int, usable func(i int) bool) int {
	for range 4 { // mostly the first will do
		if i := rand.IntN(n); i != taken && usable(i) {
			return i
		}
	}
	drawn, seen := -1, 0
	for i := range n {
		if i == taken || !usable(i) {
			continue
		}
		seen++
		if rand.IntN(seen) == 0 {
			drawn = i
		}
	}
	return drawn
}
