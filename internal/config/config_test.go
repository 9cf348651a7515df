package config

import (
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// sameConfig compares all but positions.
var sameConfig = cmp.Options{
	cmpopts.IgnoreTypes(Position{}),
	cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}),
}

var fixedTimeouts = Timeouts{
	Arrival: 10 * time.Second, ProxyHeader: 5 * time.Second, Sniff: 5 * time.Second, Idle: 5 * time.Minute,
	HalfClosed: time.Minute, WriteStall: 30 * time.Second, Message: time.Minute, Lifetime: Off,
}

// proxyTimeouts are those of a listener with a route to an upstream.
var proxyTimeouts = func() Timeouts {
	t := fixedTimeouts
	t.Idle = time.Hour
	return t
}()

// noTraces are what traces are without the key.
var noTraces = Traces{Ratio: 0.01, Queue: 4096, Timeout: 10 * time.Second}

var usualUpgrade = Upgrade{Timeout: 30 * time.Second, Settle: 2 * time.Second, Probation: 5 * time.Second}

func tcp(address string) Address { return Address{Network: "tcp", Address: address} }

// accepted holds good documents and what they mean.
var accepted = withLimits([]acceptance{
	{
		"only what is required", frame(loopback),
		Config{
			Version:   1,
			Admin:     Admin{Listen: tcp("127.0.0.1:9180")},
			Drain:     Drain{Timeout: 25 * time.Second},
			Upgrade:   usualUpgrade,
			Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
	{
		"everything", `version: 1
admin: {listen: "unix:/run/levee/admin.sock"}
drain: {timeout: 1m30s, pre_stop: 5s, spread: 45s}
upgrade: {timeout: 45s, settle: 1s, probation: 10s, pid_file: /run/levee.pid}
telemetry: {logs: {format: json, level: error, access: all, access_file: /var/log/levee/access.log}, traces: {otlp: "https://otel.example.com:4318/v1/levee", ratio: 1, ca: /tls/ca.pem, service: edge, queue: 64, timeout: 1s, headers: {api-key: 'a\"b', X-Tenant: "7"}, resource: {deployment.environment.name: tést}}}
listeners:
  - name: public
    listen: [":5432", "[::1]:0"]
    proxy_protocol: {from: [10.0.0.0/8, 192.0.2.1, "::ffff:192.0.2.2", "2001:db8::/32", "::1"]}
    tls:
      certificates: [{cert: /tls/a.pem, key: /tls/a-key.pem}, {cert: /tls/b.pem, key: /tls/b-key.pem}]
    limits: {max_connections: 1000}
    timeouts: {arrival: 1s, proxy_header: 1.5s, sniff: 250ms, idle: 720h, half_closed: off, write_stall: "off", message: off, lifetime: 24h}
    routes:
      - {match: {protocol: http}, handler: hello}
      - match: {protocol: ["ssh", mqtt]}
        handler: discard
      - {handler: echo}
  - name: "2"
    listen: [localhost:0]
    insecure: true
    tls: {mode: off}
    routes: [{handler: discard}]
`,
		Config{
			Version: 1,
			Admin:   Admin{Listen: Address{Network: "unix", Address: "/run/levee/admin.sock"}},
			Drain:   Drain{Timeout: 90 * time.Second, PreStop: 5 * time.Second, Spread: 45 * time.Second},
			Upgrade: Upgrade{Timeout: 45 * time.Second, Settle: time.Second, Probation: 10 * time.Second, PIDFile: "/run/levee.pid"},
			Telemetry: Telemetry{Logs{Format: LogJSON, Level: slog.LevelError, Access: AccessAll, AccessFile: "/var/log/levee/access.log"}, Traces{
				OTLP: "https://otel.example.com:4318/v1/levee", Ratio: 1, CA: "/tls/ca.pem", Service: "edge", Queue: 64, Timeout: time.Second,
				Headers: map[string]string{"api-key": "a\\\"b", "X-Tenant": "7"}, Resource: map[string]string{"deployment.environment.name": "tést"},
			}},
			Listeners: []Listener{
				{
					Name: "public", Listen: []Address{tcp(":5432"), tcp("[::1]:0")},
					ProxyProtocol: ProxyProtocol{From: []netip.Prefix{
						netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32"),
						netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("::1/128"),
					}},
					TLS: TLS{Mode: TLSTerminate, Certificates: []Certificate{
						{Cert: "/tls/a.pem", Key: "/tls/a-key.pem"}, {Cert: "/tls/b.pem", Key: "/tls/b-key.pem"},
					}},
					Limits: Limits{MaxConnections: 1000},
					Timeouts: Timeouts{
						Arrival: time.Second, ProxyHeader: 1500 * time.Millisecond, Sniff: 250 * time.Millisecond, Idle: 720 * time.Hour,
						HalfClosed: Off, WriteStall: Off, Message: Off, Lifetime: 24 * time.Hour,
					},
					Routes: []Route{
						{Match: Match{Protocol: []Protocol{ProtocolHTTP}}, Handler: HandlerHello},
						{Match: Match{Protocol: []Protocol{ProtocolSSH, ProtocolMQTT}}, Handler: HandlerDiscard},
						{Handler: HandlerEcho},
					},
				},
				{
					Name: "2", Listen: []Address{tcp("localhost:0")}, Insecure: true, TLS: TLS{Mode: TLSOff},
					Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerDiscard}},
				},
			},
		},
	},
	{
		"no admin, a byte order mark, Windows line ends", "\ufeff" + strings.ReplaceAll("admin: {listen: off}\n"+frame(loopback+"\ntls: {mode: optional, development: true}"), "\n", "\r\n"),
		Config{
			Version: 1, Drain: Drain{Timeout: 25 * time.Second}, Upgrade: usualUpgrade, Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOptional, Development: true},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
	{
		"JSON", `{"version": 1, "listeners": [{"name": "main", "listen": ["127.0.0.1:8080"], "routes": [{"handler": "echo"}]}]}`,
		Config{
			Version: 1, Admin: Admin{Listen: tcp("127.0.0.1:9180")}, Drain: Drain{Timeout: 25 * time.Second}, Upgrade: usualUpgrade, Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
	{
		"an upstream", front("postgres", `servers: [10.0.0.7:5432, "[2001:DB8::7]:05432", DB.example.com:5432]`),
		Config{
			Version: 1, Admin: Admin{Listen: tcp("127.0.0.1:9180")}, Drain: Drain{Timeout: 25 * time.Second}, Upgrade: usualUpgrade, Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: proxyTimeouts, Routes: []Route{{Upstream: "postgres"}},
			}},
			Upstreams: []Upstream{plain("postgres",
				one(KindAddress, "10.0.0.7:5432"), one(KindAddress, "[2001:db8::7]:5432"), one(KindName, "DB.example.com:5432"))},
		},
	},
	{
		"an upstream with every setting", front("main", `servers:
- unix:/run/a.sock
- {address: "[::ffff:10.0.0.1]:80", weight: 256, tier: 9, name: "a.example.com:80"}
- dns://db.example.com.:5432
- dns+srv://_postgresql._tcp.example.com
- file:///etc/levee/servers
- address: dns+srv://redis.service.consul
  weight: 1
balance: p2c
tls: {mode: on, ca: /tls/ca.pem, server_name: db.example.com, certificate: /tls/a.pem, key: /tls/a-key.pem, handshake_timeout: 1s}
health: {interval: 10s, timeout: 10s, fast_interval: 1ms, fall: 1, rise: 1000, probe: send_expect, send: "PING\r\n\0\"\\ \u2028\ufeff#", expect: " \n+PONG: "}
breaker: {mode: "off", failures: off, rate: 1.0, volume: 1, window: 1m, open: 1s, max_open: 1s, probes: 1}
dial: {timeout: 10s, total_timeout: 10s, tries: 1, retry_budget: off, source: [10.0.0.1, "::1", "::ffff:10.0.0.2", "fe80::1%eth0"]}
queue: {length: off, timeout: 3s}
max_connections: 7
slow_start: off
panic_threshold: off
early_close: off
on_down: {cut: true, rate: 0.25}
rebalance: 12.5
send_proxy: v2
send_traceparent: true
protocol: none`),
		Config{
			Version: 1, Admin: Admin{Listen: tcp("127.0.0.1:9180")}, Drain: Drain{Timeout: 25 * time.Second}, Upgrade: usualUpgrade, Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: proxyTimeouts, Routes: []Route{{Upstream: "main"}},
			}},
			Upstreams: []Upstream{{
				Name: "main",
				Servers: []ServerSource{
					one(KindAddress, "unix:/run/a.sock"),
					{ServerAddress: ServerAddress{KindAddress, "10.0.0.1:80"}, Weight: 256, Tier: 9, Name: "a.example.com:80"},
					one(KindDNS, "db.example.com.:5432"),
					one(KindSRV, "_postgresql._tcp.example.com"),
					one(KindFile, "/etc/levee/servers"),
					one(KindSRV, "redis.service.consul"),
				},
				Balance: "p2c",
				TLS: UpstreamTLS{
					Mode: ModeOn, CA: "/tls/ca.pem", ServerName: "db.example.com", Certificate: "/tls/a.pem", Key: "/tls/a-key.pem",
					HandshakeTimeout: time.Second,
				},
				Health: Health{
					Interval: 10 * time.Second, Timeout: 10 * time.Second, FastInterval: time.Millisecond, Fall: 1, Rise: 1000,
					Probe: ProbeSendExpect, Send: "PING\r\n\x00\"\\ \u2028\ufeff#", Expect: " \n+PONG: ",
				},
				Breaker: Breaker{
					Mode: ModeOff, Failures: -1, Rate: 1, Volume: 1, Window: time.Minute,
					Open: time.Second, MaxOpen: time.Second, Probes: 1,
				},
				Dial: Dial{
					Timeout: 10 * time.Second, TotalTimeout: 10 * time.Second, Tries: 1, RetryBudget: -1,
					Source: []netip.Addr{
						netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1%eth0"),
					},
				},
				Queue:          Queue{Length: -1, Timeout: 3 * time.Second},
				MaxConnections: 7, SlowStart: Off, PanicThreshold: -1, EarlyClose: Off,
				OnDown: OnDown{Cut: true, Rate: 0.25}, Rebalance: 12.5, SendProxy: "v2", SendTraceparent: true, Protocol: ProtocolNone,
			}},
		},
	},
	{
		"settings of an upstream that are empty", front("postgres", `servers: [localhost:5432]
tls: {}
health: {interval: 5s, timeout: 2s, fall: 3, rise: 2, send: "", expect: "", host: ""}
breaker: {}
send_proxy: ""`),
		Config{
			Version: 1, Admin: Admin{Listen: tcp("127.0.0.1:9180")}, Drain: Drain{Timeout: 25 * time.Second}, Upgrade: usualUpgrade, Telemetry: Telemetry{Logs: Logs{Format: LogAuto, Level: slog.LevelInfo, Access: AccessOff}, Traces: noTraces},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: proxyTimeouts, Routes: []Route{{Upstream: "postgres"}},
			}},
			Upstreams: []Upstream{plain("postgres", one(KindName, "localhost:5432"))},
		},
	},
})

