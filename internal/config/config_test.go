package config

import (
	"log/slog"
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
	cmpopts.EquateComparable(netip.Prefix{}),
}

var fixedTimeouts = Timeouts{
	Arrival: 10 * time.Second, ProxyHeader: 5 * time.Second, Sniff: 5 * time.Second, Idle: 5 * time.Minute,
	HalfClosed: time.Minute, WriteStall: 30 * time.Second, Lifetime: Off,
}

func tcp(address string) Address { return Address{Network: "tcp", Address: address} }

// accepted holds good documents and what they mean.
var accepted = []struct {
	name, doc string
	want      Config
}{
	{
		"only what is required", frame(loopback),
		Config{
			Version:   1,
			Admin:     Admin{Listen: tcp("127.0.0.1:9180")},
			Drain:     Drain{Timeout: 25 * time.Second},
			Telemetry: Telemetry{Logs{LogAuto, slog.LevelInfo}},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
	{
		"everything", `version: 1
admin: {listen: "unix:/run/levee/admin.sock"}
drain: {timeout: 1m30s, pre_stop: 5s}
telemetry: {logs: {format: json, level: error}}
listeners:
  - name: public
    listen: [":5432", "[::1]:0"]
    proxy_protocol: {from: [10.0.0.0/8, 192.0.2.1, "::ffff:192.0.2.2", "2001:db8::/32", "::1"]}
    tls:
      certificates: [{cert: /tls/a.pem, key: /tls/a-key.pem}, {cert: /tls/b.pem, key: /tls/b-key.pem}]
    limits: {max_connections: 1000}
    timeouts: {arrival: 1s, proxy_header: 1.5s, sniff: 250ms, idle: 720h, half_closed: off, write_stall: "off", lifetime: 24h}
    routes:
      - {match: {protocol: http}, handler: hello}
      - match: {protocol: "tls"}
        handler: discard
      - {handler: echo}
  - name: "2"
    listen: [localhost:0]
    insecure: true
    tls: {mode: off}
    routes: [{handler: discard}]
`,
		Config{
			Version:   1,
			Admin:     Admin{Listen: Address{Network: "unix", Address: "/run/levee/admin.sock"}},
			Drain:     Drain{90 * time.Second, 5 * time.Second},
			Telemetry: Telemetry{Logs{LogJSON, slog.LevelError}},
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
						HalfClosed: Off, WriteStall: Off, Lifetime: 24 * time.Hour,
					},
					Routes: []Route{
						{Match: Match{ProtocolHTTP}, Handler: HandlerHello},
						{Match: Match{ProtocolTLS}, Handler: HandlerDiscard},
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
			Version: 1, Drain: Drain{Timeout: 25 * time.Second}, Telemetry: Telemetry{Logs{LogAuto, slog.LevelInfo}},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOptional, Development: true},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
	{
		"JSON", `{"version": 1, "listeners": [{"name": "main", "listen": ["127.0.0.1:8080"], "routes": [{"handler": "echo"}]}]}`,
		Config{
			Version: 1, Admin: Admin{Listen: tcp("127.0.0.1:9180")}, Drain: Drain{Timeout: 25 * time.Second}, Telemetry: Telemetry{Logs{LogAuto, slog.LevelInfo}},
			Listeners: []Listener{{
				Name: "main", Listen: []Address{tcp("127.0.0.1:8080")}, TLS: TLS{Mode: TLSOff},
				Timeouts: fixedTimeouts, Routes: []Route{{Handler: HandlerEcho}},
			}},
		},
	},
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

func TestValuesKnowWhereTheyStand(t *testing.T) {
	cfg, err := Parse("levee.yaml", []byte(accepted[1].doc))
	if err != nil {
		t.Fatal(err)
	}
	l := cfg.Listeners[0]
	for want, got := range map[string]Position{
		"levee.yaml:2:17":  cfg.Admin.Listen.Pos,
		"levee.yaml:6:5":   l.Pos,
		"levee.yaml:7:23":  l.Listen[1].Pos,
		"levee.yaml:10:7":  l.TLS.Pos,
		"levee.yaml:10:63": l.TLS.Certificates[1].Pos,
		"levee.yaml:15:9":  l.Routes[1].Pos,
	} {
		if got.String() != want {
			t.Errorf("got %s, want %s", got, want)
		}
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
		Timeouts: fixedTimeouts,
		Routes:   []Route{{Match: Match{ProtocolHTTP}, Handler: HandlerHello}, {Handler: HandlerEcho}},
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
	if len(got.Listeners) != 2 || len(got.Listeners[1].ProxyProtocol.From) == 0 || !filepath.IsAbs(got.Listeners[1].TLS.Certificates[0].Key) {
		t.Errorf("the examples say:\n%s", got.YAML())
	}
	for path := range schemaKeys(t) {
		if name := lastKey(path); !regexp.MustCompile(`(?m)(^|[ {-])` + name + `:`).MatchString(text) {
			t.Errorf("%s does not stand in default.yaml", path)
		}
	}
}
