package levee

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"
)

// A Story is what a connection has done so far, or did in all its life: what a log, a metric
// or somebody who looks at the open connections wants to know. It may be had at any time, also
// in [Trace.Closed].
type Story struct {
	Moments

	// Route is as [Conn.Route] has it.
	Route string

	// Upstream and Server are those of the [Target] that the connection was last dialled to, and
	// Tries is how many tries that took, at most 255.
	Upstream, Server string
	Tries            int

	// Engine is "loop" if an event loop serves the connection, and "goroutine" if not, or not yet.
	Engine string

	// TLSVersion is as in crypto/tls, and 0 in plaintext. ServerName is what the client asked for:
	// bytes of a stranger, at most 255 of them, to be quoted. ALPN is what was agreed on, which is
	// one of the server's own.
	TLSVersion       uint16
	ServerName, ALPN string
}

// Moments are when a connection came how far, counted from its accept. Zero is never, or not
// yet. They are exact to a microsecond in the first half hour, and to a millisecond later.
type Moments struct {
	ProxyHeader    time.Duration // its PROXY header had been read
	Sniffed        time.Duration // its first bytes were there to be looked at, if that was before TLS and the choice of a handler
	HandshakeBegun time.Duration // the client had begun a TLS handshake
	HandshakeDone  time.Duration // the handshake had succeeded
	Routed         time.Duration // the arrival was over: its handler was to serve
	DialBegun      time.Duration // a Joiner was asked for an upstream
	DialDone       time.Duration // and had one
	FirstByte      time.Duration // the first byte for the client: of its upstream's, or what its handler wrote
	Draining       time.Duration // it was asked to leave
}

// A Phase is a part of a connection's life.
type Phase uint8

// The phases, in the order in which they are usual.
const (
	// PhaseProxyHeader is from accept until the PROXY header has been read.
	PhaseProxyHeader Phase = iota + 1
	// PhaseSniff is the wait for the client's first bytes, where TLS or the choice of a handler
	// waits for them.
	PhaseSniff
	// PhaseHandshake is the TLS handshake, from the client's first bytes on.
	PhaseHandshake
	// PhaseRoute is what is left of the arrival: the choice of a handler. A connection that ended
	// before it had one, and not in a handshake, was in this phase until its end.
	PhaseRoute
	// PhaseDial is from the question for an upstream to the connection to it.
	PhaseDial
	// PhaseFirstByte is from then on, or from the choice of a handler that needs none, to the first
	// byte for the client; to the end if none came.
	PhaseFirstByte
	// PhaseFlow is what follows, until the connection ends or is asked to leave.
	PhaseFlow
	// PhaseDrain is from then on to the end.
	PhaseDrain

	phaseCount
)

var phaseWords = [phaseCount]string{
	PhaseProxyHeader: "proxy_header",
	PhaseSniff:       "sniff",
	PhaseHandshake:   "handshake",
	PhaseRoute:       "route",
	PhaseDial:        "dial",
	PhaseFirstByte:   "first_byte",
	PhaseFlow:        "flow",
	PhaseDrain:       "drain",
}

// String returns the phase's word, such as "first_byte".
func (p Phase) String() string {
	if p > 0 && p < phaseCount {
		return phaseWords[p]
	}
	return "none"
}

// Phases returns all of them.
func Phases() []Phase {
	all := make([]Phase, 0, phaseCount-1)
	for p := Phase(1); p < phaseCount; p++ {
		all = append(all, p)
	}
	return all
}

// A Span is a phase as a connection went through it.
type Span struct {
	Phase    Phase
	At, Took time.Duration // since accept, and how long
}

