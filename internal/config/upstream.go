package config

import (
	"net/netip"
	"time"
)

// Upstream is a set of servers of which any will do, and how levee lives with them.
type Upstream struct {
	Pos            Position
	Name           string
	Servers        []ServerSource // at least one
	Balance        string
	TLS            UpstreamTLS
	Protocol       Protocol // empty is what Health.Probe speaks: see Speaks
	Health         Health
	Breaker        Breaker
	Dial           Dial
	Queue          Queue
	MaxConnections int // for each server; 0 is no cap
	SlowStart      time.Duration
	PanicThreshold float64 // negative: the checks are always believed
	EarlyClose     time.Duration
	OnDown         OnDown
	Rebalance      float64 // connections a second; 0 is none
	SendProxy      string  // v1 or v2; empty sends none

	SendTraceparent bool // in a header of v2
}

// What Mode takes in UpstreamTLS and Breaker.
const (
	ModeOn  = "on"
	ModeOff = "off"
)

// ProtocolNone is that of an Upstream of which levee is not to know what its servers speak.
const ProtocolNone Protocol = "none"

// Speaks returns what the servers speak: ProtocolPostgres, ProtocolRedis, or ProtocolNone where that is not known.
func (u *Upstream) Speaks() Protocol {
	switch {
	case u.Protocol != "":
		return u.Protocol
	case u.Health.Probe == ProbePostgres:
		return ProtocolPostgres
	case u.Health.Probe == ProbeRedis:
		return ProtocolRedis
	}
	return ProtocolNone
}

func (u *Upstream) keys() []key {
	return []key{
		{
			"name", required,
			parsed[string]{
				p: &u.Name, parse: parseName, format: verbatim,
				wants: "a name such as postgres", pattern: namePattern,
			},
			"What routes, metrics and logs call this upstream: up to 63 of a-z, 0-9, _ and -, unique.",
		},
		{
			"servers", required,
			list[ServerSource]{
				p: &u.Servers, of: "servers such as 10.0.0.7:5432",
				item: func(s *ServerSource) value { return server{s} },
			},
			"The servers, or where to learn of them. At least one.",
		},
		{
			"balance", optional,
			choice[string]{
				p: &u.Balance, def: "round_robin",
				options: words("round_robin", "least_connections", "p2c", "source_hash", "maglev"),
			},
			"How a server is picked. p2c takes the better of two by latency and connections; source_hash and maglev keep a client with its server.",
		},
		{
			"tls", optional,
			object{of: &u.TLS, pos: &u.TLS.Pos},
			"Encryption towards the servers. Without this key levee speaks plaintext to them.",
		},
		{
			"protocol", optional,
			choice[Protocol]{p: &u.Protocol, options: words(ProtocolNone, ProtocolPostgres, ProtocolRedis)},
			"What the servers speak, so that connections that are asked to leave do between two transactions, or commands. Without it, what health.probe speaks, if that is one of these.",
		},
		{
			"health", optional,
			object{of: &u.Health, pos: &u.Health.Pos},
			"How each server is checked, beside what its connections tell.",
		},
		{
			"breaker", optional,
			object{of: &u.Breaker, pos: &u.Breaker.Pos},
			"When a server whose connections fail is left alone, and how it gets them back.",
		},
		{
			"dial", optional,
			object{of: &u.Dial, pos: &u.Dial.Pos},
			"How a connection to a server is made.",
		},
		{
			"queue", optional,
			object{of: &u.Queue},
			"Who waits when every server has max_connections. The one that has waited longest gets the first place.",
		},
		{
			"max_connections", optional,
			integer{p: &u.MaxConnections, min: 0, max: 10_000_000},
			"How many connections each server may have at once. 0 is no cap.",
		},
		{
			"slow_start", optional, timeout(&u.SlowStart, 10*time.Second, day),
			"How long the share of a server that has come, or come back, takes to rise from a tenth to the whole. source_hash and maglev do without: a client keeps its server.",
		},
		{
			"panic_threshold", optional,
			number{p: &u.PanicThreshold, def: 0.5, max: 1, off: true},
			"The share of the servers that must pass their checks; with fewer the checks are not believed, and all servers are used.",
		},
		{
			"early_close", optional, timeout(&u.EarlyClose, time.Second, time.Minute),
			"A connection that the server ends within this time, without having sent a byte, counts as a failure, unless the client had sent something and the server is known to be well.",
		},
		{
			"on_down", optional,
			object{of: &u.OnDown},
			"What becomes of a server's connections when its checks declare it down.",
		},
		{
			"rebalance", optional,
			number{p: &u.Rebalance, max: 1_000_000, zero: true},
			"How many quiet connections a second are ended, to be made anew, when a server has come back and the others have more than their share. 0 is none.",
		},
		{
			"send_proxy", optional,
			choice[string]{p: &u.SendProxy, options: []option[string]{{"off", ""}, {"", ""}, {"v1", "v1"}, {"v2", "v2"}}},
			"The version of the PROXY protocol header that tells the servers who the client is.",
		},
		{
			"send_traceparent", optional,
			boolean{&u.SendTraceparent},
			"Tells the servers in the header of send_proxy: v2 which trace a connection is a part of: W3C's traceparent, in a TLV of type 0xE1.",
		},
	}
}

