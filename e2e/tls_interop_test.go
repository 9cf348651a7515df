package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// A tlsStack is somebody else's TLS: it asks the server at a port of localhost for the
// greeting over HTTP, and returns whatever it got.
type tlsStack struct {
	name string
	ask  func(t *testing.T, port string, f tlsIdentity) (string, error)
}

// tlsIdentity are whom a client believes, and what it shows if that is not empty.
type tlsIdentity struct{ ca, cert, key string }

const greetingRequest = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

func tlsStacks() []tlsStack {
	openssl := func(version string) func(*testing.T, string, tlsIdentity) (string, error) {
		return func(t *testing.T, port string, f tlsIdentity) (string, error) {
			args := []string{"s_client", "-quiet", "-verify_return_error", "-ign_eof", version, "-CAfile", f.ca, "-servername", "localhost", "-connect", "127.0.0.1:" + port}
			if f.cert != "" {
				args = append(args, "-cert", f.cert, "-key", f.key)
			}
			return client(t, greetingRequest, "openssl", args...)
		}
	}
	gnutls := func(priority string) func(*testing.T, string, tlsIdentity) (string, error) {
		return func(t *testing.T, port string, f tlsIdentity) (string, error) {
			args := []string{"--x509cafile", f.ca, "--priority", priority, "--sni-hostname", "localhost", "--verify-hostname", "localhost", "-p", port, "127.0.0.1"}
			if f.cert != "" {
				args = append(args, "--x509certfile", f.cert, "--x509keyfile", f.key)
			}
			return client(t, greetingRequest, "gnutls-cli", args...)
		}
	}
	return []tlsStack{
		{"OpenSSL, TLS 1.3", openssl("-tls1_3")},
		{"OpenSSL, TLS 1.2", openssl("-tls1_2")},
		{"GnuTLS, TLS 1.3", gnutls("NORMAL:-VERS-ALL:+VERS-TLS1.3")},
		{"GnuTLS, TLS 1.2", gnutls("NORMAL:-VERS-ALL:+VERS-TLS1.2")},
		{"curl", func(t *testing.T, port string, f tlsIdentity) (string, error) {
			args := []string{"-sS", "--cacert", f.ca, "--resolve", "localhost:" + port + ":127.0.0.1"}
			if f.cert != "" {
				args = append(args, "--cert", f.cert, "--key", f.key)
			}
			return client(t, "", "curl", append(args, "https://localhost:"+port+"/")...)
		}},
		{"Go, TLS 1.3", goClient(tls.VersionTLS13)},
		{"Go, TLS 1.2", goClient(tls.VersionTLS12)},
	}
}

func goClient(version uint16) func(*testing.T, string, tlsIdentity) (string, error) {
	return func(t *testing.T, port string, f tlsIdentity) (string, error) {
		config := &tls.Config{RootCAs: rootsOf(t, f.ca), ServerName: "localhost", MinVersion: version, MaxVersion: version}
		if f.cert != "" {
			pair, err := tls.LoadX509KeyPair(f.cert, f.key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", "127.0.0.1:"+port, config)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, greetingRequest); err != nil {
			return "", err
		}
		got, err := io.ReadAll(c)
		return string(got), err
	}
}

const greetingOverTLS = "Hello from levee, over TLS"

func TestEverybodysTLSIsSpokenWith(t *testing.T) {
	ca := leveetest.NewCA(t)
	dir := t.TempDir()
	believed := tlsIdentity{ca: caFile(t, ca)}
	cert, key := ca.WriteFiles(dir, "localhost")
	p := terminates(t, cert, key)
	for _, c := range tlsStacks() {
		t.Run(c.name, func(t *testing.T) {
			if got, err := c.ask(t, portOf(t, p.address()), believed); err != nil || !strings.Contains(got, greetingOverTLS) {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}

func TestEverybodysClientCertificatesAreUnderstood(t *testing.T) {
	t.Parallel()
	ours, theirs := leveetest.NewCA(t), leveetest.NewCA(t)
	cert, key := ours.WriteFiles(t.TempDir(), "localhost")
	p := start(t, "serve", "-c", config(t, "", fmt.Sprintf("tls: {mode: terminate, certificates: [{cert: %s, key: %s}], client_ca: %s}", cert, key, caFile(t, ours))))
	nobody := tlsIdentity{ca: caFile(t, ours)}
	friend, stranger := nobody, nobody
	friend.cert, friend.key = ours.WriteFilesOf(t.TempDir(), ours.ClientCertificate("friend"))
	stranger.cert, stranger.key = theirs.WriteFilesOf(t.TempDir(), theirs.ClientCertificate("friend"))
	for _, c := range tlsStacks() {
		t.Run(c.name, func(t *testing.T) {
			port := portOf(t, p.address())
			if got, err := c.ask(t, port, friend); err != nil || !strings.Contains(got, greetingOverTLS) {
				t.Errorf("the certificate of a friend: %v\n%s", err, got)
			}
			if got, _ := c.ask(t, port, nobody); strings.Contains(got, greetingOverTLS) {
				t.Error("no certificate is let in")
			}
			if got, _ := c.ask(t, port, stranger); strings.Contains(got, greetingOverTLS) {
				t.Error("another authority's certificate is let in")
			}
		})
	}
}

// rootsOf reads whom to believe.
func rootsOf(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots
}

// caFile writes the CA's certificate.
func caFile(t *testing.T, ca *leveetest.CA) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