type acceptance struct {
	name, doc string
	want      Config
}

// withLimits gives what says nothing of limits those that there are then.
func withLimits(all []acceptance) []acceptance {
	for i := range all {
		c := &all[i].want
		c.Limits, c.Overload = wholeLimits, Overload{Mode: ModeOn, MemoryLimit: MemoryAuto, AcceptDelay: 500 * time.Millisecond}
		for j := range c.Listeners {
			l := &c.Listeners[j]
			most := l.Limits.MaxConnections
			l.Limits = fixedLimits
			l.Limits.MaxConnections = most
			for k := range l.Routes {
				l.Routes[k].Limits = routeLimits
			}
		}
	}
	return all
}

var (
	wholeLimits = Whole{
		Mode: LimitEnforce, Rate: NoRate, Clients: 131072, Refuse: RefuseReset,
		Bans: Bans{Mode: LimitShadow, Refusals: 100, Within: time.Minute, For: 10 * time.Minute, Max: 24 * time.Hour},
	}
	fixedLimits = Limits{
		Mode: LimitEnforce, Rate: NoRate, HandshakeRate: NoRate,
		PerClient: PerClient{
			Mode: LimitShadow, By: ByAddress, Connections: 256, Rate: Rate{50, time.Second}, Burst: 100,
			HandshakeRate: NoRate, Shared: new(false),
		},
	}
	routeLimits = RouteLimits{Mode: LimitEnforce, Rate: NoRate, PerClient: PerClient{Mode: LimitOff}}
)

