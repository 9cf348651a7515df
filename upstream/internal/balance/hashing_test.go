package balance_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/balance"
)

// A key that a release sends elsewhere has moved for every user of it.
func TestKeysGoWhereTheyAlwaysWent(t *testing.T) {
	for text, want := range map[string]uint64{ // XXH64's own test vectors
		"":    0xef46db3751d8e999,
		"a":   0xd24ec4f1a98c6e5b,
		"abc": 0x44bc2cf5ad770999,
	} {
		if got := balance.HashString(text); got != want || balance.Hash([]byte(text)) != want {
			t.Errorf("%q: %x", text, got)
		}
	}
	for kind, want := range map[balance.Kind]string{
		balance.SourceHash: "1343231435334123154312213333332431134451",
		balance.Maglev:     "3010532144532143343142313343443133135100",
	} {
		peers, got := servers(1, 2, 1, 3, 1, 0.5), ""
		picker := newPicker(kind, peers)
		for i := range 40 {
			got += fmt.Sprint(picker.Pick(balance.HashString(fmt.Sprintf("192.0.2.%d", i)), anyOf))
		}
		if got != want {
			t.Errorf("%v: %s, want %s", kind, got, want)
		}
	}
}

func TestOrderOfTheServersDoesNotMatterToHashing(t *testing.T) {
	eachHashing(t, func(t *testing.T, kind balance.Kind) {
		rapid.Check(t, func(t *rapid.T) {
			peers := servers(drawWeights(t, 10)...)
			other := shuffled(peers)
			down := rapid.IntRange(-1, len(peers)-1).Draw(t, "down")
			usable := func(of []*peer) func(int) bool {
				return func(i int) bool { return len(of) == 1 || down < 0 || of[i] != peers[down] }
			}
			was := places(newPicker(kind, peers), peers, 500, usable(peers))
			is := places(newPicker(kind, other), other, 500, usable(other))
			if !slices.Equal(was, is) {
				t.Fatal("keys moved")
			}
		})
	})
}

func TestKeysOfUsableServersStayWhenOthersAreUnusable(t *testing.T) {
	eachHashing(t, func(t *testing.T, kind balance.Kind) {
		rapid.Check(t, func(t *rapid.T) {
			peers := servers(drawWeights(t, 10)...)
			picker := newPicker(kind, peers)
			was := places(picker, peers, 500, anyOf)
			up := rapid.SliceOfN(rapid.Bool(), len(peers), len(peers)).Draw(t, "usable")
			up[0] = true
			is := places(picker, peers, 500, func(i int) bool { return up[i] })
			for i, p := range peers {
				for key := range was {
					if up[i] && was[key] == p.name && is[key] != p.name {
						t.Fatalf("key %d left %s, which is usable, for %s", key, p.name, is[key])
					}
				}
			}
		})
	})
}

func TestKeysOfAnUnusableServerAreSharedByTheOthers(t *testing.T) {
	eachHashing(t, func(t *testing.T, kind balance.Kind) {
		peers := servers(4, 1, 1, 2)
		picker := newPicker(kind, peers)
		got, moved := make([]float64, 4), 0.0
		for key := range 50_000 {
			if picker.Pick(uint64(key), anyOf) == 0 {
				got[picker.Pick(uint64(key), func(i int) bool { return i != 0 })]++
				moved++
			}
		}
		for i, want := range []float64{0, 0.25, 0.25, 0.5} {
			if math.Abs(got[i]/moved-want) > 0.02 { // seven standard deviations
				t.Errorf("server %d got %.3f of them", i, got[i]/moved)
			}
		}
	})
}

func TestRendezvousMovesOnlyTheKeysOfTheServerThatLeftOrCame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := servers(drawWeights(t, 10)...)
		left := rapid.IntRange(0, len(all)-1).Draw(t, "left")
		rest := slices.Delete(slices.Clone(all), left, left+1)
		if len(rest) == 0 {
			return
		}
		was := places(newPicker(balance.SourceHash, all), all, 500, anyOf)
		is := places(newPicker(balance.SourceHash, rest), rest, 500, anyOf)
		for key := range was {
			if was[key] != all[left].name && is[key] != was[key] {
				t.Fatalf("key %d moved from %s to %s, and neither left or came", key, was[key], is[key])
			}
		}
	})
}

