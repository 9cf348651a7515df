package certs_test

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/certs"
)

func TestAServerIsHardened(t *testing.T) {
	ca := newAuthority(t, "ca")
	server := (&certs.Server{GetCertificate: fixed(ca.server("a.test"))}).Config()
	client := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}
	m, err := meet(server, client)
	if err != nil || m.server.Version != tls.VersionTLS13 || m.client.CurveID != tls.X25519MLKEM768 {
		t.Errorf("%s, %v, %v", tls.VersionName(m.server.Version), m.client.CurveID, err)
	}
	for name, old := range map[string]*tls.Config{
		"TLS 1.1":             {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":                 {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"CBC with SHA-256":    {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}},
		"no forward secrecy":  {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		"triple DES and RC4 ": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}},
	} {
		old.RootCAs, old.ServerName = ca.pool(), "a.test"
		if m, err := meet(server, old); err == nil {
			t.Errorf("%s: %s", name, tls.CipherSuiteName(m.server.CipherSuite))
		}
	}
	client.MaxVersion = tls.VersionTLS12
	for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256} {
		client.CipherSuites = []uint16{suite}
		if _, err := meet(server, client); err != nil {
			t.Errorf("%s: %v", tls.CipherSuiteName(suite), err)
		}
	}
}

func TestALPNIsStrict(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t, "ca")
		for _, c := range []struct {
			spoken, offered []string
			want            string // the protocol, or "refused"
		}{
			{nil, nil, ""},
			{nil, []string{"h2"}, ""},
			{[]string{"h2", "http/1.1"}, []string{"http/1.1", "h2"}, "h2"},
			{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1"},
			{[]string{"h2"}, []string{"http/1.1"}, "refused"}, // which crypto/tls by itself would let in
			{[]string{"h2"}, []string{"http/1.1", "imap"}, "refused"},
			{[]string{"postgresql"}, []string{"http/1.1", "h2"}, "refused"},
			{[]string{"postgresql"}, []string{strings.Repeat("-", 255)}, "refused"},
			{[]string{"postgresql"}, []string{"POSTGRESQL"}, "refused"},
			{[]string{"postgresql"}, nil, ""},
		} {
			server := (&certs.Server{GetCertificate: fixed(ca.server("a.test")), ALPN: c.spoken}).Config()
			m, err := meet(server, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", NextProtos: c.offered, MaxVersion: version})
			switch {
			case c.want == "refused":
				if alert(err) != noApplicationProtocol {
					t.Errorf("%q to %q: %q, %v", c.offered, c.spoken, m.server.NegotiatedProtocol, err)
				}
			case err != nil || m.server.NegotiatedProtocol != c.want:
				t.Errorf("%q to %q: %q, %v", c.offered, c.spoken, m.server.NegotiatedProtocol, err)
			}
		}
	})
}

// A name whose certificate has gone is not served on for those who have been there.
func TestANameThatIsGoneIsGoneForResumedSessionsToo(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca, dir := newAuthority(t, "ca"), t.TempDir()
		files := load(t, putPair(t, dir, "a", ca.server("a.test", "b.test")))
		server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
		client := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for i := range 2 {
			if m, err := meet(server, client); err != nil || m.server.DidResume != (i == 1) {
				t.Fatalf("%d: resumed %t, %v", i, m.server.DidResume, err)
			}
		}
		putPair(t, dir, "a", ca.server("b.test"))
		if err := files.Load(); err != nil {
			t.Fatal(err)
		}
		if _, err := meet(server, client); alert(err) != unrecognizedName {
			t.Errorf("error %v", err)
		}
	})
}

func TestAConfigurationIsNotMadeForEachClient(t *testing.T) {
	clients, tickets := &certs.Clients{CAs: []string{put(t, t.TempDir(), "ca.pem", newAuthority(t, "ca").pem())}}, new(certs.Tickets)
	if err := clients.Load(); err != nil {
		t.Fatal(err)
	}
	hello := &tls.ClientHelloInfo{ServerName: "a.test", SupportedProtos: []string{"h2"}}
	server := (&certs.Server{Clients: clients, Tickets: tickets, ALPN: []string{"h2"}}).Config()
	first, err := server.GetConfigForClient(hello)
	if err != nil {
		t.Fatal(err)
	}
	if first.ClientAuth != tls.RequireAndVerifyClientCert || first.VerifyConnection == nil || !slices.Equal(first.NextProtos, []string{"h2"}) {
		t.Errorf("%+v", first)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		if again, err := server.GetConfigForClient(hello); again != first || err != nil {
			t.Fatal(again, err)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkConfigForClient(b *testing.B) {
	ca := newAuthority(b, "ca")
	clients := &certs.Clients{CAs: []string{put(b, b.TempDir(), "ca.pem", ca.pem())}}
	if err := clients.Load(); err != nil {
		b.Fatal(err)
	}
	files := load(b, putPair(b, b.TempDir(), "a", ca.server("a.test")))
	server := (&certs.Server{GetCertificate: files.GetCertificate, Clients: clients, ALPN: []string{"postgresql"}}).Config()
	for name, extensions := range map[string][]uint16{"first visit": {0, 10, 13, 16, 43, 51}, "resumed": {0, 10, 13, 16, 43, 51, 41}} {
		hello := &tls.ClientHelloInfo{ServerName: "a.test", SupportedProtos: []string{"postgresql"}, Extensions: extensions}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := server.GetConfigForClient(hello); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
