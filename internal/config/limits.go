package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// LimitMode is what becomes of who exceeds a limit.
type LimitMode string

// What becomes of who exceeds a limit.
const (
	LimitEnforce LimitMode = "enforce" // they are refused
	LimitShadow  LimitMode = "shadow"  // they are counted, and let in
	LimitOff     LimitMode = "off"     // the limit is not there
)

// limitMode is a mode; without one it is settled later.
func limitMode(p *LimitMode, def LimitMode) value {
	return choice[LimitMode]{p: p, def: def, options: words(LimitEnforce, LimitShadow, LimitOff)}
}

// Whole is what all listeners take on together, and whom none of them does.
type Whole struct {
	Pos            Position
	MaxConnections int // 0 is derived from the open-files limit
	Mode           LimitMode
	Rate           Rate
	Burst          int
	Clients        int
	Allow, Deny    []Source
	Refuse         Refuse
	Bans           Bans
}

// Refuse is how connections are turned away.
type Refuse string

// The ways to turn connections away.
const (
	RefuseReset Refuse = "reset" // nothing is cheaper
	RefuseClose Refuse = "close" // an end of stream
	RefuseSlow  Refuse = "slow"  // a reset that is waited for
)

func (w *Whole) keys() []key {
	return []key{
		{
			"max_connections", optional,
			integer{p: &w.MaxConnections, min: 0, max: 10_000_000},
			"How many connections may be open at once, of all listeners together. 0 is as many as the listeners' own figures and the open-files limit allow.",
		},
		{
			"mode", optional, limitMode(&w.Mode, LimitEnforce),
			"What becomes of connections beyond max_connections and rate: enforce refuses them, shadow counts them and lets them in.",
		},
		{"rate", optional, rate(&w.Rate), "How many new connections are let in, of all listeners together. " + rateDoc},
		{"burst", optional, burst(&w.Burst), burstDoc},
		{
			"clients", optional,
			integer{p: &w.Clients, def: 131072, min: 1024, max: 16_777_216},
			"How many clients each limit per client remembers; 52 bytes for each are there from the start. Who has connections, or lately had many, is not forgotten for others.",
		},
		{"allow", optional, sources(&w.Allow), allowDoc},
		{"deny", optional, sources(&w.Deny), denyDoc},
		{
			"refuse", optional,
			choice[Refuse]{p: &w.Refuse, def: RefuseReset, options: words(RefuseReset, RefuseClose, RefuseSlow)},
			"How connections are turned away: reset costs least; close lets clients see an end of stream; slow keeps them waiting first.",
		},
		{"bans", optional, object{of: &w.Bans, pos: &w.Bans.Pos}, "How clients that are refused again and again are kept out altogether."},
	}
}

const (
	rateDoc  = "Written like 50/s, 600/m or 10/h; or off."
	burstDoc = "How many of them may come at once. Without it, what a rate per second lets in within two seconds, and another within its minute or hour."
	allowDoc = "Prefixes, addresses, or file: and the path of a list of them, which is watched. If there is any, who is not on it is turned away."
	denyDoc  = "Prefixes, addresses, or file: and the path of a list of them, which is watched. They are turned away, also if they are on allow, and their connections ended when they come onto it."
)

// Bans is how clients that are refused again and again are kept out.
type Bans struct {
	Pos      Position
	Mode     LimitMode
	Refusals int // 0 if the mode is off, as the rest
	Within   time.Duration
	For      time.Duration
	Max      time.Duration
}

func (b *Bans) keys() []key {
	return []key{
		{"mode", optional, limitMode(&b.Mode, LimitShadow), "shadow only counts who would be banned; off bans nobody but at an operator's word."},
		{
			"refusals", optional,
			integer{p: &b.Refusals, min: 1, max: 1_000_000},
			"A client that is refused this many times within the time is banned. Without it, 100.",
		},
		{"within", optional, duration{p: &b.Within, min: time.Second, max: day}, "The time for refusals. Without it, 1m."},
		{"for", optional, duration{p: &b.For, min: time.Second, max: month}, "How long a first ban lasts; each further one lasts twice as long. Without it, 10m."},
		{"max", optional, duration{p: &b.Max, min: time.Second, max: month}, "How long any ban lasts at most. Without it, 24h."},
	}
}

