//go:build linux

package main

// perBest is what a proxy is measured against: the best of those that people use,
// or would write with care.
var perBest = unit{"best", "nginx,haproxy,tokio"}

// proxies is the suite of servers that carry bytes between a client and a backend.
// The backend shares the load's core, for the proxy needs one to itself: where that
// one is the busier, a proxy shows in its own CPU only.
var proxies = suite{
	key:  "proxy",
	name: "proxy, with the backend on the load's core",
	works: []work{
		{key: "proxy64", name: "proxy 64 B, 64 connections", conns: 64, size: 64, depth: 1, backend: "echo"},
		{key: "proxy500", name: "proxy 64 B, 500 connections", conns: 500, size: 64, depth: 1, backend: "echo"},
		{key: "proxy16k", name: "proxy 16 KiB, 64 connections", conns: 64, size: 16 << 10, depth: 1, backend: "echo"},
		{key: "down4", name: "proxy bulk from the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkDown, backend: "transfer"},
		{key: "down64", name: "proxy bulk from the backend, in MiB, 64 connections", conns: 64, depth: bulkDepth, kind: bulkDown, backend: "transfer"},
		{key: "up4", name: "proxy bulk to the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkUp, backend: "transfer"},
		{key: "up64", name: "proxy bulk to the backend, in MiB, 64 connections", conns: 64, depth: bulkDepth, kind: bulkUp, backend: "transfer"},
		{key: "proxychurn", name: "connect, proxy 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn, backend: "echo"},
		{key: "pairs", name: "4000 idle pairs", conns: 4000, size: 64, depth: 1, kind: idle, backend: "echo"},
		{key: "pairs9000", name: "9000 idle pairs", conns: 9000, size: 64, depth: 1, kind: idle, backend: "echo", only: "levee"},
	},
	peers: []peer{
		{key: "nginx", name: "nginx", build: findCommand("nginx"), command: "$program -c $config -e stderr", config: nginxConfig, inherits: true},
		{key: "haproxy", name: "HAProxy", build: findCommand("haproxy"), command: "$program -db -f $config", config: haproxyConfig, bulkConfig: haproxyBulkConfig, inherits: true},
		{key: "tokio", name: "Tokio", build: buildTokio("peers/tokioproxy", "proxy"), command: "$program $backend"},
		{key: "gonet", name: "Go io.Copy", build: buildGo("./peers/gonetproxy"), command: "$program $backend"},
		{key: "levee", name: "levee", build: buildLevee, command: "$program serve -c $config", config: leveeProxy},
	},
	backends: []peer{
		{key: "echo", name: "the echo behind the proxies", build: buildC("echo")},
		{key: "transfer", name: "the source and sink behind the proxies", build: buildC("transfer")},
	},
	units: []unit{perBest},
	bars: []bar{
		{work: "proxy64", metric: rate, server: "levee", against: perBest, atLeast: 1.00},
		{work: "proxy64", metric: p99, server: "levee", against: perBest, atMost: 1.0},
		{work: "proxy500", metric: rate, server: "levee", against: perBest, atLeast: 1.00},
		{work: "proxy500", metric: p99, server: "levee", against: perBest, atMost: 1.0},
		{work: "proxy16k", metric: rate, server: "levee", against: perBest, atLeast: 1.10},
		{work: "down4", metric: rate, server: "levee", against: perBest, atLeast: 2.0},
		{work: "down4", metric: cpu, server: "levee", against: perBest, atMost: 0.5},
		{work: "down64", metric: rate, server: "levee", against: perBest, atLeast: 2.0},
		{work: "down64", metric: cpu, server: "levee", against: perBest, atMost: 0.5},
		{work: "up4", metric: rate, server: "levee", against: perBest, atLeast: 2.0},
		{work: "up4", metric: cpu, server: "levee", against: perBest, atMost: 0.5},
		{work: "up64", metric: rate, server: "levee", against: perBest, atLeast: 2.0},
		{work: "up64", metric: cpu, server: "levee", against: perBest, atMost: 0.5},
		{work: "proxychurn", metric: cpu, server: "levee", against: perBest, atMost: 1.0},
		{work: "pairs", metric: memory, server: "levee", atMost: 1},
		{work: "pairs", metric: files, server: "levee", atMost: 2},
		{work: "pairs9000", metric: files, server: "levee", atMost: 2}, // and that they are held at all, with no more than maxFiles
	},
	panels: []panel{
		{"messages/s, 64 connections (more is better)", "proxy64", rate, "k", 1e-3},
		{"messages/s, 500 connections (more is better)", "proxy500", rate, "k", 1e-3},
		{"16 KiB messages/s, 64 connections (more is better)", "proxy16k", rate, "k", 1e-3},
		{"p99 latency, 500 connections (less is better)", "proxy500", p99, " ms", 1e-3},
		{"CPU per MiB to the client (less is better)", "down4", cpu, " µs", 1},
		{"CPU per MiB to the backend (less is better)", "up4", cpu, " µs", 1},
		{"CPU per new connection (less is better)", "proxychurn", cpu, " µs", 1},
		{"memory per idle pair (less is better)", "pairs", memory, " KiB", 1},
	},
	picture: "proxy.svg",
	caption: "one core for the proxy, one for the load and the backend",
}

// nginxConfig has one worker, as many connections as there are files, and the stream
// module wherever it comes from: Debian's is loaded by the file that is included.
// With buffers of 64 KiB instead of 16 bulk takes two thirds of the CPU, and nothing
// else takes more.
const nginxConfig = nginxTop + "\t\tlisten $listen;\n" + nginxRest

const (
	nginxTop = `daemon off;
worker_processes 1;
pid $program.pid;
error_log stderr crit;
include /etc/nginx/modules-enabled/*mod-stream.conf;
events {
	worker_connections 19900;
	multi_accept on;
}
stream {
	access_log off;
	tcp_nodelay on;
	proxy_buffer_size 64k;
	proxy_timeout 1h;
	server {
`
	nginxRest = `		proxy_pass $backend;
	}
}
`
)

// HAProxy has the configuration that suits the work, as someone who knows his traffic
// would give it. For messages that is splice-auto, which costs them nothing, whereas
// to splice always costs a third more CPU with 64 bytes. For bulk it is to splice
// always, through larger pipes, which takes a third to two thirds of the CPU that
// splice-auto does (HAProxy 2.6).
var (
	haproxyConfig     = haproxyTop + "\toption splice-auto\n" + haproxyRest
	haproxyBulkConfig = "global\n\ttune.pipesize 524288\n" + haproxyTop + "\toption splice-request\n\toption splice-response\n" + haproxyRest
)

const (
	haproxyTop = `global
	nbthread 1
	maxconn 9800
	maxpipes 128
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
`
	haproxyRest = `frontend bench
	bind fd@3
` + haproxyBackend
	haproxyBackend = `	default_backend backend
backend backend
	server backend $backend
`
)

// leveeProxy is levee as its users get it: a route to an upstream, and every default.
const leveeProxy = `version: 1
admin: {listen: "127.0.0.1:0"}
listeners:
  - name: bench
    listen: ["127.0.0.1:0"]
    limits: {max_connections: 10000}
    routes: [{upstream: backend}]
` + leveeBackend

const leveeBackend = `upstreams:
  - name: backend
    servers: ["$backend"]
`
