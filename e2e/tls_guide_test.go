package e2e

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/levee-net/levee/leveetest"
)

func TestGuideToTLS(t *testing.T) {
	t.Parallel()
	says := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, text) })
	}
	behind := httptest.NewServer(says("hello from behind"))
	t.Cleanup(behind.Close)
	vaultCA := leveetest.NewCA(t)
	vault := httptest.NewUnstartedServer(says("hello from the vault"))
	vault.TLS = vaultCA.ServerConfig("vault.internal")
	vault.StartTLS()
	t.Cleanup(vault.Close)

	g := newGuide(t, "tls.md", "10.0.0.7:8080", behind.Listener.Addr().String(), "www.example.com", "8443")
	g.has = map[string]int{"console": 5, "yaml": 4}
	g.here["10.0.0.9:8200"] = vault.Listener.Addr().String()
	a := newPebble(t, nil).run(t)
	g.here[":443"] = ":" + a.tlsPort
	g.here["https://acme.internal/dir"] = a.directory

	put := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(g.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("vault-ca.pem", vaultCA.PEM())
	put("acme-root.pem", a.rootPEM(t))
	directory, err := os.ReadFile(a.files[0])
	if err != nil {
		t.Fatal(err)
	}
	put("acme-directory.pem", directory)
	clients := leveetest.NewCA(t)
	put("clients.pem", clients.PEM())
	put("clients.crl", clients.CRL())
	for _, name := range []string{"alice", "bob"} {
		c := clients.ClientCertificate(name + ".clients.internal")
		put(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
		_, key := clients.WriteFilesOf(t.TempDir(), c)
		text, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		put(name+"-key.pem", text)
		if name == "alice" {
			put("alice-revoked.crl", clients.CRL(c))
		}
	}
	g.play()
}
