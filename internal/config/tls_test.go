package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const pair = "certificates: [{cert: a.pem, key: a-key.pem}]"

// rejectedTLS holds documents that are wrong about TLS.
var rejectedTLS = []rejection{
	{"passthrough with a certificate", frame(loopback + "\ntls: {mode: passthrough, " + pair + "}"), false, `levee.yaml:5:8: listeners[0].tls: mode is passthrough, yet there is a certificate; remove it, or set mode: terminate`},
	{"settings for plaintext", frame(loopback + "\ntls: {mode: off, client_ca: ca.pem}"), false, `levee.yaml:5:8: listeners[0].tls: mode is off, yet there is client_ca; remove it, or set mode: terminate`},
	{"tickets for plaintext", frame(loopback + "\ntls: {mode: off, tickets: {rotate: 1h}}"), false, `levee.yaml:5:8: listeners[0].tls: mode is off, yet there is tickets; remove it, or set mode: terminate`},
	{"a dialogue in plaintext", frame(loopback + "\nstarttls: postgres"), false, `levee.yaml:3:3: listeners[0].starttls: there is starttls, yet tls.mode is off; remove it, or set mode: terminate`},
	{"a dialogue in which the server speaks first, and optional TLS", frame(loopback + "\nstarttls: smtp\ntls: {mode: optional, development: true}"), false, `levee.yaml:3:3: listeners[0].starttls: levee speaks first in the place of an smtp server, so TLS has to end here, yet tls.mode is optional; set mode: terminate`},
	{"a dialogue misspelt", frame(loopback + "\nstarttls: postgre\ntls: {development: true}"), true, `levee.yaml:5:13: listeners[0].starttls: unknown starttls "postgre"; did you mean "postgres"?`},
	{"clients that nobody could verify", frame(loopback + "\ntls: {development: true, client_crl: a.crl}"), false, `levee.yaml:5:8: listeners[0].tls: has client_crl without client_ca, by which no client's certificate could be verified; add client_ca: clients.pem`},
	{"optional clients that nobody could verify", frame(loopback + "\ntls: {development: true, client_optional: true}"), false, `levee.yaml:5:8: listeners[0].tls: has client_optional without client_ca, by which no client's certificate could be verified; add client_ca: clients.pem`},
	{"allowed clients that nobody could verify", frame(loopback + "\ntls: {development: true, client_allow: {spki: x}}"), false, `levee.yaml:5:8: listeners[0].tls: has client_allow without client_ca, by which no client's certificate could be verified; add client_ca: clients.pem`},
	{"nobody allowed", frame(loopback + "\ntls: {development: true, client_ca: a, client_allow: {}}"), true, `levee.yaml:5:56: listeners[0].tls.client_allow: is empty; remove it, or give it dns, uri, email, common_name and spki`},
	{"nobody allowed, in a list", frame(loopback + "\ntls: {development: true, client_ca: [], client_allow: {dns: []}}"), true, `levee.yaml:5:39: listeners[0].tls.client_ca: is empty; it takes a list of paths of PEM files
levee.yaml:5:63: listeners[0].tls.client_allow.dns: is empty; it takes a list of names such as client.example.com`},
	{"names of clients that are none", frame(loopback + "\ntls: {development: true, client_ca: [a, \"\", {}, \"b\\n\", a], client_allow: {dns: [\"*\", a.example.com, 10.0.0.1], uri: 7}}"), true, `levee.yaml:5:43: listeners[0].tls.client_ca[1]: is empty; it takes the path of a PEM file
levee.yaml:5:47: listeners[0].tls.client_ca[2]: must be the path of a PEM file, not a mapping
levee.yaml:5:51: listeners[0].tls.client_ca[3]: "b\n" has a control character in it
levee.yaml:5:83: listeners[0].tls.client_allow.dns[0]: "*" is neither a name nor a pattern such as *.example.com
levee.yaml:5:103: listeners[0].tls.client_allow.dns[2]: "10.0.0.1" is neither a name nor a pattern such as *.example.com
levee.yaml:5:119: listeners[0].tls.client_allow.uri: must be text; put it in quotes: "7"`},
	{"a mapping for a file", frame(loopback + "\ntls: {development: true, client_ca: {}}"), true, `levee.yaml:5:39: listeners[0].tls.client_ca: must be a list of paths of PEM files, or a single one, not a mapping`},
	{"a file twice", frame(loopback + "\ntls: {development: true, client_ca: [a.pem, b.pem, a.pem], alpn: [h2, h2]}"), false, `levee.yaml:5:54: listeners[0].tls.client_ca[2]: "a.pem" is client_ca[0] already; remove it
levee.yaml:5:73: listeners[0].tls.alpn[1]: "h2" is alpn[0] already; remove it`},
	{"a protocol that does not fit", frame(loopback + "\ntls: {development: true, alpn: [" + strings.Repeat("x", 256) + ", \"\"]}"), true, `levee.yaml:5:35: listeners[0].tls.alpn[0]: has 256 bytes; a protocol's name has at most 255 (RFC 7301)
levee.yaml:5:293: listeners[0].tls.alpn[1]: is empty; it takes a protocol such as h2`},
	{"tickets that are none", frame(loopback + "\ntls: {development: true, tickets: {file: a, rotate: off}}"), false, `levee.yaml:5:37: listeners[0].tls.tickets: rotate is off, yet there is file; remove one of them`},
	{"tickets for ever", frame(loopback + "\ntls: {development: true, tickets: {rotate: 169h}}"), false, `levee.yaml:5:46: listeners[0].tls.tickets.rotate: "169h" is too long; the most is 168h; say off to disable it`},
	{"handshakes that are no number", frame(loopback + "\nlimits: {handshakes: -1}"), true, `levee.yaml:5:24: listeners[0].limits.handshakes: must be a whole number from 0 to 1000000, or off, not -1`},
	{"an open door beside a passage", frame("listen: [\":80\"]\ntls: {mode: optional, development: true}"), false, `levee.yaml:4:12: listeners[0].listen[0]: ":80" can be reached from other machines and tls.mode optional lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`},
}

