package limit

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A Mode is what becomes of who exceeds a limit.
type Mode uint8

// The modes.
const (
	// Enforce refuses them.
	Enforce Mode = iota
	// Shadow counts them as if they were refused, and lets them in: what it counts and
	// charges is what Enforce would, as long as they would have gone on coming.
	Shadow
	// Off asks nothing and counts nothing but open connections, so that there is a true
	// count of them when the mode changes.
	Off
)

// String returns the mode's word: enforce, shadow or off.
func (m Mode) String() string {
	switch m {
	case Enforce:
		return "enforce"
	case Shadow:
		return "shadow"
	case Off:
		return "off"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Limits are how much may be taken, by all of a [Scope]'s connections together or by those of
// each client. A limit that is zero or negative is none: what is usual differs from one
// protocol to another by a factor of thousands, and no number is right for all.
type Limits struct {
	Connections int       // open at once
	Rate        Rate      // new connections
	Handshakes  Rate      // TLS handshakes begun
	Bandwidth   Bandwidth // bytes moved
	Mode        Mode

	// Shared has Connections and Rate count on all machines together that have the same
	// [Gate.Shared]. Each machine also enforces them alone.
	Shared bool
}

// A Rate is how often something may happen.
type Rate struct {
	PerSecond float64 // 1.0/60 is one a minute
	// Burst is how many may come at once after a pause. Zero means what comes in two seconds, and
	// at least 1.
	Burst int
}

// Bandwidth is how many bytes per second may be moved, as the wire counts them. A
// connection over its share is slowed down, never ended: it moves a chunk and then waits. It
// is given a chunk of 50 ms at once after a pause, and no less than 4 KiB.
type Bandwidth struct {
	Up   int64 // from clients
	Down int64 // to clients
}

// A Scope is what counts together. Gates may share one, as the gates of a process's listeners do
// for what the process takes on. Its name begins the names of its limits, as in
// "public.connections", "public.rate", "public.handshakes", "public.up", "public.down" and
// "public.shared"; those of its clients are "public.client.connections" and so on.
//
// Its fields must not be changed once it is in use; for other limits see [Scope.Set]. Methods
// may be called from several goroutines.
type Scope struct {
	Name    string // "" means "levee"
	Limits  Limits // of all its connections together
	Clients []*Clients

	// Connection is what each connection may move. For another see [Scope.SetConnection].
	Connection Bandwidth

	once   sync.Once
	moves  atomic.Pointer[Bandwidth] // what SetConnection was called with
	totals law
	sum    set // whose first account is that of all connections
}

// Clients are what each client of a [Scope] may take.
//
// Its fields must not be changed once it is in use; for other limits see [Clients.Set].
type Clients struct {
	Name   string // "" means "client"; different for each of a scope's
	By     Key
	Limits Limits // of each client

	// Times56 and Times48 are how many times the limits an IPv6 /56 and /48 may take as
	// a whole, for ByAddress. Zero means 4 and 16: providers give a household a /64 or a /56, and
	// anybody who asks a /48, which others divide among hundreds of households. 1 is no
	// more than a /64; negative does not limit it.
	Times56, Times48 int

	// Known, if it is set, reports whether a server name is one of ours, for ByServerName;
	// all others count as one client, and so does asking for none. It is called with names in lower case, at
	// the pace of handshakes.
	Known func(serverName string) bool

	// Entries is how many clients are remembered; of IPv6 clients also each /56 and /48. An
	// entry takes 52 bytes, all of which are there from the start. Zero means 131,072 (7 MB).
	//
	// It should be twice as many as have connections open at once. Those are never forgotten: where
	// they have used up the entries that a client could have, of which each has 16, it
	// is counted as one together with all others to whom that happens there.
	Entries int

	once  sync.Once
	each  law
	table *table
}

// A Key is what makes two connections one client's.
type Key uint8

// What makes two connections one client's.
const (
	// ByAddress: the client's address, which of IPv6 is the /64, and at the same time the
	// /56 and the /48 around it. IPv4 in IPv6 is IPv4. A connection without an IP address (a Unix
	// socket's) is nobody's.
	ByAddress Key = iota
	// ByCertificate: who its verified certificate says that it is, by its first URI, or DNS
	// name, or common name. Who has none is a client by address. It is known, and counted, once the
	// handshake is done; so connections in plaintext are not, and Handshakes are those done.
	ByCertificate
	// ByServerName: the server that it asks for; at the same time as ByCertificate.
	ByServerName
)

// Set changes the limits of all connections together, from the next decision on. Those that are
// there stay, and are counted; bandwidth where there was none is for new connections only.
func (s *Scope) Set(l Limits) {
	s.init()
	s.totals.set(l)
}

// SetConnection changes what each connection may move, for those to come.
func (s *Scope) SetConnection(b Bandwidth) { s.moves.Store(&b) }

func (s *Scope) connection() Bandwidth {
	if b := s.moves.Load(); b != nil {
		return *b
	}
	return s.Connection
}

// Set changes the limits of each client, as [Scope.Set] does.
func (c *Clients) Set(l Limits) {
	c.init()
	c.each.set(l)
}

func (s *Scope) init() {
	s.once.Do(func() {
		name := cmp.Or(s.Name, "levee")
		s.totals.epoch = time.Now()
		s.totals.times = [widths]float64{1}
		s.totals.call(name)
		s.totals.set(s.Limits)
		s.sum.tags[0] = tagOf(rand.Uint64())
		for _, c := range s.Clients {
			c.init()
			c.each.call(name + "." + cmp.Or(c.Name, "client"))
		}
	})
}

const defaultEntries = 1 << 17

func (c *Clients) init() {
	c.once.Do(func() {
		c.table = newTable(orDefault(c.Entries, defaultEntries))
		c.each.epoch = time.Now()
		c.each.times = [widths]float64{one: 1, wide56: float64(cmp.Or(c.Times56, 4)), wide48: float64(cmp.Or(c.Times48, 16))}
		c.each.set(c.Limits)
	})
}

// orDefault returns n if it is positive.
func orDefault[T int | time.Duration](n, def T) T {
	if n > 0 {
		return n
	}
	return def
}
