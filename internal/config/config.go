// Package config knows what a levee.yaml may say. It turns the text into typed values in which every default is
// filled in, or into the list of everything that is wrong with it, one line a problem:
//
//	cfg, err := config.Load("levee.yaml")
//	if err != nil {
//		fmt.Fprintln(os.Stderr, err) // levee.yaml:12:7: listeners[0].tls.mode: unknown mode "trminate"; did you mean "terminate"?
//		return 2
//	}
//	for _, l := range cfg.Listeners {
//		serve(l)
//	}
//
// The decoder, the JSON schema and the normal form all read one table: the keys methods beside the structs. A new
// setting is a field, a line in its struct's table, and, when it depends on another setting, a rule in a check method.
package config

import (
	_ "embed"
	"log/slog"
	"net/netip"
	"time"
)

// Off is the value of a duration that the file turns off. Any negative duration means the same.
const Off time.Duration = -1

//go:embed default.yaml
var defaultYAML []byte

// DefaultYAML returns the configuration that levee serves when it is given none. It is also the commented reference
// of every key. The caller may change the bytes.
func DefaultYAML() []byte { return append([]byte(nil), defaultYAML...) }

// Config is a whole file. Parse and Load return it complete: what the file leaves out has its documented default.
type Config struct {
	Version   int
	Admin     Admin
	Drain     Drain
	Upgrade   Upgrade
	Telemetry Telemetry
	Redis     Redis
	Limits    Whole
	Overload  Overload
	Listeners []Listener
	Upstreams []Upstream
}

func (c *Config) keys() []key {
	return []key{
		{
			"version", required,
			integer{p: &c.Version, min: 1, max: 1},
			"The version of this file's format.",
		},
		{
			"admin", optional,
			object{of: &c.Admin},
			"The address for operators: metrics, health and profiles.",
		},
		{
			"drain", optional,
			object{of: &c.Drain, pos: &c.Drain.Pos},
			"How levee leaves: on SIGTERM it stops accepting and lets connections finish.",
		},
		{
			"upgrade", optional,
			object{of: &c.Upgrade, pos: &c.Upgrade.Pos},
			"How a new process takes the place of this one, on SIGUSR2 or levee upgrade.",
		},
		{
			"telemetry", optional,
			object{of: &c.Telemetry},
			"What levee says about itself.",
		},
		{
			"redis", optional,
			whole{object{of: &c.Redis, pos: &c.Redis.Pos, filled: true}, c.Redis.Given},
			"What several machines share: certificates that ACME brings, the secret of session tickets, limits per client, and bans.",
		},
		{
			"limits", optional,
			object{of: &c.Limits, pos: &c.Limits.Pos},
			"How much all listeners take on together, and from whom none of them takes anything.",
		},
		{
			"overload", optional,
			object{of: &c.Overload, pos: &c.Overload.Pos},
			"What becomes of new connections when levee is short of memory, files or processors.",
		},
		{
			"listeners", required,
			list[Listener]{
				p: &c.Listeners, of: "listeners, each with name, listen and routes",
				item: func(l *Listener) value { return object{of: l, pos: &l.Pos} },
			},
			"Where levee accepts connections, and what becomes of them. At least one.",
		},
		{
			"upstreams", optional,
			list[Upstream]{
				p: &c.Upstreams, of: "upstreams, each with name and servers",
				item: func(u *Upstream) value { return object{of: u, pos: &u.Pos} },
			},
			"The servers behind levee, in sets that routes name.",
		},
	}
}

// Admin is where operators reach levee.
type Admin struct {
	Listen    Address // its Network is empty when admin is off
	Insecure  bool
	TokenFile string
	TokenPos  Position
	TLS       AdminTLS
	Hosts     []Word
}

// AdminTLS is how operators' connections are encrypted, and by which certificates they are let in.
type AdminTLS struct {
	Pos      Position
	Cert     string
	Key      string
	ClientCA string
}

// Given reports whether it is there.
func (t *AdminTLS) Given() bool { return t.Cert != "" }

func (t *AdminTLS) keys() []key {
	return []key{
		{"cert", required, filePath(&t.Cert), "The certificate with its chain, in PEM."},
		{"key", required, filePath(&t.Key), "Its private key."},
		{"client_ca", optional, filePath(&t.ClientCA), "The authorities of operators' certificates. With it, who shows none of theirs learns only whether levee lives and is ready."},
	}
}

