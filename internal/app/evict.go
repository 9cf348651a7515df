package app

import (
	"context"
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// sweepPause is the least time between two sweeps: under attack there may be hundreds of bans a second, and a sweep
// looks at all connections.
const sweepPause = 100 * time.Millisecond

// An evictor ends live connections whose clients would not be let in any more. Those that come back are turned away at
// no cost, so that it need not take its time, as a policy has to.
type evictor struct {
	front *front

	change
}

func newEvictor(f *front) *evictor {
	return &evictor{front: f, change: change{news: make(chan struct{}, 1)}}
}

// run ends connections after each change, until ctx ends.
func (e *evictor) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.news:
		}
		for _, l := range e.front.every() {
			if ended := l.sweep(); ended > 0 {
				e.front.log.Warn("ended connections of clients that are not let in any more", "listener", l.name, "count", ended)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepPause):
		}
	}
}

func (l *listener) sweep() (ended int) {
	for _, c := range l.server.Conns() {
		if l.forbid(c) {
			ended++
		}
	}
	return ended
}

func (l *listener) forbid(c *levee.Conn) bool {
	return forbid(c, l.rules.Load().gate.Denies(c.ClientAddr().Addr()))
}

// arrived looks at a connection that a change may have overtaken: the gate was asked before, and the sweep has not
// seen it.
func (e *evictor) arrived(c *levee.Conn) {
	if !e.overtook(c) {
		return
	}
	if l := e.front.listenerOf(c); l != nil {
		l.forbid(c)
	}
}

// limitTrace keeps denies and bans on connections that arrive, and remembers what refusals are like.
func (f *front) limitTrace() *levee.Trace {
	return &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) { f.outs.arrived(c) }, Refused: f.note}
}

// denies returns why the listener does not let the address in, or nil.
func (l *limiting) denies(listener int, addr netip.Addr) error { return l.gates[listener].Denies(addr) }
