package spans_test

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/levee-net/levee"
)

// theirs is what OpenTelemetry reads.
func theirs(text string) levee.TraceParent {
	if len(text) == 56 && strings.HasPrefix(text, "00-") && text[55] == '-' {
		return levee.TraceParent{} // it lets this dash pass, which version 00 does not know
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": text})
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return levee.TraceParent{}
	}
	return levee.TraceParent{TraceID: sc.TraceID(), SpanID: sc.SpanID(), Sampled: sc.IsSampled()}
}

// FuzzTraceParent holds what the root reads against OpenTelemetry's own, which is no
// dependency of the root's.
func FuzzTraceParent(f *testing.F) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, seed := range []string{
		"", good, strings.ToUpper(good), good + "-", good[:54], "cc" + good[2:], "cc" + good[2:] + "-more", "cc" + good[2:] + "more", "ff" + good[2:],
		good[:53] + "03", good[:53] + "04", good[:53] + "ff", "00-" + strings.Repeat("0", 32) + good[35:], good[:36] + strings.Repeat("0", 16) + "-01",
		" " + good, good + "\n", strings.ReplaceAll(good, "-", "_"), good + "-" + strings.Repeat("x", 10_000),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := levee.ParseTraceParent(text)
		if want := theirs(text); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
		if (err == nil) != got.IsValid() {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if written := got.String(); written != "" {
			if again, err := levee.ParseTraceParent(written); again != got || err != nil || theirs(written) != got {
				t.Errorf("%q is written as %q, which is read as %v, %v", text, written, again, err)
			}
		}
	})
}
