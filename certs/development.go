package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 90 * 24 * time.Hour
	leafRenewal  = leafLifetime / 3 // a leaf with less left than this is replaced
	clockSkew    = time.Hour        // certificates are valid from a little before they are made

	maxLeaves = 1000 // names come from strangers: beyond these they get the default leaf
)

// A CA is a certificate authority for development. It makes a certificate for
// whatever server name a client asks for. Its methods may be called from several
// goroutines.
type CA struct {
	// CertFile is the CA's own certificate, in PEM: what a client has to trust.
	// It is empty for a CA that lives in memory only.
	CertFile string
	// Created is true when DevelopmentCA has just made the CA.
	Created bool

	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// DevelopmentCA loads the CA that is kept in dir, or makes one there: ca-key.pem
// is the CA with its key, mode 0600, and ca.pem the certificate alone. A key that
// others may read is refused; an expired CA is made anew. An empty dir makes a
// CA that lives in memory only.
func DevelopmentCA(dir string) (*CA, error) {
	ca := &CA{leaves: make(map[string]*tls.Certificate)}
	if dir == "" {
		ca.Created = true
		_, err := ca.create()
		return ca, err
	}
	if err := ca.open(dir); err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	return ca, nil
}

// HasDevelopmentCA reports whether DevelopmentCA would find a CA in dir, rather
// than make one.
func HasDevelopmentCA(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, keyName))
	return err == nil
}

const keyName = "ca-key.pem"

func (ca *CA) open(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, keyName)
	err := ca.load(keyFile)
	if errors.Is(err, errExpired) {
		err = errors.Join(os.Remove(keyFile), fs.ErrNotExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ca.createFile(keyFile)
	}
	if err != nil {
		return err
	}
	ca.CertFile = filepath.Join(dir, "ca.pem")
	public := pemBlock("CERTIFICATE", ca.cert.Raw)
	if there, err := os.ReadFile(ca.CertFile); err == nil && bytes.Equal(there, public) {
		return nil
	}
	return writeFile(ca.CertFile, public, 0o644, os.Rename)
}

var errExpired = errors.New("expired")

func (ca *CA) load(keyFile string) error {
	info, err := os.Stat(keyFile)
	if err != nil {
		return err
	}
	if readableByOthers(info) {
		return fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, or remove it to have a new one made", keyFile, info.Mode().Perm())
	}
	pair, err := tls.LoadX509KeyPair(keyFile, keyFile)
	if err != nil {
		return fmt.Errorf("certificate and key %s: %w; remove it to have a new one made", keyFile, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return fmt.Errorf("%s is not a certificate authority's: remove it to have a new one made", keyFile)
	}
	if time.Until(pair.Leaf.NotAfter) < leafLifetime {
		return errExpired
	}
	ca.cert, ca.key = pair.Leaf, key
	return nil
}

// createFile makes a CA and its file. If another process has made one meanwhile,
// that is the CA.
func (ca *CA) createFile(keyFile string) error {
	file, err := ca.create()
	if err != nil {
		return err
	}
	err = writeFile(keyFile, file, 0o600, os.Link) // a link, unlike a rename, does not replace
	if errors.Is(err, fs.ErrExist) {
		return ca.load(keyFile)
	}
	ca.Created = err == nil
	return err
}

// create makes the CA, and returns its certificate and key as PEM.
func (ca *CA) create() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	template, err := certificate(caLifetime)
	if err != nil {
		return nil, err
	}
	template.Subject = pkix.Name{Organization: []string{"levee"}, OrganizationalUnit: []string{host}, CommonName: "levee development CA"}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	ca.key = key
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pemBlock("PRIVATE KEY", keyDER), pemBlock("CERTIFICATE", der)...), nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writeFile puts a file in place, whole or not at all: by os.Rename or os.Link.
func writeFile(path string, content []byte, mode fs.FileMode, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return place(f.Name(), path)
}

// ServerConfig returns a hardened server configuration that has a certificate
// for every name, made when first asked for. A client that names no server gets
// one for localhost and the loopback addresses.
func (ca *CA) ServerConfig() *tls.Config {
	server := &Server{GetCertificate: ca.GetCertificate}
	return server.Config()
}

// GetCertificate returns the certificate for a client, made when first asked for. It is what ServerConfig's is made of, for
// a [Server] with more to say, such as its ALPN.
func (ca *CA) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return ca.leaf(hello.ServerName)
}

const localhost = "localhost"

// leaf returns a certificate for the name, from memory if it still has time.
func (ca *CA) leaf(name string) (*tls.Certificate, error) {
	if name == "" {
		name = localhost
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if _, known := ca.leaves[name]; !known && len(ca.leaves) >= maxLeaves {
		name = localhost
	}
	if leaf, ok := ca.leaves[name]; ok && time.Until(leaf.Leaf.NotAfter) > leafRenewal {
		return leaf, nil
	}
	leaf, err := ca.sign(name)
	if err != nil {
		return nil, err
	}
	ca.leaves[name] = leaf
	return leaf, nil
}

func (ca *CA) sign(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certificate(leafLifetime)
	if err != nil {
		return nil, err
	}
	template.Subject.Organization = []string{"levee"} // the name stands in DNSNames: one of a stranger's choice may be too long for a common name
	template.DNSNames = []string{name}
	if name == localhost {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// certificate returns what all certificates have in common.
func certificate(lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-clockSkew), NotAfter: now.Add(lifetime)}, nil
}

// Fingerprint returns the SHA-256 fingerprint of the CA's certificate, in hex.
func (ca *CA) Fingerprint() string { return fmt.Sprintf("%x", sha256.Sum256(ca.cert.Raw)) }
