package telemetry

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func written(t *testing.T, c prometheus.Collector) *dto.Histogram {
	t.Helper()
	ch := make(chan prometheus.Metric, 1)
	c.Collect(ch)
	m := new(dto.Metric)
	if err := (<-ch).Write(m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram()
}

// client_golang's is the oracle.
func TestAHistogramSaysWhatPrometheusWould(t *testing.T) {
	classic := []time.Duration{500 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 2500 * time.Millisecond, time.Minute, 24 * time.Hour}
	ours := newHistogram("h", "", nil, classic...)
	options := prometheus.HistogramOpts{Name: "h", NativeHistogramBucketFactor: 1.1, NativeHistogramZeroThreshold: nativeBound(nativeLowest).Seconds()}
	for _, bound := range classic {
		options.Buckets = append(options.Buckets, bound.Seconds())
	}
	theirs := prometheus.NewHistogram(options)
	observe := func(d time.Duration) {
		ours.observe(d)
		theirs.Observe(d.Seconds())
	}
	for range 100_000 {
		observe(time.Duration(math.Exp2(rand.Float64() * 53))) // to 104 days
	}
	for i := nativeLowest; i < nativeHighest; i++ {
		observe(nativeBound(i) - nativeBound(i)>>48) // theirs is in floating point, which is not exact to a nanosecond
		observe(nativeBound(i) + nativeBound(i)>>48 + 1)
	}
	for _, bound := range append(classic, 0, 1) {
		observe(bound)
		observe(bound + 1)
	}

	got, want := written(t, ours), written(t, theirs)
	if got.GetSampleCount() != want.GetSampleCount() || math.Abs(got.GetSampleSum()/want.GetSampleSum()-1) > 1e-6 {
		t.Errorf("%d in %v s, want %d in %v", got.GetSampleCount(), got.GetSampleSum(), want.GetSampleCount(), want.GetSampleSum())
	}
	if got.GetSchema() != want.GetSchema() || got.GetZeroCount() != want.GetZeroCount() || got.GetZeroThreshold() != want.GetZeroThreshold() {
		t.Errorf("schema %d with %d up to %v, want %d with %d up to %v", got.GetSchema(), got.GetZeroCount(), got.GetZeroThreshold(),
			want.GetSchema(), want.GetZeroCount(), want.GetZeroThreshold())
	}
	sameBucket := func(a, b *dto.Bucket) bool {
		return a.GetCumulativeCount() == b.GetCumulativeCount() && a.GetUpperBound() == b.GetUpperBound()
	}
	if !slices.EqualFunc(got.Bucket, want.Bucket, sameBucket) {
		t.Errorf("classic: %v, want %v", got.Bucket, want.Bucket)
	}
	sameSpan := func(a, b *dto.BucketSpan) bool {
		return a.GetOffset() == b.GetOffset() && a.GetLength() == b.GetLength()
	}
	if !slices.EqualFunc(got.PositiveSpan, want.PositiveSpan, sameSpan) || !slices.Equal(got.PositiveDelta, want.PositiveDelta) {
		t.Errorf("native: %v %v, want %v %v", got.PositiveSpan, got.PositiveDelta, want.PositiveSpan, want.PositiveDelta)
	}
}

func TestAHistogramTakesWhatIsOutOfItsRange(t *testing.T) {
	h := newHistogram("h", "", nil, time.Second)
	for _, d := range []time.Duration{-time.Second, math.MinInt64, 0, math.MaxInt64} {
		h.observe(d)
	}
	if got := written(t, h); got.GetSampleCount() != 4 || got.GetZeroCount() != 3 || got.Bucket[0].GetCumulativeCount() != 3 {
		t.Errorf("%v", got)
	}
}