// acceptedTLS holds keys of a listener on TLS, and the routes that go with them.
var acceptedTLS = []struct{ name, keys, routes string }{
	{"certificates of routes alone", "tls: {mode: terminate}", "{match: {sni: a.example.com}, tls: {" + pair + "}, handler: echo}, {tls: passthrough, handler: echo}"},
	{"passthrough with an end", "tls: {mode: passthrough, " + pair + "}", "{match: {sni: a.example.com}, tls: {mode: terminate}, handler: echo}, {handler: echo}"},
	{"plaintext beside passthrough", "tls: {mode: optional}", "{match: {protocol: tls}, tls: passthrough, handler: echo}, {tls: {mode: passthrough}, handler: echo}"},
	{"plaintext behind terms of TLS", "tls: {mode: optional, development: true}", "{tls: {alpn: h2}, handler: echo}, {handler: echo}"},
	{"a dialogue", "tls: {development: true}\n  starttls: postgres", "{handler: echo}"},
	{"the same terms for what TLS carries", "tls: {development: true}", "{match: {sni: a.example.com, protocol: http}, tls: {client_ca: a}, handler: hello}, {match: {sni: A.example.com}, tls: {client_ca: a}, handler: echo}, {handler: echo}"},
}

func listenerWith(keys, list string) string {
	return "version: 1\nlisteners:\n- name: main\n  " + loopback + "\n  " + keys + "\n  routes:        [" + list + "]\n"
}

func TestTLSMayBeOtherwiseOnRoutes(t *testing.T) {
	for _, c := range acceptedTLS {
		t.Run(c.name, func(t *testing.T) {
			readBack(t, listenerWith(c.keys, c.routes))
		})
	}
}

