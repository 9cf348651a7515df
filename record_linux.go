package levee

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A record is what one process tells another of a connection, in JSON by the names of its fields. What an older levee does not
// know it ignores, and what an older one has not said is zero: so a new field is one that may be left out. If that
// cannot be it takes another version.
type record struct {
	Version int

	ID          uint64
	Age         time.Duration
	Accepted    time.Time // by the clock on the wall, which both have
	Network     string    // "tcp" or "unix"
	Local, Peer string
	Client      netip.AddrPort    // that a PROXY header has told of; the zero value without one
	Trace       string            `json:",omitempty"` // its TraceParent
	Route       string            `json:",omitempty"`
	Target      *Target           `json:",omitempty"`
	Tries       int               `json:",omitempty"`
	Moments     []time.Duration   // by their index; 0 is never
	Lifetime    time.Duration     `json:",omitempty"` // what is left of it; 0 for no limit
	State       []byte            `json:",omitempty"` // what a Movable has saved, or a handler that moves in Next
	Loop        *reactor.Snapshot `json:",omitempty"` // of one on an event loop
	Heard       *heard            `json:",omitempty"` // of one of these that is joined, if its upstream has a Rest
	Next        *nextRecord       `json:",omitempty"` // of one in a goroutine, else

	uneven bool // one of its sockets is a Unix socket
}

// A nextRecord is what is to be known of a connection that waits in Next.
type nextRecord struct {
	Read, Written int64         `json:",omitempty"`
	Ahead         []byte        `json:",omitempty"` // that was read ahead
	Silent        time.Duration `json:",omitempty"` // since a byte last moved
}

const recordVersion = 1

// sockets returns how many it has.
func (r *record) sockets() int {
	if r.Loop != nil && r.Loop.Far != nil {
		return 2
	}
	return 1
}

// traffic returns how much was read and written before.
func (r *record) traffic() (read, written int64) {
	if r.Loop != nil {
		return max(0, r.Loop.Near.Read), max(0, r.Loop.Near.Written)
	}
	return max(0, r.Next.Read), max(0, r.Next.Written)
}

// readRecord reads what another process has told. It trusts none of it to be within reason but what it checks.
func readRecord(data []byte) (r record, err error) {
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	switch {
	case r.Version > recordVersion:
		return r, fmt.Errorf("data of version %d, of a newer levee: this one knows %d", r.Version, recordVersion)
	case r.Version != recordVersion:
		return r, fmt.Errorf("data of version %d: this levee knows %d", r.Version, recordVersion)
	case r.ID == 0 || r.ID > mostID:
		return r, fmt.Errorf("no connection has id %d", r.ID)
	case (r.Loop == nil) == (r.Next == nil):
		return r, errors.New("data that does not tell how the connection is served")
	case len(r.Moments) > momentCount:
		r.Moments = r.Moments[:momentCount]
	}
	r.Age = within(r.Age)
	r.Lifetime = within(r.Lifetime)
	return r, nil
}

// within returns a time that may be.
func within(d time.Duration) time.Duration { return min(max(d, 0), tooLong) }

// recordOf returns what is to be told of the connection, but for how it is served.
func recordOf(c *Conn) record {
	r := record{Version: recordVersion, ID: c.id, Age: c.Age(), Accepted: c.Accepted().Round(0), Trace: c.TraceParent().String()}
	r.Network, r.Local, r.Peer = c.local.Network(), c.local.String(), c.peer.String()
	r.Client = c.proxied()
	if n := c.life.route.Load(); n > 0 {
		r.Route = c.server.routes.name(n)
	}
	r.Target, r.Tries = c.Target(), int(c.life.more.Load()&mostTries)
	r.Moments = make([]time.Duration, momentCount)
	for i := range c.life.at {
		r.Moments[i] = c.life.at[i].get()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra != nil && c.extra.lifetime != nil {
		r.Lifetime = max(1, c.extra.expires-c.server.clock()) // 0 is no limit
	}
	return r
}

// accepted returns when the connection was accepted, by the server's clock. The way takes some milliseconds, which the clock on the wall
// tells, unless that was set meanwhile.
func (r *record) accepted(s *Server) time.Duration {
	byAge := s.clock() - r.Age
	if byWall := r.Accepted.Sub(s.epoch.Round(0)); (byWall - byAge).Abs() < time.Minute {
		return byWall
	}
	return byAge
}

// tell has the connection be as it was.
func (r *record) tell(c *Conn) {
	c.id, c.accepted = r.ID, r.accepted(c.server)
	if r.Client.IsValid() {
		c.setProxied(netip.AddrPortFrom(r.Client.Addr().Unmap(), r.Client.Port()))
	}
	if parent, err := ParseTraceParent(r.Trace); err == nil {
		c.setTraceParent(parent)
	}
	c.SetRoute(r.Route)
	c.SetTarget(r.Target, r.Tries)
	for i, at := range r.Moments {
		if at > 0 {
			c.life.at[i].set(at)
		}
	}
}

// address returns an address as it was told.
func (r *record) address(text string) net.Addr {
	if r.Network == "unix" {
		return &net.UnixAddr{Name: text, Net: r.Network}
	}
	from, err := netip.ParseAddrPort(text)
	if err != nil {
		return noAddr{}
	}
	return tcpAddr(from)
}
