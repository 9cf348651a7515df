package balance_test

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/balance"
)

func TestKindsAreTheirWords(t *testing.T) {
	want := []string{"round_robin", "least_connections", "p2c", "source_hash", "maglev"}
	var got []string
	for _, kind := range balance.Kinds() {
		got = append(got, kind.String())
		if back, err := balance.ParseKind(kind.String()); back != kind || err != nil {
			t.Errorf("%v: parsed as %v, %v", kind, back, err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	const complaint = `unknown balance "Maglev": there are round_robin, least_connections, p2c, source_hash, maglev`
	if _, err := balance.ParseKind("Maglev"); err == nil || err.Error() != complaint {
		t.Error(err)
	}
	if got := balance.Kind(200).String(); got != "Kind(200)" {
		t.Error(got)
	}
}

func TestOnlyUsableServersArePickedAndOneIsFoundWheneverThereIs(t *testing.T) {
	odd := rapid.SampledFrom([]float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), 1e-300, 1e300, 1})
	eachKind(t, func(t *testing.T, kind balance.Kind) {
		rapid.Check(t, func(t *rapid.T) {
			peers := servers(rapid.SliceOfN(odd, 0, 8).Draw(t, "weights")...)
			for _, p := range peers {
				p.active.Store(rapid.Int64Range(0, 5).Draw(t, "active"))
				p.latency.Store(rapid.Int64Range(0, 5).Draw(t, "latency"))
			}
			picker := newPicker(kind, peers)
			for range 10 {
				up := rapid.SliceOfN(rapid.Bool(), len(peers), len(peers)).Draw(t, "usable")
				i := picker.Pick(rapid.Uint64().Draw(t, "key"), func(i int) bool { return up[i] })
				switch {
				case i < 0 && slices.Contains(up, true):
					t.Fatal("none was found")
				case i >= 0 && !up[i]:
					t.Fatalf("%d is not usable", i)
				}
			}
		})
	})
}

func TestTheOnlyUsableOfManyIsFoundAndNoneIsMinusOne(t *testing.T) {
	eachKind(t, func(t *testing.T, kind balance.Kind) {
		const n = 1000
		picker := newPicker(kind, servers(slices.Repeat([]float64{1}, n)...))
		for only := 0; only < n; only += 37 {
			if i := picker.Pick(uint64(only), func(i int) bool { return i == only }); i != only {
				t.Errorf("%d instead of %d", i, only)
			}
		}
		if i := picker.Pick(1, func(int) bool { return false }); i != -1 {
			t.Errorf("%d, and none is usable", i)
		}
		if i := newPicker(kind, nil).Pick(1, anyOf); i != -1 {
			t.Errorf("%d, and there is none", i)
		}
	})
}

func TestIdleServersShareInProportionToTheirWeights(t *testing.T) {
	weights := []float64{5, 1, 1, 3}
	for _, kind := range []balance.Kind{balance.RoundRobin, balance.LeastConnections, balance.SourceHash, balance.Maglev} {
		t.Run(kind.String(), func(t *testing.T) {
			for i, share := range shares(newPicker(kind, servers(weights...)), 4, 100_000) {
				if want := weights[i] / 10; math.Abs(share-want) > 0.01 { // six standard deviations of a draw
					t.Errorf("weight %v: %.4f of the picks", weights[i], share)
				}
			}
		})
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, kind balance.Kind) {
		picker := newPicker(kind, servers(1, 2, 3, 4))
		key, down := uint64(0), 0
		allocs := testing.AllocsPerRun(1000, func() {
			key++
			down = int(key % 4)
			if i := picker.Pick(key, func(i int) bool { return i != down }); i < 0 || i == down {
				t.Fatal(i)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	})
}

func TestManyGoroutinesPickWhileWeightsChange(t *testing.T) {
	eachKind(t, func(t *testing.T, kind balance.Kind) {
		peers := servers(1, 1, 1)
		picker := newPicker(kind, peers)
		var all sync.WaitGroup
		for g := range 8 {
			all.Go(func() {
				for key := range 300 {
					p := peers[picker.Pick(uint64(key), func(i int) bool { return i != g%3 })]
					p.active.Add(1)
					p.latency.Store(int64(time.Millisecond))
					p.setWeight(float64(1 + key%5))
					p.active.Add(-1)
				}
			})
		}
		all.Wait()
	})
}
