package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// examined writes a certificate for localhost as scanners want to see one, by a CA of
// its own: valid for a season, and with a place to ask whether it was revoked.
func examined(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir, now := t.TempDir(), time.Now()
	sign := func(template, issuer *x509.Certificate, signer, own *ecdsa.PrivateKey) (signed *x509.Certificate, file string) {
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.AddDate(0, 0, 80)
		der, err := x509.CreateCertificate(rand.Reader, template, issuer, &own.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		if signed, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		file = filepath.Join(dir, template.Subject.CommonName+".pem")
		writePEM(t, file, "CERTIFICATE", der)
		return signed, file
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, ownKey := newKey(), newKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	authority, ca := sign(template, template, caKey, caKey)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126)) // scanners count its bits
	if err != nil {
		t.Fatal(err)
	}
	_, cert = sign(&x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CRLDistributionPoints: []string{"http://localhost/crl"},
	}, authority, caKey, ownKey)
	der, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		t.Fatal(err)
	}
	key = filepath.Join(dir, "key.pem")
	writePEM(t, key, "PRIVATE KEY", der)
	return ca, cert, key
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// terminates starts levee with a certificate, before what greets HTTP requests.
func terminates(t *testing.T, cert, key string) *process {
	t.Helper()
	return start(t, "serve", "-c", config(t, "", "tls: {mode: terminate, certificates: [{cert: "+cert+", key: "+key+"}]}"))
}

// It mostly waits, for a minute and a half where its parts come one after the other.
func TestTestsslFindsNothingThatMatters(t *testing.T) {
	t.Parallel()
	need(t, "testssl")
	ca, cert, key := examined(t)
	p := terminates(t, cert, key)
	_, port, err := net.SplitHostPort(p.address())
	if err != nil {
		t.Fatal(err)
	}
	for part, what := range map[string]struct {
		options  []string
		findings int // at least
	}{
		"protocols, suites and the certificate": {[]string{"--protocols", "--standard", "--fs", "--server-preference", "--server-defaults", "--headers"}, 60},
		"vulnerabilities":                       {[]string{"--vulnerable"}, 18},
		"suites by protocol":                    {[]string{"--cipher-per-proto"}, 8},
		"clients that others have":              {[]string{"--client-simulation"}, 15},
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "findings.json")
			cmd := exec.CommandContext(t.Context(), "testssl", append(what.options, "--quiet", "--color", "0", "--warnings", "batch", "--add-ca", ca,
				"--jsonfile", file, "--ip", "127.0.0.1", "localhost:"+port)...)
			cmd.Env = append(os.Environ(), "NO_ENGINE=true") // or it warns of its own OpenSSL, which lacks GOST's ciphers
			out, err := cmd.CombinedOutput()                 // its exit code counts what it found worth a word
			text, readErr := os.ReadFile(file)
			var findings []struct{ ID, Severity, Finding string }
			if e := json.Unmarshal(text, &findings); readErr != nil || e != nil || len(findings) < what.findings {
				t.Fatalf("%d findings, %v, %v, %v\n%s", len(findings), err, readErr, e, out)
			}
			offered := make(map[string]string)
			for _, f := range findings {
				switch f.Severity {
				case "OK", "INFO", "LOW":
				default:
					t.Errorf("%s: %s: %s", f.Severity, f.ID, f.Finding)
				}
				offered[f.ID] = strings.TrimSpace(f.Finding)
			}
			if what.options[0] != "--protocols" {
				return
			}
			for version, want := range map[string]string{
				"SSLv2": "not offered", "SSLv3": "not offered", "TLS1": "not offered", "TLS1_1": "not offered",
				"TLS1_2": "offered", "TLS1_3": "offered with final",
			} {
				if got := offered[version]; got != want {
					t.Errorf("%s: %q, want %q", version, got, want)
				}
			}
		})
	}
}

func TestSslscanSeesTheTwoVersionsAlone(t *testing.T) {
	_, cert, key := examined(t)
	p := terminates(t, cert, key)
	out, err := client(t, "", "sslscan", "--no-colour", "--sni-name=localhost", p.address())
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	seen := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		"SSLv2 disabled", "SSLv3 disabled", "TLSv1.0 disabled", "TLSv1.1 disabled", "TLSv1.2 enabled", "TLSv1.3 enabled",
		"Server supports TLS Fallback SCSV", "Session renegotiation not supported",
		"TLSv1.3 not vulnerable to heartbleed", "TLSv1.2 not vulnerable to heartbleed",
	} {
		if !strings.Contains(seen, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	for line := range strings.Lines(out) {
		weak := strings.Contains(line, "CBC") || strings.Contains(line, "-SHA ") || strings.Contains(line, " AES128-") || strings.Contains(line, "RC4") || strings.Contains(line, "DES")
		if accepted := strings.HasPrefix(line, "Accepted") || strings.HasPrefix(line, "Preferred"); accepted && weak {
			t.Errorf("a weak cipher suite: %s", line)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}