// UpstreamTLS is whether and how levee encrypts towards the servers. The paths are absolute; the file may give them
// relative to its own folder.
type UpstreamTLS struct {
	Pos              Position // zero when the file has no tls key
	Mode             string   // ModeOff or ModeOn
	CA               string   // empty is what the system trusts
	ServerName       string   // empty is each server's own host, or the name behind dns://
	Certificate, Key string   // empty when levee does not introduce itself
	SkipVerify       bool
	HandshakeTimeout time.Duration // 0 is what is left of Dial.Timeout
}

func (t *UpstreamTLS) keys() []key {
	return []key{
		{
			"mode", optional,
			choice[string]{p: &t.Mode, def: ModeOff, options: words(ModeOff, ModeOn)},
			"off is plaintext; on is TLS, and the servers' certificates are verified.",
		},
		{
			"ca", optional, filePath(&t.CA),
			"The authorities that the servers' certificates must be from: a PEM file, relative to this file's folder. Without it, those of the system.",
		},
		{
			"server_name", optional, text(&t.ServerName, "a host name", 253, notHost),
			"The name that the servers' certificates must be for. Without it, each server's own host, and of dns:// the name that is looked up.",
		},
		{
			"certificate", optional, filePath(&t.Certificate),
			"The certificate that levee shows to servers that ask for one: a PEM file, relative to this file's folder.",
		},
		{
			"key", optional, filePath(&t.Key),
			"The private key of that certificate: a PEM file, relative to this file's folder.",
		},
		{
			"skip_verify", optional,
			boolean{&t.SkipVerify},
			"Believes every certificate: whoever is between levee and the servers can read along.",
		},
		{
			"handshake_timeout", optional,
			duration{p: &t.HandshakeTimeout, min: time.Millisecond, max: day},
			"How long the handshake may take. Without it, what is left of dial.timeout.",
		},
	}
}

// Health is how each server is checked.
type Health struct {
	Pos          Position
	Interval     time.Duration // Off: there are no checks
	Timeout      time.Duration
	FastInterval time.Duration
	Fall, Rise   int
	Probe        string // ProbeConnect and so on
	Send, Expect string
	User         string
	Database     string
	Password     string
	Path, Host   string
}

// What a health check does once it has connected, and shaken hands if there is TLS.
const (
	ProbeConnect    = "connect"
	ProbeSendExpect = "send_expect"
	ProbePostgres   = "postgres"
	ProbeMySQL      = "mysql"
	ProbeRedis      = "redis"
	ProbeHTTP       = "http"
)

const defaultFastInterval = time.Second

func (h *Health) keys() []key {
	return []key{
		{
			"interval", optional, timeout(&h.Interval, 5*time.Second, day),
			"The time from one check of a server to the next. off is no checks.",
		},
		{
			"timeout", optional,
			duration{p: &h.Timeout, def: 2 * time.Second, min: time.Millisecond, max: day},
			"How long a check may take altogether.",
		},
		{
			"fast_interval", optional,
			duration{p: &h.FastInterval, def: defaultFastInterval, min: time.Millisecond, max: day},
			"The time to the next check after one that did not agree with the verdict so far, if interval is not shorter.",
		},
		{
			"fall", optional,
			integer{p: &h.Fall, def: 3, min: 1, max: 1000},
			"How many failed checks in a row declare a server down.",
		},
		{
			"rise", optional,
			integer{p: &h.Rise, def: 2, min: 1, max: 1000},
			"How many good checks in a row declare a server up.",
		},
		{
			"probe", optional,
			choice[string]{p: &h.Probe, options: words(ProbeConnect, ProbeSendExpect, ProbePostgres, ProbeMySQL, ProbeRedis, ProbeHTTP)},
			"What a check does once it has connected: connect is nothing more, the others want an answer. Without it, send_expect where send or expect stands, else connect.",
		},
		{
			"send", optional, secret(&h.Send, "text to send", maxSendExpect, nil),
			`What send_expect sends. "..." in double quotes can have \r\n in it. It may be a password, so it is shown to nobody.`,
		},
		{
			"expect", optional, text(&h.Expect, "text to expect", maxSendExpect, nil),
			"What has to stand in the first 16 KiB of the answer to send_expect.",
		},
		{
			"user", optional, text(&h.User, "a user's name", 255, hasControl),
			"Whom the probes postgres and mysql log in as; a refusal will do. Without it, levee.",
		},
		{
			"database", optional, text(&h.Database, "a database's name", 255, hasControl),
			"The database that the probe postgres asks for. Without it, the one of the user's name.",
		},
		{
			"password", optional, secret(&h.Password, "a password", 255, nil),
			"The password of the probe redis.",
		},
		{
			"path", optional, text(&h.Path, "a path such as /healthz", 2048, notURLPath),
			"What the probe http asks for. Without it, /.",
		},
		{
			"host", optional, text(&h.Host, "a host name", 260, notHostHeader),
			"The Host header of the probe http. Without it, localhost.",
		},
	}
}

