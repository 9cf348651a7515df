// Package load puts a server under load and measures what its clients feel.
//
//	l := load.Load{Addr: "127.0.0.1:7000", Protocol: load.Echo(64), Connections: 64, Duration: 5 * time.Second}
//	result, err := l.Run(ctx)
//	fmt.Printf("%.0f messages/s, p99 %s\n", result.Rate(), result.Percentile(99))
//
// Its secret is to be cheaper than what it measures: on Linux one event loop over
// all connections, with no goroutine and no allocation for a message. Elsewhere a
// goroutine twin does the same, dearer.
package load

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"time"
)

// A Load is what a server is put under.
//
// Without a Rate it is a closed loop: a connection sends its next message when
// one has come back, so that a slow server is asked less. With a Rate it is an
// open one: messages are due at fixed times whatever the server does, the
// connections taking turns, and latency counts from when a message was due, not
// from when it could at last be sent. A server that stalls for a second then
// shows a second, in every message that had to wait for it (Gil Tene calls its
// loss "coordinated omission").
//
// With TLS the load is dearer: two goroutines for each connection, and Go's crypto/tls,
// which works about as hard as a server does. The connections are opened one after the
// other, so that with a ClientSessionCache only the first of all has no session to resume.
type Load struct {
	Addr        string         // host:port
	Protocol    Protocol       // what is sent, and what is an answer to it
	Connections int            // open at once; 0 means 1
	Depth       int            // messages under way on a connection at once; 0 means 1
	Rate        float64        // messages a second over all connections; 0 means a closed loop
	Reconnect   bool           // a new connection for every message, closed once it is answered (by a reset, if it is plaintext)
	TLS         *tls.Config    // if set, connections are TLS, by way of goroutines: see below
	Warmup      time.Duration  // at the start, not measured
	Duration    time.Duration  // measured
	Progress    func(Interval) // if set, is told about every second that was measured; must not block
	Mark        func()         // if set, is called when measuring begins and when it ends; must not block

	openBudget time.Duration // shorter in tests
}

// What a load may ask for. It bounds the memory and the time that a run takes.
const (
	maxConnections = 1 << 20        // far beyond the ports of one address
	maxUnderWay    = 1 << 22        // messages over all connections: 8 bytes each
	maxRate        = 10e6           // ten times what one core reaches
	maxDuration    = 24 * time.Hour // and as much again for the warm-up
	maxMessages    = 1e9            // at a Rate: so many that a server leaves unanswered are recorded in half a minute
)

// defaultOpenBudget is how long the server may take to answer the next first message
// while connections are opened: ten times the first retransmission of a SYN.
const defaultOpenBudget = 10 * time.Second

// arriving is how many connections are opened at once. It stays below every
// system's backlog, beyond which a SYN is dropped and costs its sender a second.
const arriving = 128

var (
	errClosed  = errors.New("closed by the server")
	errTooMuch = errors.New("more came back than was sent")
)

// Run opens the connections, with one message there and back on each, puts the
// server under the load and returns what it measured. A connection that fails
// ends the run with an error: what it would measure from then on is another load.
//
// It must only be called for a server whose owner has agreed to it.
func (l Load) Run(ctx context.Context) (*Result, error) {
	l, err := l.checked()
	if err != nil {
		return nil, err
	}
	if l.TLS != nil {
		return l.runTwin(ctx)
	}
	return l.run(ctx)
}

// Check says what is wrong with the load, which Run would say too.
func (l Load) Check() error {
	_, err := l.checked()
	return err
}

// checked returns the load with its defaults, or what is wrong with it.
func (l Load) checked() (Load, error) {
	l.Connections, l.Depth = max(l.Connections, 1), max(l.Depth, 1)
	l.openBudget = cmp.Or(l.openBudget, defaultOpenBudget)
	switch {
	case len(l.Protocol.request) == 0:
		return l, errors.New("no protocol")
	case l.Connections > maxConnections:
		return l, fmt.Errorf("%d connections: at most %d", l.Connections, maxConnections)
	case l.Connections*l.Depth > maxUnderWay:
		return l, fmt.Errorf("%d connections with %d messages under way on each: at most %d messages in all", l.Connections, l.Depth, maxUnderWay)
	case l.Rate < 0 || l.Rate > maxRate || math.IsNaN(l.Rate):
		return l, fmt.Errorf("%g messages/s: between 0 and %.0f", l.Rate, maxRate)
	case l.Warmup < 0 || l.Warmup > maxDuration:
		return l, fmt.Errorf("warm-up of %s: between 0 and %s", l.Warmup, maxDuration)
	case l.Duration <= 0 || l.Duration > maxDuration:
		return l, fmt.Errorf("duration of %s: above 0 and at most %s", l.Duration, maxDuration)
	case l.Rate*l.end().Seconds() > maxMessages:
		return l, fmt.Errorf("%g messages/s for %s: at most %.0g messages", l.Rate, l.end(), maxMessages)
	case l.Reconnect && (l.Depth > 1 || l.Rate > 0):
		return l, errors.New("a new connection for every message: without a depth or a rate")
	}
	return l, nil
}

// due returns when the n-th message of all is due, from the start of the load.
func (l *Load) due(n int64) time.Duration {
	return time.Duration(float64(n) / l.Rate * float64(time.Second))
}

// dueOn returns when the n-th message of a connection is due: they take turns.
func (l *Load) dueOn(connection int, n int64) time.Duration {
	return l.due(n*int64(l.Connections) + int64(connection))
}

// recordUnanswered records the messages of a connection that were due while
// measuring, after the first few that were answered.
func (l *Load) recordUnanswered(rec *recorder, connection int, answered int64, now time.Duration) {
	for n := answered; l.dueOn(connection, n) < l.end(); n++ {
		if due := l.dueOn(connection, n); due >= l.Warmup {
			rec.unanswered(now - due)
		}
	}
}

func (l *Load) end() time.Duration { return l.Warmup + l.Duration }

func (l *Load) mark() {
	if l.Mark != nil {
		l.Mark()
	}
}

// unanswered is the error of a server that does not answer while connections are
// opened.
func (l *Load) unanswered(opened int) error {
	return fmt.Errorf("%s answered on %d of %d connections, and then not for %s", l.Addr, opened, l.Connections, l.openBudget)
}
