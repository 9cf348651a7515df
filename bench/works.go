//go:build linux

package main

import (
	"fmt"
	"time"

	"github.com/levee-net/levee/internal/load"
)

// A suite is works, and the servers that do all of them in turn.
type suite struct {
	key      string
	name     string
	works    []work
	peers    []peer
	backends []peer                    // for proxies: what is behind them, on the load's core
	prepare  func(folder string) error // makes what configurations speak of, where there is any
	units    []unit                    // of the ratios in the table
	bars     []bar                     // all are about works and servers of this suite
	panels   []panel                   // of the picture
	picture  string                    // its file; none for no picture
	caption  string                    // and what to know about it

	servers []server          // the peers that were built
	behind  map[string]server // the backends that were built, by key
}

var suites = []suite{echoes, proxies, terminations, limitedEcho, limitedProxy, toldEcho, toldProxy}

// A work is what the servers are asked to do. Its key is its own in all suites.
type work struct {
	key     string
	name    string
	conns   int
	size    int // bytes of a message; of bulk, up or down, a mebibyte
	depth   int // messages under way on a connection
	kind    kind
	session session // how its connections begin
	backend string  // the key of what is behind the server, if it is a proxy
	only    string  // the key of the one server that is asked; none for all
}

type kind int

const (
	echo     kind = iota // whose figure is the throughput
	bulkDown             // the same, of long answers to short messages
	bulkUp               // and of short answers to long messages
	pace                 // an echo, but nobody is ever busy: its figure is the latency
	churn                // a connection for every message, closed by the client; in plaintext reset, which leaves no TIME_WAIT behind
	idle                 // hold connections: memory and files; and then drain them, where the server knows how to
	mallocs              // count Go's allocations, where the server has metrics
	sniffing             // ask a benchmark what a TLS client's hello costs until its route is known
)

// isBusy reports whether the work is as much as the server can do, so that its
// figure is the throughput.
func (k kind) isBusy() bool { return k == echo || k.isBulk() }

// hasRate reports whether it is messages that are measured.
func (k kind) hasRate() bool { return k != idle && k != mallocs && k != sniffing }

func (k kind) isBulk() bool { return k == bulkDown || k == bulkUp }

// A bulk message is short one way and a mebibyte the other, so messages a second are
// MiB a second. Several are under way, so that the long way is never empty.
const (
	bulkSize  = 1 << 20
	shortSize = 64
	bulkDepth = 4
)

func (w work) protocol() (load.Protocol, error) {
	switch w.kind {
	case bulkDown:
		return load.Transfer(shortSize, bulkSize)
	case bulkUp:
		return load.Transfer(bulkSize, shortSize)
	default:
		return load.Echo(w.size)
	}
}

// load is the work as a load on an address.
func (w work) load(address string, d time.Duration) (load.Load, error) {
	protocol, err := w.protocol()
	return load.Load{
		Addr: address, Protocol: protocol, Connections: w.conns, Depth: w.depth,
		Reconnect: w.kind == churn, TLS: w.session.config(), Warmup: d / 4, Duration: d,
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
	loading  metric = "load_share_of_its_core" // with the backend, which is on it too
	others   metric = "others_share_of_the_servers_core"
	memory   metric = "anonymous_kib_per_connection"
	files    metric = "files_per_connection"
	drain    metric = "drain_ms"
	allocate metric = "allocations_per_message"
	sniff    metric = "us_per_hello"
)

// moreIsBetter reports what is the best of several figures.
func (m metric) moreIsBetter() bool { return m == rate }

// A sample is what one run of a work by a server has measured.
type sample map[metric]float64

func (s sample) has(m metric) bool {
	_, ok := s[m]
	return ok
}

// A unit is whose figures a ratio is relative to.
type unit struct {
	title string
	of    string // keys of peers, with commas: the best of them, within each round
}

// A bar is what levee has to reach.
type bar struct {
	work    string
	metric  metric
	server  string
	against unit    // whose figure is 1; none for the figure itself
	atLeast float64 // or
	atMost  float64
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
