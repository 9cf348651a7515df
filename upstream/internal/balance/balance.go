// Package balance picks a server from a pool. Its secret is how the choice is made:
// what a kind looks at (whose turn it is, connections, latency, the client), what it
// remembers between picks, and where keys go when a server cannot be used.
//
//	picker := balance.New(balance.LeastConnections, peers)
//	i := picker.Pick(0, func(i int) bool { return healthy[i] })
//	if i < 0 {
//		return errNoServer
//	}
//	dial(peers[i])
//
// What it hashes is the same in every process and on every machine, in whatever order
// the servers are given: several front doors send a client to the same server without
// knowing of each other.
package balance

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Peer is what a balancer has to know of a server. Its methods are called from many
// goroutines, for each server at some picks: they should be quick.
type Peer interface {
	// Name identifies the server over restarts and machines. It is what consistent
	// hashing hashes, and no two servers of a pool have the same.
	Name() string
	// Weight is the server's share beside the others'. It may change at any time.
	Weight() float64
	// Active is how many connections it has now, those being dialled among them.
	Active() int64
	// Latency is how long connecting to it takes of late, or 0 if that is unknown: what
	// Latency.Value returns.
	Latency() time.Duration
}

// A Kind is a way to choose.
type Kind uint8

// The kinds.
const (
	// RoundRobin gives the servers turns in proportion to their weights, spread out
	// evenly as nginx does: 5:1:1 is a a b a c a a.
	RoundRobin Kind = iota

	// LeastConnections takes the server with the fewest connections for its weight.
	// Among equals it draws, in proportion to the weights.
	LeastConnections

	// PowerOfTwo draws two servers and takes the one where latency × connections ÷ weight
	// is lower. One whose latency is unknown is taken to be as quick as the other.
	PowerOfTwo

	// SourceHash sends a key to the server that it has the highest score with (weighted
	// rendezvous hashing). Not one key moves that does not have to, whatever happens to
	// servers and weights. The time for a pick grows with the number of servers.
	SourceHash

	// Maglev looks a key up in a table (Eisenbud et al., "Maglev: A Fast and Reliable
	// Software Network Load Balancer", NSDI 2016). A pick takes the same time for any
	// number of servers. For that, a few keys move that would not have to when the set or
	// the weights change; when a server is merely unusable, none does.
	Maglev

	kindCount
)

var kindWords = [kindCount]string{
	RoundRobin:       "round_robin",
	LeastConnections: "least_connections",
	PowerOfTwo:       "p2c",
	SourceHash:       "source_hash",
	Maglev:           "maglev",
}

// String returns the kind's word, such as "least_connections".
func (k Kind) String() string {
	if k < kindCount {
		return kindWords[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Kinds returns every kind there is, in a fixed order.
func Kinds() []Kind {
	all := make([]Kind, kindCount)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// ParseKind returns the kind that the word stands for.
func ParseKind(word string) (Kind, error) {
	if i := slices.Index(kindWords[:], word); i >= 0 {
		return Kind(i), nil
	}
	return 0, fmt.Errorf("unknown balance %q: there are %s", word, strings.Join(kindWords[:], ", "))
}

// A Picker picks from a fixed set of servers. Its methods may be called from any
// goroutine.
type Picker struct {
	kind  Kind
	peers []Peer
	turns *turns     // of RoundRobin
	names rendezvous // of SourceHash and Maglev
	table *table     // of Maglev
}

// New returns a Picker for the servers. When they change, another one takes its place.
func New(kind Kind, peers []Peer) *Picker {
	p := &Picker{kind: kind, peers: slices.Clone(peers)}
	if len(peers) == 0 {
		return p // nobody would ever fill a table
	}
	switch kind {
	case SourceHash:
		p.names = newRendezvous(p.peers)
	case Maglev:
		p.names = newRendezvous(p.peers)
		p.table = newTable(p.names, p.peers)
	default:
		p.turns = newTurns(len(p.peers))
	}
	return p
}

// Pick returns the index of a server for which usable returns true, or -1 if it does for
// none. The key is what SourceHash and Maglev hash; the others do not look at it.
//
// usable is called at most a few times for a server, and may be called with a lock held:
// it must neither block nor call Pick.
func (p *Picker) Pick(key uint64, usable func(i int) bool) int {
	// Not an interface with five implementations: usable would escape into it, and each
	// pick allocate its caller's closure.
	if len(p.peers) == 0 {
		return -1
	}
	switch p.kind {
	case LeastConnections:
		return leastConnections(p.peers, usable)
	case PowerOfTwo:
		return lighterOfTwo(p.peers, usable)
	case SourceHash:
		return p.names.pick(p.peers, key, usable)
	case Maglev:
		if i := p.table.lookUp(p.names, p.peers, key); usable(i) {
			return i
		}
		return p.names.pick(p.peers, key, usable)
	default:
		return p.turns.next(p.peers, usable)
	}
}

// Whatever a Peer says, arithmetic with its weight stays finite.
const (
	leastWeight = 1e-6
	mostWeight  = 1e9
)

func weightOf(p Peer) float64 {
	if w := p.Weight(); w > leastWeight { // which NaN is not
		return min(w, mostWeight)
	}
	return leastWeight
}