func (a *Admin) keys() []key {
	return []key{
		{
			"listen", optional,
			parsed[Address]{
				p: &a.Listen, pos: &a.Listen.Pos, def: "127.0.0.1:9180",
				parse: ParseAdminAddress, format: Address.String,
				wants: "an address such as 127.0.0.1:9180, unix:/run/levee/admin.sock, or off", pattern: adminPattern,
			},
			"A host:port, unix: and an absolute path for a unix socket, or off. Beyond loopback it takes a token or client certificates, and TLS.",
		},
		{
			"insecure", optional,
			boolean{&a.Insecure},
			"Says that plaintext beyond loopback is meant. Who listens on the way has the token then.",
		},
		{
			"token_file", optional,
			pathOf("a file with a token", &a.TokenFile, &a.TokenPos),
			"The file with the token that operators need, of 16 characters or more, which not every user may read. It is read again when it changes.",
		},
		{
			"tls", optional,
			whole{object{of: &a.TLS, pos: &a.TLS.Pos, filled: true}, a.TLS.Given},
			"Has operators come over TLS. Its files are read again when they change.",
		},
		{
			"hosts", optional,
			wordsOf(&a.Hosts, "names such as levee.example.com", "a name such as levee.example.com", notAdminHost),
			"The names that requests may be for, besides localhost and any address. Others are refused, as a page can have a name of its own lead here.",
		},
	}
}

// Drain is how long the connections get to finish when levee leaves.
type Drain struct {
	Pos     Position // zero when the file has no drain key
	Timeout time.Duration
	PreStop time.Duration
	Spread  time.Duration // 0 depends on how many there are
}

func (d *Drain) keys() []key {
	return []key{
		{
			"timeout", optional,
			duration{p: &d.Timeout, def: 25 * time.Second, min: time.Millisecond, max: day},
			"How long connections may take to finish before they are cut. Keep it under what your supervisor waits (Kubernetes: 30s).",
		},
		{
			"pre_stop", optional,
			duration{p: &d.PreStop, def: 0, min: 0, max: day},
			"How long levee reports itself not ready, yet still accepts, before it drains: time for load balancers to look away.",
		},
		{
			"spread", optional, timeout(&d.Spread, 0, day),
			"How long it takes to ask the connections to leave, the quiet ones first, so that their clients do not all come back at once. Without it, a millisecond for each connection of a listener beyond the first 1000, and at most a fifth of timeout. off asks all at once.",
		},
	}
}

// Telemetry is what levee says about itself.
type Telemetry struct {
	Logs   Logs
	Traces Traces
}

func (t *Telemetry) keys() []key {
	return []key{
		{"logs", optional, object{of: &t.Logs}, "Log lines, on standard error."},
		{"traces", optional, object{of: &t.Traces, pos: &t.Traces.Pos}, "OpenTelemetry spans of connections."},
	}
}

// Logs is the shape and amount of log lines.
type Logs struct {
	Format LogFormat
	Level  slog.Level

	Access     LogAccess
	AccessFile string // empty is standard output
}

// LogAccess says which connections have a line of their own when they have ended.
type LogAccess string

// The connections that have one.
const (
	AccessOff     LogAccess = "off"
	AccessSampled LogAccess = "sampled"
	AccessAll     LogAccess = "all"
)

// LogFormat is the shape of a log line.
type LogFormat string

