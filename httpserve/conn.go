package httpserve

import (
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

// A conn is a *levee.Conn as net/http alone sees it: between two requests it
// waits with Next. To net/http a request has begun once its whole head has been
// read, so its own account would have us close a connection in the middle of a
// head. Everything but Read is the connection's own, and nobody else is shown
// more than that.
type conn struct {
	*levee.Conn

	mu      sync.Mutex
	idle    bool // the last answer has ended, and nothing has been read since
	http2   bool
	leaving bool
}

// Read reads a request. At its beginning it ends instead, if the connection has
// been asked to leave and nothing has arrived.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	idle := c.idle
	c.mu.Unlock()
	if idle && !c.Next() {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	if idle && n > 0 {
		c.mu.Lock()
		c.idle = false
		c.mu.Unlock()
	}
	return n, err
}

// leave sees to HTTP/2, whose next request is awaited while the last is still
// being answered. For HTTP/1, Read does it all.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	c.closeSoonLocked()
}

// turn takes net/http's word for where the connection stands.
func (c *conn) turn(state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = state == http.StateIdle
	c.closeSoonLocked()
}

// flushTime is what net/http gets to flush an HTTP/2 connection's last frames:
// it calls the connection idle before it has.
const flushTime = 50 * time.Millisecond

func (c *conn) closeSoonLocked() {
	if c.http2 && c.leaving && c.idle {
		time.AfterFunc(flushTime, c.closeIfIdle)
	}
}

func (c *conn) closeIfIdle() {
	c.mu.Lock()
	idle := c.idle
	c.mu.Unlock()
	if idle {
		_ = c.Close()
	}
}

func (c *conn) speaksHTTP2() {
	c.mu.Lock()
	c.http2 = true
	c.mu.Unlock()
}

func (c *conn) isLeaving() bool {
	select {
	case <-c.Draining():
		return true
	default:
		return false
	}
}

// follow returns a ConnState hook that keeps conns informed, and then calls next.
func follow(next func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(nc net.Conn, state http.ConnState) {
		c := nc.(*conn)
		c.turn(state)
		if next != nil {
			next(c.Conn, state)
		}
	}
}