// readBack reads a document that is right, also to the schema, and its normal form, which has to mean the same.
func readBack(t *testing.T, doc string) *Config {
	t.Helper()
	cfg, err := Parse("levee.yaml", []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("levee.yaml", cfg.YAML())
	if err != nil {
		t.Fatalf("%v in:\n%s", err, cfg.YAML())
	}
	if diff := cmp.Diff(cfg, again, sameConfig); diff != "" {
		t.Errorf("the normal form means something else:\n%s", diff)
	}
	if err := validate(t, schemaValidator(t), doc); err != nil {
		t.Errorf("the schema: %v", err)
	}
	return cfg
}

func TestWhatARouteLeavesOutIsTheListeners(t *testing.T) {
	cfg, err := Parse("/etc/levee.yaml", []byte(listenerWith(
		"tls: {"+pair+", alpn: [h2], client_ca: [ca.pem], client_crl: a.crl, client_optional: true, client_allow: {dns: a.example.com}, tickets: {file: secret}}",
		"{match: {sni: a.example.com}, tls: {client_ca: other.pem}, handler: echo}, "+
			"{match: {sni: b.example.com}, tls: {development: true, alpn: [x], tickets: {rotate: 1h}}, handler: echo}, "+
			"{match: {sni: c.example.com}, tls: passthrough, handler: echo}, {handler: echo}")))
	if err != nil {
		t.Fatal(err)
	}
	l := &cfg.Listeners[0]
	whole := TLS{
		Mode: TLSTerminate, Certificates: []Certificate{{Cert: "/etc/a.pem", Key: "/etc/a-key.pem"}}, ALPN: []Word{{Text: "h2"}},
		ClientCA: []Word{{Text: "/etc/ca.pem"}}, ClientCRL: []Word{{Text: "/etc/a.crl"}}, ClientOptional: true,
		ClientAllow: ClientAllow{DNS: []Word{{Text: "a.example.com"}}}, Tickets: Tickets{File: "/etc/secret"},
	}
	clients, others := whole, whole
	clients.ClientCA, clients.ClientCRL, clients.ClientOptional, clients.ClientAllow = []Word{{Text: "/etc/other.pem"}}, nil, false, ClientAllow{}
	others.Certificates, others.Development, others.ALPN, others.Tickets = nil, true, []Word{{Text: "x"}}, Tickets{Rotate: time.Hour}
	for i, want := range []TLS{clients, others, {Mode: TLSPassthrough}, whole} {
		if diff := cmp.Diff(want, l.TLSOf(&l.Routes[i]), sameConfig); diff != "" {
			t.Errorf("routes[%d]: want -, got +:\n%s", i, diff)
		}
	}
	same := l.TLSOf(&l.Routes[3])
	same.Pos, same.ALPN = Position{"x", 1, 1}, []Word{{Position{"y", 1, 1}, "h2"}}
	if whole.Terms() != same.Terms() || whole.Terms() == clients.Terms() || whole.Terms() == others.Terms() {
		t.Errorf("terms are the same where they are not, or differ where they do not:\n%s\n%s", whole.Terms(), same.Terms())
	}
}

func TestLoadResolvesTheFilesOfTLSAgainstTheFilesFolder(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "levee.yaml")
	write(t, path, listenerWith("tls: {development: true}", "{match: {sni: a.example.com}, tls: {certificates: [{cert: a, key: b, ocsp: c}], client_ca: [d, /e], client_crl: f, tickets: {file: g}}, handler: echo}, {handler: echo}"))
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(folder, name) }
	want := TLS{
		Mode: TLSTerminate, Certificates: []Certificate{{Cert: in("a"), Key: in("b"), OCSP: in("c")}},
		ClientCA: []Word{{Text: in("d")}, {Text: "/e"}}, ClientCRL: []Word{{Text: in("f")}}, Tickets: Tickets{File: in("g")},
	}
	if diff := cmp.Diff(want, cfg.Listeners[0].Routes[0].TLS, sameConfig); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}