// The shapes of a log line.
const (
	LogAuto LogFormat = "auto" // LogText on a terminal, LogJSON otherwise
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

func (l *Logs) keys() []key {
	return []key{
		{
			"format", optional,
			choice[LogFormat]{p: &l.Format, def: LogAuto, options: words(LogAuto, LogText, LogJSON)},
			"The shape of a log line. auto is text on a terminal and json otherwise.",
		},
		{
			"level", optional,
			choice[slog.Level]{p: &l.Level, def: slog.LevelInfo, options: []option[slog.Level]{
				{"debug", slog.LevelDebug},
				{"info", slog.LevelInfo},
				{"warn", slog.LevelWarn},
				{"error", slog.LevelError},
			}},
			"The least important level that is still logged.",
		},
		{
			"access", optional,
			choice[LogAccess]{p: &l.Access, def: AccessOff, options: words(AccessOff, AccessSampled, AccessAll)},
			"A line for each connection that has ended. sampled is ten a second, and as many again that ended badly; how many were left out is said.",
		},
		{
			"access_file", optional, logFile(&l.AccessFile),
			"The file that those lines are appended to, relative to this file's folder. It is opened anew on SIGHUP. Without it, they go to standard output.",
		},
	}
}

// Listener is a set of addresses whose connections are treated alike.
type Listener struct {
	Pos           Position
	Name          string
	Listen        []Address
	Insecure      bool
	ProxyProtocol ProxyProtocol
	TLS           TLS
	STARTTLS      Dialogue
	Limits        Limits
	Timeouts      Timeouts
	Routes        []Route
}

func (l *Listener) keys() []key {
	return []key{
		{
			"name", required,
			parsed[string]{
				p: &l.Name, parse: parseName, format: verbatim,
				wants: "a name such as public", pattern: namePattern,
			},
			"What metrics and logs call this listener: up to 63 of a-z, 0-9, _ and -, unique.",
		},
		{
			"listen", required,
			list[Address]{p: &l.Listen, of: "addresses such as 127.0.0.1:8080", item: listenAddress},
			`The addresses, each host:port. ":5432" is port 5432 of every address of the machine; port 0 is a free one.`,
		},
		{
			"insecure", optional,
			boolean{&l.Insecure},
			"Says that plaintext (tls.mode off or optional) beyond loopback is meant. Without it, that is an error.",
		},
		{
			"proxy_protocol", optional,
			object{of: &l.ProxyProtocol, pos: &l.ProxyProtocol.Pos},
			"Which peers announce the client's address in a PROXY protocol header, version 1 or 2.",
		},
		{
			"tls", optional,
			object{of: &l.TLS, pos: &l.TLS.Pos, unset: func() { l.TLS = TLS{Mode: TLSOff} }},
			"Encryption. Without this key the listener speaks plaintext.",
		},
		{
			"starttls", optional,
			choice[Dialogue]{p: &l.STARTTLS, options: words(Dialogues()...)},
			"The protocol in which clients ask for TLS before they begin it. With ldap and postgres, clients that begin with TLS at once are served as well.",
		},
		{
			"limits", optional,
			object{of: &l.Limits, pos: &l.Limits.Pos},
			"How much this listener takes on.",
		},
		{
			"timeouts", optional,
			object{of: &l.Timeouts, pos: &l.Timeouts.Pos},
			"How long a connection may take over each step. Each may be off.",
		},
		{
			"routes", required,
			list[Route]{
				p: &l.Routes, of: "routes such as {handler: echo} or {upstream: postgres}",
				item: func(r *Route) value { return object{of: r, pos: &r.Pos} },
			},
			"Who serves a connection: the first route that matches. The last one, and only that, has no match.",
		},
	}
}

// ProxyProtocol is who must introduce its clients with a PROXY protocol header.
type ProxyProtocol struct {
	Pos Position
	// From is empty when nobody does. A header is required from these sources and refused from all others.
	From []netip.Prefix
}

func (p *ProxyProtocol) keys() []key {
	return []key{
		{
			"from", required,
			list[netip.Prefix]{p: &p.From, of: "prefixes such as 10.0.0.0/8", item: sourcePrefix},
			"Prefixes or single addresses. The header is required from these sources and refused from all others.",
		},
	}
}

// Timeouts is how long a connection may take over each step; negative is without limit.
type Timeouts struct {
	Pos         Position
	Arrival     time.Duration
	ProxyHeader time.Duration
	Sniff       time.Duration
	Idle        time.Duration
	HalfClosed  time.Duration
	WriteStall  time.Duration
	Message     time.Duration
	Lifetime    time.Duration
}

func (t *Timeouts) keys() []key {
	return []key{
		{
			"arrival", optional, timeout(&t.Arrival, 10*time.Second, day),
			"How long a connection may take from accept to the choice of a route: header, handshake and first bytes together. No byte resets it.",
		},
		{
			"proxy_header", optional, timeout(&t.ProxyHeader, 5*time.Second, day),
			"How long the PROXY protocol header may take, within arrival.",
		},
		{
			"sniff", optional, timeout(&t.Sniff, 5*time.Second, day),
			"How long the first bytes, which tell the protocol, may take, within arrival.",
		},
		{
			"idle", optional, timeout(&t.Idle, 0, month),
			"How long a connection may go without a byte in either direction. Without it, 5m, and 1h if a route leads to an upstream.",
		},
		{
			"half_closed", optional, timeout(&t.HalfClosed, 60*time.Second, day),
			"How long a connection may go without a byte after levee has finished sending.",
		},
		{
			"write_stall", optional, timeout(&t.WriteStall, 30*time.Second, day),
			"How long bytes may wait to be sent without progress, because the reader does not read.",
		},
		{
			"message", optional, timeout(&t.Message, time.Minute, month),
			"How long a request to a built-in handler may take from its first byte to its last.",
		},
		{
			"lifetime", optional, timeout(&t.Lifetime, Off, month),
			"How long a connection may last, however busy it is.",
		},
	}
}
