package spans

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/rand/v2"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/levee-net/levee"
)

// derived makes the ids of connections' traces and spans of the connections' own, which are
// unique in the process: anybody may ask for them at any time, and nothing has to be kept.
type derived struct {
	high, low, span, dial maphash.Seed // random
}

func newDerived() derived {
	return derived{maphash.MakeSeed(), maphash.MakeSeed(), maphash.MakeSeed(), maphash.MakeSeed()}
}

func (d *derived) traceID(conn uint64) (id [16]byte) {
	binary.BigEndian.PutUint64(id[:8], hash(d.high, conn))
	binary.BigEndian.PutUint64(id[8:], d.lowTraceID(conn))
	return id
}

// lowTraceID is the lower half of the trace's id.
func (d *derived) lowTraceID(conn uint64) uint64 { return hash(d.low, conn) }

// spanID is of the connection's span.
func (d *derived) spanID(conn uint64) (id [8]byte) {
	binary.BigEndian.PutUint64(id[:], hash(d.span, conn))
	return id
}

// dialID is of the span of its dialling: the tries are over, and told, before that is.
func (d *derived) dialID(conn uint64) (id [8]byte) {
	binary.BigEndian.PutUint64(id[:], hash(d.dial, conn))
	return id
}

// hash is never 0, as no id may be.
func hash(seed maphash.Seed, conn uint64) uint64 { return max(1, maphash.Comparable(seed, conn)) }

// A bound is a ratio of traces: those are sampled whose id is below it, in the bits that
// OpenTelemetry's TraceIDRatioBased looks at, so that everybody with that ratio samples the
// same ones.
type bound uint64

func boundOf(ratio float64) bound {
	switch {
	case ratio >= 1:
		return math.MaxUint64
	case ratio > 0:
		return bound(ratio * (1 << 63))
	}
	return 0
}

func (b bound) samples(id [16]byte) bool { return b.samplesLow(binary.BigEndian.Uint64(id[8:])) }

// samplesLow is samples for the lower half of an id, which is all that counts.
func (b bound) samplesLow(low uint64) bool { return low>>1 < uint64(b) }

// IDs gives the spans of connections the ids that have been told of them already, to
// upstreams and to logs, and all others random ones. A provider that is not an Exporter's
// has to be made with it:
//
//	sdktrace.NewTracerProvider(sdktrace.WithIDGenerator(spans.IDs{}), …)
type IDs struct{}

var _ sdktrace.IDGenerator = IDs{}

type idKey struct{}

// withSpanID returns a context in which the next span has that id.
func withSpanID(ctx context.Context, id trace.SpanID) context.Context {
	return context.WithValue(ctx, idKey{}, id)
}

// NewIDs implements sdktrace.IDGenerator.
func (i IDs) NewIDs(ctx context.Context) (id trace.TraceID, _ trace.SpanID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], max(1, rand.Uint64()))
	return id, i.NewSpanID(ctx, id)
}

// NewSpanID implements sdktrace.IDGenerator.
func (IDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	id, told := ctx.Value(idKey{}).(trace.SpanID)
	if !told {
		binary.BigEndian.PutUint64(id[:], max(1, rand.Uint64()))
	}
	return id
}

// contextOf returns what OpenTelemetry calls t.
func contextOf(t levee.TraceParent) trace.SpanContext {
	var flags trace.TraceFlags
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: t.TraceID, SpanID: t.SpanID, TraceFlags: flags.WithSampled(t.Sampled),
	})
}
