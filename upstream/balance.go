package upstream

import (
	"fmt"

	"github.com/levee-net/levee/upstream/internal/balance"
)

// A Balance is a way to pick a server. All of them heed weights, and all but SourceHash and
// Maglev have servers start slowly.
type Balance uint8

// The balances.
const (
	// RoundRobin gives the servers turns in proportion to their weights, spread out
	// evenly: 5:1:1 is a a b a c a a.
	RoundRobin = Balance(balance.RoundRobin)

	// LeastConnections takes the server with the fewest connections for its weight.
	LeastConnections = Balance(balance.LeastConnections)

	// PowerOfTwo draws two servers and takes the one where connecting takes less time
	// and that has fewer connections for its weight.
	PowerOfTwo = Balance(balance.PowerOfTwo)

	// SourceHash sends a [Request].Key to the same server in every process, as long as
	// that is well (weighted rendezvous hashing). Only the keys of a server that comes
	// or goes move. A pick takes time in proportion to the number of servers.
	SourceHash = Balance(balance.SourceHash)

	// Maglev does the same by a table lookup (Eisenbud et al., NSDI 2016). When the set
	// of servers changes a few keys move that would not have to.
	Maglev = Balance(balance.Maglev)
)

// String returns the balance's word: round_robin, least_connections, p2c, source_hash or
// maglev.
func (b Balance) String() string {
	for _, kind := range balance.Kinds() {
		if Balance(kind) == b {
			return kind.String()
		}
	}
	return fmt.Sprintf("Balance(%d)", uint8(b))
}

// ParseBalance returns the balance that String returns the word for. Its error names
// all words.
func ParseBalance(word string) (Balance, error) {
	kind, err := balance.ParseKind(word)
	return Balance(kind), err
}

// Hash returns a [Request].Key for the bytes, such as a client's address. It is the same
// in every process and on every machine. It keeps no secret: a client that chooses what
// is hashed chooses its server.
func Hash(b []byte) uint64 { return balance.Hash(b) }

// hashes reports whether the key decides about the server.
func (b Balance) hashes() bool { return b == SourceHash || b == Maglev }
