package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/levee-net/levee/certs"
)

func TestACertificateIsChosenByName(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	files := load(t,
		putPair(t, dir, "first", ca.server("a.test")),
		putPair(t, dir, "wild", ca.server("*.b.test", "b.test")),
		putPair(t, dir, "exact", ca.server("x.b.test")),
		putPair(t, dir, "bücher", ca.server("xn--bcher-kva.test")),
	)
	for name, want := range map[string]string{
		"a.test":             "a.test",
		"A.TEST":             "a.test",
		"x.b.test":           "x.b.test", // exact before wildcard
		"X.b.Test":           "x.b.test",
		"y.b.test":           "*.b.test",
		"Y.B.TEST":           "*.b.test",
		"b.test":             "*.b.test",
		"xn--bcher-kva.test": "xn--bcher-kva.test",
		"":                   "a.test", // the first pair
		"a.test.":            "a.test", // which crypto/tls refuses before

		"stranger.test": "", "x.a.test": "", "y.x.b.test": "", ".b.test": "", "..b.test": "", "*.b.test": "",
		"a\x00.b.test": "", "é.b.test": "", "10.0.0.1": "", "::1": "", ".": "", "a.test..": "", "test": "", "bücher.test": "",
	} {
		got, err := files.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13}})
		switch {
		case err != nil:
			t.Errorf("%q: %v", name, err)
		case want == "" && got != nil:
			t.Errorf("%q is shown the certificate of %v", name, got.Leaf.DNSNames)
		case want != "" && (got == nil || got.Leaf.DNSNames[0] != want):
			t.Errorf("%q is not shown the certificate of %s", name, want)
		}
	}
}

func TestAnUnknownNameIsToldSo(t *testing.T) {
	ca := newAuthority(t, "ca")
	files := load(t, putPair(t, t.TempDir(), "a", ca.server("a.test")))
	server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, err := meet(server, &tls.Config{RootCAs: ca.pool(), ServerName: "b.test", MaxVersion: version})
		if alert(err) != unrecognizedName {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if _, err := meet(server, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: version}); err != nil {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func TestTheKeyTypeFollowsTheClient(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	pair := func(kind string) certs.Pair {
		return putPair(t, dir, kind, ca.issue(kind, func(c *x509.Certificate) { c.DNSNames = []string{"a.test"} }))
	}
	files := load(t, pair("RSA"), pair("Ed25519"), pair("P-384"))
	server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	rsaSuites := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for name, c := range map[string]struct {
		client *tls.Config
		want   x509.PublicKeyAlgorithm
	}{
		"1.3":          {&tls.Config{}, x509.ECDSA},
		"1.2":          {&tls.Config{MaxVersion: tls.VersionTLS12}, x509.ECDSA},
		"1.2 with RSA": {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: rsaSuites}, x509.RSA},
	} {
		for _, serverName := range []string{"a.test", ""} {
			client := c.client.Clone()
			client.ServerName, client.InsecureSkipVerify = serverName, true
			m, err := meet(server, client)
			if err != nil {
				t.Errorf("%s, %q: %v", name, serverName, err)
			} else if got := m.client.PeerCertificates[0].PublicKeyAlgorithm; got != c.want {
				t.Errorf("%s, %q: %v, want %v", name, serverName, got, c.want)
			}
		}
	}
	only := func(schemes ...tls.SignatureScheme) *tls.ClientHelloInfo {
		return &tls.ClientHelloInfo{ServerName: "a.test", SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: schemes}
	}
	for want, hello := range map[x509.PublicKeyAlgorithm]*tls.ClientHelloInfo{
		x509.ECDSA:   only(tls.PSSWithSHA256, tls.Ed25519, tls.ECDSAWithP384AndSHA384),
		x509.Ed25519: only(tls.PSSWithSHA256, tls.Ed25519, tls.ECDSAWithP256AndSHA256),
		x509.RSA:     only(tls.PSSWithSHA256),
	} {
		if got, err := files.GetCertificate(hello); err != nil || got.Leaf.PublicKeyAlgorithm != want {
			t.Errorf("%v instead of %v, %v", got.Leaf.PublicKeyAlgorithm, want, err)
		}
	}
}

// Between a name's certificates, one that has expired is the last resort.
func TestAnExpiredCertificateGivesWay(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	pair := func(kind string, left time.Duration) certs.Pair {
		return putPair(t, dir, kind, ca.issue(kind, func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"a.test"}, time.Now().Add(left)
		}))
	}
	files := load(t, pair("P-256", -time.Minute), pair("RSA", time.Hour))
	server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	if _, err := meet(server, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}); err != nil {
		t.Error(err)
	}
}

