package upstream

import (
	"errors"
	"fmt"
)

// Resume has the pool count a connection to a server of that name that another process has dialled,
// beyond MaxConnections too, until the function that it returns is called: that is Ended of a [Conn], and
// only its first call counts. The breaker has heard of the connection already, by the other process.
//
// Client, if it is not nil, is asked to leave and cut as others are. A server that the pool
// does not know has left: it is there until its last connection has ended, and the same as before if
// an Update tells of it meanwhile.
func (p *Pool) Resume(server string, client Client) (ended func(End), err error) {
	p.start()
	switch {
	case server == "":
		return nil, fmt.Errorf("upstream %s: resume: %w", p.Name, errNameless)
	case len(server) > longestServer:
		return nil, fmt.Errorf("upstream %s: resume: a server's name of %d bytes", p.Name, len(server))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[server]
	if m == nil {
		m = p.admitLocked(&spec{name: server, weight: 1})
		m.left.Store(true)
	}
	m.active.Add(1)
	return m.resume(client).Ended, nil
}

var errNameless = errors.New("the server has no name")

// longestServer is longer than DNS and file systems allow names to be.
const longestServer = 4096

// resume makes a Conn of a connection that another process has made. It is the oldest, and older
// than EarlyClose: that it ends at once says nothing of the server.
func (m *member) resume(client Client) *Conn {
	c := &Conn{member: m, client: client, decided: true}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.born = m.pool.clock() - m.pool.terms.earlyClose
	c.next = m.first
	if m.first == nil {
		m.last = c
	} else {
		m.first.prev = c
	}
	m.first = c
	return c
}
