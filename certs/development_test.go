package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/levee-net/levee/certs"
)

// handshake returns the certificate that a client who asks for name is shown.
func handshake(t *testing.T, server *tls.Config, roots *x509.CertPool, name string) (*x509.Certificate, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Server(a, server).Handshake() }()
	client := tls.Client(b, &tls.Config{RootCAs: roots, ServerName: name})
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func pool(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", file)
	}
	return roots
}

func TestDevelopmentCAVouchesForEveryName(t *testing.T) {
	ca, err := certs.DevelopmentCA(filepath.Join(t.TempDir(), "new", "folder"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "db.example.com", strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".test"} {
		cert, err := handshake(t, ca.ServerConfig(), pool(t, ca.CertFile), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, _ := handshake(t, ca.ServerConfig(), pool(t, ca.CertFile), name); !cert.Equal(again) {
			t.Errorf("%s: a second client was shown another certificate", name)
		}
	}
}

func TestDevelopmentCAIsKept(t *testing.T) {
	dir := t.TempDir()
	if certs.HasDevelopmentCA(dir) {
		t.Error("there is one already")
	}
	first, err := certs.DevelopmentCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !certs.HasDevelopmentCA(dir) {
		t.Error("there is none")
	}
	second, err := certs.DevelopmentCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Created || second.Created || first.Fingerprint() != second.Fingerprint() {
		t.Errorf("created %t, then %t; fingerprints %s, %s", first.Created, second.Created, first.Fingerprint(), second.Fingerprint())
	}
	if _, err := handshake(t, second.ServerConfig(), pool(t, first.CertFile), "localhost"); err != nil {
		t.Error(err)
	}
}

func TestDevelopmentCAIsOneForProcessesThatStartTogether(t *testing.T) {
	dir := t.TempDir()
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		found = map[string]int{}
	)
	for range 20 {
		all.Go(func() {
			ca, err := certs.DevelopmentCA(dir)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found[ca.Fingerprint()]++
		})
	}
	all.Wait()
	if len(found) != 1 {
		t.Errorf("%d different CAs: %v", len(found), found)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 2 {
		t.Errorf("files left behind: %v", left)
	}
}

func TestDevelopmentCAKeyIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no mode here")
	}
	dir := t.TempDir()
	if _, err := certs.DevelopmentCA(dir); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "ca-key.pem")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := certs.DevelopmentCA(dir)
	if err == nil || !strings.Contains(err.Error(), "can be read by others (mode 0644): chmod 600 it") {
		t.Errorf("error %v", err)
	}
}

func TestDevelopmentCASaysWhichFileIsBroken(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "ca-key.pem")
	if err := os.WriteFile(key, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := certs.DevelopmentCA(dir)
	if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "remove it to have a new one made") {
		t.Errorf("error %v", err)
	}
}

func TestDevelopmentCABoundsWhatStrangersMakeItKeep(t *testing.T) {
	ca, err := certs.DevelopmentCA("")
	if err != nil {
		t.Fatal(err)
	}
	config := ca.ServerConfig()
	var last *tls.Certificate
	for i := range 1100 {
		if last, err = config.GetCertificate(&tls.ClientHelloInfo{ServerName: "x" + strings.Repeat("y", i%60) + string(rune('a'+i/60)) + ".test"}); err != nil {
			t.Fatal(err)
		}
	}
	if last.Leaf.DNSNames[0] != "localhost" {
		t.Errorf("name number 1100 got a certificate for %v", last.Leaf.DNSNames)
	}
}