// fault is a way in which a file can be wrong.
type fault struct {
	name   string
	change func(t *testing.T, path string)
	want   string // in the error, after the path
}

// faults are those that any file can have.
func faults() []fault {
	rewrite := func(change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Dir(path), filepath.Base(path), change(content))
		}
	}
	return []fault{
		{"missing", func(_ *testing.T, path string) { _ = os.Remove(path) }, "no such file"},
		{"empty", rewrite(func([]byte) []byte { return nil }), ""},
		{"garbage", rewrite(func([]byte) []byte { return []byte("not what it should be, whatever that is\n") }), ""},
		{"truncated", rewrite(func(b []byte) []byte { return b[:len(b)*2/3] }), ""},
		{"huge", rewrite(func(b []byte) []byte { return append(b, make([]byte, 2<<20)...) }), "larger than"},
		{"a folder", func(t *testing.T, path string) {
			_ = os.Remove(path)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "not a file"},
		{"a pipe", func(t *testing.T, path string) {
			_ = os.Remove(path)
			mkfifo(t, path)
		}, "not a file"},
		{"not for us", func(t *testing.T, path string) {
			if os.Geteuid() <= 0 {
				t.Skip("root may read every file, and Windows has no modes")
			}
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
		}, "permission denied"},
	}
}

func TestABrokenPairKeepsTheOld(t *testing.T) {
	ca := newAuthority(t, "ca")
	all := faults()
	all = append(all, fault{"another's", func(t *testing.T, path string) {
		cert, key := encodePair(t, ca.server("b.test"))
		if strings.Contains(path, "key") {
			cert = key
		}
		put(t, filepath.Dir(path), filepath.Base(path), cert)
	}, "private key does not match public key"})
	for _, f := range all {
		for _, which := range []string{"certificate", "key"} {
			t.Run(f.name+" "+which, func(t *testing.T) {
				dir := t.TempDir()
				good := putPair(t, dir, "good", ca.server("good.test"))
				pair := putPair(t, dir, "a", ca.server("a.test"))
				files := load(t, good, pair)
				path := pair.Cert
				if which == "key" {
					path = pair.Key
				}
				f.change(t, path)
				putPair(t, dir, "good", ca.server("better.test")) // and nothing of this comes into force
				for _, files := range []*certs.Files{files, {Pairs: []certs.Pair{good, pair}}} {
					err := files.Load()
					if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), f.want) {
						t.Errorf("error %v", err)
					}
				}
				for _, name := range []string{"good.test", "a.test"} {
					if c, err := files.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); c == nil || err != nil {
						t.Errorf("%s has gone: %v", name, err)
					}
				}
			})
		}
	}
}

func TestNothingIsServedBeforeItIsLoaded(t *testing.T) {
	files := &certs.Files{}
	if c, err := files.GetCertificate(&tls.ClientHelloInfo{}); c != nil || err == nil {
		t.Errorf("%v, %v", c, err)
	}
	if err := files.Load(); err == nil {
		t.Error("no pair at all was accepted")
	}
	if infos := files.Certificates(); infos != nil {
		t.Error(infos)
	}
}

func TestWhatIsDoubtfulIsServedAndToldOnce(t *testing.T) {
	ca, dir, told := newAuthority(t, "ca"), t.TempDir(), newLog()
	expired := putPair(t, dir, "expired", ca.issue("P-256", func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"old.test"}, time.Now().Add(-time.Minute)
	}))
	early := putPair(t, dir, "early", ca.issue("P-256", func(c *x509.Certificate) {
		c.DNSNames, c.NotBefore = []string{"new.test"}, time.Now().Add(time.Hour)
	}))
	nameless := putPair(t, dir, "nameless", ca.client("somebody"))
	files := &certs.Files{Pairs: []certs.Pair{expired, early, nameless}, Problem: told.add}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(early.Key, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := files.Load(); err != nil {
			t.Fatal(err)
		}
	}
	text := told.take()
	for _, want := range []string{expired.Cert + " expired at ", early.Cert + " is not valid before ", nameless.Cert + " has no DNS name", early.Key + " can be read by every user (mode 0644)"} {
		if strings.Count(text, want) != 1 && (runtime.GOOS != "windows" || !strings.Contains(want, "mode")) {
			t.Errorf("told %q; want %q in it once", text, want)
		}
	}
	for _, name := range []string{"old.test", "new.test", ""} {
		if c, err := files.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); c == nil || err != nil {
			t.Errorf("%q is not served: %v", name, err)
		}
	}
}

