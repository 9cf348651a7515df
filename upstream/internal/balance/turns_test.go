package balance_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/balance"
)

// letters picks n times and spells the servers.
func letters(p *balance.Picker, n int, usable func(int) bool) string {
	var text strings.Builder
	for range n {
		text.WriteByte('a' + byte(p.Pick(0, usable)))
	}
	return text.String()
}

func TestTurnsInterleaveAsNginxHasThem(t *testing.T) {
	for _, test := range []struct {
		weights []float64
		want    string
	}{
		{[]float64{5, 1, 1}, "aabacaa aabacaa aabacaa"},
		{[]float64{1, 1, 1}, "abc abc abc"},
		{[]float64{3, 1}, "aaba aaba"}, // nginx breaks the tie after two by order
		{[]float64{1, 2}, "bab bab"},
		{[]float64{4, 2, 1}, "abacaba abacaba"},
		{[]float64{0.5, 0.25}, "aba aba"},
		{[]float64{7}, "a a a"},
	} {
		want := strings.ReplaceAll(test.want, " ", "")
		if got := letters(newPicker(balance.RoundRobin, servers(test.weights...)), len(want), anyOf); got != want {
			t.Errorf("%v: %s, want %s", test.weights, got, want)
		}
	}
}

func TestTurnsKeepToTheWeightsExactlyInEachRound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 20), 1, 8).Draw(t, "weights")
		floats, round := make([]float64, len(weights)), 0
		for i, w := range weights {
			floats[i] = float64(w)
			round += w
		}
		picker := newPicker(balance.RoundRobin, servers(floats...))
		for range rapid.IntRange(0, round).Draw(t, "before") {
			picker.Pick(0, anyOf)
		}
		got := make([]int, len(weights))
		for range round {
			got[picker.Pick(0, anyOf)]++
		}
		if !slices.Equal(got, weights) {
			t.Fatalf("%v in a round of %v", got, weights)
		}
	})
}

func TestTurnsHeedWeightsThatChange(t *testing.T) {
	peers := servers(1000, 1, 1)
	picker := newPicker(balance.RoundRobin, peers)
	letters(picker, 400, anyOf)
	peers[0].setWeight(2)
	letters(picker, 1, anyOf) // the first pick finds out
	if got := letters(picker, 40, anyOf); strings.Count(got, "a") != 20 || strings.Count(got, "b") != 10 {
		t.Error(got)
	}
}

func TestWhenAHeavyServerLeavesTheOthersAlternateAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		picker := newPicker(balance.RoundRobin, servers(1000, 1, 1))
		letters(picker, rapid.IntRange(0, 2000).Draw(t, "before"), anyOf)
		got := letters(picker, 20, func(i int) bool { return i != 0 })
		if strings.Contains(got, "bbb") || strings.Contains(got, "ccc") {
			t.Fatal(got)
		}
	})
}

func TestServersThatComeAndGoGetNeitherMoreNorLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := drawWeights(t, 6)
		picker := newPicker(balance.RoundRobin, servers(weights...))
		due, got := make([]float64, len(weights)), make([]float64, len(weights))
		for range rapid.IntRange(1, 20).Draw(t, "phases") {
			up := rapid.SliceOfN(rapid.Bool(), len(weights), len(weights)).Draw(t, "usable")
			sum := 0.0
			for i, w := range weights {
				if up[i] {
					sum += w
				}
			}
			for range rapid.IntRange(1, 50).Draw(t, "picks") {
				if i := picker.Pick(0, func(i int) bool { return up[i] }); i >= 0 {
					got[i]++
				}
				for i, w := range weights {
					if up[i] {
						due[i] += w / sum
					}
				}
			}
		}
		for i := range weights {
			if math.Abs(due[i]-got[i]) > float64(len(weights)) {
				t.Fatalf("server %d had %v picks of %v that were due", i, got[i], due[i])
			}
		}
	})
}
