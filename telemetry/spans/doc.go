// Package spans makes OpenTelemetry spans of the lives of a levee.Server's connections, and
// sends them by OTLP:
//
//	exporter, err := spans.Export(ctx, spans.ExportOptions{Endpoint: "http://127.0.0.1:4318"})
//	if err != nil {
//		return err
//	}
//	defer exporter.Shutdown(ctx)
//	tracer := spans.New(exporter.Provider(), spans.Options{Ratio: 0.05})
//	srv := &levee.Server{Handler: h, Trace: tracer.Trace()}
//
// Its secret is that nothing of a span exists while its connection does. Which trace a
// connection is in, and whether it is sampled, follows from its id alone, so that asking
// costs no memory; its spans are made when it has ended, of the story that it has.
//
// A program that does not import this package links nothing of OpenTelemetry.
package spans
