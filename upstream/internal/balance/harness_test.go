package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/balance"
)

// A peer is a server that is what the test says.
type peer struct {
	name    string
	weight  atomic.Uint64 // a float64's bits
	active  atomic.Int64
	latency atomic.Int64
}

func (p *peer) Name() string           { return p.name }
func (p *peer) Weight() float64        { return math.Float64frombits(p.weight.Load()) }
func (p *peer) Active() int64          { return p.active.Load() }
func (p *peer) Latency() time.Duration { return time.Duration(p.latency.Load()) }

func (p *peer) setWeight(w float64) { p.weight.Store(math.Float64bits(w)) }

// servers returns peers of those weights.
func servers(weights ...float64) []*peer {
	peers := make([]*peer, len(weights))
	for i, w := range weights {
		peers[i] = &peer{name: fmt.Sprintf("10.0.%d.%d:5432", i/256, i%256)}
		peers[i].setWeight(w)
	}
	return peers
}

func newPicker(kind balance.Kind, peers []*peer) *balance.Picker {
	all := make([]balance.Peer, len(peers))
	for i, p := range peers {
		all[i] = p
	}
	return balance.New(kind, all)
}

func anyOf(int) bool { return true }

// shares picks with many keys and returns each server's part of the picks.
func shares(p *balance.Picker, servers, picks int) []float64 {
	parts := make([]float64, servers)
	for key := range picks {
		parts[p.Pick(uint64(key), anyOf)] += 1 / float64(picks)
	}
	return parts
}

// places returns the names that keys are sent to.
func places(p *balance.Picker, peers []*peer, keys int, usable func(int) bool) []string {
	names := make([]string, keys)
	for key := range keys {
		names[key] = peers[p.Pick(uint64(key), usable)].name
	}
	return names
}

// drawWeights draws servers, some of which may be much heavier than others.
func drawWeights(t *rapid.T, most int) []float64 {
	weight := rapid.OneOf(rapid.Just(1.0), rapid.Float64Range(0.1, 10), rapid.Float64Range(1, 1000))
	return rapid.SliceOfN(weight, 1, most).Draw(t, "weights")
}

func shuffled(peers []*peer) []*peer {
	other := make([]*peer, len(peers))
	for to, from := range rand.Perm(len(peers)) {
		other[to] = peers[from]
	}
	return other
}

func eachKind(t *testing.T, test func(t *testing.T, kind balance.Kind)) {
	t.Helper()
	for _, kind := range balance.Kinds() {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}

func eachHashing(t *testing.T, test func(t *testing.T, kind balance.Kind)) {
	t.Helper()
	for _, kind := range []balance.Kind{balance.SourceHash, balance.Maglev} {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}
