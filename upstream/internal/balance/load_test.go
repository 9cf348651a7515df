package balance_test

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/upstream/internal/balance"
)

func TestFewestConnectionsForItsWeightIsPicked(t *testing.T) {
	peers := servers(1, 2, 4)
	picker := newPicker(balance.LeastConnections, peers)
	for _, test := range []struct {
		active [3]int64
		want   int
	}{
		{[3]int64{1, 1, 1}, 2},
		{[3]int64{1, 1, 3}, 1},
		{[3]int64{0, 1, 1}, 0},
		{[3]int64{10, 21, 41}, 0},
		{[3]int64{10, 19, 41}, 1},
	} {
		for i, active := range test.active {
			peers[i].active.Store(active)
		}
		if i := picker.Pick(0, anyOf); i != test.want {
			t.Errorf("%v: %d, want %d", test.active, i, test.want)
		}
	}
}

func TestConnectionsThatStayAreSharedInProportionToTheWeights(t *testing.T) {
	for _, kind := range []balance.Kind{balance.LeastConnections, balance.PowerOfTwo} {
		t.Run(kind.String(), func(t *testing.T) {
			peers := servers(5, 1, 1, 3)
			for _, p := range peers {
				p.latency.Store(int64(time.Millisecond))
			}
			picker := newPicker(kind, peers)
			for range 10_000 {
				peers[picker.Pick(0, anyOf)].active.Add(1)
			}
			for i, p := range peers {
				// Two that are drawn may be the light ones: a few more than their share.
				if share := float64(p.active.Load()) / 10_000; math.Abs(share-p.Weight()/10) > 0.09 {
					t.Errorf("server %d of weight %v has %.3f of the connections", i, p.Weight(), share)
				}
			}
		})
	}
}

func TestEqualsAreDrawnSoThatFrontDoorsDoNotAllBeginWithTheSame(t *testing.T) {
	for _, kind := range []balance.Kind{balance.LeastConnections, balance.PowerOfTwo} {
		t.Run(kind.String(), func(t *testing.T) {
			for i, share := range shares(newPicker(kind, servers(1, 1, 1)), 3, 30_000) {
				if math.Abs(share-1.0/3) > 0.02 { // seven standard deviations
					t.Errorf("server %d gets %.3f", i, share)
				}
			}
		})
	}
}

func TestOfTwoTheQuickerIsPickedUntilItIsBusier(t *testing.T) {
	peers := servers(1, 1)
	peers[0].latency.Store(int64(time.Millisecond))
	peers[1].latency.Store(int64(10 * time.Millisecond))
	picker := newPicker(balance.PowerOfTwo, peers)
	for active, want := range map[int64]int{0: 0, 8: 0, 10: 1} {
		peers[0].active.Store(active)
		for range 20 {
			if i := picker.Pick(0, anyOf); i != want {
				t.Fatalf("%d connections: %d, want %d", active, i, want)
			}
		}
	}
}

func TestOfManyTheWorstIsNeverPicked(t *testing.T) {
	peers := servers(1, 1, 1, 1, 1)
	for i, p := range peers {
		p.latency.Store(int64(i+1) * int64(time.Millisecond))
	}
	for i, share := range shares(newPicker(balance.PowerOfTwo, peers), 5, 20_000) {
		want := float64(4-i) / 10 // of the 10 pairs, those in which it is the better one
		if math.Abs(share-want) > 0.02 {
			t.Errorf("server %d gets %.3f, want %.3f", i, share, want)
		}
	}
}

func TestTheFewThatAreUsableAreDrawnEvenly(t *testing.T) {
	picker := newPicker(balance.PowerOfTwo, servers(slices.Repeat([]float64{1}, 100)...))
	few := []int{3, 50, 51, 99}
	got := map[int]float64{}
	for range 20_000 {
		got[picker.Pick(0, func(i int) bool { return slices.Contains(few, i) })] += 1.0 / 20_000
	}
	for _, i := range few {
		if math.Abs(got[i]-0.25) > 0.02 { // six standard deviations
			t.Errorf("server %d gets %.3f", i, got[i])
		}
	}
}

func TestServerOfUnknownLatencyIsTriedButDoesNotDrawAll(t *testing.T) {
	peers := servers(1, 1, 1)
	for _, p := range peers[:2] {
		p.latency.Store(int64(time.Millisecond))
		p.active.Store(10)
	}
	picker := newPicker(balance.PowerOfTwo, peers)
	for range 300 { // and none of the connects to the fresh one ends
		peers[picker.Pick(0, anyOf)].active.Add(1)
	}
	if fresh := peers[2].active.Load(); fresh < 95 || fresh > 120 {
		t.Errorf("%d of 320 connections are the fresh server's", fresh)
	}
}

func TestSlowServerIsAvoidedAndThenTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := servers(1, 1)
		var latency [2]balance.Latency
		picker := newPicker(balance.PowerOfTwo, peers)
		connect := func(to int, took time.Duration) {
			latency[to].Observe(took)
			for i := range peers {
				peers[i].latency.Store(int64(latency[i].Value()))
			}
		}
		connect(1, 5*time.Second)
		for began := time.Now(); ; {
			time.Sleep(100 * time.Millisecond) // virtual time
			connect(0, time.Millisecond)
			if picker.Pick(0, anyOf) == 0 {
				continue
			}
			// 5 s has decayed to 1 ms after 10 s × ln 5000.
			if after := time.Since(began); after < 84*time.Second || after > 87*time.Second {
				t.Errorf("tried again after %v", after)
			}
			return
		}
	})
}