// plain is what an upstream is that says no more than its name and servers.
func plain(name string, servers ...ServerSource) Upstream {
	return Upstream{
		Name: name, Servers: servers, Balance: "round_robin", TLS: UpstreamTLS{Mode: ModeOff},
		Health: Health{
			Interval: 5 * time.Second, Timeout: 2 * time.Second, FastInterval: time.Second, Fall: 3, Rise: 2,
			Probe: ProbeConnect,
		},
		Breaker: Breaker{
			Mode: ModeOn, Failures: 5, Rate: 0.5, Volume: 20, Window: 10 * time.Second,
			Open: 10 * time.Second, MaxOpen: time.Minute, Probes: 3,
		},
		Dial:      Dial{Timeout: 5 * time.Second, TotalTimeout: 10 * time.Second, Tries: 3, RetryBudget: 0.2},
		Queue:     Queue{Length: 1024},
		SlowStart: 10 * time.Second, PanicThreshold: 0.5, EarlyClose: time.Second, OnDown: OnDown{Rate: 100},
	}
}

func one(kind, address string) ServerSource {
	return ServerSource{ServerAddress: ServerAddress{kind, address}, Weight: 1}
}

func TestParseFillsInWhatTheFileLeavesOut(t *testing.T) {
	for _, c := range accepted {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse("levee.yaml", []byte(c.doc))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, got, sameConfig); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
			if err := got.Check(); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

func TestTheNormalFormMeansTheSame(t *testing.T) {
	for _, c := range accepted {
		t.Run(c.name, func(t *testing.T) {
			text := c.want.YAML()
			got, err := Parse("levee.yaml", text)
			if err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
			if diff := cmp.Diff(&c.want, got, sameConfig); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
			if again := got.YAML(); string(again) != string(text) {
				t.Errorf("the normal form of the normal form differs:\n%s\n%s", text, again)
			}
		})
	}
}

func TestDurationsReadBackAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got, want Timeouts
		want.Idle = time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(month)).Draw(t, "idle"))
		var r reader
		d := timeout(&want.Idle, 0, month)
		timeout(&got.Idle, 0, month).read(&r, "idle", d.write())
		if got != want || r.problems.err() != nil {
			t.Fatalf("%v was written %s and read as %v: %v", want.Idle, d.write().Value, got.Idle, r.problems.err())
		}
	})
}

func TestNumbersReadBackAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got, want float64
		want = rapid.Float64Range(math.SmallestNonzeroFloat64, 1).Draw(t, "share")
		var r reader
		text := number{p: &want, max: 1}.write()
		number{p: &got, max: 1}.read(&r, "share", text)
		if got != want || r.problems.err() != nil {
			t.Fatalf("%v was written %s and read as %v: %v", want, text.Value, got, r.problems.err())
		}
	})
}

func TestTextsReadBackAsTheyWereWritten(t *testing.T) {
	cfg, err := Parse("levee.yaml", []byte(behind("")))
	if err != nil {
		t.Fatal(err)
	}
	strange := rapid.RuneFrom([]rune("\x00\t\r\n \x1b\x7f\u0085\u2028\ufeff\ufffe\uffff\\\"':#-%&*!|>@`{[,?~é\U0001f600"))
	rapid.Check(t, func(t *rapid.T) {
		h := &cfg.Upstreams[0].Health
		h.Probe, h.Send = ProbeSendExpect, rapid.StringOf(strange).Filter(func(s string) bool { return s != "" }).Draw(t, "send")
		text := cfg.YAML()
		got, err := Parse("levee.yaml", text)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		if got := got.Upstreams[0].Health.Send; got != h.Send {
			t.Fatalf("%q was read as %q from:\n%s", h.Send, got, text)
		}
	})
}

