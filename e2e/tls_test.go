package e2e

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// A site is a folder with a configuration, and with certificates that it names.
type site struct {
	t               *testing.T
	dir             string
	servers, client *leveetest.CA
}

// newSite has a.pem, b.pem and c.pem with their keys for a.example and so on, clients.pem and clients.crl.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), servers: leveetest.NewCA(t), client: leveetest.NewCA(t)}
	for _, name := range []string{"a", "b", "c"} {
		s.putPair(name, name+".example")
	}
	s.put("clients.pem", s.client.PEM())
	s.put("clients.crl", s.client.CRL())
	return s
}

// put puts a file in place, whole.
func (s *site) put(name string, content []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// putPair makes a certificate, and returns its serial number.
func (s *site) putPair(name string, names ...string) string {
	s.t.Helper()
	c := s.servers.Issue(leveetest.CertificateSpec{Names: names})
	cert, key := s.servers.WriteFilesOf(s.t.TempDir(), c)
	for to, from := range map[string]string{name + ".pem": cert, name + "-key.pem": key} {
		content, err := os.ReadFile(from)
		if err != nil {
			s.t.Fatal(err)
		}
		s.put(to, content)
	}
	return c.Leaf.SerialNumber.String()
}

// serve starts levee with one listener. The keys of tls stand on line 6, and the routes begin on line 8.
func (s *site) serve(settings string, routes ...string) *process {
	s.t.Helper()
	return start(s.t, "serve", "-c", s.config(settings, routes...))
}

func (s *site) config(settings string, routes ...string) string {
	return s.put("levee.yaml", []byte(`version: 1
admin: {listen: "127.0.0.1:0"}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: a.pem, key: a-key.pem}, {cert: b.pem, key: b-key.pem}, {cert: c.pem, key: c-key.pem}]`+settings+`}
    routes:
      - `+strings.Join(routes, "\n      - ")+"\n"))
}

// as is what a client of the server a.example or so needs.
func (s *site) as(server string, certificates ...tls.Certificate) *tls.Config {
	config := s.servers.ClientConfig(server)
	config.Certificates = certificates
	return config
}

// secured makes a connection in TLS, on which levee has said that it is served, by an echo.
func secured(address string, config *tls.Config) (*tls.Conn, error) {
	raw, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	if _, err := io.WriteString(c, "hi"); err != nil {
		_, reason := c.Read(make([]byte, 1)) // an alert, perhaps
		raw.Close()
		return nil, cmp.Or(reason, err)
	}
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// lives makes a connection that stays until the end of the test.
func (s *site) lives(address string, config *tls.Config) *tls.Conn {
	s.t.Helper()
	c, err := secured(address, config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// refused wants the handshake to be refused with that alert.
func refused(t *testing.T, address string, config *tls.Config, alert string) {
	t.Helper()
	c, err := secured(address, config)
	if err == nil {
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), alert) {
		t.Errorf("%s: %v, want %s", config.ServerName, err, alert)
	}
}

// Certificates are renewed as Kubernetes does it, by swapping a link to a folder, while clients come and go.
func TestACertificateIsRenewedUnderLoadWithoutAFailedConnection(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	swap := func(i int) (serial string) {
		folder := fmt.Sprintf("..%d", i)
		if err := os.Mkdir(filepath.Join(s.dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
		serial = s.putPair(folder+"/tls", "a.example")
		next := filepath.Join(s.dir, "..next")
		if err := errors.Join(os.Symlink(folder, next), os.Rename(next, filepath.Join(s.dir, "..data"))); err != nil {
			t.Fatal(err)
		}
		return serial
	}
	swap(0)
	for _, name := range []string{"a.pem", "a-key.pem"} {
		path := filepath.Join(s.dir, name)
		if err := errors.Join(os.Remove(path), os.Symlink(filepath.Join("..data", strings.Replace(name, "a", "tls", 1)), path)); err != nil {
			t.Fatal(err)
		}
	}
	p := s.serve("", "handler: echo")
	address := p.address()
	before := s.lives(address, s.as("a.example"))

	var load sync.WaitGroup
	over, failed := make(chan struct{}), make(chan error, 100)
	made := make([]int, 2)
	for i := range made {
		load.Go(func() { // ends with over
			for {
				select {
				case <-over:
					return
				default:
				}
				c, err := secured(address, s.as("a.example"))
				if err != nil {
					failed <- err
					return
				}
				c.Close()
				made[i]++
			}
		})
	}
	for i := 1; i <= 5; i++ {
		serial := swap(i)
		eventually(t, "the new certificate is shown", func() bool {
			c, err := secured(address, s.as("a.example"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.ConnectionState().PeerCertificates[0].SerialNumber.String() == serial
		})
	}
	close(over)
	load.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if err := echoesOn(before); err != nil {
		t.Errorf("a connection of before: %v", err)
	}
	now := p.scrape()
	t.Logf("%d connections, %g reloads", made[0]+made[1], now[`levee_reloads_total{result="ok"}`])
	if made[0] == 0 || made[1] == 0 || now[`levee_reloads_total{result="ok"}`] < 5 || now[`levee_reloads_total{result="failed"}`] > 0 || now.closed("tls_failed") > 0 {
		t.Errorf("%v connections; it counts %v", made, now)
	}
}

func TestOnePortPassesTLSThroughAndEndsItByName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	behind := answering(t, func(c net.Conn) {
		secure := tls.Server(c, s.servers.ServerConfig("p.example"))
		echoing(secure)
	})
	path := s.config("", "{match: {sni: p.example}, tls: passthrough, upstream: behind}", "{match: {sni: b.example}, refuse: true}", "{handler: echo}")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.put("levee.yaml", append(content, []byte("upstreams: [{name: behind, servers: [\""+behind+"\"], health: {interval: off}}]\n")...))
	p := start(t, "serve", "-c", path)
	address := p.address()
	for _, name := range []string{"p.example", "a.example"} {
		if leaf := s.lives(address, s.as(name)).ConnectionState().PeerCertificates[0]; leaf.VerifyHostname(name) != nil {
			t.Errorf("%s is shown the certificate of %v", name, leaf.DNSNames)
		}
	}
	refused(t, address, s.as("b.example"), "access denied")
	refused(t, address, s.as("nobody.example"), "unrecognized name")
	s.sayByOpenSSL(address, map[string]string{"P.EXAMPLE": "p.example", "A.example": "a.example"})
}

// sayByOpenSSL asks for names, and wants the certificates for others.
func (s *site) sayByOpenSSL(address string, names map[string]string) {
	s.t.Helper()
	ca := s.put("servers.pem", s.servers.PEM())
	for sent, want := range names {
		text, err := client(s.t, "Q\n", "openssl", "s_client", "-brief", "-CAfile", ca, "-verify_return_error", "-verify_hostname", want, "-servername", sent, "-connect", address)
		if err != nil || !strings.Contains(text, "Verified peername: "+want) {
			s.t.Errorf("%s: %v\n%s", sent, err, text)
		}
	}
}

// Who speaks first is not asked where routes look at no bytes.
func TestTheServerMaySpeakFirstWhereRoutesLookAtNoBytes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	greeting := func(name string) string {
		return answering(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "220 "+name+"\r\n")
			echoing(c)
		})
	}
	path := s.put("levee.yaml", []byte(`version: 1
admin: {listen: off}
listeners:
  - name: plain
    listen: ["127.0.0.1:0"]
    routes:
      - {match: {source: 127.0.0.9}, upstream: other}
      - {upstream: mail}
  - name: secure
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: a.pem, key: a-key.pem}, {cert: b.pem, key: b-key.pem}]}
    routes:
      - {match: {sni: b.example}, upstream: other}
      - {upstream: mail}
upstreams:
  - {name: mail, servers: ["`+greeting("mail")+`"], health: {interval: off}}
  - {name: other, servers: ["`+greeting("other")+`"], health: {interval: off}}
`))
	p := start(t, "serve", "-c", path)
	p.find(&p.stdout, `(?s)Listening on .*Listening on \S+\n`)
	addresses := strings.Fields(strings.ReplaceAll(p.stdout.String(), "Listening on ", ""))
	heard := func(c net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	heard(dial(t, addresses[0]), "220 mail\r\n")
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}, Timeout: patience}
	c, err := from.Dial("tcp", addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	heard(c, "220 other\r\n")
	heard(tls.Client(dial(t, addresses[1]), s.as("a.example")), "220 mail\r\n")
	heard(tls.Client(dial(t, addresses[1]), s.as("b.example")), "220 other\r\n")
}

func TestExplainTellsWhatServingDoes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	path := s.config(", alpn: [x, y]",
		"{name: one, match: {sni: a.example}, handler: echo}",
		"{name: two, match: {sni: \"*.example\", alpn: y}, handler: echo}",
		"{name: three, match: {source: 127.0.0.0/8, sni: b.example}, tls: {client_ca: clients.pem}, handler: echo}",
		"{name: four, refuse: true}")
	p := start(t, "serve", "-c", path)
	address := p.address()
	for _, c := range []struct {
		name, alpn, route string
		alert             string // of serving; empty is none
	}{
		{"a.example", "", "one", ""},
		{"b.example", "y", "two", ""},
		{"b.example", "x", "three", "certificate required"},
		{"c.example", "x", "four", "access denied"},
	} {
		config := s.as(c.name)
		args := []string{"explain", "-c", path, "--src", "127.0.0.1", "--sni", c.name}
		if c.alpn != "" {
			config.NextProtos = []string{c.alpn}
			args = append(args, "--alpn", c.alpn)
		}
		if c.alert == "" {
			s.lives(address, config)
		} else {
			refused(t, address, config, c.alert)
		}
		out, err := exec.Command(levee, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nroute     "+c.route) || strings.Contains(string(out), "\nrefused ") != (c.route == "four") {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
		if c.route == "three" && !strings.Contains(string(out), "\nclients   need a certificate of "+filepath.Join(s.dir, "clients.pem")+" ("+path+":10)\n") {
			t.Errorf("its policy is not told:\n%s", out)
		}
	}
	out, err := exec.Command(levee, "explain", "-c", path).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("without --src: %v, %s", err, out)
	}
}
