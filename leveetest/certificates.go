package leveetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// validSince is where certificates begin unless told otherwise. A synctest
// bubble's clock starts at 2000-01-01; a certificate must be valid there too,
// wherever it was made.
var validSince = time.Date(1999, time.January, 1, 0, 0, 0, 0, time.UTC)

// validFor is counted from time.Now, and long enough that a certificate made in a
// synctest bubble, in the year 2000, is valid outside of it.
const validFor = 100 * 365 * 24 * time.Hour

// CA is a certificate authority in memory, for one test; make one with [NewCA].
// Its keys are ECDSA P-256. Whatever it cannot do fails the test, so its methods
// must be called from the goroutine that runs the test.
//
// Certificates are valid from 1999-01-01 until a hundred years from time.Now, so
// that they work inside a [testing/synctest] bubble, outside, and across.
type CA struct {
	t           testing.TB
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

// CertificateSpec says what [CA.Issue] is to certify. The zero value is a
// certificate for this machine: localhost, 127.0.0.1 and ::1.
type CertificateSpec struct {
	// Names are the subject alternative names: DNS names (*.example.com too),
	// IP addresses, and URIs such as spiffe://example.com/client. The first is
	// the common name as well. None means localhost, 127.0.0.1 and ::1.
	Names []string

	// NotBefore and NotAfter limit the validity. Zero means 1999-01-01, and a
	// hundred years from time.Now. NotAfter: time.Now().Add(-time.Hour) gives an
	// expired certificate.
	NotBefore, NotAfter time.Time
}

// NewCA returns a new authority that nobody trusts yet.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t, key: newKey(t)}
	template := ca.template(CertificateSpec{Names: []string{"leveetest CA"}})
	template.DNSNames = nil
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.ExtKeyUsage = nil
	ca.certificate = ca.sign(template, template, ca.key)
	return ca
}

// Pool returns a new pool with the authority's certificate in it.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	return pool
}

// PEM returns the authority's certificate as a PEM file's content, for
// configurations that want a file.
func (ca *CA) PEM() []byte {
	return pemBlock("CERTIFICATE", ca.certificate.Raw)
}

// CRL returns a revocation list of the authority, as a PEM file's content, with these
// certificates on it. It is in time for as long as certificates are.
func (ca *CA) CRL(revoked ...tls.Certificate) []byte {
	ca.t.Helper()
	list := &x509.RevocationList{
		Number:     big.NewInt(time.Now().UnixNano()), // later lists have larger ones
		ThisUpdate: validSince,
		NextUpdate: time.Now().Add(validFor),
	}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: c.Leaf.SerialNumber, RevocationTime: validSince,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.certificate, ca.key)
	if err != nil {
		ca.t.Fatalf("make a revocation list: %v", err)
	}
	return pemBlock("X509 CRL", der)
}

// ServerConfig returns a new configuration with a certificate for names (see
// [CertificateSpec.Names]). It trusts the authority's client certificates and
// asks for none: set ClientAuth to change that.
func (ca *CA) ServerConfig(names ...string) *tls.Config {
	ca.t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{ca.Issue(CertificateSpec{Names: names})},
		ClientCAs:    ca.Pool(),
	}
}

// ClientConfig returns a new configuration that trusts the authority alone and
// expects the server to be serverName.
func (ca *CA) ClientConfig(serverName string) *tls.Config {
	return &tls.Config{RootCAs: ca.Pool(), ServerName: serverName}
}

// ClientCertificate returns a new certificate for a client of that name, which
// may also be an IP address or a URI, for [crypto/tls.Config.Certificates].
func (ca *CA) ClientCertificate(name string) tls.Certificate {
	ca.t.Helper()
	return ca.Issue(CertificateSpec{Names: []string{name}})
}

// Issue returns a new certificate with a key of its own, good for servers and
// for clients. Leaf is filled in.
func (ca *CA) Issue(spec CertificateSpec) tls.Certificate {
	ca.t.Helper()
	key := newKey(ca.t)
	leaf := ca.sign(ca.template(spec), ca.certificate, key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// WriteFiles writes a new certificate for names and its key into dir, as PEM
// files named after the first name, and returns their paths. The key's file can
// be read by its owner only.
func (ca *CA) WriteFiles(dir string, names ...string) (certFile, keyFile string) {
	ca.t.Helper()
	return ca.WriteFilesOf(dir, ca.Issue(CertificateSpec{Names: names}))
}

// WriteFilesOf is WriteFiles for a certificate made with Issue.
func (ca *CA) WriteFilesOf(dir string, certificate tls.Certificate) (certFile, keyFile string) {
	ca.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		ca.t.Fatal(err)
	}
	base := filepath.Join(dir, fileName(certificate.Leaf.Subject.CommonName))
	certFile, keyFile = base+".pem", base+"-key.pem"
	ca.writeFile(certFile, pemBlock("CERTIFICATE", certificate.Certificate[0]))
	ca.writeFile(keyFile, pemBlock("PRIVATE KEY", key))
	return certFile, keyFile
}

func (ca *CA) writeFile(name string, content []byte) {
	ca.t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		ca.t.Fatal(err)
	}
}

// fileName replaces what some file system refuses in a name: *.example.com, ::1.
func fileName(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(`*:/\?"<>|`, r) {
			return '_'
		}
		return r
	}, name)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *CA) template(spec CertificateSpec) *x509.Certificate {
	ca.t.Helper()
	if len(spec.Names) == 0 {
		spec.Names = []string{"localhost", "127.0.0.1", "::1"}
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes([]byte(rand.Text())),
		Subject:               pkix.Name{CommonName: spec.Names[0]},
		NotBefore:             spec.NotBefore,
		NotAfter:              spec.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if spec.NotBefore.IsZero() {
		template.NotBefore = validSince
	}
	if spec.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(validFor)
	}
	for _, name := range spec.Names {
		addName(template, name)
	}
	return template
}

func addName(template *x509.Certificate, name string) {
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
	} else if uri, err := url.Parse(name); err == nil && uri.Scheme != "" && uri.Host != "" {
		template.URIs = append(template.URIs, uri)
	} else {
		template.DNSNames = append(template.DNSNames, name)
	}
}

func (ca *CA) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatalf("issue a certificate for %s: %v", template.Subject.CommonName, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatalf("issue a certificate for %s: %v", template.Subject.CommonName, err)
	}
	return certificate
}
