// Command tour is a server for production in a page, the one that docs/guides/library.md goes through: echo, with a limit for each client, timeouts,
// metrics, a log, TLS if there is a certificate, a way to end one connection, and an end that cuts nobody off.
//
//	go run ./examples/tour [CERT KEY]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/telemetry"
)

func main() {
	if err := run(); err != nil {
		slog.Error("it ends", "err", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections

	registry := prometheus.NewRegistry()
	srv := newServer(registry)
	if len(os.Args) == 3 {
		files := &certs.Files{Pairs: []certs.Pair{{Cert: os.Args[1], Key: os.Args[2]}}}
		if err := files.Load(); err != nil {
			return err
		}
		go func() { _ = files.Watch(ctx) }() // until ctx ends
		srv.TLSConfig = (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	}
	admin := &http.Server{Addr: "127.0.0.1:9180", Handler: operators(srv, registry), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = admin.ListenAndServe() }()
	defer admin.Close()

	fmt.Println("Listening on 127.0.0.1:8080")
	return srv.ListenAndServe(ctx, "127.0.0.1:8080") // returns when ctx has ended and all have left
}

// newServer makes the server; a test serves it on a network in memory.
func newServer(registry *prometheus.Registry) *levee.Server {
	all := &limit.Scope{Name: "tour", Clients: []*limit.Clients{{
		Limits: limit.Limits{Connections: 100, Rate: limit.Rate{PerSecond: 20, Burst: 40}, Mode: limit.Enforce},
	}}}
	metrics := telemetry.NewMetrics(registry)
	srv := &levee.Server{
		Name:         "tour",
		Handler:      levee.Chain(levee.HandlerFunc(echo), logged),
		Gate:         &limit.Gate{Scopes: []*limit.Scope{all}},
		IdleTimeout:  time.Minute,
		DrainTimeout: 10 * time.Second,
		Trace:        levee.Traces(metrics.Trace(), telemetry.Log(slog.Default())),
	}
	metrics.Watch(srv)
	return srv
}

func echo(_ context.Context, c *levee.Conn) error {
	buffer := make([]byte, 4096)
	for c.Next() { // false at end of stream, when idle for too long, and when asked to leave
		n, err := c.Read(buffer)
		if err == nil {
			_, err = c.Write(buffer[:n])
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// logged is a middleware: it wraps the handler, and never the connection.
func logged(next levee.Handler) levee.Handler {
	return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		err := next.ServeTCP(ctx, c)
		in, out := c.Traffic()
		slog.Info("served", "conn", c.ID(), "client", c.ClientAddr(), "in", in, "out", out, "err", err)
		return err
	})
}

var errAsked = errors.New("an operator asked for it")

// operators is for those on this machine: metrics, and DELETE /connections/{id}, which ends one.
func operators(srv *levee.Server, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("DELETE /connections/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		if c := srv.Conn(id); err == nil && c != nil {
			c.Drain(errAsked) // between two requests; Kill is at once
			return
		}
		http.NotFound(w, r)
	})
	return mux
}