// Spans appends to dst the phases that the connection went through, of which the last lasts
// until end: End.Duration, or the present age of a connection that lives. There are no more
// than eight, so a dst with room for those costs no memory.
func (m *Moments) Spans(dst []Span, end time.Duration) []Span {
	at := time.Duration(0) // the end of the phase before, in the arrival
	add := func(p Phase, from, to time.Duration) {
		dst = append(dst, Span{p, from, max(0, to-from)})
	}
	if m.ProxyHeader > 0 {
		add(PhaseProxyHeader, at, m.ProxyHeader)
		at = m.ProxyHeader
	}
	if m.Sniffed > 0 {
		add(PhaseSniff, at, m.Sniffed)
		at = m.Sniffed
	}
	if m.HandshakeBegun > 0 {
		done := m.HandshakeDone
		if done == 0 {
			done = end
		}
		add(PhaseHandshake, m.HandshakeBegun, done)
		if m.Routed == 0 || done <= m.Routed { // else its handler has begun it
			at = done
		}
	}
	if m.Routed == 0 {
		if m.HandshakeBegun == 0 || m.HandshakeDone > 0 {
			add(PhaseRoute, at, end)
		}
		return m.leaving(dst, end)
	}
	add(PhaseRoute, at, m.Routed)
	return m.leaving(m.served(dst, end), end)
}

// served appends the phases between the arrival and the request to leave.
func (m *Moments) served(dst []Span, end time.Duration) []Span {
	at, until := m.Routed, end
	if m.Draining > at {
		until = m.Draining
	}
	if m.DialBegun > 0 {
		done := m.DialDone
		if done == 0 {
			done = end
		}
		dst = append(dst, Span{PhaseDial, m.DialBegun, max(0, done-m.DialBegun)})
		if m.DialDone == 0 {
			return dst
		}
		if m.FirstByte == 0 || m.FirstByte >= done {
			at = done
		}
	}
	first := m.FirstByte
	if first == 0 {
		first = end
	}
	dst = append(dst, Span{PhaseFirstByte, at, max(0, first-at)})
	if m.FirstByte > 0 && until > first {
		dst = append(dst, Span{PhaseFlow, first, until - first})
	}
	return dst
}

func (m *Moments) leaving(dst []Span, end time.Duration) []Span {
	if m.Draining == 0 {
		return dst
	}
	return append(dst, Span{PhaseDrain, m.Draining, max(0, end-m.Draining)})
}

// Story returns what the connection has done so far. It costs more than [Conn.Moments] does
// for a connection with TLS, which has to be asked what it agreed on.
func (c *Conn) Story() Story {
	s := Story{Moments: c.Moments(), Route: c.Route(), Tries: int(c.life.more.Load() & mostTries), Engine: "goroutine"}
	if onLoop, _ := c.place(); onLoop {
		s.Engine = "loop"
	}
	if to := c.Target(); to != nil {
		s.Upstream, s.Server = to.Upstream, to.Server
	}
	if state := c.TLS(); state != nil {
		s.TLSVersion, s.ALPN = state.Version, state.NegotiatedProtocol
		s.ServerName = state.ServerName[:min(len(state.ServerName), longestName)]
	}
	return s
}

// longestName is the longest that DNS has (RFC 1035, section 3.1.1), and more than that.
const longestName = 255

// TLSName returns a version's name, such as "TLS 1.3", and "" for plaintext.
func (s *Story) TLSName() string {
	if s.TLSVersion == 0 {
		return ""
	}
	return tls.VersionName(s.TLSVersion)
}