// settle fills in what the mode leaves open.
func (b *Bans) settle() {
	if b.Mode == LimitOff {
		return
	}
	fill(&b.Refusals, 100)
	fill(&b.Within, time.Minute)
	fill(&b.For, 10*time.Minute)
	fill(&b.Max, max(day, b.For)) // the default gives way
}

func (b *Bans) check(ps *Problems, path string) {
	switch {
	case !ps.clean(path):
	case b.Mode == LimitOff:
		idle(ps, b.Pos, path, []setting{{"refusals", b.Refusals != 0}, {"within", b.Within != 0}, {"for", b.For != 0}, {"max", b.Max != 0}})
	case b.For > b.Max:
		ps.add(b.Pos, path, "for (%s) is longer than max (%s); change one of them", formatDuration(b.For), formatDuration(b.Max))
	}
}

// Limits is how much a listener takes on.
type Limits struct {
	Pos                 Position
	MaxConnections      int // 0 is derived from the open-files limit
	Handshakes          int // 0 is one for each processor but one; negative is any number
	Arriving            int // 0 is 16,384; negative is any number
	Mode                LimitMode
	Rate                Rate
	Burst               int
	HandshakeRate       Rate
	HandshakeBurst      int
	Bandwidth           Bandwidth
	ConnectionBandwidth Bandwidth
	PerClient           PerClient
	Allow, Deny         []Source
}

func (l *Limits) keys() []key {
	return []key{
		{
			"max_connections", optional,
			integer{p: &l.MaxConnections, min: 0, max: 10_000_000},
			"How many connections may be open at once. 0 is as many as the open-files limit allows.",
		},
		{
			"handshakes", optional,
			integer{p: &l.Handshakes, min: 0, max: 1_000_000, off: true},
			"How many TLS handshakes may be computed at the same time; the others wait, within timeouts.arrival. 0 is one for each processor but one, which is left to the connections that are there; off any number.",
		},
		{
			"arriving", optional,
			integer{p: &l.Arriving, min: 0, max: 10_000_000, off: true},
			"How many connections may be on their way from accept to a route at once; beyond that, newcomers are turned away. 0 is 16384, off any number.",
		},
		{
			"mode", optional, limitMode(&l.Mode, LimitEnforce),
			"What becomes of what is beyond rate, handshake_rate and bandwidth: enforce refuses it, or has it wait; shadow counts it and lets it in.",
		},
		{"rate", optional, rate(&l.Rate), "How many new connections are let in. " + rateDoc},
		{"burst", optional, burst(&l.Burst), burstDoc},
		{"handshake_rate", optional, rate(&l.HandshakeRate), "How many TLS handshakes are begun. " + rateDoc},
		{"handshake_burst", optional, burst(&l.HandshakeBurst), burstDoc},
		{"bandwidth", optional, object{of: &l.Bandwidth, pos: &l.Bandwidth.Pos}, "What all of its connections may move together."},
		{"connection_bandwidth", optional, object{of: &l.ConnectionBandwidth, pos: &l.ConnectionBandwidth.Pos}, "What each connection may move."},
		{"per_client", optional, object{of: &l.PerClient, pos: &l.PerClient.Pos}, "What each client gets."},
		{"allow", optional, sources(&l.Allow), allowDoc + " It goes before the allow of all listeners."},
		{"deny", optional, sources(&l.Deny), denyDoc + " It goes beside the deny of all listeners."},
	}
}

// RouteLimits is how much a route takes on, of what its listener does.
type RouteLimits struct {
	Pos            Position
	MaxConnections int // 0 is any number
	Mode           LimitMode
	Rate           Rate
	Burst          int
	PerClient      PerClient
}

