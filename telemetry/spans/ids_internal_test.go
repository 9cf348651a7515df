package spans

import (
	"math"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func TestSampledAreAsManyAsTheRatioSays(t *testing.T) {
	const conns = 200_000
	for _, ratio := range []float64{-1, 0, 0.001, 0.01, 0.5, 0.999, 1, 7} {
		ids, below := newDerived(), boundOf(ratio)
		got := 0
		for conn := range uint64(conns) {
			if below.samples(ids.traceID(conn)) {
				got++
			}
		}
		p := min(max(ratio, 0), 1)
		// Six standard deviations: once in a billion runs.
		if want := p * conns; math.Abs(float64(got)-want) > 6*math.Sqrt(conns*p*(1-p)) {
			t.Errorf("ratio %v: %d of %d are sampled", ratio, got, conns)
		}
	}
}

func TestTheSameTracesAreSampledAsByOpenTelemetry(t *testing.T) {
	ids := newDerived()
	for _, ratio := range []float64{0.01, 0.3, 1} {
		below, theirs := boundOf(ratio), sdktrace.TraceIDRatioBased(ratio)
		for conn := range uint64(10_000) {
			id := ids.traceID(conn)
			want := theirs.ShouldSample(sdktrace.SamplingParameters{TraceID: id}).Decision == sdktrace.RecordAndSample
			if got := below.samples(id); got != want {
				t.Fatalf("ratio %v, trace %x: sampled is %t, want %t", ratio, id, got, want)
			}
		}
	}
}

func TestIDsAreUniqueAndDifferInEachProcess(t *testing.T) {
	traces, spans := make(map[[16]byte]bool), make(map[[8]byte]bool)
	one, other := newDerived(), newDerived()
	for conn := range uint64(100_000) {
		for _, ids := range []*derived{&one, &other} {
			trace, span := ids.traceID(conn), ids.spanID(conn)
			if traces[trace] || spans[span] {
				t.Fatalf("connection %d has trace %x and span %x, as another has", conn, trace, span)
			}
			traces[trace], spans[span] = true, true
			if trace != ids.traceID(conn) || span != ids.spanID(conn) {
				t.Fatal("asked again it is another")
			}
		}
	}
}
