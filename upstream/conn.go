package upstream

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

// A Client is who uses a connection. Its methods may be called from any goroutine, and
// still shortly after the connection has ended. They must not block.
type Client interface {
	// Quiet returns the time since its last byte, in either direction.
	Quiet() time.Duration
	// Leave asks it to leave soon, in good order.
	Leave(cause error)
	// Cut ends it now.
	Cut(cause error)
}

// Causes with which a Client is asked to leave or cut.
var (
	ErrServerDown  = errors.New("its server is down")
	ErrRebalancing = errors.New("other servers have fewer connections")
)

// A Conn is a connection to a server of a pool. It is a net.Conn: whoever reads and
// writes through it has nothing else to do than to Close it.
//
// Whoever takes the connection out of it, by NetConn or as the Conn in it for a
// levee.Upstream, says when it is over by Ended instead of Close, and with it how.
type Conn struct {
	net.Conn // the connection to the server, in the form that costs levee's event loops least; nil if another process has made it
	member   *member
	client   Client

	sent, received atomic.Int64 // by Write and Read
	byServer       atomic.Bool  // Read or Write saw that the server had closed
	clientFirst    atomic.Bool  // CloseWrite had ended the stream before that

	// The rest is guarded by member.mu.
	born       time.Duration // by the pool's clock
	next, prev *Conn         // among the member's connections
	decided    bool          // the breaker has heard of it
	ended      bool
	asked      bool // to leave
	cutting    bool

	tries uint8 // that it took
}

// End is how a connection ended.
type End struct {
	// Sent and Received are bytes that went to the server and came from it, not counting
	// those that went through the Conn's Write and Read. On which side of TLS they are
	// counted, and whether Request.First is, is up to whoever counts.
	Sent, Received int64

	// ByServer says that the server closed or reset the connection.
	ByServer bool

	// ClientFirst says that the client had ended its stream, or was gone, before that.
	ClientFirst bool

	// Err is what broke the connection, or nil. It is for Trace.
	Err error
}

// Server returns the name of the server.
func (c *Conn) Server() string { return c.member.name }

// Tries returns how many tries the Dial took that brought the connection, at most 255.
func (c *Conn) Tries() int { return int(c.tries) }

// NetConn returns the connection itself: a *net.TCPConn, a *net.UnixConn or a *tls.Conn.
func (c *Conn) NetConn() net.Conn { return netsOwn(c.Conn) }

// Read reads from the server.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.received.Add(int64(n)) == int64(n) {
		c.FirstByte()
	}
	if err != nil && endedByPeer(err) {
		c.byServer.Store(true)
	}
	return n, err
}

// Write writes to the server.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	if err != nil && endedByPeer(err) {
		c.byServer.Store(true)
	}
	return n, err
}

// CloseWrite ends the stream to the server, and leaves the other direction open. It
// returns errors.ErrUnsupported where the connection cannot do that.
func (c *Conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	if !c.byServer.Load() {
		c.clientFirst.Store(true)
	}
	return half.CloseWrite()
}

// Close closes the connection. If the server had closed it before, it is noted as ended
// by the server.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.Ended(End{})
	return err
}

// FirstByte says that the server has sent something. It need not be called: it decides
// at once what otherwise would be decided soon. Read does it by itself.
func (c *Conn) FirstByte() {
	m := c.member
	m.mu.Lock()
	news := m.decideLocked(c, breaker.Success)
	m.mu.Unlock()
	if news {
		m.pool.afterDecisions()
	}
}

// Ended says that the connection is over. Only the first call counts.
func (c *Conn) Ended(end End) {
	end.Sent += c.sent.Load()
	end.Received += c.received.Load()
	end.ByServer = end.ByServer || c.byServer.Load()
	end.ClientFirst = end.ClientFirst || c.clientFirst.Load()
	m := c.member
	m.mu.Lock()
	if c.ended {
		m.mu.Unlock()
		return
	}
	c.ended = true
	early := m.endLocked(c, end)
	m.mu.Unlock()
	if early {
		m.pool.Trace.closedEarly(m.name, end.Err)
	}
	m.release()
	m.pool.news.tell()
}

