//go:build linux

package main

import (
	"fmt"
	"time"

	"github.com/levee-net/levee/internal/load"
)

// A work is what the servers are asked to do.
type work struct {
	key   string
	name  string
	conns int
	size  int // bytes of a message
	depth int // messages under way on a connection
	kind  kind
}

type kind int

const (
	echo    kind = iota // whose figure is the throughput
	pace                // the same, but nobody is ever busy: its figure is the latency
	churn               // a connection for every message, reset by the client, which leaves no TIME_WAIT behind
	idle                // hold connections: memory and files; and then drain them
	mallocs             // count Go's allocations, where the server has metrics
)

var works = []work{
	{key: "echo1", name: "echo 64 B, 1 connection", conns: 1, size: 64, depth: 1, kind: pace},
	{key: "echo64", name: "echo 64 B, 64 connections", conns: 64, size: 64, depth: 1},
	{key: "echo1000", name: "echo 64 B, 1000 connections", conns: 1000, size: 64, depth: 1},
	{key: "echo8000", name: "echo 64 B, 8000 connections", conns: 8000, size: 64, depth: 1},
	{key: "echo16k", name: "echo 16 KiB, 64 connections", conns: 64, size: 16 << 10, depth: 1},
	{key: "pipeline", name: "echo 64 B, 64 connections, 16 under way on each", conns: 64, size: 64, depth: 16},
	{key: "churn", name: "connect, echo 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn},
	{key: "idle", name: "8000 idle connections", conns: 8000, size: 64, depth: 1, kind: idle},
	{key: "mallocs", name: "allocations, echo 64 B, 64 connections", conns: 64, size: 64, depth: 1, kind: mallocs},
}

func workKeys() (keys []string) {
	for _, w := range works {
		keys = append(keys, w.key)
	}
	return keys
}

// load is the work as a load on an address.
func (w work) load(address string, d time.Duration) (load.Load, error) {
	protocol, err := load.Echo(w.size)
	return load.Load{
		Addr: address, Protocol: protocol, Connections: w.conns, Depth: w.depth,
		Reconnect: w.kind == churn, Warmup: d / 4, Duration: d,
	}, err
}

// A metric is one figure of a run.
type metric string

const (
	rate     metric = "messages_per_second"
	cpu      metric = "cpu_us_per_message" // the server's, user and system
	p50      metric = "p50_us"
	p99      metric = "p99_us"
	p999     metric = "p99.9_us"
	serving  metric = "server_share_of_its_core"
	loading  metric = "load_share_of_its_core"
	others   metric = "others_share_of_the_servers_core"
	memory   metric = "anonymous_kib_per_connection"
	files    metric = "files_per_connection"
	drain    metric = "drain_ms"
	allocate metric = "allocations_per_message"
)

// A sample is what one run of a work by a server has measured.
type sample map[metric]float64

// A bar is what levee has to reach.
type bar struct {
	work    string
	metric  metric
	server  string
	against string  // a peer whose figure is the unit; none for the figure itself
	atLeast float64 // or
	atMost  float64
}

var bars = []bar{
	{work: "echo64", metric: rate, server: "levee", against: "tokio", atLeast: 1.00},
	{work: "echo64", metric: rate, server: "levee", against: "c", atLeast: 0.97},
	{work: "echo1000", metric: rate, server: "levee", against: "tokio", atLeast: 1.00},
	{work: "echo1000", metric: rate, server: "levee", against: "c", atLeast: 0.97},
	{work: "echo1000", metric: p99, server: "levee", against: "tokio", atMost: 0.5},
	{work: "pipeline", metric: rate, server: "levee", against: "tokio", atLeast: 1.2},
	{work: "echo8000", metric: cpu, server: "levee", against: "c", atMost: 1.1},
	{work: "churn", metric: cpu, server: "levee", against: "tokio", atMost: 1.0},
	{work: "idle", metric: memory, server: "levee", atMost: 0.5},
	{work: "idle", metric: files, server: "levee", atMost: 1},
	{work: "idle", metric: memory, server: "sequential", atMost: 4},
	{work: "mallocs", metric: allocate, server: "levee", atMost: 0.01}, // 0, and what goes on beside
	{work: "idle", metric: drain, server: "levee", atMost: 300},
	{work: "echo64", metric: rate, server: "sequential", against: "gonet", atLeast: 1.00},
	{work: "echo1000", metric: rate, server: "sequential", against: "gonet", atLeast: 1.00},
}

func (b bar) held(v float64) bool {
	if b.atMost > 0 {
		return v <= b.atMost
	}
	return v >= b.atLeast
}

func (b bar) bound() string {
	if b.atMost > 0 {
		return fmt.Sprintf("≤ %g", b.atMost)
	}
	return fmt.Sprintf("≥ %.2f", b.atLeast)
}
