package attack

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestQuantilesAreThoseOfWhatWasRecorded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		took := rapid.SliceOfN(rapid.Int64Range(0, int64(longest)), 1, 200).Draw(t, "took")
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		var d durations
		for _, n := range took {
			d.record(time.Duration(n))
		}
		slices.Sort(took)
		index := max(1, int(q*float64(len(took))+0.999999)) - 1
		want := time.Duration(took[min(index, len(took)-1)])
		if got := d.quantile(q); got < want || got > want+want/64+time.Microsecond {
			t.Errorf("got %v, want %v", got, want)
		}
		if d.min != time.Duration(took[0]) || d.max != time.Duration(took[len(took)-1]) || d.total != int64(len(took)) {
			t.Errorf("%v to %v of %d", d.min, d.max, d.total)
		}
	})
}

func TestNothingRecordedHasNoQuantile(t *testing.T) {
	var d durations
	if d.quantile(0.99) != 0 || d.quantile(0) != 0 {
		t.Error("it has")
	}
}

func TestCountersHaveNoGaps(t *testing.T) {
	for i := range counters {
		if n := uint64(highestOf(i).Microseconds()); counterOf(n) != i || counterOf(n+1) != i+1 {
			t.Fatalf("counter %d ends at %d", i, n)
		}
	}
}
