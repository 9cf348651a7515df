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
	idle    bool // the last answer has ended, and, in HTTP/1, nothing has been read since
	version version
	leaving bool
}

// Read reads a request. At its beginning it ends instead, if the connection has
// been asked to leave and nothing has arrived.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	idle := c.idleLocked()
	c.mu.Unlock()
	if idle && !c.Next() {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.version.read(p[:n])
		c.idle = c.idle && c.version.http2
		c.mu.Unlock()
	}
	return n, err
}

// idleLocked reports whether nothing is asked for, nor about to be.
func (c *conn) idleLocked() bool { return c.idle && !c.version.inFrame() }

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
	if seen := c.version.seen; c.version.http2 && c.leaving && c.idle {
		time.AfterFunc(flushTime, func() { c.closeIfIdle(seen) })
	}
}

// closeIfIdle closes a connection on which nothing was asked for, unless it has been read from since: what has come may be a
// request that net/http has not looked at.
func (c *conn) closeIfIdle(seen int64) {
	c.mu.Lock()
	over := c.idleLocked() && seen == c.version.seen
	if !over {
		c.closeSoonLocked()
	}
	c.mu.Unlock()
	if over {
		_ = c.Close()
	}
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
