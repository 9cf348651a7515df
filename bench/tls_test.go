//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// secretsIn makes a certificate, and returns it as servers read it: from two files, and
// from the one that has both.
func secretsIn(t *testing.T, folder string) (apart, bundled tls.Certificate) {
	t.Helper()
	if err := makeCertificate(folder); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(folder, secrets[name]) }
	apart, err := tls.LoadX509KeyPair(file("certificate"), file("key"))
	if err != nil {
		t.Fatal(err)
	}
	bundled, err = tls.LoadX509KeyPair(file("bundle"), file("bundle"))
	if err != nil {
		t.Fatal(err)
	}
	return apart, bundled
}

func TestACertificateIsTheSameInOneFileAndInTwo(t *testing.T) {
	apart, bundled := secretsIn(t, t.TempDir())
	if string(apart.Certificate[0]) != string(bundled.Certificate[0]) {
		t.Error("two certificates")
	}
	if err := apart.Leaf.VerifyHostname(serverName); err != nil {
		t.Error(err)
	}
}

// echoTLS serves an echo over TLS until the test ends.
func echoTLS(t *testing.T, config *tls.Config) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the client's connection
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func TestAConnectionThatDoesOtherWorkThanAgreedEndsTheRun(t *testing.T) {
	cert, _ := secretsIn(t, t.TempDir())
	for _, c := range []struct {
		name   string
		serve  *tls.Config
		resume session
		want   string
	}{
		{"as agreed, afresh", &tls.Config{}, fresh, ""},
		{"as agreed, resumed", &tls.Config{}, resumed, ""},
		{"no tickets", &tls.Config{SessionTicketsDisabled: true}, resumed, "session was resumed: false; it should be: true"},
		{"an old version", &tls.Config{MaxVersion: tls.VersionTLS12}, fresh, "version"},
	} {
		c.serve.Certificates = []tls.Certificate{cert}
		w := work{conns: 4, size: 1, depth: 1, kind: churn, session: c.resume}
		l, err := w.load(echoTLS(t, c.serve), 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err = l.Run(ctx)
		cancel()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v; want %q", c.name, err, c.want)
		}
	}
}

func TestOnlyWhatWasAgreedPasses(t *testing.T) {
	agreed := tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, CurveID: tls.X25519}
	if err := asAgreed(&agreed, false); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*tls.ConnectionState){
		"another cipher":       func(s *tls.ConnectionState) { s.CipherSuite = tls.TLS_AES_256_GCM_SHA384 },
		"another key exchange": func(s *tls.ConnectionState) { s.CurveID = tls.X25519MLKEM768 },
		"resumed":              func(s *tls.ConnectionState) { s.DidResume = true },
	} {
		state := agreed
		change(&state)
		if asAgreed(&state, false) == nil {
			t.Error(name)
		}
	}
}

func TestTheFigureOfABenchmarkIsFound(t *testing.T) {
	found := nsPerOp.FindSubmatch([]byte("goos: linux\nBenchmarkHello \t  299461\t      3936 ns/op\t 463.17 MB/s\nPASS\n"))
	if found == nil || string(found[1]) != "3936" {
		t.Errorf("%q", found)
	}
}
