package spans

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"

	"github.com/levee-net/levee"
)

// Options say which connections become spans.
type Options struct {
	// Ratio is the share of the connections that do: of those that no PROXY header says a
	// traceparent of. Zero means 0.01; negative means none. Where a header says one, its
	// sampled flag decides.
	Ratio float64
}

const sampleRatio = 0.01

// A Tracer makes spans of connections. It is given to a server when that is made, and not
// changed; its methods may be called from several goroutines. A connection has a trace in each
// Tracer that it is asked of.
type Tracer struct {
	tracer trace.Tracer
	ids    derived
	below  bound
}

// scope is what OpenTelemetry knows as the origin of the spans within the program.
const scope = "github.com/levee-net/levee/telemetry/spans"

// New returns a Tracer. The provider is an [Exporter]'s, or one that was made with [IDs] and
// samples what it is asked to, as OpenTelemetry's does unless it is told otherwise.
func New(provider trace.TracerProvider, o Options) *Tracer {
	if o.Ratio == 0 {
		o.Ratio = sampleRatio
	}
	return &Tracer{tracer: provider.Tracer(scope), ids: newDerived(), below: boundOf(o.Ratio)}
}

// TraceParent returns where children of the connection's span stand, sampled or not: what
// upstreams are told, as [github.com/levee-net/levee/proxy.Proxy].TraceParent. It is final
// once the PROXY header has been read, where there is one, and allocates nothing.
func (t *Tracer) TraceParent(c *levee.Conn) levee.TraceParent {
	own := levee.TraceParent{SpanID: t.ids.spanID(c.ID())}
	if parent := c.TraceParent(); parent.IsValid() {
		own.TraceID, own.Sampled = parent.TraceID, parent.Sampled
		return own
	}
	own.TraceID = t.ids.traceID(c.ID())
	own.Sampled = t.below.samples(own.TraceID)
	return own
}

// Sampled reports whether the connection becomes spans: what TraceParent says, at a fraction of its cost. It is as
// final as that is.
func (t *Tracer) Sampled(c *levee.Conn) bool {
	if parent := c.TraceParent(); parent.IsValid() {
		return parent.Sampled
	}
	return t.below.samplesLow(t.ids.lowTraceID(c.ID()))
}

// TraceID returns the id of the connection's trace, 32 hexadecimal digits, or "" if the
// connection is not sampled. It is for logs, and for the exemplars of metrics.
func (t *Tracer) TraceID(c *levee.Conn) string {
	if !t.Sampled(c) {
		return ""
	}
	own := t.TraceParent(c)
	return hex.EncodeToString(own.TraceID[:])
}

// Context returns a context in which spans, of the same provider or any other, are children of
// the connection's: for a handler that makes some itself.
//
//	func (h *handler) ServeTCP(ctx context.Context, c *levee.Conn) error {
//		ctx, span := otel.Tracer("app").Start(h.tracer.Context(ctx, c), "query")
//		defer span.End()
//
// If the connection is not sampled, they are not either.
func (t *Tracer) Context(ctx context.Context, c *levee.Conn) context.Context {
	return trace.ContextWithSpanContext(ctx, contextOf(t.TraceParent(c)))
}

// Trace returns the hooks that make the spans. Those of a connection are made when it has
// ended. Those who are turned away at the door never become any.
func (t *Tracer) Trace() *levee.Trace {
	return &levee.Trace{
		Sample: t.Sampled,
		Closed: func(c *levee.Conn, end levee.End) {
			if t.Sampled(c) {
				t.tell(c, t.TraceParent(c), &end)
			}
		},
	}
}
