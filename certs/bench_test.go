package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/levee-net/levee/certs"
)

// hellos are what clients of today send, by what they make GetCertificate do.
func hellos() map[string]*tls.ClientHelloInfo {
	hello := func(name string) *tls.ClientHelloInfo {
		return &tls.ClientHelloInfo{
			ServerName:        name,
			SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12},
			SignatureSchemes:  []tls.SignatureScheme{tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256, tls.Ed25519},
		}
	}
	return map[string]*tls.ClientHelloInfo{
		"exact": hello("host500.test"), "wildcard": hello("x.wild.test"), "two key types": hello("both.test"), "none": hello(""), "unknown": hello("stranger.test"),
	}
}

func manyFiles(t testing.TB) *certs.Files {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("host%d.test", i))
	}
	both := func(kind string) certs.Pair {
		return putPair(t, dir, kind, ca.issue(kind, func(c *x509.Certificate) { c.DNSNames = []string{"both.test"} }))
	}
	return load(t, putPair(t, dir, "many", ca.server(names...)), putPair(t, dir, "wild", ca.server("*.wild.test")), both("RSA"), both("P-256"))
}

func TestChoosingACertificateAllocatesNothing(t *testing.T) {
	files := manyFiles(t)
	for name, hello := range hellos() {
		if allocs := testing.AllocsPerRun(100, func() { _, _ = files.GetCertificate(hello) }); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func BenchmarkGetCertificate(b *testing.B) {
	files := manyFiles(b)
	for name, hello := range hellos() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = files.GetCertificate(hello)
			}
		})
	}
}
