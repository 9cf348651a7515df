package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const ended = "tls: {development: true, alpn: [h2, http/1.1], client_ca: ca.pem}"

// rejectedRoutes holds documents with routes that no connection can come to, or that go nowhere.
var rejectedRoutes = []rejection{
	{"a route by name in plaintext", routes("{match: {sni: a.example.com}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:27: listeners[0].routes[0].match: sni is what TLS clients ask for, yet the listener's tls.mode is off; set that to terminate, optional or passthrough`},
	{"a route by pattern in plaintext", routes("{match: {sni_regexp: a}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:27: listeners[0].routes[0].match: sni_regexp is what TLS clients ask for, yet the listener's tls.mode is off; set that to terminate, optional or passthrough`},
	{"a route by ALPN in plaintext", routes("{match: {alpn: h2}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:27: listeners[0].routes[0].match: alpn is what TLS clients ask for, yet the listener's tls.mode is off; set that to terminate, optional or passthrough`},
	{"a route by client in plaintext", routes("{match: {client: a}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:36: listeners[0].routes[0].match.client: without client_ca, no client shows a certificate; add that to tls`},
	{"TLS of a route in plaintext", routes("{match: {protocol: tls}, tls: passthrough, handler: echo}, {handler: echo}"), false, `levee.yaml:5:49: listeners[0].routes[0].tls: the listener's tls.mode is off, so no TLS is looked at; set that to terminate, optional or passthrough, or remove this`},
	{"a route by client without authorities", listenerWith("tls: {development: true}", "{match: {client: a}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:36: listeners[0].routes[0].match.client: without client_ca, no client shows a certificate; add that to tls`},
	{"a route by client that passes through", listenerWith(ended, "{match: {client: [a, b]}, tls: passthrough, handler: echo}, {handler: echo}"), false, `levee.yaml:6:37: listeners[0].routes[0].match.client: tls passthrough never sees the client's certificate; let TLS end here, or remove this`},
	{"a protocol that passes through", listenerWith("tls: {mode: passthrough}", "{match: {protocol: [http, ssh]}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:27: listeners[0].routes[0].match.protocol: tls passthrough never sees what TLS carries, such as http; let TLS end here, or remove this`},
	{"bytes that pass through", listenerWith("tls: {mode: passthrough}", "{match: {prefix: [\"hex:1603\", \"SSH-\"]}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:49: listeners[0].routes[0].match.prefix[1]: tls passthrough never sees what TLS carries; let TLS end here, or remove this`},
	{"an ALPN that is never agreed on", listenerWith(ended, "{match: {alpn: [h2, http/1.0, h3, mqtt]}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:39: listeners[0].routes[0].match.alpn[1]: "http/1.0" is never agreed on; did you mean "http/1.1", of tls.alpn?
levee.yaml:6:49: listeners[0].routes[0].match.alpn[2]: "h3" is never agreed on; did you mean "h2", of tls.alpn?
levee.yaml:6:53: listeners[0].routes[0].match.alpn[3]: "mqtt" is never agreed on; tls.alpn has "h2", "http/1.1"`},
	{"an ALPN where there is none", listenerWith("tls: {development: true}", "{match: {alpn: h2}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:34: listeners[0].routes[0].match.alpn[0]: "h2" is never agreed on, as tls has no alpn; add alpn: [h2] there`},
	{"a port that is not the listener's", routes("{match: {local_port: [8080, 8081]}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:27: listeners[0].routes[0].match.local_port[1]: the listener has no port 8081`},
	{"a route's name twice", routes("{name: a, match: {protocol: http}, handler: hello}, {name: a, handler: echo}"), false, `levee.yaml:5:71: listeners[0].routes[1].name: "a" is the name of routes[0] already; names are unique`},
	{"a route's TLS without a certificate", listenerWith("tls: {mode: passthrough}", "{match: {sni: a}, tls: {alpn: h2}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:42: listeners[0].routes[0].tls: needs a certificate, and the listener has none either; add certificates: [{cert: a.pem, key: a-key.pem}], or development: true`},
	{"a route's passthrough with settings", listenerWith(ended, "{match: {sni: a}, tls: {mode: passthrough, alpn: h2}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:42: listeners[0].routes[0].tls: mode is passthrough, yet there is alpn; remove it, or set mode: terminate`},
	{"a route's TLS of a word", listenerWith(ended, "{match: {sni: a}, tls: pasthrough, handler: echo}, {match: {sni: b}, tls: terminate, handler: echo}, {tls: [], handler: echo}"), true, `levee.yaml:6:42: listeners[0].routes[0].tls: unknown tls "pasthrough"; did you mean "passthrough"?
levee.yaml:6:93: listeners[0].routes[1].tls: unknown tls "terminate"; it takes passthrough
levee.yaml:6:126: listeners[0].routes[2].tls: must be passthrough, or a mapping with mode, certificates, development, acme, alpn, client_ca, client_crl, client_optional, client_allow and tickets, not a list`},
	{"a route's TLS of nothing", listenerWith(ended, "{match: {sni: a}, tls: {}, handler: echo}, {handler: echo}"), true, `levee.yaml:6:42: listeners[0].routes[0].tls: is empty; remove it, or give it mode, certificates, development, acme, alpn, client_ca, client_crl, client_optional, client_allow and tickets`},
	{"a route that refuses and serves", routes("{match: {protocol: http}, handler: hello, refuse: true}, {handler: echo}"), false, `levee.yaml:5:19: listeners[0].routes[0]: refuses, and yet leads somewhere; keep one of them`},
	{"a route that does not refuse", routes("{match: {protocol: http}, refuse: false}, {handler: echo}"), false, `levee.yaml:5:19: listeners[0].routes[0]: leads nowhere; add a handler such as echo, the name of an upstream, or refuse: true`},
	{"matches that are none", listenerWith(ended, "{match: {sni: [\"*.*.example.com\", \"a..b\"], sni_regexp: \"a(\", alpn: \"\", prefix: [\"hex:0\", \"hex:\", \"\"], source: 10.0.0.1/8, local_port: [0, x], client: \"\", protocol: [htpp, smtp]}, handler: echo}, {handler: echo}"), true, `levee.yaml:6:34: listeners[0].routes[0].match.sni[0]: "*.*.example.com" is neither a name nor a pattern such as *.example.com
levee.yaml:6:53: listeners[0].routes[0].match.sni[1]: "a..b" is neither a name nor a pattern such as *.example.com
levee.yaml:6:74: listeners[0].routes[0].match.sni_regexp: "a(" is not a regular expression: "missing closing ): ` + "`a(`" + `"
levee.yaml:6:86: listeners[0].routes[0].match.alpn: is empty; it takes a protocol such as h2
levee.yaml:6:99: listeners[0].routes[0].match.prefix[0]: "hex:0" is not hex: and an even number of hexadecimal digits
levee.yaml:6:108: listeners[0].routes[0].match.prefix[1]: "hex:" is not hex: and an even number of hexadecimal digits
levee.yaml:6:116: listeners[0].routes[0].match.prefix[2]: is empty; it takes first bytes such as "SSH-" or "hex:0a0b"
levee.yaml:6:129: listeners[0].routes[0].match.source: "10.0.0.1/8" has bits set beyond its length; write 10.0.0.0/8
levee.yaml:6:154: listeners[0].routes[0].match.local_port[0]: must be a whole number from 1 to 65535, not 0
levee.yaml:6:157: listeners[0].routes[0].match.local_port[1]: must be a whole number from 1 to 65535, not "x"
levee.yaml:6:169: listeners[0].routes[0].match.client: is empty; it takes an identity such as spiffe://example.com/billing
levee.yaml:6:184: listeners[0].routes[0].match.protocol[0]: unknown protocol "htpp"; did you mean "http"?
levee.yaml:6:190: listeners[0].routes[0].match.protocol[1]: unknown protocol "smtp"; it takes http, tls, ssh, postgres, redis or mqtt`},

	// Routes that others stand before.
	{"a name behind its pattern", listenerWith(ended, "{match: {sni: [x.test, \"*.example.com\"]}, handler: hello}, {match: {sni: [a.example.com, X.test]}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:78: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"an address behind its network", routes("{match: {source: [10.0.0.0/8]}, handler: hello}, {match: {source: 10.1.0.0/16, protocol: http}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:68: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"bytes behind fewer", routes("{match: {prefix: SSH}, handler: hello}, {match: {prefix: [\"SSH-2\", \"hex:5353482d31\"]}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:59: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"one of several protocols", routes("{match: {protocol: [ssh, http]}, handler: hello}, {match: {protocol: ssh}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:69: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"anything behind TLS where all is TLS", listenerWith(ended, "{match: {protocol: tls}, handler: hello}, {handler: echo}"), false, `levee.yaml:6:61: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"terms behind what only others could tell", listenerWith(ended, "{match: {protocol: http}, handler: hello}, {match: {sni: a.example.com}, tls: {alpn: h2}, handler: echo}, {handler: echo}"), false, `levee.yaml:6:62: listeners[0].routes[1]: is never reached: routes[0] decides for the same connections what becomes of their TLS, before what it carries is known; give both the same tls`},
	{"passthrough behind what only others could tell", listenerWith(ended, "{match: {client: a}, handler: hello}, {match: {sni: a.example.com}, tls: passthrough, handler: echo}, {handler: echo}"), false, `levee.yaml:6:57: listeners[0].routes[1]: is never reached: routes[0] decides for the same connections what becomes of their TLS, before what it carries is known; give both the same tls`},
}

func TestRoutesThatMeetDifferentConnectionsAreFine(t *testing.T) {
	for name, doc := range map[string]string{
		"a pattern behind its name":        listenerWith(ended, "{match: {sni: a.example.com}, handler: hello}, {match: {sni: \"*.example.com\"}, handler: echo}, {handler: echo}"),
		"a network behind its address":     routes("{match: {source: 10.1.0.0/16}, handler: hello}, {match: {source: [10.0.0.0/8]}, handler: echo}, {handler: echo}"),
		"one half known":                   routes("{match: {source: 10.0.0.0/8, protocol: http}, handler: hello}, {match: {source: 10.0.0.0/8}, handler: echo}, {handler: echo}"),
		"a name that TLS tells first":      listenerWith(ended, "{match: {sni: a.example.com}, tls: {alpn: h2}, handler: echo}, {match: {protocol: http}, handler: hello}, {handler: echo}"),
		"TLS and plaintext":                listenerWith("tls: {mode: optional, development: true}", "{match: {protocol: tls}, handler: hello}, {handler: echo}"),
		"terms of TLS, and plaintext":      listenerWith("tls: {mode: optional, development: true}", "{match: {protocol: http}, tls: {alpn: h2}, handler: hello}, {match: {protocol: http}, handler: hello}, {handler: echo}"),
		"a protocol offered to who passes": listenerWith("tls: {mode: passthrough}", "{match: {alpn: [anything]}, handler: hello}, {handler: echo}"),
		"a free port":                      "version: 1\nlisteners: [{name: main, listen: [\"127.0.0.1:0\"], routes: [{match: {local_port: 99}, handler: echo}, {refuse: true}]}]",
	} {
		if _, err := Parse("levee.yaml", []byte(doc)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAMatchIsWhatItSays(t *testing.T) {
	cfg, err := Parse("levee.yaml", []byte(listenerWith(ended, "{name: a-1, match: {sni: [A.example.com, \"*.b.example\"], sni_regexp: \"a|b\", alpn: h2, protocol: mqtt, prefix: [\"hex:00ffAB\", \"hex\", \"\\x10\"], "+
		"source: [10.0.0.0/8, \"::1\"], local_port: 8080, client: [\"spiffe://example.com/a\"]}, refuse: true}, {handler: echo}")))
	if err != nil {
		t.Fatal(err)
	}
	got := &cfg.Listeners[0].Routes[0]
	want := Route{
		Name: "a-1", Refuse: true,
		Match: Match{
			SNI: []Word{{Text: "A.example.com"}, {Text: "*.b.example"}}, SNIRegexp: "a|b", ALPN: []Word{{Text: "h2"}}, Protocol: []Protocol{ProtocolMQTT},
			Prefix: []Word{{Text: "hex:00ffAB"}, {Text: "hex"}, {Text: "\x10"}}, Source: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")},
			LocalPort: []int{8080}, Client: []Word{{Text: "spiffe://example.com/a"}},
		},
	}
	want.Limits = routeLimits
	if diff := cmp.Diff(&want, got, sameConfig); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"\x00\xff\xab", "hex", "\x10"}, got.Match.Prefixes()); diff != "" {
		t.Errorf("prefixes: want -, got +:\n%s", diff)
	}
	if pos := got.Match.SNI[1].Pos.String(); pos != "levee.yaml:6:60" {
		t.Errorf("the second name stands at %s", pos)
	}
	again, err := Parse("levee.yaml", cfg.YAML())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(cfg, again, sameConfig); diff != "" {
		t.Errorf("the normal form means something else:\n%s", diff)
	}
}
