package certs_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/leveetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const never = -time.Second // to look without being told

// An authority signs certificates, CRLs and OCSP responses.
type authority struct {
	t    testing.TB
	key  crypto.Signer
	cert *x509.Certificate
	root *authority // nil for a root
}

var serials struct { // of one test binary; no two certificates are the same
	sync.Mutex
	last int64
}

func template(name string) *x509.Certificate {
	serials.Lock()
	defer serials.Unlock()
	serials.last++
	return &x509.Certificate{
		SerialNumber: big.NewInt(serials.last),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(365 * 24 * time.Hour),
	}
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t, "P-256")}
	a.cert = a.certify(authorityTemplate(name), a.key)
	return a
}

// under returns an intermediate CA.
func (a *authority) under(name string) *authority {
	a.t.Helper()
	key := newKey(a.t, "P-256")
	return &authority{t: a.t, key: key, cert: a.certify(authorityTemplate(name), key), root: a}
}

func authorityTemplate(name string) *x509.Certificate {
	ca := template(name)
	ca.IsCA, ca.BasicConstraintsValid = true, true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return ca
}

func (a *authority) certify(template *x509.Certificate, key crypto.Signer) *x509.Certificate {
	a.t.Helper()
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue returns a certificate, with the chain up to the root, for what change makes of it.
func (a *authority) issue(kind string, change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t, kind)
	t := template("")
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	change(t)
	leaf := a.certify(t, key)
	chain := [][]byte{leaf.Raw}
	for up := a; up.root != nil; up = up.root {
		chain = append(chain, up.cert.Raw)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
}

// server and client return certificates for names.
func (a *authority) server(names ...string) tls.Certificate {
	a.t.Helper()
	return a.issue("P-256", func(c *x509.Certificate) { c.DNSNames = names })
}

func (a *authority) client(name string) tls.Certificate {
	a.t.Helper()
	return a.issue("P-256", func(c *x509.Certificate) { c.Subject.CommonName = name })
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) pem() []byte { return encode("CERTIFICATE", a.cert.Raw) }

// crl returns a list (PEM) of the revoked that is good for a day.
func (a *authority) crl(revoked ...tls.Certificate) []byte {
	return a.crlOf(func(l *x509.RevocationList) {}, revoked...)
}

func (a *authority) crlOf(change func(*x509.RevocationList), revoked ...tls.Certificate) []byte {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	change(list)
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return encode("X509 CRL", der)
}

func (a *authority) ocsp(c tls.Certificate, change func(*ocsp.Response)) []byte {
	a.t.Helper()
	template := ocsp.Response{Status: ocsp.Good, SerialNumber: c.Leaf.SerialNumber, ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	change(&template)
	der, err := ocsp.CreateResponse(a.cert, a.cert, template, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newKey(t testing.TB, kind string) (key crypto.Signer) {
	t.Helper()
	var err error
	switch kind {
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RSA":
		key, err = rsaKey()
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodePair(t testing.TB, c tls.Certificate) (cert, key []byte) {
	t.Helper()
	for _, der := range c.Certificate {
		cert = append(cert, encode("CERTIFICATE", der)...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return cert, encode("PRIVATE KEY", der)
}

// put replaces a file in a folder as it should be done, and returns its path.
func put(t testing.TB, folder, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func putPair(t testing.TB, folder, name string, c tls.Certificate) certs.Pair {
	t.Helper()
	cert, key := encodePair(t, c)
	return certs.Pair{Cert: put(t, folder, name+".pem", cert), Key: put(t, folder, name+"-key.pem", key)}
}

// load returns files that are loaded.
func load(t testing.TB, pairs ...certs.Pair) *certs.Files {
	t.Helper()
	files := &certs.Files{Pairs: pairs}
	if err := files.Load(); err != nil {
		t.Fatal(err)
	}
	return files
}

// fixed returns a GetCertificate without files.
func fixed(c tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
}

// A meeting is what both sides have come to know; an error of either is that of both.
type meeting struct{ client, server tls.ConnectionState }

// meet makes a handshake and sends a byte back, with which a client of TLS 1.3 learns
// what the server thinks of its certificate, and gets its ticket.
func meet(server, client *tls.Config) (meeting, error) {
	c, s := leveetest.Pipe()
	defer c.Close()
	type end struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan end, 1)
	go func() { // until the handshake has ended one way or the other
		defer s.Close()
		conn := tls.Server(s, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- end{conn.ConnectionState(), err}
	}()
	conn := tls.Client(c, client)
	err := conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	c.Close()
	other := <-served
	switch {
	case err != nil && other.err != nil:
		err = fmt.Errorf("client: %w; server: %w", err, other.err)
	case other.err != nil:
		err = fmt.Errorf("server: %w", other.err)
	}
	return meeting{conn.ConnectionState(), other.state}, err
}

// alert returns what the client was told, 0 for nothing.
func alert(err error) tls.AlertError {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		if code, ok := errors.AsType[tls.AlertError](op.Err); ok {
			return code
		}
		for i := range 256 {
			if op.Err.Error() == tls.AlertError(i).Error() {
				return tls.AlertError(i)
			}
		}
	}
	return 0
}

const ( // RFC 8446 section 6
	badCertificate        tls.AlertError = 42
	unrecognizedName      tls.AlertError = 112
	certificateRequired   tls.AlertError = 116
	noApplicationProtocol tls.AlertError = 120
)

// A log collects problems.
type log struct {
	mu    sync.Mutex
	texts []string
	more  chan struct{}
}

func newLog() *log { return &log{more: make(chan struct{}, 1)} }

func (l *log) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts = append(l.texts, err.Error())
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// take returns what has been told since the last time.
func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.texts, "\n")
	l.texts = nil
	return text
}

// await waits until something that contains text has been told.
func (l *log) await(t testing.TB, text string) {
	t.Helper()
	late := time.After(15 * time.Second)
	for {
		l.mu.Lock()
		found := strings.Contains(strings.Join(l.texts, "\n"), text)
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-l.more:
		case <-late:
			t.Fatalf("told %q, still not %q", l.take(), text)
		}
	}
}

// watch runs a Watch until the test ends.
func watch(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }() // until the clean-up
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v", err)
		}
	})
}

func await(t testing.TB, what <-chan struct{}) {
	t.Helper()
	select {
	case <-what:
	case <-time.After(15 * time.Second):
		t.Fatal("nothing has changed")
	}
}

// writeExampleFiles writes what an operator would have.
func writeExampleFiles(dir string) {
	t := new(exampleT)
	ca := newAuthority(t, "example")
	putPair(t, dir, "db", ca.server("db.example.com"))
	put(t, dir, "clients.pem", ca.pem())
}

// exampleT is where there is no test that could fail.
type exampleT struct{ testing.TB }

func (*exampleT) Helper()           {}
func (*exampleT) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
