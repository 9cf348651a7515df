package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const mutual = ", client_ca: clients.pem, client_crl: clients.crl"

func TestARevokedClientLosesItsConnectionsAndOthersLiveOn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.put("others.pem", s.client.PEM())
	path := s.config(mutual, "{match: {sni: b.example}, tls: {client_ca: others.pem}, handler: echo}", "{match: {sni: c.example}, upstream: behind}", "{handler: echo}")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.put("levee.yaml", append(content, []byte("upstreams: [{name: behind, servers: [\""+answering(t, echoing)+"\"]}]\n")...))
	p := start(t, "serve", "-c", path)
	address := p.address()
	alice, bob := s.client.ClientCertificate("alice"), s.client.ClientCertificate("bob")
	good, elsewhere := s.lives(address, s.as("a.example", alice)), s.lives(address, s.as("b.example", bob))
	proxied := s.lives(address, s.as("c.example", alice))
	bad := make([]*tls.Conn, 50)
	for i := range bad {
		bad[i] = s.lives(address, s.as([]string{"a.example", "c.example"}[i%2], bob))
	}
	began := time.Now()
	s.put("clients.crl", s.client.CRL(bob))
	for _, c := range bad {
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it reads %d bytes, %v", n, err)
		}
	}
	if took := time.Since(began); took < 400*time.Millisecond { // at 100 a second
		t.Errorf("50 connections were ended within %v", took)
	}
	if err := errors.Join(echoesOn(good), echoesOn(proxied), echoesOn(elsewhere)); err != nil {
		t.Error(err)
	}
	refused(t, address, s.as("a.example", bob), "bad certificate")
	eventually(t, "50 connections have ended by the policy", func() bool { return p.scrape().closed("policy") == 50 })
	p.find(&p.stderr, `"ended connections that the client policy does not allow any more","listener":"main","count":50`)
}

