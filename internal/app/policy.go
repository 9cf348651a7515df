package app

import (
	"context"
	"crypto/tls"
	"log/slog"
	"slices"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
)

// forbidRate is how many connections a second are ended when a policy does not allow them any more. Their clients
// come back at once, and are refused by a handshake each: all together they would keep out those who are allowed.
const forbidRate = 100

// A policy is one for clients at a listener, and those who came in under it.
type policy struct {
	clients *certs.Clients
	configs []*tls.Config // that let clients in by it
	server  *levee.Server
	log     *slog.Logger

	change
}

func newPolicy(clients *certs.Clients, log *slog.Logger) *policy {
	return &policy{clients: clients, log: log, change: change{news: make(chan struct{}, 1)}}
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
	for _, c := range p.server.Conns() {
		if !slices.Contains(p.configs, c.TLSConfig()) || p.clients.Allows(c.TLS()) == nil {
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
	return ended
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
		if config := c.TLSConfig(); config != nil {
			if p := f.policyOf[config]; p != nil {
				p.arrived(c)
			}
		}
	}}
}
