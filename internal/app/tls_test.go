package app_test

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

// A site is a folder with a configuration and what it names.
type site struct {
	t      *testing.T
	dir    string
	server *leveetest.CA // of servers
	client *leveetest.CA // of clients
}

// newSite has a.pem for a.example, b.pem for b.example, w.pem for *.w.example and clients.pem.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), server: leveetest.NewCA(t), client: leveetest.NewCA(t)}
	for _, name := range []string{"a.example", "b.example", "*.w.example"} {
		cert, key := s.server.WriteFiles(s.dir, name)
		short := strings.TrimPrefix(name, "*.")[:1]
		for from, to := range map[string]string{cert: short + ".pem", key: short + "-key.pem"} {
			if err := os.Rename(from, filepath.Join(s.dir, to)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.put("clients.pem", s.client.PEM())
	s.put("clients.crl", s.client.CRL())
	return s
}

// put puts a file in place as one should: by renaming.
func (s *site) put(name string, content []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// config writes a configuration with one listener. The keys of its tls stand on line 6, in a mapping, and its routes
// from line 8 on.
func (s *site) config(tls string, routes ...string) string {
	return s.put("levee.yaml", []byte(`version: 1
admin: {listen: "127.0.0.1:0"}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {`+tls+`}
    routes:
      - `+strings.Join(routes, "\n      - ")+"\n"))
}

// as is a client's configuration.
func (s *site) as(server string, certificates ...tls.Certificate) *tls.Config {
	config := s.server.ClientConfig(server)
	config.Certificates = certificates
	return config
}

// says returns what comes back for a text in TLS, or what was wrong.
func says(address string, config *tls.Config, text string) (string, error) {
	raw, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	c := tls.Client(raw, config)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := c.Handshake(); err != nil {
		return "", err
	}
	_, failed := io.WriteString(c, text)
	failed = errors.Join(failed, c.CloseWrite())
	got, err := io.ReadAll(c) // which tells why it failed, if it did
	return string(got), cmp.Or(err, failed)
}

const three = "certificates: [{cert: a.pem, key: a-key.pem}, {cert: b.pem, key: b-key.pem}, {cert: w.pem, key: w-key.pem}]"

func TestTLSFilesAtFaultAreNamedWithTheirLine(t *testing.T) {
	s := newSite(t)
	s.put("empty", nil)
	s.put("corrupt.pem", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	s.put("other.crl", s.server.CRL())
	s.put("short", []byte("too short"))
	if err := os.Mkdir(filepath.Join(s.dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ tls, route, want string }{
		{three + ", client_ca: none.pem", "handler: echo", `6:131: client CA: open DIR/none.pem: no such file or directory`},
		{three + ", client_ca: [clients.pem, empty]", "handler: echo", `6:145: client CA DIR/empty: it is empty`},
		{three + ", client_ca: corrupt.pem", "handler: echo", `6:131: client CA DIR/corrupt.pem: x509: `},
		{three + ", client_ca: a.pem", "handler: echo", `6:131: client CA DIR/a.pem: CN=a.example is no CA`},
		{three + ", client_ca: clients.pem, client_crl: none.crl", "handler: echo", `6:156: CRL: open DIR/none.crl: no such file or directory`},
		{three + ", client_ca: clients.pem, client_crl: [clients.crl, empty]", "handler: echo", `6:170: CRL DIR/empty: it is empty`},
		{three + ", client_ca: clients.pem, client_crl: other.crl", "handler: echo", `6:156: CRL DIR/other.crl: `},
		{three + ", client_ca: clients.pem, client_allow: {uri: [spiffe://a/b, spiffe://a/*b]}", "handler: echo", `6:179: client certificates: URI "spiffe://a/*b": `},
		{three + ", client_ca: clients.pem, client_allow: {email: nobody}", "handler: echo", `6:166: client certificates: email "nobody": `},
		{three + ", client_ca: clients.pem, client_allow: {spki: [sha256/AAAA]}", "handler: echo", `6:166: client certificates: SPKI "sha256/AAAA": `},
		{"acme: {domains: a.example, agree_to_terms: true, folder: empty}", "handler: echo", `6:17: acme: mkdir DIR/empty: not a directory`},
		{"acme: {domains: a.example, agree_to_terms: true, ca: folder}", "handler: echo", `6:17: acme.ca: DIR/folder: not a file`},
		{three + ", tickets: {file: short}", "handler: echo", `6:129: session ticket secret: DIR/short: 9 bytes, where there should be at least 32`},
		{three, "{match: {sni: a.example}, tls: {certificates: [{cert: empty, key: a-key.pem}]}, handler: echo}", `8:56: certificate DIR/empty with key DIR/a-key.pem: `},
		{three, "{match: {sni: a.example}, tls: {client_ca: empty}, handler: echo}", `8:52: client CA DIR/empty: it is empty`},
		{three, "{match: {sni: [A.example, x.w.example, c.example]}, handler: echo}", `8:48: listeners[0].routes[0].match.sni[2]: no certificate is for "c.example"; those that there are, are for a.example, b.example, *.w.example`},
		{three, "{match: {sni: [\"*.w.example\", \"*.example\", x.y.w.example]}, handler: echo}", `8:52: listeners[0].routes[0].match.sni[2]: no certificate is for "x.y.w.example"; `},
	}
	for _, test := range tests {
		routes := []string{test.route}
		if strings.HasPrefix(test.route, "{match") {
			routes = append(routes, "refuse: true")
		}
		path := s.config(test.tls, routes...)
		for _, command := range []string{"check", "serve"} {
			code, stdout, stderr := result(t, app.Env{}, command, "-c", path)
			want := "levee: " + path + ":" + strings.ReplaceAll(test.want, "DIR", s.dir)
			if code != 2 || !strings.HasPrefix(stderr, want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("%s: exit code %d, %q, want\n%q", command, code, stderr, want)
			}
		}
	}
}

// echoServer is a TLS server behind levee, which says that it is that.
func (s *site) echoServer(name string) string {
	s.t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.server.ServerConfig(name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				content, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%s behind levee: %s", name, content)
			}()
		}
	}()
	return l.Addr().String()
}

func TestOnePortEndsTLSHerePassesItThereAndAsksSomeForCertificates(t *testing.T) {
	leveetest.CheckLeaks(t)
	s := newSite(t)
	path := s.config(three+", alpn: [h2, http/1.1, x]",
		"{match: {sni: p.example}, tls: passthrough, upstream: behind}",
		"{match: {sni: b.example}, tls: {client_ca: clients.pem, client_allow: {dns: alice.example}}, handler: echo}",
		"{match: {sni: \"*.w.example\"}, refuse: true}",
		"{match: {alpn: x}, handler: discard}",
		"{match: {protocol: http}, handler: hello}",
		"{handler: echo}")
	appendTo(t, path, "upstreams:\n  - {name: behind, servers: [\""+s.echoServer("p.example")+"\"], health: {interval: off}}\n")
	r := start(t, app.Env{}, "serve", "-c", path)
	address := r.address()
	alice, bob := s.client.ClientCertificate("alice.example"), s.client.ClientCertificate("bob.example")
	speaking := func(config *tls.Config, protocols ...string) *tls.Config {
		config.NextProtos = protocols
		return config
	}
	for _, c := range []struct {
		name   string
		config *tls.Config
		text   string
		want   string // or the error, with a ! before it
	}{
		{"passed through", s.as("p.example"), "hi", "p.example behind levee: hi"},
		{"in other letters", s.as("P.Example"), "hi", "p.example behind levee: hi"},
		{"ended", s.as("a.example"), "hi", "hi"},
		{"ended, for HTTP", s.as("a.example"), "GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"},
		{"a client that is allowed", s.as("b.example", alice), "hi", "hi"},
		{"a client that is not", s.as("b.example", bob), "hi", "!bad certificate"},
		{"a client without a certificate", s.as("b.example"), "hi", "!certificate required"},
		{"in other letters, without", s.as("B.EXAMPLE"), "hi", "!certificate required"},
		{"no HTTP around the policy", s.as("b.example"), "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", "!certificate required"},
		{"refused", s.as("x.w.example"), "hi", "!access denied"},
		{"a name that there is not", s.as("c.example"), "hi", "!unrecognized name"},
		{"by ALPN", speaking(s.as("a.example"), "x"), "hi", ""},
		{"by the preferred of two", speaking(s.as("a.example"), "x", "http/1.1"), "hi", "hi"},
		{"another ALPN", speaking(s.as("a.example"), "smtp"), "hi", "!no application protocol"},
	} {
		got, err := says(address, c.config, c.text)
		if want, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q, %v; want %s", c.name, got, err, want)
			}
		} else if err != nil || got != c.want && !(c.want == "HTTP/1.0 200" && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	c := dial(t, address)
	send(t, c, "GET / HTTP/1.0\r\n\r\n")
	if got, err := io.ReadAll(c); len(got) > 0 {
		t.Errorf("plaintext: %q, %v", got, err)
	}
	r.signals <- os.Interrupt
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// held is a connection in TLS that has said something.
func held(t *testing.T, address string, config *tls.Config) *tls.Conn {
	t.Helper()
	c := tls.Client(dial(t, address), config)
	send(t, c, "hi")
	expect(t, c, "hi")
	return c
}

// counts waits until the metrics say so: a client may hear of its end before that is counted.
func (r *run) counts(line string) {
	r.t.Helper()
	for late := time.Now().Add(patience); ; {
		_, body := get(r.t, r.admin("/metrics"))
		if strings.Contains(body, line+"\n") {
			return
		}
		if time.Now().After(late) {
			r.t.Fatalf("no %s in\n%s", line, body)
		}
	}
}

func TestRevokingAClientEndsItsLiveConnectionsAndNoOthers(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, tell := range map[string]func(*run){
		"the file has changed":    func(*run) {},
		"an operator has said so": func(r *run) { r.signals <- syscall.SIGHUP },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.put("others.pem", s.client.PEM())
			r := start(t, app.Env{}, "serve", "-c", s.config(three+", client_ca: clients.pem, client_crl: clients.crl",
				"{match: {sni: a.example}, tls: {client_ca: others.pem}, handler: echo}", "{handler: echo}"))
			address := r.address()
			alice, bob := s.client.ClientCertificate("alice"), s.client.ClientCertificate("bob")
			good := held(t, address, s.as("b.example", alice))
			elsewhere := held(t, address, s.as("a.example", bob)) // under another policy
			bad := []*tls.Conn{held(t, address, s.as("b.example", bob)), held(t, address, s.as("x.w.example", bob))}

			s.put("clients.crl", s.client.CRL(bob))
			tell(r)
			for _, c := range bad {
				if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
					t.Errorf("it reads %d bytes, %v", n, err)
				}
			}
			const ended = "ended connections that the client policy does not allow any more"
			r.find(&r.stderr, ended)
			if line := r.logged(ended); line["count"] != 2.0 || line["listener"] != "main" {
				t.Errorf("%v", line)
			}
			for _, c := range []*tls.Conn{good, elsewhere} {
				send(t, c, "still here")
				expect(t, c, "still here")
			}
			if _, err := says(address, s.as("b.example", bob), "hi"); err == nil || !strings.Contains(err.Error(), "bad certificate") {
				t.Errorf("the revoked comes again: %v", err)
			}
			r.counts(`levee_connections_closed_total{listener="main",reason="policy"} 2`)
		})
	}
}

// A lastRecord is a connection that holds back the last record of the client's second flight, its Finished.
type lastRecord struct {
	net.Conn
	held []byte
}

func (c *lastRecord) Write(p []byte) (int, error) {
	const applicationData, header = 23, 5
	last, sealed := 0, false
	for at := 0; at+header <= len(p); at += header + int(p[at+3])<<8 + int(p[at+4]) {
		last, sealed = at, sealed || p[at] == applicationData
	}
	if c.held != nil || !sealed {
		return c.Conn.Write(p)
	}
	c.held = append([]byte(nil), p[last:]...)
	if _, err := c.Conn.Write(p[:last]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// The certificate was verified before the change, and the connection is there after it.
func TestARevocationIsNotOvertakenByAHandshake(t *testing.T) {
	s := newSite(t)
	r := start(t, app.Env{}, "serve", "-c", s.config(three+", client_ca: clients.pem, client_crl: clients.crl", "{handler: echo}"))
	bob := s.client.ClientCertificate("bob")
	raw := &lastRecord{Conn: dial(t, r.address())}
	c := tls.Client(raw, s.as("a.example", bob))
	if err := c.Handshake(); err != nil || raw.held == nil {
		t.Fatal(err, raw.held)
	}
	s.put("clients.crl", s.client.CRL(bob))
	r.find(&r.stderr, `"msg":"reloaded".*"what":"client policy"`)
	if _, err := raw.Conn.Write(raw.held); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "hi")
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is served: %d bytes, %v", n, err)
	}
	r.counts(`levee_connections_closed_total{listener="main",reason="policy"} 1`)
}

func TestCertificatesAreReadAgain(t *testing.T) {
	s := newSite(t)
	r := start(t, app.Env{}, "serve", "-c", s.config("certificates: [{cert: a.pem, key: a-key.pem}]", "{handler: echo}"))
	address := r.address()
	before := held(t, address, s.as("a.example"))

	s.put("a.pem", []byte("not a certificate"))
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, `"msg":"not reloaded; what was in force before is kept".*a\.pem with key`)
	held(t, address, s.as("a.example"))

	cert := s.server.Issue(leveetest.CertificateSpec{Names: []string{"new.example"}})
	certFile, keyFile := s.server.WriteFilesOf(t.TempDir(), cert)
	for name, from := range map[string]string{"a-key.pem": keyFile, "a.pem": certFile} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		s.put(name, content)
	}
	r.find(&r.stderr, `"msg":"reloaded".*"what":"certificates"`)
	held(t, address, s.as("new.example"))
	send(t, before, "still here")
	expect(t, before, "still here")

	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, "certificates, client policies, tickets and lists are read again; the configuration says the same")
	_, body := get(t, r.admin("/metrics"))
	for _, want := range []string{
		fmt.Sprintf(`levee_certificate_expiry_timestamp_seconds{listener="main",name="new.example"} %g`, float64(cert.Leaf.NotAfter.Unix())),
		`levee_reloads_total{result="ok"}`, `levee_reloads_total{result="failed"}`,
		`levee_handshakes_waiting{listener="main"} 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if strings.Contains(body, `name="a.example"`) || strings.Contains(body, `levee_reloads_total{result="failed"} 0`) {
		t.Errorf("an old certificate, or a fault that is not counted, in\n%s", body)
	}
}

func TestClientsOfPostgresAskForTLSFirst(t *testing.T) {
	s := newSite(t)
	path := s.config(three, "{handler: echo}")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.put("levee.yaml", []byte(strings.Replace(string(content), "    routes:", "    starttls: postgres\n    routes:", 1)))
	r := start(t, app.Env{}, "serve", "-c", path)
	c := dial(t, r.address())
	send(t, c, "\x00\x00\x00\x08\x04\xd2\x16\x2f")
	expect(t, c, "S")
	sealed := tls.Client(c, s.as("a.example"))
	send(t, sealed, "hi")
	expect(t, sealed, "hi")
	held(t, r.address(), s.as("a.example"))
	c = dial(t, r.address())
	send(t, c, "\x00\x00\x00\x09\x00\x03\x00\x00\x00")
	if got, err := io.ReadAll(c); !strings.Contains(string(got), "this server takes encrypted connections only") {
		t.Errorf("in plaintext: %q, %v", got, err)
	}
}
