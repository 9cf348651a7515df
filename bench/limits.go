//go:build linux

package main

var perUnlimited = unit{"no limits", "off"}

// Limits of each kind, none of which is ever reached: what is measured is what they cost those who keep to them.
const (
	everyLimit = `limits: {max_connections: 10000, rate: 1000000/s, connection_bandwidth: {up: 100GB/s, down: 100GB/s}, per_client: {mode: enforce, connections: 9000, rate: 1000000/s}}`
	noLimit    = `limits: {max_connections: 10000, arriving: off, per_client: {mode: off}}`
)

// limitedEcho and limitedProxy are suites of levee against itself, with its limits off.
var limitedEcho = suite{
	key:  "limits",
	name: "what limits cost an echo",
	works: []work{
		{key: "limits64", name: "echo 64 B, 64 connections", conns: 64, size: 64, depth: 1},
		{key: "limits16k", name: "echo 16 KiB, 64 connections", conns: 64, size: 16 << 10, depth: 1},
		{key: "limitschurn", name: "connect, echo 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn},
	},
	peers: limitedLevees("routes: [{handler: echo}]\n"),
	units: []unit{perUnlimited},
	bars: []bar{
		{work: "limits64", metric: rate, server: "levee", against: perUnlimited, atLeast: 0.98},
		{work: "limits64", metric: rate, server: "enforced", against: perUnlimited, atLeast: 0.98},
		{work: "limits16k", metric: rate, server: "enforced", against: perUnlimited, atLeast: 0.98},
		{work: "limitschurn", metric: cpu, server: "levee", against: perUnlimited, atMost: 1.02},
		{work: "limitschurn", metric: cpu, server: "enforced", against: perUnlimited, atMost: 1.02},
	},
}

var limitedProxy = suite{
	key:  "limitsproxy",
	name: "what limits cost a proxy, with the backend on the load's core",
	works: []work{
		{key: "limitsproxy64", name: "proxy 64 B, 64 connections", conns: 64, size: 64, depth: 1, backend: "echo"},
		{key: "limitsdown", name: "proxy bulk from the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkDown, backend: "transfer"},
		{key: "limitsproxychurn", name: "connect, proxy 64 B, reset; 64 at once", conns: 64, size: 64, depth: 1, kind: churn, backend: "echo"},
	},
	peers:    limitedLevees("routes: [{upstream: backend}]\n" + leveeBackend),
	backends: proxies.backends,
	units:    []unit{perUnlimited},
	bars: []bar{
		{work: "limitsproxy64", metric: rate, server: "levee", against: perUnlimited, atLeast: 0.98},
		{work: "limitsproxy64", metric: rate, server: "enforced", against: perUnlimited, atLeast: 0.98},
		{work: "limitsdown", metric: cpu, server: "enforced", against: perUnlimited, atMost: 1.02},
		{work: "limitsproxychurn", metric: cpu, server: "enforced", against: perUnlimited, atMost: 1.02},
	},
}

// limitedLevees are levee with its limits off, as its users get it, and with all of them in force.
func limitedLevees(routes string) (peers []peer) {
	for _, p := range []struct{ key, name, limits string }{
		{"off", "limits off", noLimit},
		{"levee", "levee", "limits: {max_connections: 10000}"},
		{"enforced", "limits enforced", everyLimit},
	} {
		config := "version: 1\nadmin: {listen: \"127.0.0.1:0\"}\nlisteners:\n  - name: bench\n    listen: [\"127.0.0.1:0\"]\n    " + p.limits + "\n    " + routes
		peers = append(peers, peer{key: p.key, name: p.name, build: buildLevee, command: "$program serve -c $config", config: config})
	}
	return peers
}
