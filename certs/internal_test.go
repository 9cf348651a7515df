package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

// A ticket of a process whose clock is up to a period ahead, or two behind, is good.
func TestReplicasNeedNotAgreeOnTheTime(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	at := func(now time.Time) [][32]byte {
		tickets := &Tickets{Rotate: time.Hour}
		tickets.File = "secret"
		tickets.secret.Store(&secret)
		return tickets.at(now).keys("x")
	}
	now := time.Now()
	keys := at(now)
	for apart := -5; apart <= 5; apart++ {
		theirs := at(now.Add(time.Duration(apart) * time.Hour))[0]
		if got, want := slices.Contains(keys, theirs), apart >= -2 && apart <= 1; got != want {
			t.Errorf("%d hours apart: %t", apart, got)
		}
	}
}

func FuzzAURIMatchesWhatItSays(f *testing.F) {
	for _, seed := range [][2]string{
		{"spiffe://example.com/*", "spiffe://example.com/a/b"},
		{"spiffe://example.com/a", "spiffe://example.com/a"},
		{"spiffe://example.com/a/*", "spiffe://example.com/a/../b"},
		{"spiffe://a@b/*", "spiffe://a@b/c"},
		{"urn:x", "urn:x"},
		{"spiffe:///*", "spiffe:///a"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		e, err := parseEntries(&Clients{URIs: []string{pattern}})
		uri, parseErr := url.Parse(text)
		if err != nil || parseErr != nil || !e.match(&x509.Certificate{URIs: []*url.URL{uri}}) {
			if err == nil && !strings.HasSuffix(pattern, "*") {
				if itself, err := url.Parse(pattern); err != nil || !e.match(&x509.Certificate{URIs: []*url.URL{itself}}) {
					t.Errorf("%q does not match itself", pattern)
				}
			}
			return
		}
		folder, wildcard := strings.CutSuffix(pattern, "*")
		got := uri.String()
		if !wildcard {
			if got != pattern {
				t.Errorf("%q matches %q", pattern, got)
			}
			return
		}
		parsed, err := url.Parse(folder)
		if err != nil || uri.Scheme != "spiffe" || uri.Host != parsed.Host || uri.Host == "" || uri.RawQuery != "" || uri.Fragment != "" ||
			path.Clean(uri.Path) != uri.Path || !strings.HasPrefix(uri.Path, parsed.Path) || uri.Path == parsed.Path {
			t.Errorf("%q matches %q", pattern, got)
		}
	})
}

func FuzzAPinHasOneForm(f *testing.F) {
	for _, seed := range []string{"", "sha256/", "sha256/AAAA", "sha256/" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "sha256/\n" + base64.StdEncoding.EncodeToString(make([]byte, 32))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pin, err := parsePin(text)
		if err == nil && text != "sha256/"+base64.StdEncoding.EncodeToString(pin[:]) {
			t.Errorf("%q is %x", text, pin)
		}
	})
}

func FuzzEmails(f *testing.F) {
	f.Add("a@b", "a@B")
	f.Add("a@@b", "A@b")
	f.Fuzz(func(t *testing.T, listed, shown string) {
		e, err := parseEntries(&Clients{Emails: []string{listed}})
		if err == nil && e.match(&x509.Certificate{EmailAddresses: []string{shown}}) && !strings.EqualFold(listed, shown) {
			t.Errorf("%q lets %q in", listed, shown)
		}
	})
}

// Whatever becomes of a list on its way, it is believed whole or not at all.
func FuzzNothingIsTakenFromAList(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: time.Now()}},
	}, ca, key)
	if err != nil {
		f.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
	for _, seed := range [][]byte{nil, list, text, append(slices.Clone(text), text...), append([]byte("# comment\n"), text[:len(text)/2]...)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		p := &policy{cas: []authority{{ca, "ca.pem"}}}
		if p.addCRLs(content, "list.crl") != nil {
			return
		}
		if len(p.crls) == 0 {
			t.Error("a file without a list is a list")
		}
		for _, l := range p.crls {
			if !l.revoked["\x07"] {
				t.Error("what was revoked is not")
			}
		}
	})
}