func TestACertificateThatExpiresSoonIsTold(t *testing.T) {
	const day = 24 * time.Hour
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	for _, c := range []struct {
		name       string
		life, left time.Duration
		told       bool
	}{
		{"a year's with 15 days", 365 * day, 15 * day, false},
		{"a year's with 13 days", 365 * day, 13 * day, true},
		{"a day's with 5 hours", day, 5 * time.Hour, false},
		{"a day's with 4 hours", day, 4 * time.Hour, true},
		{"one that has expired", day, -time.Hour, false}, // and is told so
	} {
		t.Run(c.name, func(t *testing.T) {
			told := newLog()
			end := time.Now().Add(c.left)
			pair := putPair(t, dir, "a", ca.issue("P-256", func(x *x509.Certificate) {
				x.DNSNames, x.NotBefore, x.NotAfter = []string{"a.test"}, end.Add(-c.life), end
			}))
			files := &certs.Files{Pairs: []certs.Pair{pair}, Problem: told.add}
			for range 2 {
				if err := files.Load(); err != nil {
					t.Fatal(err)
				}
			}
			want := 0
			if c.told {
				want = 1
			}
			text := told.take()
			if strings.Count(text, pair.Cert+" expires soon, at "+end.UTC().Truncate(time.Second).Format(time.RFC3339)) != want {
				t.Errorf("told %q", text)
			}
		})
	}
}

func TestWhatKeepsFilesFromBeingLoadedIsTold(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	pair := putPair(t, dir, "a", ca.client("nameless"))
	secret := put(t, dir, "tickets", []byte("too short"))
	for name, watched := range map[string]func(problem func(error)) func(context.Context) error{
		"certificates": func(problem func(error)) func(context.Context) error {
			return (&certs.Files{Pairs: []certs.Pair{pair, {Cert: "none", Key: "none"}}, Problem: problem}).Watch
		},
		"clients": func(problem func(error)) func(context.Context) error {
			return (&certs.Clients{CAs: []string{pair.Cert}, Problem: problem}).Watch
		},
		"tickets": func(problem func(error)) func(context.Context) error {
			return (&certs.Tickets{File: secret, Problem: problem}).Watch
		},
	} {
		told := make(chan error, 1)
		watch(t, watched(func(err error) { told <- err }))
		if err := <-told; !errors.Is(err, certs.ErrKept) || errors.Unwrap(err) == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	warned := make(chan error, 1)
	watch(t, (&certs.Files{Pairs: []certs.Pair{pair}, Problem: func(err error) { warned <- err }}).Watch)
	if err := <-warned; errors.Is(err, certs.ErrKept) || !strings.Contains(err.Error(), "no DNS name") {
		t.Errorf("a warning: %v", err)
	}
}

// Somebody has put a file back from a backup.
func TestAnExpiredCertificateDoesNotReplaceAGoodOne(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	good := ca.server("a.test")
	files := load(t, putPair(t, dir, "a", good))
	putPair(t, dir, "a", ca.issue("P-256", func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"a.test"}, time.Now().Add(-time.Minute)
	}))
	if err := files.Load(); err == nil || !strings.Contains(err.Error(), "a.pem expired at") {
		t.Errorf("error %v", err)
	}
	if c, _ := files.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.test"}); !c.Leaf.Equal(good.Leaf) {
		t.Error("the good one has gone")
	}
}

func TestWhatIsInForceIsDescribed(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	cert := ca.server("a.test", "*.b.test")
	pair := putPair(t, dir, "a", cert)
	infos := load(t, pair).Certificates()
	if len(infos) != 1 {
		t.Fatal(infos)
	}
	i := infos[0]
	if i.Pair != pair || !slices.Equal(i.Names, []string{"a.test", "*.b.test"}) || i.Issuer != "CN=ca" ||
		i.Serial != cert.Leaf.SerialNumber.Text(16) || !i.NotAfter.Equal(cert.Leaf.NotAfter) || i.Stapled {
		t.Errorf("%+v", i)
	}
}

