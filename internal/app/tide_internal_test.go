package app

import "testing"

func TestMemoryIsGivenBackOnceWhenACrowdHasGone(t *testing.T) {
	for _, c := range []struct {
		what string
		open []int // at each look
		want int   // the look after which memory is given back; -1 for none
	}{
		{"those are too few to matter", []int{10, crowd - 1, 0, 0, 0}, -1},
		{"half of them stay", []int{10, 5000, 2500, 2500}, -1},
		{"they go at once", []int{10, 5000, 10, 10, 10}, 3},
		{"they go bit by bit, and the last of them hold garbage still", []int{10, 5000, 1000, 700, 300, 10, 10, 10}, 6},
		{"others come and go meanwhile", []int{10, 5000, 900, 899, 910, 898}, 4},
	} {
		var tides tide
		got := -1
		for i, open := range c.open {
			switch out := tides.isOut(open); {
			case out && got >= 0:
				t.Errorf("%s: given back twice", c.what)
			case out:
				got = i
			}
		}
		if got != c.want {
			t.Errorf("%s: given back after look %d, want %d", c.what, got, c.want)
		}
	}
}
