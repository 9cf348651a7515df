//go:build linux

package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"
)

var perUntold = unit{"quiet", "quiet"}

// toldEcho and toldProxy are suites of levee against itself, with a line in a file for each connection and spans of one in a hundred.
// What is always on, metrics and the flight recorder, is on in both.
var toldEcho = suite{
	key:  "telemetry",
	name: "what an access log and spans cost an echo",
	works: []work{
		{key: "told64", name: "echo 64 B, 64 connections", conns: 64, size: 64, depth: 1},
		{key: "told16k", name: "echo 16 KiB, 64 connections", conns: 64, size: 16 << 10, depth: 1},
		{key: "toldchurn", name: "connect, echo 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn},
	},
	peers: toldLevees("routes: [{handler: echo}]\n"),
	units: []unit{perUntold},
	bars: []bar{
		{work: "told64", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
		{work: "told16k", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
		{work: "toldchurn", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
	},
}

var toldProxy = suite{
	key:  "telemetryproxy",
	name: "what an access log and spans cost a proxy, with the backend on the load's core",
	works: []work{
		{key: "toldproxy64", name: "proxy 64 B, 64 connections", conns: 64, size: 64, depth: 1, backend: "echo"},
		{key: "tolddown", name: "proxy bulk from the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkDown, backend: "transfer"},
		{key: "toldproxychurn", name: "connect, proxy 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn, backend: "echo"},
	},
	peers:    toldLevees("routes: [{upstream: backend}]\n" + leveeBackend),
	backends: proxies.backends,
	units:    []unit{perUntold},
	bars: []bar{
		{work: "toldproxy64", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
		{work: "tolddown", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
		{work: "toldproxychurn", metric: rate, server: "told", against: perUntold, atLeast: 0.97},
	},
}

func toldLevees(routes string) (peers []peer) {
	for _, p := range []struct{ key, name, telemetry string }{
		{"quiet", "levee", ""},
		{"told", "access log, spans", `telemetry: {logs: {access: all, access_file: "$log"}, traces: {otlp: "http://$collector", ratio: 0.01}}` + "\n"},
	} {
		config := "version: 1\nadmin: {listen: \"127.0.0.1:0\"}\n" + p.telemetry + "listeners:\n  - name: bench\n    listen: [\"127.0.0.1:0\"]\n    limits: {max_connections: 10000}\n    " + routes
		peers = append(peers, peer{key: p.key, name: p.name, build: buildLevee, command: "$program serve -c $config", config: config})
	}
	return peers
}

// collect takes spans by OTLP over HTTP, and drops them, until ctx ends. It returns where.
func collect(ctx context.Context) (address string, err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf") // an empty ExportTraceServiceResponse: all are taken
	})}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() { _ = s.Serve(l) }() // ends with ctx
	return l.Addr().String(), nil
}
