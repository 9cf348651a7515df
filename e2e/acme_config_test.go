package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// issuing starts levee with an ACME authority, on the ports where that comes.
func (a *pebble) issuing(t *testing.T, redis, challenges, tlsPort, httpPort string) *process {
	t.Helper()
	shared, folder := `redis: {address: "`+redis+`"}`, ""
	if redis == "" {
		shared, folder = "", "folder: "+t.TempDir()
	}
	listener := `
  - name: challenges
    listen: ["127.0.0.1:` + httpPort + `"]
    routes: [{handler: acme}]
`
	if !strings.Contains(challenges, "http-01") {
		listener = ""
	}
	return start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
`+shared+`
listeners:
  - name: main
    listen: ["127.0.0.1:`+tlsPort+`"]
    tls:
      alpn: [echo]
      acme:
        domains: [db.example.com, Mail.Example.com]
        agree_to_terms: true
        directory: `+a.directory+`
        ca: `+a.files[0]+`
        challenges: [`+challenges+`]
        `+folder+`
    routes: [{handler: echo}]`+listener))
}

const both = "tls-alpn-01, http-01"

func TestLeveeIsIssuedCertificatesByEitherChallenge(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			a := newPebble(t, nil).run(t)
			ports := map[string]string{"tls-alpn-01": freePorts(t, 1)[0], "http-01": freePorts(t, 1)[0]}
			if challenge == "tls-alpn-01" { // the other would be looked for where nobody is
				ports[challenge] = a.tlsPort
			} else {
				ports[challenge] = a.httpPort
			}
			p := a.issuing(t, "", challenge, ports["tls-alpn-01"], ports["http-01"])
			f := &front{address: p.address()}
			for _, name := range []string{"db.example.com", "mail.example.com"} {
				config := &tls.Config{RootCAs: a.roots(t), ServerName: name, NextProtos: []string{"echo"}}
				eventually(t, "there is a certificate for "+name, func() bool {
					c, err := f.connect(config)
					if err == nil {
						c.Close()
					}
					return err == nil
				})
			}
			if challenge == "http-01" {
				request := func(host string) (answer string) {
					c := dial(t, "127.0.0.1:"+a.httpPort)
					send(t, c, "GET /x?y HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
					text, err := io.ReadAll(c)
					if err != nil {
						t.Error(err)
					}
					return string(text)
				}
				if got := request("Mail.example.com"); !strings.Contains(got, "\r\nLocation: https://mail.example.com/x?y\r\n") {
					t.Errorf("a name of ours: %s", got)
				}
				if got := request("evil.example"); !strings.HasPrefix(got, "HTTP/1.1 421 ") {
					t.Errorf("nobody's name: %s", got)
				}
			}
		})
	}
}

func TestMachinesThatShareRedisHaveOneCertificateAndOneSession(t *testing.T) {
	t.Parallel()
	need(t, "redis-server")
	const name = "db.example.com"
	const life = 14 // seconds, so that a renewal, which is at some time in its second half, comes within patience
	a := newPebble(t, map[string]any{"profiles": map[string]any{"default": map[string]any{"validityPeriod": life}}}).run(t)
	store := redis(t)
	one := a.issuing(t, store, both, a.tlsPort, a.httpPort)
	other := a.issuing(t, store, both, "0", "0")
	expiry := func(p *process) float64 {
		return p.scrape()[`levee_certificate_expiry_timestamp_seconds{listener="main",name="`+name+`"}`]
	}
	for _, p := range []*process{one, other} {
		eventually(t, "there is a certificate", func() bool { return expiry(p) > 0 })
	}
	eventually(t, "there is one for each name", func() bool { return a.issued() >= 2 })
	if a.issued() != 2 {
		t.Errorf("%d certificates in %d orders, want one for each name", a.issued(), a.orders())
	}

	roots := a.roots(t)
	f := &front{address: one.address()}
	load := f.load(t, &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"echo"}})
	first := expiry(one)
	eventually(t, "it is renewed", func() bool { return expiry(one) > first })
	load.stopped(t)
	if n := a.count("is a replacement of"); n == 0 {
		t.Error("no order was a replacement")
	}

	session := &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"echo"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i, p := range []*process{one, other} {
		eventually(t, fmt.Sprintf("machine %d resumes the session", i), func() bool {
			c, err := (&front{address: p.address()}).connect(session)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.ConnectionState().DidResume
		})
	}
	for _, p := range []*process{one, other} {
		p.signal(os.Interrupt)
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestLeveeServesAlsoWhileRedisIsOutOfReach(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	nobody := "127.0.0.1:" + freePorts(t, 1)[0]
	p := a.issuing(t, nobody, both, a.tlsPort, a.httpPort)
	c, err := tls.Dial("tcp", p.address(), &tls.Config{ServerName: "db.example.com", InsecureSkipVerify: true})
	if err == nil {
		c.Close()
		t.Error("there is a certificate, from nowhere")
	}
	if line := p.find(&p.stderr, `(.*redis `+nobody+`.*)`); !strings.Contains(line, "connection refused") {
		t.Errorf("it says %s", line)
	}
	if status, _ := get(t, p.admin("/readyz")); status != 200 {
		t.Errorf("readyz: %d", status)
	}
}