// Whatever becomes of the files: nobody is let in who was not before.
func TestFaultsInFilesLetNobodyIn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	alice, stranger := s.client.ClientCertificate("alice"), s.servers.ClientCertificate("alice")
	revoked := s.client.ClientCertificate("bob")
	server, err := os.ReadFile(filepath.Join(s.dir, "a.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.put("clients.crl", s.client.CRL(revoked))
	config := s.config(mutual, "handler: echo")
	p := start(t, "serve", "-c", config)
	address := p.address()
	stays := func() {
		t.Helper()
		c, err := secured(address, s.as("a.example", alice))
		if err != nil {
			t.Fatalf("a client that is allowed: %v", err)
		}
		c.Close()
		refused(t, address, s.as("a.example"), "certificate required")
		refused(t, address, s.as("a.example", stranger), "unknown certificate authority")
		refused(t, address, s.as("a.example", revoked), "bad certificate")
	}
	stays()
	for _, fault := range []struct {
		name, file string
		content    []byte // nil: the file is gone
		line       string
	}{
		{"no CA file", "clients.pem", nil, "6:131: client CA: open "},
		{"an empty CA file", "clients.pem", []byte{}, "6:131: client CA "},
		{"half a CA file", "clients.pem", s.client.PEM()[:200], "6:131: client CA "},
		{"a CA file without a CA", "clients.pem", server, "6:131: client CA "},
		{"a CA file with more than CAs", "clients.pem", bytes.Join([][]byte{s.client.PEM(), server}, nil), "6:131: client CA "},
		{"no CRL", "clients.crl", nil, "6:156: CRL: open "},
		{"an empty CRL", "clients.crl", []byte{}, "6:156: CRL "},
		{"another CA's CRL", "clients.crl", s.servers.CRL(), "6:156: CRL "},
		{"no certificate", "a.pem", nil, "6:26: certificate: open "},
		{"half a certificate", "a.pem", server[:100], "6:26: certificate "},
		{"another's certificate", "a.pem", s.client.PEM(), "6:26: certificate "},
	} {
		path := filepath.Join(s.dir, fault.file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before := p.scrape()[`levee_reloads_total{result="failed"}`]
		if fault.content == nil {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else {
			s.put(fault.file, fault.content)
		}
		p.signal(syscall.SIGHUP)
		eventually(t, fault.name+" is counted", func() bool { return p.scrape()[`levee_reloads_total{result="failed"}`] > before })
		stays()
		for _, command := range []string{"check", "serve"} {
			out, err := exec.Command(levee, command, "-c", config).CombinedOutput()
			exit := (*exec.ExitError)(nil)
			if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "levee: "+config+":"+fault.line) {
				t.Errorf("%s: levee %s: %v, %s; want %s", fault.name, command, err, out, fault.line)
			}
		}
		s.put(fault.file, good)
	}
	before := p.scrape()[`levee_reloads_total{result="ok"}`]
	p.signal(syscall.SIGHUP)
	eventually(t, "the files are good again", func() bool { return p.scrape()[`levee_reloads_total{result="ok"}`] > before })
	stays()
}

// anySession offers whatever session it has, whichever server that was of.
type anySession struct{ last *tls.ClientSessionState }

func (a *anySession) Get(string) (*tls.ClientSessionState, bool) { return a.last, a.last != nil }

func (a *anySession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		a.last = s
	}
}

func TestTicketsAreGoodForOnePolicyAndForAllWhoShareTheSecret(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	s.put("secret", secret)
	routes := []string{
		"{match: {sni: b.example}, tls: {client_ca: clients.pem}, handler: echo}",
		"{match: {sni: c.example}, tls: {client_ca: clients.pem, client_allow: {common_name: alice}}, handler: echo}",
		"{handler: echo}",
	}
	first := s.serve(", tickets: {file: secret}", routes...)
	second := s.serve(", tickets: {file: secret}", routes...)
	here, there := first.address(), second.address()
	alice := s.client.ClientCertificate("alice")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		as := func(sessions *anySession, name string, certificates ...tls.Certificate) *tls.Config {
			config := s.as(name, certificates...)
			config.ClientSessionCache, config.MinVersion, config.MaxVersion = sessions, version, version
			config.InsecureSkipVerify = true // or the client would not offer a session of another name
			return config
		}
		resumes := func(address string, config *tls.Config, want bool) {
			t.Helper()
			c, err := secured(address, config)
			if err != nil {
				t.Fatalf("%s: %v", config.ServerName, err)
			}
			defer c.Close()
			if got := c.ConnectionState().DidResume; got != want {
				t.Errorf("%x, %s: resumed is %t, want %t", version, config.ServerName, got, want)
			}
		}
		open := new(anySession)
		resumes(here, as(open, "a.example"), false)
		resumes(here, as(open, "a.example"), true)
		resumes(there, as(open, "a.example"), true)
		for _, name := range []string{"b.example", "c.example"} { // with a session of those who show nothing
			refused(t, here, as(&anySession{open.last}, name), "")
		}
		member := new(anySession)
		resumes(here, as(member, "b.example", alice), false)
		resumes(there, as(member, "b.example", alice), true)
		resumes(here, as(&anySession{member.last}, "c.example", alice), false)
		resumes(here, as(&anySession{member.last}, "a.example"), false)
	}
}

func TestNamesInDisguiseMeetTheSamePolicy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.serve("", "{match: {sni: b.example}, tls: {client_ca: clients.pem}, handler: echo}", "{handler: echo}")
	address := p.address()
	for _, name := range []string{"b.example", "B.EXAMPLE", "b.Example"} {
		config := s.as(name)
		config.InsecureSkipVerify = true
		refused(t, address, config, "certificate required")
		config.Certificates = []tls.Certificate{s.client.ClientCertificate("alice")}
		leaf := s.lives(address, config).ConnectionState().PeerCertificates[0]
		if err := leaf.VerifyHostname("b.example"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"b.example.", "b..example", "b example", ".b.example", "*.example"} { // none of which RFC 6066 lets a client send
		text, err := client(t, "Q\n", "openssl", "s_client", "-brief", "-servername", name, "-connect", address)
		if err == nil || !strings.Contains(text, "alert") || strings.Contains(text, "CONNECTION ESTABLISHED") {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}