// maxSendExpect is how much of an answer is searched; what is sent has no reason to be longer.
const maxSendExpect = 16 << 10

// Breaker is when a server's circuit breaker opens, so that it gets no connections, and how it closes again.
type Breaker struct {
	Pos      Position
	Mode     string  // ModeOff or ModeOn
	Failures int     // negative is any number
	Rate     float64 // negative is any share
	Volume   int
	Window   time.Duration
	Open     time.Duration
	MaxOpen  time.Duration
	Probes   int
}

func (b *Breaker) keys() []key {
	return []key{
		{
			"mode", optional,
			choice[string]{p: &b.Mode, def: ModeOn, options: words(ModeOn, ModeOff)},
			"off lets a server have connections however many fail.",
		},
		{
			"failures", optional,
			integer{p: &b.Failures, def: 5, min: 1, max: 1_000_000, off: true},
			"How many failures in a row open the breaker.",
		},
		{
			"rate", optional,
			number{p: &b.Rate, def: 0.5, max: 1, off: true},
			"The share of failures within window that opens the breaker as well.",
		},
		{
			"volume", optional,
			integer{p: &b.Volume, def: 20, min: 1, max: 1_000_000},
			"How many connections there must be within window for rate to count.",
		},
		{
			"window", optional,
			duration{p: &b.Window, def: 10 * time.Second, min: time.Millisecond, max: day},
			"How far back rate and volume look.",
		},
		{
			"open", optional,
			duration{p: &b.Open, def: 10 * time.Second, min: time.Millisecond, max: day},
			"How long the breaker stays open at first. It doubles each time that it opens again soon.",
		},
		{
			"max_open", optional,
			duration{p: &b.MaxOpen, def: time.Minute, min: time.Millisecond, max: day},
			"How long the breaker stays open at most.",
		},
		{
			"probes", optional,
			integer{p: &b.Probes, def: 3, min: 1, max: 1000},
			"How many connections have to succeed after that for the breaker to close. The first goes alone.",
		},
	}
}

// Dial is how a connection to a server is made.
type Dial struct {
	Pos          Position
	Timeout      time.Duration
	TotalTimeout time.Duration
	Tries        int
	RetryBudget  float64 // negative is no more than the few that are always allowed
	Source       []netip.Addr
}

func (d *Dial) keys() []key {
	return []key{
		{
			"timeout", optional,
			duration{p: &d.Timeout, def: 5 * time.Second, min: time.Millisecond, max: day},
			"How long one try may take: look-up, connecting and handshake.",
		},
		{
			"total_timeout", optional,
			duration{p: &d.TotalTimeout, def: 10 * time.Second, min: time.Millisecond, max: day},
			"How long it may take altogether: the queue, all tries and the pauses between them.",
		},
		{
			"tries", optional,
			integer{p: &d.Tries, def: 3, min: 1, max: 100},
			"How many servers are tried for one connection.",
		},
		{
			"retry_budget", optional,
			number{p: &d.RetryBudget, def: 0.2, max: 1, off: true},
			"How many second tries there may be for each first one of the last 10 seconds; 30 in that time are always allowed. off is no more than those.",
		},
		{
			"source", optional,
			list[netip.Addr]{p: &d.Source, of: "addresses such as 10.0.0.1", item: sourceAddress},
			"This machine's addresses to connect from, in turn. Each gives a server as many connections as there are local ports.",
		},
	}
}

// Queue is who waits when every server has MaxConnections.
type Queue struct {
	Length  int           // negative: nobody waits
	Timeout time.Duration // 0 is what is left of Dial.TotalTimeout
}

func (q *Queue) keys() []key {
	return []key{
		{
			"length", optional,
			integer{p: &q.Length, def: 1024, min: 1, max: 1_000_000, off: true},
			"How many connections may wait; the next one is refused at once. off is none.",
		},
		{
			"timeout", optional,
			duration{p: &q.Timeout, min: time.Millisecond, max: day},
			"How long a connection may wait. Without it, what is left of dial.total_timeout.",
		},
	}
}

// OnDown is what becomes of a server's connections when its checks declare it down.
type OnDown struct {
	Cut  bool
	Rate float64 // connections a second
}

func (o *OnDown) keys() []key {
	return []key{
		{
			"cut", optional,
			boolean{&o.Cut},
			"Cuts the connections, the oldest first. Otherwise they go on for as long as they can.",
		},
		{
			"rate", optional,
			number{p: &o.Rate, def: 100, max: 1_000_000},
			"How many connections a second are cut.",
		},
	}
}