// adopt makes a Conn of a connection to a server that had been seized.
func (m *member) adopt(conn net.Conn, client Client) *Conn {
	c := &Conn{Conn: conn, member: m, client: client}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.born = m.pool.clock() // under the lock: the list is in this order
	c.prev = m.last
	if m.last == nil {
		m.first = c
	} else {
		m.last.next = c
	}
	m.last = c
	m.tally.dials++
	if m.undecided == nil {
		m.undecided = c
		m.awaitLocked()
	}
	if m.pool.terms.earlyClose == 0 {
		m.decideLocked(c, breaker.Success)
	}
	return c
}

// failed settles a seizure that brought no connection.
func (m *member) failed(outcome breaker.Outcome, kind FailureKind) {
	m.decideOld(int64(m.pool.clock())) // those that did well were before this one
	m.breaker.Done(outcome)
	m.mu.Lock()
	m.tally.dials++
	m.tally.failures[kind]++
	m.mu.Unlock()
	m.release()
}

// endLocked takes c out of the list and decides about it. It reports whether the server
// had closed it early.
func (m *member) endLocked(c *Conn, end End) (early bool) {
	limit, now := m.pool.terms.earlyClose, m.pool.clock()
	young := limit > 0 && now-c.born < limit
	early = young && end.ByServer && !end.ClientFirst && end.Received == 0
	if early {
		m.tally.earlyCloses++
		m.decideOldLocked(int64(now)) // they did well before this one, and may speak for the server
	}
	switch {
	case early && (end.Sent == 0 || !m.isWellLocked(now)):
		m.decideLocked(c, breaker.Failure)
	case early:
		m.decideLocked(c, breaker.Ignored) // it may have refused what the client had sent
	case !young, end.Received > 0:
		m.decideLocked(c, breaker.Success)
	default:
		m.decideLocked(c, breaker.Ignored)
	}
	if c.asked {
		m.leaving--
	}
	m.tally.sent += end.Sent
	m.tally.received += end.Received
	if c.prev == nil {
		m.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		m.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil // whoever keeps c for longer keeps nobody else
	return early
}

// decideLocked tells the breaker what became of c, unless it has been told. It reports
// whether it was.
func (m *member) decideLocked(c *Conn, outcome breaker.Outcome) bool {
	if c.decided {
		return false
	}
	c.decided = true
	if outcome == breaker.Success {
		m.didWell = max(m.didWell, c.born)
	}
	if m.undecided == c {
		for m.undecided != nil && m.undecided.decided {
			m.undecided = m.undecided.next
		}
		m.awaitLocked()
	}
	m.breaker.Done(outcome)
	return true
}

// isWellLocked reports whether something says that the server is well: another connection
// that was born a short while ago, or the last health check, if that has asked it.
func (m *member) isWellLocked(now time.Duration) bool {
	terms := &m.pool.terms
	if m.didWell > 0 && now-m.didWell <= 2*terms.earlyClose {
		return true
	}
	h := &m.health
	return terms.health.Probe != nil && !h.lastAt.IsZero() && h.last == nil && time.Since(h.lastAt) <= 2*terms.health.Interval
}

// awaitLocked notes when the next connection will be old enough.
func (m *member) awaitLocked() {
	if m.undecided == nil {
		m.due.Store(0)
		return
	}
	m.due.Store(int64(m.undecided.born + m.pool.terms.earlyClose))
}

// decideOld tells the breaker of the connections that are old enough by now. It reports
// whether there were any.
func (m *member) decideOld(now int64) bool {
	if due := m.due.Load(); due == 0 || due > now {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.decideOldLocked(now)
}

func (m *member) decideOldLocked(now int64) bool {
	news := false
	for m.undecided != nil && m.due.Load() <= now {
		news = m.decideLocked(m.undecided, breaker.Success) || news
	}
	return news
}

// decideDue does so for all servers.
func (p *Pool) decideDue() {
	now, news := int64(p.clock()), false
	for _, m := range p.lineup.Load().members {
		news = m.decideOld(now) || news
	}
	if news {
		p.afterDecisions()
	}
}

// afterDecisions is for when breakers may have changed, and no lock is held.
func (p *Pool) afterDecisions() {
	if p.waiting.Load() > 0 {
		p.serveQueue()
	}
	p.news.tell()
}
