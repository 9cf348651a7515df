package upstream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

// Join dials for a connection of a [levee.Server], which it is then joined to: it is what a proxy.Proxy has in Dial.
//
//	front := &proxy.Proxy{Dial: pool.Join, Resume: pool.Rejoin}
//
// First of the [Request] is header, Key is the hash of the client's address, and Client is c. The connection learns its target
// ([levee.Conn.SetTarget]), and the pool how the two have ended.
func (p *Pool) Join(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error) {
	addr := c.ClientAddr().Addr().As16()
	c.SetTarget(&levee.Target{Upstream: p.Name}, 0)
	conn, err := p.Dial(ctx, Request{Key: Hash(addr[:]), First: header, Client: ClientOf(c)})
	if err != nil {
		return levee.Upstream{}, err
	}
	c.SetTarget(&levee.Target{Upstream: p.Name, Server: conn.Server()}, conn.Tries())
	return levee.Upstream{Conn: conn.Conn, Ended: endedBy(conn.Ended)}, nil
}

// Rejoin has the pool count a connection that another process has joined, as [Pool.Resume] does: it is what a proxy.Proxy has in
// Resume. That it was joined by another pool is an error.
func (p *Pool) Rejoin(c *levee.Conn) (levee.Upstream, error) {
	to := c.Target()
	if to == nil || to.Upstream != p.Name {
		return levee.Upstream{}, fmt.Errorf("upstream %s: the connection is to another", p.Name)
	}
	ended, err := p.Resume(to.Server, ClientOf(c))
	if err != nil {
		return levee.Upstream{}, err
	}
	return levee.Upstream{Ended: endedBy(ended)}, nil
}

func endedBy(ended func(End)) func(levee.UpstreamEnd) {
	return func(end levee.UpstreamEnd) { ended(EndOf(end)) }
}

// EndOf returns the end of a joined connection as its pool sees it.
func EndOf(end levee.UpstreamEnd) End {
	return End{
		Sent:        end.Sent,
		Received:    end.Received,
		ByServer:    end.Reason == levee.UpstreamClosed || end.Reason == levee.UpstreamReset,
		ClientFirst: end.ClientFirst,
		Err:         end.Err,
	}
}

// ClientOf returns the client of a connection: to leave is to drain, and to be cut is to be killed.
func ClientOf(c *levee.Conn) Client { return &client{conn: c} }

type client struct {
	conn *levee.Conn

	mu    sync.Mutex
	moved int64
	since time.Time
}

// Quiet tells it as exactly as it is asked often.
func (c *client) Quiet() time.Duration {
	read, written := c.conn.Traffic()
	c.mu.Lock()
	defer c.mu.Unlock()
	if moved := read + written; moved != c.moved || c.since.IsZero() {
		c.moved, c.since = moved, time.Now()
	}
	return time.Since(c.since)
}

func (c *client) Leave(cause error) { c.conn.Drain(cause) }
func (c *client) Cut(cause error)   { c.conn.Kill(cause) }
