package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
)

// forbidRate is how many connections a second are ended when a policy does not allow them any more. Their clients
// come back at once, and are refused by a handshake each: all together they would keep out those who are allowed.
const forbidRate = 100

// A policy is one for clients at a listener.
type policy struct {
	clients  *certs.Clients
	front    *front
	listener string
	log      *slog.Logger

	change
}

func newPolicy(f *front, listener string, clients *certs.Clients) *policy {
	return &policy{
		clients: clients, front: f, listener: listener, log: f.log.With("listener", listener),
		change: change{news: make(chan struct{}, 1)},
	}
}

// enforce ends live connections that the policy does not allow any more, whenever it has changed, until ctx ends.
func (p *policy) enforce(ctx context.Context) {
	pace := time.NewTicker(time.Second / forbidRate)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.news:
		}
		if ended := p.sweep(ctx, pace.C); ended > 0 {
			p.log.Warn("ended connections that the client policy does not allow any more", "count", ended)
		}
	}
}

// sweep returns how many connections it has ended. Those that are still arriving are for arrived.
func (p *policy) sweep(ctx context.Context, pace <-chan time.Time) (ended int) {
	for _, l := range p.front.every() {
		if l.name != p.listener {
			continue
		}
		for _, c := range l.server.Conns() {
			if p.front.policyOf(l, c) != p || p.clients.Allows(c.TLS()) == nil {
				continue
			}
			select {
			case <-ctx.Done():
				return ended
			case <-pace:
			}
			if forbid(c, p.clients.Allows(c.TLS())) { // it may have changed back meanwhile
				ended++
			}
		}
	}
	return ended
}

// policyOf returns the policy that a connection is held to: that which is in force where it came in, though
// it may have come in by another.
func (f *front) policyOf(l *listener, c *levee.Conn) *policy {
	config := c.TLSConfig()
	if config == nil {
		return nil
	}
	identity, known := f.endings.Load(config)
	if !known {
		return nil
	}
	for _, t := range l.rules.Load().secured.terms {
		if t.config == config {
			return t.clients
		}
	}
	for _, t := range l.rules.Load().secured.terms {
		if t.name == identity {
			return t.clients
		}
	}
	return nil
}

// arrived looks at a connection that a change may have overtaken: its handshake has asked the policy of before, and the
// sweep has not seen it.
func (p *policy) arrived(c *levee.Conn) {
	if p.overtook(c) {
		forbid(c, p.clients.Allows(c.TLS()))
	}
}

// policyTrace keeps the policies on connections that arrive.
func (f *front) policyTrace() *levee.Trace {
	return &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) {
		if c.TLSConfig() == nil {
			return
		}
		if l := f.listenerOf(c); l != nil {
			if p := f.policyOf(l, c); p != nil {
				p.arrived(c)
			}
		}
	}}
}
