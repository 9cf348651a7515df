package config

import (
	"math/big"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// limited puts a listener's limits into an otherwise good document; they are on line 5.
func limited(limits string) string { return frame(loopback + "\nlimits: {" + limits + "}") }

// limitedRoute puts limits of a listener and of a route into an otherwise good document, on lines 5 and 6.
func limitedRoute(listener, route string) string {
	return "version: 1\nlisteners:\n- name: main\n  " + loopback + "\n  limits: {" + listener + "}\n  routes: [{handler: echo, limits: {" + route + "}}]\n"
}

// withTLS is a document with a listener that ends TLS; keys of it are on line 6.
func withTLS(keys string) string {
	return frame(loopback + "\ntls: {development: true}\n" + keys)
}

var rejectedLimits = []rejection{
	// Rates.
	{"a rate without a unit", limited("rate: 50"), true, `levee.yaml:5:18: listeners[0].limits.rate: must be a rate such as 50/s, 600/m or 10/h, or off, not 50`},
	{"a rate in quotes without a unit", limited(`rate: "50"`), true, `levee.yaml:5:18: listeners[0].limits.rate: "50" has no unit; write 50/s if you mean per second`},
	{"a rate of nothing", limited("rate: 0/s"), true, `levee.yaml:5:18: listeners[0].limits.rate: "0/s" would let nobody in; say off for any rate`},
	{"a negative rate", limited("rate: -5/s"), true, `levee.yaml:5:18: listeners[0].limits.rate: must not be negative; say off for any rate`},
	{"a rate per day", limited("rate: 5/d"), true, `levee.yaml:5:18: listeners[0].limits.rate: "5/d" is not a rate; write a whole number and a unit, such as 50/s, 600/m or 10/h`},
	{"a fraction of a rate", limited("rate: 0.5/s"), true, `levee.yaml:5:18: listeners[0].limits.rate: "0.5/s" is not a rate; write a whole number and a unit, such as 50/s, 600/m or 10/h`},
	{"a rate beyond every integer", limited("rate: 99999999999999999999/s"), false, `levee.yaml:5:18: listeners[0].limits.rate: "99999999999999999999/s" is too much; the most is 10000000; say off for any rate`},
	{"a burst of nothing", limited("rate: 50/s, burst: 0"), true, `levee.yaml:5:31: listeners[0].limits.burst: must be a whole number from 1 to 10000000, not 0`},
	{"a burst of nothing for a client", limited("per_client: {burst: 0}"), true, `levee.yaml:5:32: listeners[0].limits.per_client.burst: must be a whole number from 1 to 10000000, not 0`},
	{"a burst of no rate", limited("burst: 5, handshake_burst: 7"), false, `levee.yaml:5:11: listeners[0].limits: has burst without the rate that it is for; add rate: 50/s, or remove it
levee.yaml:5:11: listeners[0].limits: has handshake_burst without the rate that it is for; add handshake_rate: 50/s, or remove it`},
	{"a client's burst of no rate", limited("per_client: {rate: off, burst: 5}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: has burst without the rate that it is for; add rate: 50/s, or remove it`},
	{"a burst of all listeners", "limits: {burst: 5}\n" + frame(loopback), false, `levee.yaml:1:9: limits: has burst without the rate that it is for; add rate: 50/s, or remove it`},

	// Bandwidth.
	{"bandwidth without a unit", limited("bandwidth: {up: 10, down: '10'}"), true, `levee.yaml:5:28: listeners[0].limits.bandwidth.up: must be bytes a second such as 10MB/s or 512KiB/s, or off, not 10
levee.yaml:5:38: listeners[0].limits.bandwidth.down: "10" has no unit; write 10MB/s if you mean megabytes`},
	{"bandwidth in bits", limited("bandwidth: {up: 10Mbit/s, down: 10Mb/s}"), true, `levee.yaml:5:28: listeners[0].limits.bandwidth.up: "10Mbit/s" counts bits; write bytes, of which each has eight, such as 10MB/s
levee.yaml:5:44: listeners[0].limits.bandwidth.down: "10Mb/s" counts bits; write bytes, of which each has eight, such as 10MB/s`},
	{"bandwidth that is no rate", limited("bandwidth: {up: 10MB, down: 10TB/s}"), true, `levee.yaml:5:28: listeners[0].limits.bandwidth.up: "10MB" is no rate; write 10MB/s
levee.yaml:5:40: listeners[0].limits.bandwidth.down: "10TB/s" is not an amount of bytes a second; write one such as 512KiB/s or 10MB/s`},
	{"bandwidth of a few bytes", limited("connection_bandwidth: {up: 10B/s, down: -1MB/s}"), false, `levee.yaml:5:39: listeners[0].limits.connection_bandwidth.up: "10B/s" is too little; the least is 1kB/s
levee.yaml:5:52: listeners[0].limits.connection_bandwidth.down: must not be negative; say off for any amount`},
	{"bandwidth beyond every integer", limited("bandwidth: {up: 99999999999999999999GB/s, down: 1001GB/s}"), false, `levee.yaml:5:28: listeners[0].limits.bandwidth.up: "99999999999999999999GB/s" is too much; the most is 1000GB/s; say off for any amount
levee.yaml:5:60: listeners[0].limits.bandwidth.down: "1001GB/s" is too much; the most is 1000GB/s; say off for any amount`},
	{"a direction that is none", limited("bandwidth: {in: 1MB/s}"), true, `levee.yaml:5:24: listeners[0].limits.bandwidth: unknown key "in"; the keys here are up and down`},

	// What one scope says beside another.
	{
		"more for a client than for all", limited("max_connections: 100, rate: 10/s, per_client: {connections: 101, rate: 601/m}"), false,
		`levee.yaml:5:58: listeners[0].limits.per_client: connections (101) is more than the listener's max_connections (100); change one of them
levee.yaml:5:58: listeners[0].limits.per_client: rate (601/m) is more than the listener's rate (10/s); change one of them`,
	},
	{
		"more handshakes for a client than for all", withTLS("limits: {handshake_rate: 5/s, per_client: {handshake_rate: 6/s}}"), false,
		`levee.yaml:6:45: listeners[0].limits.per_client: handshake_rate (6/s) is more than the listener's handshake_rate (5/s); change one of them`,
	},
	{
		"more bandwidth for a client than for all", limited("bandwidth: {up: 1MB/s}, connection_bandwidth: {up: 2MB/s, down: 9GB/s}, per_client: {bandwidth: {up: 1MiB/s}}"), false,
		`levee.yaml:5:58: listeners[0].limits.connection_bandwidth: up (2MB/s) is more than that of bandwidth, of all connections together (1MB/s); change one of them
levee.yaml:5:108: listeners[0].limits.per_client.bandwidth: up (1MiB/s) is more than that of the listener's bandwidth (1MB/s); change one of them`,
	},
	{
		"more for a listener than for all", "limits: {max_connections: 10, rate: 10/s}\n" + limited("max_connections: 11, rate: 11/s"), false,
		`levee.yaml:6:11: listeners[0].limits: max_connections (11) is more than limits.max_connections, of all listeners together (10); change one of them
levee.yaml:6:11: listeners[0].limits: rate (11/s) is more than limits.rate, of all listeners together (10/s); change one of them`,
	},
	{"more that arrive than there are", limited("max_connections: 10, arriving: 11"), false, `levee.yaml:5:11: listeners[0].limits: arriving (11) is more than max_connections (10); change one of them`},
	{
		"more for a route than for its listener", limitedRoute("max_connections: 10, rate: 10/s", "max_connections: 11, rate: 11/s"), false,
		`levee.yaml:6:36: listeners[0].routes[0].limits: max_connections (11) is more than the listener's (10); change one of them
levee.yaml:6:36: listeners[0].routes[0].limits: rate (11/s) is more than the listener's (10/s); change one of them`,
	},
	{
		"more for a route's client than for the route", limitedRoute("", "max_connections: 10, rate: 10/s, per_client: {connections: 11, rate: 11/s}"), false,
		`levee.yaml:6:82: listeners[0].routes[0].limits.per_client: connections (11) is more than the route's max_connections (10); change one of them
levee.yaml:6:82: listeners[0].routes[0].limits.per_client: rate (11/s) is more than the route's rate (10/s); change one of them`,
	},
	{
		"more for a route's client than for the listener's", limitedRoute("per_client: {mode: enforce, connections: 5}", "per_client: {connections: 6, rate: 51/s}"), false,
		`levee.yaml:6:49: listeners[0].routes[0].limits.per_client: connections (6) is more than what the listener gives a client (5); change one of them
levee.yaml:6:49: listeners[0].routes[0].limits.per_client: rate (51/s) is more than what the listener gives a client (50/s); change one of them`,
	},
	{
		"limits of a route that refuses", strings.Replace(limitedRoute("", "rate: 5/s"), "handler: echo", "refuse: true", 1), false,
		`levee.yaml:6:35: listeners[0].routes[0].limits: the route refuses every connection, and so has nothing to limit; remove one of them`,
	},
	{
		"handshakes of a route", strings.Replace(limitedRoute("", "per_client: {handshake_rate: 5/s}"), "limits: {}", "tls: {development: true}", 1), false,
		`levee.yaml:6:49: listeners[0].routes[0].limits.per_client: has handshake_rate, yet a handshake begins before the route is known; set it in the listener's limits.per_client`,
	},

	// Limits that are off, and yet say something.
	{"a mode of no meaning", limited("mode: dry, per_client: {mode: on}"), true, `levee.yaml:5:18: listeners[0].limits.mode: unknown mode "dry"; it takes enforce, shadow or off
levee.yaml:5:42: listeners[0].limits.per_client.mode: unknown mode "on"; it takes enforce, shadow or off`},
	{"a rate that is off", limited("mode: off, rate: 5/s"), false, `levee.yaml:5:11: listeners[0].limits: mode is off, yet there is rate; set mode: shadow or enforce, or remove it`},
	{"a client's limit that is off", limited("per_client: {mode: off, connections: 5}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: mode is off, yet there is connections; set mode: shadow or enforce, or remove it`},
	{"a client's key that is off", limited("per_client: {mode: off, by: sni}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: mode is off, yet there is by; set mode: shadow or enforce, or remove it`},
	{"a client's bandwidth that is off", limited("per_client: {mode: off, bandwidth: {up: 1MB/s}}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: mode is off, yet there is bandwidth; set mode: shadow or enforce, or remove it`},
	{"a route's limit that is off", limitedRoute("", "mode: off, max_connections: 5"), false, `levee.yaml:6:36: listeners[0].routes[0].limits: mode is off, yet there is max_connections; set mode: shadow or enforce, or remove it`},
	{"a rate of all that is off", "limits: {mode: off, rate: 5/s}\n" + frame(loopback), false, `levee.yaml:1:9: limits: mode is off, yet there is rate; set mode: shadow or enforce, or remove it`},
	{"a listener's shadow of nothing", limited("mode: shadow, max_connections: 5, per_client: {mode: enforce}"), false, `levee.yaml:5:11: listeners[0].limits: mode is shadow, yet there is no rate, handshake_rate or bandwidth that it is for; max_connections is enforced in any case`},
	{"a route's shadow of nothing", limitedRoute("", "mode: shadow, per_client: {}"), false, `levee.yaml:6:36: listeners[0].routes[0].limits: mode is shadow, yet there is no max_connections or rate that it is for; per_client has a mode of its own`},
	{"a shadow of nothing", "limits: {mode: shadow, rate: off}\n" + frame(loopback), false, `levee.yaml:1:9: limits: mode is shadow, yet there is no max_connections or rate that it is for; bans have a mode of their own, and so has each per_client`},
	{"bans that are off", "limits: {bans: {mode: off, for: 1m}}\n" + frame(loopback), false, `levee.yaml:1:16: limits.bans: mode is off, yet there is for; set mode: shadow or enforce, or remove it`},
	{"a first ban longer than any", "limits: {bans: {for: 2h, max: 1h}}\n" + frame(loopback), false, `levee.yaml:1:16: limits.bans: for (2h) is longer than max (1h); change one of them`},
	{"refusals within no time", "limits: {bans: {within: 0s, refusals: 0}}\n" + frame(loopback), true, `levee.yaml:1:25: limits.bans.within: must be more than 0
levee.yaml:1:39: limits.bans.refusals: must be a whole number from 1 to 1000000, not 0`},

	// What is not there.
	{"sharing by no redis", limited("per_client: {shared: true}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: has shared: true, yet there is no redis to share it by; add redis: {address: …}, or remove it`},
	{"identity without certificates", withTLS("limits: {per_client: {by: identity}}"), false, `levee.yaml:6:24: listeners[0].limits.per_client: by: identity needs clients' certificates, yet there is no client_ca; add that to tls, or say by: address`},
	{"a server name without TLS", limited("per_client: {by: sni}"), false, `levee.yaml:5:24: listeners[0].limits.per_client: by: sni needs TLS that ends here, and there is none; set tls.mode: terminate, or say by: address`},
	{"a server name that passes through", frame(loopback + "\ntls: {mode: passthrough}\nlimits: {per_client: {by: sni}}"), false, `levee.yaml:6:24: listeners[0].limits.per_client: by: sni needs TLS that ends here, and there is none; set tls.mode: terminate, or say by: address`},
	{"handshakes by what they tell", withTLS("limits: {per_client: {by: sni, handshake_rate: 5/s}}"), false, `levee.yaml:6:24: listeners[0].limits.per_client: has handshake_rate, yet who a client is by: sni is known only after the handshake; say by: address, or remove it`},
	{"handshakes without TLS", limited("handshake_rate: 5/s, per_client: {handshake_rate: 5/s}"), false, `levee.yaml:5:11: listeners[0].limits: has handshake_rate, yet no TLS ends at this listener; remove it, or set tls.mode: terminate
levee.yaml:5:45: listeners[0].limits.per_client: has handshake_rate, yet no TLS ends here; remove it, or set tls.mode: terminate`},

	// Lists.
	{"a source twice", limited("allow: [10.0.0.0/8, 192.0.2.1/32], deny: [192.0.2.1, 'file:a', 'file:a']"), false, `levee.yaml:5:54: listeners[0].limits.deny[0]: "192.0.2.1/32" is allow[1] already; remove one of them
levee.yaml:5:75: listeners[0].limits.deny[2]: "file:a" is deny[1] already; remove one of them`},
	{"a source that is none", "limits: {deny: [10.0.0.1/8, example.com, lists/deny.txt, 'file:', 'file://deny.txt', 'file:/etc/', 7]}\n" + frame(loopback), true, `levee.yaml:1:17: limits.deny[0]: "10.0.0.1/8" has bits set beyond its length; write 10.0.0.0/8
levee.yaml:1:29: limits.deny[1]: "example.com" is not a prefix; if it is a list in a file, write "file:example.com"
levee.yaml:1:42: limits.deny[2]: "lists/deny.txt" is not a prefix; if it is a list in a file, write "file:lists/deny.txt"
levee.yaml:1:58: limits.deny[3]: "file:" names no file; write one such as file:deny.txt
levee.yaml:1:67: limits.deny[4]: "file://deny.txt": after file:// the path must be absolute, such as file:///etc/levee/deny.txt; a relative one is written "file:deny.txt"
levee.yaml:1:86: limits.deny[5]: "file:/etc/" names a folder, not a list
levee.yaml:1:100: limits.deny[6]: must be a prefix such as 10.0.0.0/8, or a list such as file:deny.txt, not 7`},

	{"words of limits", "limits: {refuse: tarpit}\noverload: {mode: auto, memory_limit: on, accept_delay: 11s}\n" + frame(loopback), true, `levee.yaml:1:18: limits.refuse: unknown refuse "tarpit"; it takes reset, close or slow
levee.yaml:2:18: overload.mode: unknown mode "auto"; it takes on or off
levee.yaml:2:38: overload.memory_limit: unknown memory_limit "on"; it takes auto or off
levee.yaml:2:56: overload.accept_delay: "11s" is too long; the most is 10s`},
	{"overload that is off", "overload: {mode: off, accept_delay: 1s}\n" + frame(loopback), false, `levee.yaml:1:11: overload: mode is off, yet there is accept_delay; set mode: on, or remove it`},
	{"too few clients", "limits: {clients: 0}\n" + frame(loopback), true, `levee.yaml:1:19: limits.clients: must be a whole number from 1024 to 16777216, not 0`},
}

// acceptedLimits are limits of a listener and of its route, and what they mean.
var acceptedLimits = []struct {
	name, listener, route string
	want                  func(*Limits, *RouteLimits)
}{
	{"what the design shows", "max_connections: 0, per_client: {connections: 256, rate: 50/s, burst: 100, mode: shadow}, bandwidth: {}", "", func(*Limits, *RouteLimits) {}},
	{
		"everything", `max_connections: 1000, arriving: off, handshakes: off, mode: shadow, rate: 1000/s, burst: 10, ` +
			`bandwidth: {up: 10MB/s, down: 1GB/s}, connection_bandwidth: {up: 512KiB/s, down: "1.5MB/s"}, ` +
			`per_client: {mode: enforce, by: address, connections: off, rate: 600/m, bandwidth: {down: 1500B/s}, shared: false}, ` +
			`allow: 10.0.0.0/8, deny: ["2001:db8::1", "file:///etc/deny"]`,
		"max_connections: 7, mode: shadow, rate: 10/h, per_client: {mode: enforce, connections: 3, burst: 5, rate: 2/h}",
		func(l *Limits, r *RouteLimits) {
			l.MaxConnections, l.Arriving, l.Handshakes, l.Mode, l.Rate, l.Burst = 1000, -1, -1, LimitShadow, Rate{1000, time.Second}, 10
			l.Bandwidth = Bandwidth{Up: 10_000_000, Down: 1_000_000_000}
			l.ConnectionBandwidth = Bandwidth{Up: 512 << 10, Down: 1_500_000}
			l.PerClient.Mode, l.PerClient.Connections, l.PerClient.Rate, l.PerClient.Burst = LimitEnforce, -1, Rate{600, time.Minute}, 600
			l.PerClient.Bandwidth.Down = 1500
			l.Allow = []Source{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}
			l.Deny = []Source{{Prefix: netip.MustParsePrefix("2001:db8::1/128")}, {File: "/etc/deny"}}
			r.MaxConnections, r.Mode, r.Rate, r.Burst = 7, LimitShadow, Rate{10, time.Hour}, 10
			r.PerClient = PerClient{
				Mode: LimitEnforce, By: ByAddress, Connections: 3, Rate: Rate{2, time.Hour}, Burst: 5,
				HandshakeRate: NoRate, Shared: new(false),
			}
		},
	},
	{"all that is off", "mode: off, rate: off, per_client: {mode: off}", "mode: off", func(l *Limits, r *RouteLimits) {
		l.Mode, l.HandshakeRate, l.PerClient = LimitOff, Rate{}, PerClient{Mode: LimitOff}
		r.Mode, r.Rate = LimitOff, Rate{}
	}},
	{"defaults that give way", "max_connections: 100, rate: 20/s", "", func(l *Limits, _ *RouteLimits) {
		l.MaxConnections, l.Rate, l.Burst = 100, Rate{20, time.Second}, 40
		l.PerClient.Connections, l.PerClient.Rate, l.PerClient.Burst = 100, Rate{20, time.Second}, 40
	}},
}

func TestLimitsMeanWhatTheySay(t *testing.T) {
	schema := schemaValidator(t)
	for _, c := range acceptedLimits {
		t.Run(c.name, func(t *testing.T) {
			doc := limitedRoute(c.listener, c.route)
			wantL, wantR := fixedLimits, routeLimits
			c.want(&wantL, &wantR)
			got := readBack(t, doc).Listeners[0]
			if diff := cmp.Diff(wantL, got.Limits, sameConfig); diff != "" {
				t.Errorf("the listener's: want -, got +:\n%s", diff)
			}
			if diff := cmp.Diff(wantR, got.Routes[0].Limits, sameConfig); diff != "" {
				t.Errorf("the route's: want -, got +:\n%s", diff)
			}
			if err := validate(t, schema, doc); err != nil {
				t.Errorf("the schema: %v", err)
			}
		})
	}
}

func TestLimitsAreSharedWhereThereIsRedis(t *testing.T) {
	const redis = "redis: {address: 10.0.0.5:6379}\n"
	for limits, want := range map[string]bool{"": true, "per_client: {shared: false}": false, "per_client: {shared: true}": true} {
		cfg := readBack(t, redis+limited(limits))
		if got := cfg.Listeners[0].Limits.PerClient.Shared; got == nil || *got != want {
			t.Errorf("%q: %v, want %t", limits, got, want)
		}
	}
}

func TestLimitsByWhatTLSTells(t *testing.T) {
	for _, doc := range []string{
		withTLS("limits: {handshake_rate: 5/s, per_client: {by: sni}}"),
		frame(loopback + "\ntls: {development: true, client_ca: a.pem}\nlimits: {per_client: {by: identity}}"),
		listenerWith("tls: {mode: passthrough}\n  limits: {per_client: {by: sni}}", "{match: {sni: a.example}, tls: {development: true}, handler: echo}, {handler: echo}"),
	} {
		readBack(t, doc)
	}
}

func TestListsOfSourcesAreFoundBesideTheFile(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "levee.yaml")
	write(t, path, "limits: {allow: 'file:///etc/a', deny: ['file:lists/b', 192.0.2.1]}\n"+limited("allow: 'file:c', deny: 'file:/d'"))
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	own := cfg.Listeners[0].Limits
	for want, got := range map[string]string{
		"/etc/a": cfg.Limits.Allow[0].File, filepath.Join(folder, "lists/b"): cfg.Limits.Deny[0].File, "": cfg.Limits.Deny[1].File,
		filepath.Join(folder, "c"): own.Allow[0].File, "/d": own.Deny[0].File,
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if want := path + ":1:57"; cfg.Limits.Deny[1].Pos.String() != want {
		t.Errorf("position %s, want %s", cfg.Limits.Deny[1].Pos, want)
	}
}

func TestByteRatesReadBackAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := ByteRate(rapid.Int64Range(minByteRate, maxByteRate).Draw(t, "rate"))
		if got, err := parseByteRate(want.String()); got != want {
			t.Fatalf("%d was written %s and read as %d: %v", want, want, got, err)
		}
	})
}

// FuzzParseByteRate holds an amount to arithmetic of another kind, and to the schema.
func FuzzParseByteRate(f *testing.F) {
	for _, text := range []string{"10MB/s", "512KiB/s", "1.5GiB/s", "1kB/s", "1KB/s", "1000B/s", "off", "0.0000000001GB/s", "1e3B/s", ".5MB/s", "10Mbit/s", "01MB/s", "10 MB/s"} {
		f.Add(text)
	}
	pattern := regexp.MustCompile(`^(off|[0-9]+(\.[0-9]+)?([kKMG]i?)?B/s)$`)
	sizes := map[string]float64{"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseByteRate(text)
		if err != nil {
			checkLine(t, err)
			return
		}
		if !pattern.MatchString(text) || !pattern.MatchString(got.String()) {
			t.Errorf("the schema rejects %q or %q", text, got)
		}
		if again, err := parseByteRate(got.String()); err != nil || again != got {
			t.Errorf("%q is %d, which is written %q and read as %d: %v", text, got, got, again, err)
		}
		if text == "off" {
			return
		}
		parts := regexp.MustCompile(`^([0-9.]+)([A-Za-z]+)/s$`).FindStringSubmatch(text)
		amount, _, err := big.ParseFloat(parts[1], 10, 200, big.ToZero)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		want, _ := amount.Mul(amount, big.NewFloat(sizes[parts[2]])).Float64()
		if diff := float64(got) - want; diff > 1e-3 || diff < -1.001 || got < minByteRate || got > maxByteRate {
			t.Errorf("%q is %d, want %f", text, got, want)
		}
	})
}

// FuzzParseRate holds a rate to its promises.
func FuzzParseRate(f *testing.F) {
	for _, text := range []string{"50/s", "600/m", "10/h", "off", "0/s", "-1/s", "5", "5/d", "007/s", "10000000/s", "10000001/s", "1/s/s"} {
		f.Add(text)
	}
	pattern := regexp.MustCompile(`^(off|[1-9][0-9]*/[smh])$`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseRate(text)
		if err != nil {
			checkLine(t, err)
			return
		}
		if got.String() != text || !pattern.MatchString(text) {
			t.Errorf("%q is written %q", text, got)
		}
		if !got.Off() && (got.PerSecond() <= 0 || got.PerSecond() > maxRate || got.burst() < 1) {
			t.Errorf("%q is %f a second, %d at once", text, got.PerSecond(), got.burst())
		}
	})
}

func checkLine(t *testing.T, err error) {
	t.Helper()
	if strings.ContainsFunc(err.Error(), func(c rune) bool { return !unicode.IsPrint(c) }) || len(err.Error()) > 600 {
		t.Errorf("not a printable line: %q", err)
	}
}
