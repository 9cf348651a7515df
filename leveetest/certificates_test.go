package leveetest_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// handshake returns what the client and the server say about a TLS handshake.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	clientConn, serverConn := leveetest.Pipe()
	defer clientConn.Close()
	serverSays := make(chan error)
	go func() {
		defer serverConn.Close()
		secure := tls.Server(serverConn, server)
		err := secure.Handshake()
		secure.CloseWrite()
		serverSays <- err
	}()
	secure := tls.Client(clientConn, client)
	clientErr = secure.Handshake()
	if clientErr != nil {
		clientConn.Close()
	}
	return clientErr, <-serverSays
}

func TestHandshakeSucceedsForEveryName(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, test := range []struct {
		certified []string
		dialled   string
	}{
		{nil, "localhost"},
		{nil, "127.0.0.1"},
		{nil, "::1"},
		{[]string{"db.example.com"}, "db.example.com"},
		{[]string{"a.example", "*.example.com"}, "db.example.com"},
		{[]string{"a.example", "192.0.2.7"}, "192.0.2.7"},
	} {
		clientErr, serverErr := handshake(ca.ClientConfig(test.dialled), ca.ServerConfig(test.certified...))
		if clientErr != nil || serverErr != nil {
			t.Errorf("dial %s, certified for %q: client %v, server %v", test.dialled, test.certified, clientErr, serverErr)
		}
	}
}

func TestHandshakeFailsForAnotherName(t *testing.T) {
	ca := leveetest.NewCA(t)
	err, _ := handshake(ca.ClientConfig("evil.example.com"), ca.ServerConfig("db.example.com"))
	if want := (x509.HostnameError{}); !errors.As(err, &want) {
		t.Errorf("got %v, want a HostnameError", err)
	}
}

func TestHandshakeFailsForAnotherAuthority(t *testing.T) {
	err, _ := handshake(leveetest.NewCA(t).ClientConfig("localhost"), leveetest.NewCA(t).ServerConfig())
	if want := (x509.UnknownAuthorityError{}); !errors.As(err, &want) {
		t.Errorf("got %v, want an UnknownAuthorityError", err)
	}
}

func TestExpiredCertificateIsRefusedInBothTimes(t *testing.T) {
	refuse := func(t *testing.T) {
		ca := leveetest.NewCA(t)
		server := ca.ServerConfig()
		server.Certificates = []tls.Certificate{ca.Issue(leveetest.CertificateSpec{NotAfter: time.Now().Add(-time.Hour)})}
		err, _ := handshake(ca.ClientConfig("localhost"), server)
		var invalid x509.CertificateInvalidError
		if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("got %v, want an expired certificate", err)
		}
	}
	t.Run("Real", refuse)
	t.Run("Virtual", func(t *testing.T) { synctest.Test(t, refuse) })
}

func TestCertificatesCrossTheBubble(t *testing.T) {
	outside := leveetest.NewCA(t)
	var inside *leveetest.CA
	synctest.Test(t, func(t *testing.T) {
		inside = leveetest.NewCA(t)
		for name, ca := range map[string]*leveetest.CA{"made outside": outside, "made inside": inside} {
			if err, _ := handshake(ca.ClientConfig("localhost"), ca.ServerConfig()); err != nil {
				t.Errorf("inside, %s: %v", name, err)
			}
		}
	})
	leaf := inside.Issue(leveetest.CertificateSpec{}).Leaf
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: inside.Pool(), DNSName: "localhost"}); err != nil {
		t.Errorf("outside, made inside: %v", err)
	}
}

func TestServerKnowsTheClientByItsCertificate(t *testing.T) {
	ca := leveetest.NewCA(t)
	server := ca.ServerConfig()
	server.ClientAuth = tls.RequireAndVerifyClientCert
	var seen *x509.Certificate
	server.VerifyConnection = func(state tls.ConnectionState) error {
		seen = state.PeerCertificates[0]
		return nil
	}

	client := ca.ClientConfig("localhost")
	if _, err := handshake(client, server); err == nil {
		t.Error("a client without a certificate was let in")
	}
	client.Certificates = []tls.Certificate{ca.ClientCertificate("spiffe://example.com/client")}
	if _, err := handshake(client, server); err != nil {
		t.Fatal(err)
	}
	if len(seen.URIs) != 1 || seen.URIs[0].String() != "spiffe://example.com/client" {
		t.Errorf("the server saw %v", seen.URIs)
	}
}

func TestARevocationListHasTheAuthoritysSignature(t *testing.T) {
	ca, other := leveetest.NewCA(t), leveetest.NewCA(t)
	bad := ca.ClientCertificate("bad")
	block, _ := pem.Decode(ca.CRL(bad))
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil || block.Type != "X509 CRL" {
		t.Fatal(block.Type, err)
	}
	if e := list.RevokedCertificateEntries; len(e) != 1 || e[0].SerialNumber.Cmp(bad.Leaf.SerialNumber) != 0 {
		t.Errorf("it has %v", e)
	}
	authority := func(ca *leveetest.CA) *x509.Certificate {
		block, _ := pem.Decode(ca.PEM())
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	if err := list.CheckSignatureFrom(authority(ca)); err != nil {
		t.Error(err)
	}
	if list.CheckSignatureFrom(authority(other)) == nil {
		t.Error("another authority's signature is good as well")
	}
}

func TestWrittenFilesLoadAgain(t *testing.T) {
	ca := leveetest.NewCA(t)
	dir := t.TempDir()
	certFile, keyFile := ca.WriteFiles(dir, "*.example.com", "192.0.2.7")
	if want := filepath.Join(dir, "_.example.com.pem"); certFile != want {
		t.Errorf("certificate in %s, want %s", certFile, want)
	}
	loaded, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.PEM()) {
		t.Fatal("the authority's PEM did not load")
	}
	if _, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "db.example.com"}); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("key file has mode %v, want 0600", info.Mode())
	}
}
