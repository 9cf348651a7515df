// Package telemetry tells operators what a levee.Server does: Prometheus metrics
// and structured logs.
//
//	registry := prometheus.NewRegistry()
//	metrics := telemetry.NewMetrics(registry)
//	srv := &levee.Server{
//		Name:    "public",
//		Handler: h,
//		Trace:   levee.Traces(metrics.Trace(), telemetry.Log(logger)),
//	}
//	metrics.Watch(srv)
//
// Its secret is how to count without being felt. What happens often (connections,
// bytes) is read from the server's own counts when a scrape asks; only what has
// no count, such as how long a handshake took, is recorded as it happens.
package telemetry
