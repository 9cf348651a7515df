package spans_test

import (
	"context"

	"go.opentelemetry.io/otel"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/telemetry/spans"
)

// A server whose connections become spans, and a span of its own as a child of one. It stands in docs/guides/tracing.md.
func ExampleNew() {
	serve := func(context.Context, *levee.Conn) error { return nil }
	listen := func(ctx context.Context) error {
		exporter, err := spans.Export(ctx, spans.ExportOptions{Endpoint: "grpc://127.0.0.1:4317", Service: "chat"})
		if err != nil {
			return err
		}
		defer exporter.Shutdown(ctx)
		tracer := spans.New(exporter.Provider(), spans.Options{Ratio: 0.05})
		srv := &levee.Server{
			Trace: tracer.Trace(),
			Handler: levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
				ctx, span := otel.Tracer("chat").Start(tracer.Context(ctx, c), "login") // a child of the connection's span
				defer span.End()
				return serve(ctx, c)
			}),
		}
		return srv.ListenAndServe(ctx, "127.0.0.1:7000")
	}
	_ = listen
	// Output:
}