// Moments returns when the connection came how far. It allocates nothing.
func (c *Conn) Moments() Moments {
	p := &c.life
	m := Moments{
		ProxyHeader:    p.at[proxyHeaderRead].get(),
		Sniffed:        p.at[sniffed].get(),
		HandshakeBegun: p.at[handshakeBegun].get(),
		HandshakeDone:  p.at[handshakeDone].get(),
		Routed:         p.at[routed].get(),
		DialBegun:      p.at[dialBegun].get(),
		DialDone:       p.at[dialDone].get(),
		FirstByte:      p.at[firstByte].get(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isAskedLocked() {
		m.Draining = max(time.Microsecond, c.extra.request.at)
	}
	return m
}

// Age returns how long ago the connection was accepted.
func (c *Conn) Age() time.Duration { return c.server.clock() - c.accepted }

// A Target is a server of an upstream, as whoever dials calls it. All connections that go
// there may share one, and it must not be changed then.
type Target struct {
	Upstream string // may be empty
	Server   string // a name or an address
}

// SetTarget notes where the connection's upstream is, or was sought in vain, and how many
// tries that took. It is for Joiners, and whoever else dials for a connection.
func (c *Conn) SetTarget(to *Target, tries int) {
	c.life.target.Store(to)
	c.life.more.And(^uint32(mostTries))
	c.life.more.Or(uint32(min(max(tries, 0), mostTries))) //nolint:gosec // it is small
}

// Target returns what SetTarget was given, or nil.
func (c *Conn) Target() *Target { return c.life.target.Load() }

// SetRoute notes by which route the connection came to its handler. It is for Routers, and
// names are to be those of routes, not what strangers ask for: a server knows a thousand, and
// calls all that come later "other". So they are safe as a metric label.
func (c *Conn) SetRoute(name string) { c.life.route.Store(c.server.routes.number(name)) }

// Route returns the name that SetRoute was given, or else the server's.
func (c *Conn) Route() string {
	if n := c.life.route.Load(); n > 0 {
		return c.server.routes.name(n)
	}
	return c.set.route
}

// routeNames numbers the names of routes: a connection has no room for a string. The zero
// value is ready.
type routeNames struct {
	mu      sync.RWMutex
	numbers map[string]uint32
	names   []string // by number, from 1
}

const (
	mostRoutes  = 1000
	otherRoutes = "other"
)

func (r *routeNames) number(name string) uint32 {
	if name == "" {
		return 0
	}
	r.mu.RLock()
	n := r.numbers[name]
	r.mu.RUnlock()
	if n > 0 {
		return n
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addLocked(name)
}

func (r *routeNames) addLocked(name string) uint32 {
	if n := r.numbers[name]; n > 0 {
		return n
	}
	if len(r.names) >= mostRoutes && name != otherRoutes {
		return r.addLocked(otherRoutes)
	}
	if r.numbers == nil {
		r.numbers = make(map[string]uint32)
	}
	r.names = append(r.names, name)
	n := uint32(len(r.names)) //nolint:gosec // there are not so many
	r.numbers[name] = n
	return n
}

func (r *routeNames) name(n uint32) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.names[n-1]
}

// life is what a connection remembers of its life. There may be hundreds of thousands, so it
// takes 48 bytes.
type life struct {
	at     [momentCount]moment
	target atomic.Pointer[Target]
	route  atomic.Uint32
	more   atomic.Uint32 // how many tries its dial took, and:
}

const (
	mostTries = 1<<8 - 1
	lookedAt  = 1 << 8 // for the last time; see Trace.Sample
)

const (
	proxyHeaderRead = iota
	sniffed
	handshakeBegun
	handshakeDone
	routed
	dialBegun
	dialDone
	firstByte

	momentCount
)

// reached notes that the connection has come so far, if it had not before.
func (c *Conn) reached(which int) {
	if at := &c.life.at[which]; at.Load() == 0 {
		at.set(c.Age())
	}
}

// serves notes that the client is sent something by whoever serves it.
func (c *Conn) serves() {
	if c.life.at[firstByte].Load() == 0 && c.life.at[routed].Load() != 0 {
		c.life.at[firstByte].set(c.Age())
	}
}

// A moment is a time since accept in 4 bytes: microseconds, or with the highest bit
// milliseconds. 0 is never.
type moment struct{ atomic.Uint32 }

const inMillis = 1 << 31

func (m *moment) set(d time.Duration) { m.Store(momentOf(d)) }

func momentOf(d time.Duration) uint32 {
	if us := max(1, d.Microseconds()); us < inMillis {
		return uint32(us) //nolint:gosec // it fits
	}
	return inMillis | uint32(min(d.Milliseconds(), inMillis-1)) //nolint:gosec // it fits, for 24 days
}

func (m *moment) get() time.Duration {
	n := m.Load()
	if n&inMillis != 0 {
		return time.Duration(n&^inMillis) * time.Millisecond
	}
	return time.Duration(n) * time.Microsecond
}