func (l *RouteLimits) keys() []key {
	return []key{
		{
			"max_connections", optional,
			integer{p: &l.MaxConnections, min: 0, max: 10_000_000},
			"How many connections may be open at once. 0 is as many as the listener takes on.",
		},
		{
			"mode", optional, limitMode(&l.Mode, LimitEnforce),
			"What becomes of connections beyond max_connections and rate: enforce refuses them, shadow counts them and lets them in.",
		},
		{"rate", optional, rate(&l.Rate), "How many new connections are let in. " + rateDoc},
		{"burst", optional, burst(&l.Burst), burstDoc},
		{
			"per_client", optional,
			object{of: &l.PerClient, pos: &l.PerClient.Pos, unset: func() { l.PerClient = PerClient{Mode: LimitOff} }},
			"What each client gets, beside what the listener gives. What it leaves out is not limited here.",
		},
	}
}

// PerClient is what each client gets.
type PerClient struct {
	Pos            Position
	Mode           LimitMode
	By             ClientKey // empty if the mode is off, as the rest
	Connections    int       // negative is any number
	Rate           Rate
	Burst          int
	HandshakeRate  Rate
	HandshakeBurst int
	Bandwidth      Bandwidth
	Shared         *bool // whether machines that have one Redis share it; nil if the mode is off
}

// ClientKey is what makes two connections one client's.
type ClientKey string

// What makes two connections one client's.
const (
	ByAddress  ClientKey = "address"
	ByIdentity ClientKey = "identity"
	BySNI      ClientKey = "sni"
)

func (c *PerClient) keys() []key {
	return []key{
		{
			"mode", optional, limitMode(&c.Mode, LimitShadow),
			"enforce refuses what is beyond, or has it wait; shadow counts it and lets it in.",
		},
		{
			"by", optional,
			choice[ClientKey]{p: &c.By, options: words(ByAddress, ByIdentity, BySNI)},
			"What makes connections one client's: the address (of IPv6 its /64; its /56 as a whole gets 4 times as much, its /48 16 times), the identity in the client's certificate, or the server name that it asks for. Without it, address.",
		},
		{
			"connections", optional,
			integer{p: &c.Connections, min: 1, max: 10_000_000, off: true},
			"How many connections a client may have at once. Without it, a listener's is 256.",
		},
		{"rate", optional, rate(&c.Rate), "How many new connections a client gets. Without it, a listener's is 50/s. " + rateDoc},
		{"burst", optional, burst(&c.Burst), burstDoc},
		{"handshake_rate", optional, rate(&c.HandshakeRate), "How many TLS handshakes are begun for a client. " + rateDoc},
		{"handshake_burst", optional, burst(&c.HandshakeBurst), burstDoc},
		{"bandwidth", optional, object{of: &c.Bandwidth, pos: &c.Bandwidth.Pos}, "What all connections of a client may move together."},
		{"shared", optional, maybe{&c.Shared}, "Whether all machines that have this redis count together. Without it, true if there is redis."},
	}
}

// settings are those that can be made, and whether they are.
func (c *PerClient) settings() []setting {
	return []setting{
		{"by", c.By != ""},
		{"connections", c.Connections > 0},
		{"rate", !c.Rate.Off()},
		{"burst", c.Burst != 0},
		{"handshake_rate", !c.HandshakeRate.Off()},
		{"handshake_burst", c.HandshakeBurst != 0},
		{"bandwidth", c.Bandwidth.Given()},
		{"shared", c.Shared != nil},
	}
}

// settle fills in what the mode leaves open, where connections and r are the defaults.
func (c *PerClient) settle(connections int, r Rate, shared bool) {
	if c.Mode == LimitOff {
		return
	}
	fill(&c.By, ByAddress)
	fill(&c.Connections, connections)
	fill(&c.Rate, r)
	fill(&c.HandshakeRate, NoRate)
	fillBurst(&c.Burst, c.Rate)
	fillBurst(&c.HandshakeBurst, c.HandshakeRate)
	if c.Shared == nil {
		c.Shared = &shared
	}
}

