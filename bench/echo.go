//go:build linux

package main

var (
	perC     = unit{"C", "c"}
	perTokio = unit{"Tokio", "tokio"}
	perGo    = unit{"Go net", "gonet"}
)

// echoes is the suite of servers that send back what they are sent.
var echoes = suite{
	key:  "echo",
	name: "echo",
	works: []work{
		{key: "echo1", name: "echo 64 B, 1 connection", conns: 1, size: 64, depth: 1, kind: pace},
		{key: "echo64", name: "echo 64 B, 64 connections", conns: 64, size: 64, depth: 1},
		{key: "echo1000", name: "echo 64 B, 1000 connections", conns: 1000, size: 64, depth: 1},
		{key: "echo8000", name: "echo 64 B, 8000 connections", conns: 8000, size: 64, depth: 1},
		{key: "echo16k", name: "echo 16 KiB, 64 connections", conns: 64, size: 16 << 10, depth: 1},
		{key: "pipeline", name: "echo 64 B, 64 connections, 16 under way on each", conns: 64, size: 64, depth: 16},
		{key: "churn", name: "connect, echo 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn},
		{key: "idle", name: "8000 idle connections", conns: 8000, size: 64, depth: 1, kind: idle},
		{key: "mallocs", name: "allocations, echo 64 B, 64 connections", conns: 64, size: 64, depth: 1, kind: mallocs, only: "levee"},
	},
	peers: []peer{
		{key: "c", name: "C epoll", build: buildC("echo")},
		{key: "tokio", name: "Tokio", build: buildTokio("peers/tokio", "echo")},
		{key: "gonet", name: "Go net", build: buildGo("./peers/gonet")},
		{key: "netpoll", name: "netpoll", build: buildGo("./peers/netpoll")},
		{key: "gnet", name: "gnet", build: buildGo("./peers/gnet")},
		{key: "levee", name: "levee", build: buildLevee, command: "$program serve -c $config", config: leveeEcho, metrics: true, drains: true},
		{key: "sequential", name: "levee, sequential", build: buildGo("./peers/levee"), drains: true},
	},
	units: []unit{perC, perTokio},
	bars: []bar{
		{work: "echo64", metric: rate, server: "levee", against: perTokio, atLeast: 1.00},
		{work: "echo64", metric: rate, server: "levee", against: perC, atLeast: 0.97},
		{work: "echo1000", metric: rate, server: "levee", against: perTokio, atLeast: 1.00},
		{work: "echo1000", metric: rate, server: "levee", against: perC, atLeast: 0.97},
		{work: "echo1000", metric: p99, server: "levee", against: perTokio, atMost: 0.5},
		{work: "pipeline", metric: rate, server: "levee", against: perTokio, atLeast: 1.2},
		{work: "echo8000", metric: cpu, server: "levee", against: perC, atMost: 1.1},
		{work: "churn", metric: cpu, server: "levee", against: perTokio, atMost: 1.0},
		{work: "idle", metric: memory, server: "levee", atMost: 0.5},
		{work: "idle", metric: files, server: "levee", atMost: 1},
		{work: "idle", metric: memory, server: "sequential", atMost: 4},
		{work: "mallocs", metric: allocate, server: "levee", atMost: 0.01}, // 0, and what goes on beside
		{work: "idle", metric: drain, server: "levee", atMost: 300},
		{work: "echo64", metric: rate, server: "sequential", against: perGo, atLeast: 1.00},
		{work: "echo1000", metric: rate, server: "sequential", against: perGo, atLeast: 1.00},
	},
	panels: []panel{
		{"messages/s, 64 connections (more is better)", "echo64", rate, "k", 1e-3},
		{"messages/s, 1000 connections (more is better)", "echo1000", rate, "k", 1e-3},
		{"messages/s, 64 connections, 16 deep (more is better)", "pipeline", rate, "M", 1e-6},
		{"16 KiB messages/s, 64 connections (more is better)", "echo16k", rate, "k", 1e-3},
		{"p99 latency, 1000 connections (less is better)", "echo1000", p99, " ms", 1e-3},
		{"CPU per message, 8000 connections (less is better)", "echo8000", cpu, " µs", 1},
		{"CPU per new connection (less is better)", "churn", cpu, " µs", 1},
		{"memory per idle connection (less is better)", "idle", memory, " KiB", 1},
	},
	picture: "results.svg",
	caption: "one core for the server, one for the load",
}

// leveeEcho is levee as its users get it: a route, and every default but one. Who
// leaves takes seconds by default, so that not all come back at once elsewhere; what
// is asked here is how fast they could.
const leveeEcho = `version: 1
admin: {listen: "127.0.0.1:0"}
drain: {spread: off}
listeners:
  - name: bench
    listen: ["127.0.0.1:0"]
    limits: {max_connections: 10000}
    routes: [{handler: echo}]
`