func TestValuesKnowWhereTheyStand(t *testing.T) {
	cfg, err := Parse("levee.yaml", []byte(accepted[1].doc))
	if err != nil {
		t.Fatal(err)
	}
	l := cfg.Listeners[0]
	fronted, err := Parse("front.yaml", []byte(front("db", "servers: [a:1, {address: b:1}]\ntls: {mode: on}\nhealth: {}\nbreaker: {}\ndial: {}")))
	if err != nil {
		t.Fatal(err)
	}
	u := fronted.Upstreams[0]
	for want, got := range map[string]Position{
		"levee.yaml:2:17":  cfg.Admin.Listen.Pos,
		"levee.yaml:7:5":   l.Pos,
		"levee.yaml:8:23":  l.Listen[1].Pos,
		"levee.yaml:11:7":  l.TLS.Pos,
		"levee.yaml:11:63": l.TLS.Certificates[1].Pos,
		"levee.yaml:16:9":  l.Routes[1].Pos,
		"front.yaml:7:3":   u.Pos,
		"front.yaml:8:13":  u.Servers[0].Pos,
		"front.yaml:8:18":  u.Servers[1].Pos,
		"front.yaml:9:8":   u.TLS.Pos,
		"front.yaml:10:11": u.Health.Pos,
		"front.yaml:11:12": u.Breaker.Pos,
		"front.yaml:12:9":  u.Dial.Pos,
	} {
		if got.String() != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestAProbeIsWhatItsSettingsSay(t *testing.T) {
	for health, want := range map[string]string{
		"{}":                                ProbeConnect,
		`{send: "PING\r\n"}`:                ProbeSendExpect,
		`{expect: "220 "}`:                  ProbeSendExpect,
		`{probe: send_expect, expect: "+"}`: ProbeSendExpect,
		"{probe: redis, password: x}":       ProbeRedis,
		"{probe: http, host: a.example}":    ProbeHTTP,
		`{probe: http, host: "[::1]:80", path: "/a?b=c"}`: ProbeHTTP,
		"{probe: postgres, user: a, database: b}":         ProbePostgres,
		"{probe: mysql, user: a}":                         ProbeMySQL,
	} {
		cfg, err := Parse("levee.yaml", []byte(behind("health: "+health)))
		if err != nil {
			t.Error(err)
		} else if got := cfg.Upstreams[0].Health.Probe; got != want {
			t.Errorf("%s: probe %s, want %s", health, got, want)
		}
	}
}

// Their addresses may change without the file, so all of these must at least be thinkable.
func TestServersThatOnlyLookLikeOnesOwnAreFine(t *testing.T) {
	doc := strings.Replace(front("db", `servers: [127.0.0.1:81, 127.0.0.2:80, 10.0.0.1:80, db.example.com:80, localhost:83, "dns+srv://localhost", "unix:/a"]`),
		`["127.0.0.1:8080"]`, `["127.0.0.1:80", "[::1]:82", "127.0.0.2:83", ":84", "127.0.0.1:0"]`+"\n  insecure: true", 1)
	if _, err := Parse("levee.yaml", []byte(doc)); err != nil {
		t.Error(err)
	}
}

func TestCheckJudgesWhatAFlagChanged(t *testing.T) {
	cfg, err := Parse("levee.yaml", []byte(frame(loopback)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listeners[0].Listen = []Address{tcp(":8080")}
	want := `config: listeners[0].listen[0]: ":8080" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`
	if err := cfg.Check(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTheDefaultSpeaksThreeProtocolsOnOneLoopbackPort(t *testing.T) {
	got, err := Parse("default.yaml", DefaultYAML())
	if err != nil {
		t.Fatal(err)
	}
	want := accepted[0].want // every value that the file spells out must be the true default
	want.Listeners = []Listener{{
		Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOptional, Development: true},
		Timeouts: fixedTimeouts, Limits: fixedLimits,
		Routes: []Route{
			{Match: Match{Protocol: []Protocol{ProtocolHTTP}}, Handler: HandlerHello, Limits: routeLimits},
			{Handler: HandlerEcho, Limits: routeLimits},
		},
	}}
	if diff := cmp.Diff(&want, got, sameConfig); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
	DefaultYAML()[0] = 'x'
	if DefaultYAML()[0] == 'x' {
		t.Error("DefaultYAML gives its own bytes away")
	}
}

// The default file is the reference, so its commented examples must work, and no key may be missing.
func TestTheExamplesInTheDefaultWork(t *testing.T) {
	text := regexp.MustCompile(`(?m)^( *)#(- |[a-z_]+:)`).ReplaceAllString(string(DefaultYAML()), "$1$2")
	got, err := Parse("default.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if len(got.Listeners) != 5 || len(got.Upstreams) != 2 || len(got.Listeners[1].ProxyProtocol.From) == 0 || !filepath.IsAbs(got.Listeners[1].TLS.Certificates[0].Key) {
		t.Errorf("the examples say:\n%s", got.YAML())
	}
	for path := range schemaKeys(t) {
		if name := lastKey(path); !regexp.MustCompile(`(?m)(^|[ {-])` + name + `:`).MatchString(text) {
			t.Errorf("%s does not stand in default.yaml", path)
		}
	}
}
