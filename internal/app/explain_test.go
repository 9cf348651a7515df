package app_test

import (
	"crypto/tls"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/app"
)

func TestExplainSaysWhatServingWouldDoAndWhichLinesAreWhy(t *testing.T) {
	s := newSite(t)
	hello := helloOf(t, s.as("p.example"))
	path := s.put("levee.yaml", []byte(`version: 1
listeners:
  - name: main
    listen: ["127.0.0.1:8443", "[::1]:8443"]
    proxy_protocol: {from: [10.0.0.0/8]}
    tls:
      certificates:
        - {cert: a.pem, key: a-key.pem}
        - {cert: b.pem, key: b-key.pem}
        - {cert: w.pem, key: w-key.pem}
      alpn: [h2, http/1.1]
    limits: {max_connections: 7}
    routes:
      - {match: {sni: p.example}, tls: passthrough, upstream: behind}
      - name: members
        match: {sni: b.example}
        tls:
          client_ca: clients.pem
        handler: echo
      - {match: {source: 192.0.2.0/24}, refuse: true}
      - {match: {protocol: http, alpn: http/1.1}, handler: hello}
      - {handler: discard}
  - name: plain
    listen: ["127.0.0.1:8080"]
    routes:
      - {match: {protocol: ssh}, handler: discard}
      - {match: {source: 198.51.100.7}, handler: hello}
      - {handler: echo}
  - name: postgres
    listen: ["127.0.0.1:5432"]
    tls: {mode: optional, certificates: [{cert: a.pem, key: a-key.pem}], client_ca: clients.pem, client_optional: true}
    starttls: postgres
    routes:
      - {match: {client: "spiffe://example.com/a"}, handler: discard}
      - {match: {protocol: postgres}, handler: echo}
      - refuse: true
upstreams:
  - name: behind
    servers: ["127.0.0.1:9"]
`))
	ssh, request := write(t, "ssh", "SSH-2.0-x\r\n"), write(t, "http", "GET / HTTP/1.1\r\n")
	startup := write(t, "startup", "\x00\x00\x00\x09\x00\x03\x00\x00\x00")
	limits := "limits    up to 7 connections (FILE:12)\nlimits    each address: 7 connections, new ones 50/s, 100 at once; shadow: only counted (default)\ntimeouts  arrival 10s, proxy_header 5s, sniff 5s, idle 1h, half_closed 1m, write_stall 30s, message 1m, lifetime off (default)\n"
	for _, c := range []struct{ args, want string }{
		{"--port 8443 --src 203.0.113.1 --sni P.Example --alpn x", `client    203.0.113.1, in TLS for "P.Example", offering ["x"]
listener  main, 127.0.0.1:8443 (FILE:3)
tls       is passed through (FILE:14)
route     routes[0], by sni (FILE:14)
` + limits + `upstream  behind: plaintext to 127.0.0.1:9; round_robin; dial 5s, 3 tries, 10s in all; health connect every 5s; breaker opens at 5 failures in a row or 50% of 20 in 10s (FILE:14, FILE:38)
`},
		{"--port 8443 --src 203.0.113.1 --bytes-file " + write(t, "hello", string(hello)), `client    203.0.113.1, without TLS of its own, sending ` + "BYTES" + ` bytes
listener  main, 127.0.0.1:8443 (FILE:3)
tls       is passed through (FILE:14)
route     routes[0], by sni (FILE:14)
` + limits + `upstream  behind: `},
		{"--listener main --src 10.1.2.3 --sni b.example", `client    10.1.2.3, in TLS for "b.example"
listener  main, 127.0.0.1:8443 (FILE:3)
header    it begins with a PROXY header, and its client is whom that names (FILE:5)
tls       ends here, with DIR/b.pem (FILE:7, FILE:18, FILE:9)
clients   need a certificate of DIR/clients.pem (FILE:18)
clients   no client_crl: a client's certificate that is lost is good until it expires (FILE:18)
route     members, by sni (FILE:15, FILE:16)
` + limits + `handler   echo (FILE:15)
`},
		{"--port 8443 --src 192.0.2.9 --sni a.example", `client    192.0.2.9, in TLS for "a.example"
listener  main, 127.0.0.1:8443 (FILE:3)
route     routes[2] (FILE:20)
refused   no_route: refused
`},
		{"--port 8443 --src 203.0.113.1 --sni nobody.example", `client    203.0.113.1, in TLS for "nobody.example"
listener  main, 127.0.0.1:8443 (FILE:3)
route     routes[4] (FILE:22)
refused   tls_failed: no certificate is for "nobody.example" (FILE:7)
`},
		{"--port 8443 --src 203.0.113.1 --sni a.example --alpn smtp", `client    203.0.113.1, in TLS for "a.example", offering ["smtp"]
listener  main, 127.0.0.1:8443 (FILE:3)
route     routes[4] (FILE:22)
refused   tls_failed: tls: client requested unsupported application protocols`},
		{"--port 8443 --src 203.0.113.1 --sni a.example --alpn h2,http/1.1", `client    203.0.113.1, in TLS for "a.example", offering ["h2" "http/1.1"]
listener  main, 127.0.0.1:8443 (FILE:3)
tls       ends here, with DIR/a.pem, for "h2" (FILE:7, FILE:8)
route     routes[4], which takes every connection (FILE:22)
` + limits + `handler   discard (FILE:22)
`},
		{"--port 8443 --src 203.0.113.1 --sni a.example --alpn http/1.1 --bytes-file " + request, `client    203.0.113.1, in TLS for "a.example", offering ["http/1.1"], sending 16 bytes
listener  main, 127.0.0.1:8443 (FILE:3)
tls       ends here, with DIR/a.pem, for "http/1.1" (FILE:7, FILE:8)
route     routes[3], by alpn, protocol (FILE:21)
` + limits + `handler   hello (FILE:21)
`},
		{"--port 8443 --src 203.0.113.1 --plaintext --bytes-file " + request, `client    203.0.113.1, without TLS of its own, sending 16 bytes
listener  main, 127.0.0.1:8443 (FILE:3)
refused   no_route: plaintext where TLS is required
`},
		{"--port 8080 --src ::ffff:203.0.113.1 --bytes-file " + ssh, `client    203.0.113.1, without TLS of its own, sending 11 bytes
listener  plain, 127.0.0.1:8080 (FILE:23)
tls       none (default)
route     routes[0], by protocol (FILE:26)
limits    `},
		{"--port 8080 --src 198.51.100.7", `client    198.51.100.7, without TLS of its own
listener  plain, 127.0.0.1:8080 (FILE:23)
tls       none (default)
route     routes[1], by source (FILE:27)
note      it was decided as if the client sent nothing more; with more in --bytes-file another route may have it
limits    `},
		{"--port 5432 --src 203.0.113.1 --bytes-file " + startup, `client    203.0.113.1, without TLS of its own, sending 9 bytes
listener  postgres, 127.0.0.1:5432 (FILE:29)
tls       none (FILE:31)
route     routes[1], by protocol (FILE:35)
limits    `},
		{"--port 5432 --src 203.0.113.1 --client spiffe://example.com/a", `client    203.0.113.1, in TLS for no name, as "spiffe://example.com/a"
listener  postgres, 127.0.0.1:5432 (FILE:29)
tls       ends here, with DIR/a.pem (FILE:31)
clients   may show a certificate of DIR/clients.pem (FILE:31)
clients   no client_crl: a client's certificate that is lost is good until it expires (FILE:31)
route     routes[0], by client (FILE:34)
limits    `},
		{"--port 5432 --src 203.0.113.1 --client spiffe://example.com/b --bytes-file " + ssh, `client    203.0.113.1, in TLS for no name, as "spiffe://example.com/b", sending 11 bytes
listener  postgres, 127.0.0.1:5432 (FILE:29)
tls       ends here, with DIR/a.pem (FILE:31)
clients   may show a certificate of DIR/clients.pem (FILE:31)
clients   no client_crl: a client's certificate that is lost is good until it expires (FILE:31)
route     routes[2] (FILE:36)
refused   no_route: refused
`},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := result(t, app.Env{}, append([]string{"explain", "-c", path}, strings.Fields(c.args)...)...)
			want := strings.NewReplacer("FILE", path, "DIR", s.dir, "BYTES", strconv.Itoa(len(hello))).Replace(c.want)
			if code != 0 || stderr != "" || !strings.HasPrefix(stdout, want) || strings.HasSuffix(want, "\n") && stdout != want {
				t.Errorf("exit code %d, standard error %q, standard output\n%s, want\n%s", code, stderr, stdout, want)
			}
		})
	}
}