func TestRendezvousGivesKeysToAServerAsItsWeightGrowsAndTakesNoneBack(t *testing.T) {
	peers := servers(1, 2, 0.1, 1)
	picker := newPicker(balance.SourceHash, peers)
	was := places(picker, peers, 5000, anyOf)
	for w := 0.2; w <= 1; w += 0.1 {
		peers[2].setWeight(w)
		is := places(picker, peers, 5000, anyOf)
		for key := range was {
			if is[key] != was[key] && is[key] != peers[2].name {
				t.Fatalf("weight %.1f: key %d moved from %s to %s", w, key, was[key], is[key])
			}
		}
		was = is
	}
}

// moved returns the parts of the keys that had to move between two placements, as the
// server left or came, and that moved without need.
func moved(was, is []string, server string) (needed, needless float64) {
	one := 1 / float64(len(was))
	for key := range was {
		switch {
		case was[key] == is[key]:
		case was[key] == server || is[key] == server:
			needed += one
		default:
			needless += one
		}
	}
	return needed, needless
}

func TestMaglevMovesFewKeysMoreThanItHasTo(t *testing.T) {
	const keys = 50_000
	for _, n := range []int{2, 3, 4, 5, 16, 17, 65, 66, 300} {
		for name, heaviest := range map[string]int{"equal": 1, "unequal": 5} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				weights, sum := make([]float64, n), 0.0
				for i := range weights {
					weights[i] = float64(1 + i%heaviest)
					sum += weights[i]
				}
				all := servers(weights...)
				was := places(newPicker(balance.Maglev, all), all, keys, anyOf)
				for _, left := range []int{0, n / 2, n - 1} {
					rest := slices.Delete(slices.Clone(all), left, left+1)
					is := places(newPicker(balance.Maglev, rest), rest, keys, anyOf)
					needed, needless := moved(was, is, all[left].name)
					if share := weights[left] / sum; math.Abs(needed-share) > 0.02 || needless > 0.015 {
						t.Errorf("as server %d with %.4f of the keys left, %.4f moved, and %.4f more", left, share, needed, needless)
					}
				}
			})
		}
	}
}

func TestMaglevSharesAreCloseToTheWeights(t *testing.T) {
	const keys = 1 << 20
	for _, test := range []struct {
		servers int
		off     float64 // of a share; the table's, and four standard deviations of the keys'
	}{
		{3, 0.001 + 4*0.0014},
		{100, 0.004 + 4*0.0098},
		{1000, 0.016 + 4*0.031},
	} {
		all := slices.Repeat([]float64{1}, test.servers)
		for i, share := range shares(newPicker(balance.Maglev, servers(all...)), test.servers, keys) {
			if off := share*float64(test.servers) - 1; math.Abs(off) > test.off {
				t.Errorf("server %d of %d: %.4f of its share", i, test.servers, 1+off)
			}
		}
	}
}

func TestMaglevFollowsWeightsWithinASecondAndMovesLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 20_000
		peers := servers(1, 1, 0.1, 1)
		grows := peers[2]
		picker := newPicker(balance.Maglev, peers)
		was := places(picker, peers, keys, anyOf)
		needless := 0.0
		for step := 2; step <= 10; step++ {
			grows.setWeight(float64(step) / 10)
			if is := places(picker, peers, keys, anyOf); !slices.Equal(was, is) {
				t.Fatal("it does not wait for the second to be over")
			}
			time.Sleep(time.Second) // virtual time
			is := places(picker, peers, keys, anyOf)
			_, more := moved(was, is, grows.name)
			needless += more
			was = is
		}
		if needless > 0.02 {
			t.Errorf("%.4f of the keys moved without need", needless)
		}
		if fresh := newPicker(balance.Maglev, peers); !slices.Equal(was, places(fresh, peers, keys, anyOf)) {
			t.Error("where a key goes depends on what the weights were before")
		}
	})
}