func TestAStapleIsShownWhileItIsGood(t *testing.T) {
	root := newAuthority(t, "root")
	ca, dir, told := root.under("ca"), t.TempDir(), newLog()
	cert, other := ca.server("a.test"), ca.server("b.test")
	pair := putPair(t, dir, "a", cert)
	pair.OCSP = filepath.Join(dir, "a.ocsp")
	files := &certs.Files{Pairs: []certs.Pair{pair}, Problem: told.add}
	server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	good := ca.ocsp(cert, func(*ocsp.Response) {})
	for _, c := range []struct {
		name     string
		response []byte
		want     string // told; "" for a good one
	}{
		{"good", good, ""},
		{"another's", ca.ocsp(other, func(*ocsp.Response) {}), "no response matching"},
		{"good again", good, ""},
		{"another issuer's", newAuthority(t, "ca").ocsp(cert, func(*ocsp.Response) {}), "signature"},
		{"expired", ca.ocsp(cert, func(r *ocsp.Response) { r.NextUpdate = time.Now().Add(-time.Minute) }), "expired at"},
		{"early", ca.ocsp(cert, func(r *ocsp.Response) { r.ThisUpdate = time.Now().Add(time.Minute) }), "not valid before"},
		{"endless", ca.ocsp(cert, func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), "until when"},
		{"bad news", ca.ocsp(cert, func(r *ocsp.Response) { r.Status, r.RevokedAt = ocsp.Revoked, time.Now() }), "does not say that the certificate is good"},
		{"garbage", []byte("garbage"), "asn1"},
		{"empty", nil, "asn1"},
	} {
		put(t, dir, "a.ocsp", c.response)
		if err := files.Load(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		m, err := meet(server, &tls.Config{RootCAs: root.pool(), ServerName: "a.test"})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := m.client.OCSPResponse; (c.want == "") != (string(got) == string(good)) || c.want != "" && got != nil {
			t.Errorf("%s: the client is shown %x", c.name, got)
		}
		if text := told.take(); (c.want == "") != (text == "") || !strings.Contains(text, c.want) {
			t.Errorf("%s: told %q, want %q", c.name, text, c.want)
		}
		if files.Certificates()[0].Stapled != (c.want == "") {
			t.Errorf("%s: described wrongly", c.name)
		}
	}
	if err := os.Remove(pair.OCSP); err != nil {
		t.Fatal(err)
	}
	if err := files.Load(); err != nil || !strings.Contains(told.take(), "a.ocsp") {
		t.Errorf("missing: %v", err)
	}
}

func TestAChangeIsSeenByWhoComesNext(t *testing.T) {
	ca, dir, told := newAuthority(t, "ca"), t.TempDir(), newLog()
	pair := putPair(t, dir, "a", ca.server("a.test"))
	changed := make(chan struct{}, 10)
	files := &certs.Files{Pairs: []certs.Pair{pair}, Interval: never, Problem: told.add, Changed: func() { changed <- struct{}{} }}
	watch(t, files.Watch)
	await(t, changed) // the first time

	cert, key := encodePair(t, ca.server("b.test"))
	put(t, dir, "a.pem", cert)
	told.await(t, "private key does not match public key")
	if c, _ := files.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.test"}); c == nil {
		t.Error("half of a pair has been believed")
	}
	put(t, dir, "a-key.pem", key)
	await(t, changed)
	if c, _ := files.GetCertificate(&tls.ClientHelloInfo{ServerName: "b.test"}); c == nil {
		t.Error("the new pair is not in force")
	}
}

// Pairs are swapped as Kubernetes does it, while clients come and go: each handshake is
// made with a whole pair, and none fails.
func TestHandshakesGoOnWhilePairsAreSwapped(t *testing.T) {
	const swaps = 20
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	var names [2]string
	for i := range names {
		names[i] = "..data_" + string(rune('a'+i))
		folder := filepath.Join(dir, names[i])
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		putPair(t, folder, "tls", ca.server("a.test"))
	}
	point := func(i int) {
		if err := os.Symlink(names[i%2], filepath.Join(dir, "..data_tmp")); err != nil {
			t.Skip(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	point(0)
	pair := certs.Pair{Cert: filepath.Join(dir, "tls.pem"), Key: filepath.Join(dir, "tls-key.pem")}
	for _, path := range []string{pair.Cert, pair.Key} {
		if err := os.Symlink(filepath.Join("..data", filepath.Base(path)), path); err != nil {
			t.Skip(err)
		}
	}
	changed := make(chan struct{}, swaps+1)
	files := &certs.Files{Pairs: []certs.Pair{pair}, Interval: never, Changed: func() { changed <- struct{}{} }}
	if err := files.Load(); err != nil {
		t.Fatal(err)
	}
	watch(t, files.Watch)
	server := (&certs.Server{GetCertificate: files.GetCertificate}).Config()
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() { // until stop
			for ctx.Err() == nil {
				if _, err := meet(server, &tls.Config{RootCAs: ca.pool(), ServerName: "a.test"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range swaps {
		putPair(t, filepath.Join(dir, names[(i+1)%2]), "tls", ca.server("a.test"))
		point(i + 1)
		await(t, changed)
	}
	stop()
	clients.Wait()
}