// helloOf is what a client sends first.
func helloOf(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() { // ends with the pipe
		_ = tls.Client(client, config).Handshake()
	}()
	defer client.Close()
	header := make([]byte, 5)
	if _, err := io.ReadFull(server, header); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(server, rest); err != nil {
		t.Fatal(err)
	}
	return append(header, rest...)
}

func TestExplainRefusesWhatIsNoQuestion(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
listeners:
  - {name: a, listen: ["127.0.0.1:1", "127.0.0.1:2"], routes: [{handler: echo}]}
  - {name: b, listen: ["127.0.0.2:2"], tls: {development: true}, routes: [{handler: echo}]}
`)
	for args, want := range map[string]string{
		"":                            `explain: from where? say --src IP`,
		"--src x":                     `explain: --src: "x" is not an IP address`,
		"--src ::1":                   `explain: which listener? say --port N, or --listener NAME: a, b`,
		"--src ::1 --port 2":          `explain: which listener? say --port N, or --listener NAME: a, b`,
		"--src ::1 --port 3":          `explain: --port: nothing listens on 3`,
		"--src ::1 --listener c":      `explain: --listener: there is no "c"; there are a, b`,
		"--src ::1 --listener a":      `explain: listener a has several ports; say --port N`,
		"--src ::1 --port 1 --sni x":  `explain: listener a has tls.mode off; there is only plaintext`,
		"--src ::1 --port 1 --alpn ,": `explain: --alpn: "" is not the name of a protocol`,
		"--src ::1 --listener b --plaintext --tls": `explain: --plaintext beside what only TLS has; leave one of them out`,
	} {
		code, stdout, stderr := result(t, app.Env{}, append([]string{"explain", "-c", path}, strings.Fields(args)...)...)
		if want := "levee: " + want + " (see levee explain --help)\n"; code != 2 || stderr != want || stdout != "" {
			t.Errorf("%s: exit code %d, %q, %q; want %q", args, code, stderr, stdout, want)
		}
	}
}

// Levee speaks first in the place of some servers, and an authority's certificates are for its domains.
func TestExplainComesToTLSAsClientsDo(t *testing.T) {
	s := newSite(t)
	path := s.put("levee.yaml", []byte(`version: 1
listeners:
  - {name: smtp, listen: ["127.0.0.1:1"], starttls: smtp, tls: {certificates: [{cert: a.pem, key: a-key.pem}]}, routes: [{handler: echo}]}
  - {name: imap, listen: ["127.0.0.1:2"], starttls: imap, tls: {certificates: [{cert: a.pem, key: a-key.pem}]}, routes: [{handler: echo}]}
  - {name: mysql, listen: ["127.0.0.1:3"], starttls: mysql, tls: {certificates: [{cert: a.pem, key: a-key.pem}]}, routes: [{handler: echo}]}
  - {name: ldap, listen: ["127.0.0.1:4"], starttls: ldap, tls: {certificates: [{cert: a.pem, key: a-key.pem}]}, routes: [{handler: echo}]}
  - {name: issued, listen: ["127.0.0.1:5"], tls: {acme: {domains: [a.example, b.example], agree_to_terms: true}}, routes: [{handler: echo}]}
`))
	for args, want := range map[string]string{
		"--port 1 --sni a.example":                       "tls       ends here, with " + s.dir + "/a.pem (",
		"--port 2 --sni a.example":                       "tls       ends here, with " + s.dir + "/a.pem (",
		"--port 3 --sni a.example":                       "tls       ends here, with " + s.dir + "/a.pem (",
		"--port 4 --sni a.example":                       "tls       ends here, with " + s.dir + "/a.pem (",
		"--port 1 --sni c.example":                       `refused   tls_failed: no certificate is for "c.example" (`,
		"--port 5 --sni B.example":                       "tls       ends here, with a certificate by ACME (",
		"--port 5":                                       "tls       ends here, with a certificate by ACME (",
		"--port 5 --sni c.example":                       `refused   tls_failed: no certificate is for "c.example" (`,
		"--port 5 --sni a.example --alpn acme-tls/1":     "refused   tls_failed: ",
		"--port 5 --sni a.example --alpn acme-tls/1,foo": "tls       ends here, with a certificate by ACME (",
	} {
		code, stdout, stderr := result(t, app.Env{}, append([]string{"explain", "-c", path, "--src", "192.0.2.1"}, strings.Fields(args)...)...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "\n"+want) {
			t.Errorf("%s: exit code %d, standard error %q, standard output\n%s, want\n%s", args, code, stderr, stdout, want)
		}
	}
}