// Overload is what levee does when it is short of something.
type Overload struct {
	Pos         Position
	Mode        string
	MemoryLimit MemoryLimit
	AcceptDelay time.Duration // 0 if the mode is off
}

// MemoryLimit is whether Go's runtime is told how much memory there is.
type MemoryLimit string

// Whether Go's runtime is told how much memory there is.
const (
	MemoryAuto MemoryLimit = "auto" // nine tenths of what the container has, unless GOMEMLIMIT is set
	MemoryOff  MemoryLimit = "off"
)

func (o *Overload) keys() []key {
	return []key{
		{
			"mode", optional,
			choice[string]{p: &o.Mode, def: ModeOn, options: words(ModeOn, ModeOff)},
			"on: short of memory, files or processors, levee takes on less rather than failing those that it has.",
		},
		{
			"memory_limit", optional,
			choice[MemoryLimit]{p: &o.MemoryLimit, def: MemoryAuto, options: words(MemoryAuto, MemoryOff)},
			"auto: Go's runtime is told of nine tenths of the container's memory, if that is limited and GOMEMLIMIT is not set.",
		},
		{
			"accept_delay", optional,
			duration{p: &o.AcceptDelay, min: time.Millisecond, max: 10 * time.Second},
			"How long newcomers may wait to be accepted before a share of them is turned away. Without it, 500ms.",
		},
	}
}

func (o *Overload) settle() {
	if o.Mode == ModeOn {
		fill(&o.AcceptDelay, 500*time.Millisecond)
	}
}

func (o *Overload) check(ps *Problems, path string) {
	if ps.clean(path) && o.Mode == ModeOff && o.AcceptDelay != 0 {
		ps.add(o.Pos, path, "mode is off, yet there is accept_delay; set mode: on, or remove it")
	}
}

func fill[T comparable](p *T, def T) {
	var zero T
	if *p == zero {
		*p = def
	}
}

func fillBurst(p *int, r Rate) {
	if *p == 0 {
		*p = r.burst()
	}
}

// Source is whom a list of addresses names: a prefix, or those in a file.
type Source struct {
	Pos    Position
	Prefix netip.Prefix
	File   string // empty if it is a prefix
}

// String returns the source as the configuration writes it.
func (s Source) String() string {
	switch {
	case s.File == "":
		return s.Prefix.String()
	case strings.HasPrefix(s.File, "/"):
		return fileScheme + s.File
	}
	return "file:" + s.File
}

func sources(p *[]Source) value {
	return some[Source]{list[Source]{p: p, of: "prefixes such as 10.0.0.0/8, or lists such as file:deny.txt", item: func(s *Source) value {
		return parsed[Source]{
			p: s, pos: &s.Pos, parse: parseSourceEntry, format: Source.String,
			wants: "a prefix such as 10.0.0.0/8, or a list such as file:deny.txt", pattern: `^(file:.+|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$`,
		}
	}}}
}

func parseSourceEntry(s string) (Source, error) {
	path, isFile := strings.CutPrefix(s, "file:")
	if !isFile {
		prefix, err := parsePrefix(s)
		if err != nil && strings.ContainsAny(s, "/.") && !strings.ContainsAny(s, ":") && strings.ContainsFunc(s, func(c rune) bool { return c >= 'g' && c <= 'z' }) {
			return Source{}, fmt.Errorf("%s is not a prefix; if it is a list in a file, write %s", quote(s), quote("file:"+s))
		}
		return Source{Prefix: prefix}, err
	}
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		if !strings.HasPrefix(rest, "/") {
			return Source{}, fmt.Errorf("%s: after file:// the path must be absolute, such as file:///etc/levee/deny.txt; a relative one is written %s", quote(s), quote("file:"+rest))
		}
		path = rest
	}
	switch {
	case path == "":
		return Source{}, fmt.Errorf("%s names no file; write one such as file:deny.txt", quote(s))
	case strings.HasSuffix(path, "/"):
		return Source{}, fmt.Errorf("%s names a folder, not a list", quote(s))
	}
	return Source{File: path}, hasControl(path)
}
