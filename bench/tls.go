//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

var (
	perNginx  = unit{"nginx", "nginx"}
	perRustls = unit{"rustls", "tokio"}
)

// terminations is the suite of proxies that end TLS: what they say to the backend, and
// it to them, is plaintext.
//
// All do the same work, which each connection checks: TLS 1.3, a key exchange by X25519,
// a certificate of ECDSA over P-256, AES-128-GCM. The load works about as hard as the
// proxies, for it is a client of TLS too; so where it was the limit their CPU counts.
var terminations = suite{
	key:  "tls",
	name: "TLS termination, with the backend on the load's core",
	works: []work{
		{key: "handshake", name: "TLS: connect, full handshake, proxy 1 B, close; 64 at once", conns: 64, size: 1, depth: 1, kind: churn, session: fresh, backend: "echo"},
		{key: "resume", name: "TLS: connect, resume a session, proxy 1 B, close; 64 at once", conns: 64, size: 1, depth: 1, kind: churn, session: resumed, backend: "echo"},
		{key: "tls64", name: "TLS: proxy 64 B, 64 connections", conns: 64, size: 64, depth: 1, session: fresh, backend: "echo"},
		{key: "tlsdown", name: "TLS: bulk from the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkDown, session: fresh, backend: "transfer"},
		{key: "tlsup", name: "TLS: bulk to the backend, in MiB, 4 connections", conns: 4, depth: bulkDepth, kind: bulkUp, session: fresh, backend: "transfer"},
		{key: "tlsidle", name: "TLS: 2000 idle connections", conns: 2000, size: 64, depth: 1, kind: idle, session: fresh, backend: "echo"},
		{key: "sniff", name: "TLS: a hello, read and routed", conns: 1, size: 64, depth: 1, kind: sniffing, session: fresh, backend: "echo", only: "levee"},
	},
	peers: []peer{
		{key: "nginx", name: "nginx", build: findCommand("nginx"), command: "$program -c $config -e stderr", config: nginxTLSConfig, inherits: true},
		{key: "haproxy", name: "HAProxy", build: findCommand("haproxy"), command: "$program -db -f $config", config: haproxyTLSConfig, inherits: true},
		{key: "tokio", name: "tokio-rustls", build: buildTokio("peers/tokiotls", "tls"), command: "$program $backend $certificate $key"},
		{key: "gonet", name: "Go crypto/tls", build: buildGo("./peers/gonetproxy"), command: "$program $backend $certificate $key"},
		{key: "levee", name: "levee", build: buildLevee, command: "$program serve -c $config", config: leveeTLS},
	},
	backends: proxies.backends,
	prepare:  makeCertificate,
	units:    []unit{perBest, perNginx},
	bars: []bar{
		{work: "handshake", metric: cpu, server: "levee", against: perNginx, atMost: 0.85},
		{work: "handshake", metric: cpu, server: "levee", against: perRustls, atMost: 1.3},
		{work: "resume", metric: cpu, server: "levee", against: perNginx, atMost: 0.85},
		{work: "tls64", metric: rate, server: "levee", against: perBest, atLeast: 1.10},
		{work: "tls64", metric: cpu, server: "levee", against: perBest, atMost: 0.91},
		{work: "tlsdown", metric: rate, server: "levee", against: perBest, atLeast: 1.20},
		{work: "tlsdown", metric: cpu, server: "levee", against: perBest, atMost: 0.83},
		{work: "tlsup", metric: rate, server: "levee", against: perBest, atLeast: 1.20},
		{work: "tlsup", metric: cpu, server: "levee", against: perBest, atMost: 0.83},
		{work: "tlsidle", metric: memory, server: "levee", atMost: 20},
		{work: "sniff", metric: sniff, server: "levee", atMost: 20},
	},
	panels: []panel{
		{"CPU per full handshake (less is better)", "handshake", cpu, " µs", 1},
		{"CPU per resumed handshake (less is better)", "resume", cpu, " µs", 1},
		{"64 B messages/s, 64 connections (more is better)", "tls64", rate, "k", 1e-3},
		{"CPU per 64 B message (less is better)", "tls64", cpu, " µs", 1},
		{"CPU per MiB to the client (less is better)", "tlsdown", cpu, " µs", 1},
		{"CPU per MiB to the backend (less is better)", "tlsup", cpu, " µs", 1},
		{"memory per idle connection (less is better)", "tlsidle", memory, " KiB", 1},
	},
	picture: "tls.svg",
	caption: "one core for the proxy, one for the load and the backend; TLS 1.3, X25519, P-256, AES-128-GCM",
}

const nginxTLSConfig = nginxTop + `		listen $listen ssl;
		ssl_certificate $certificate;
		ssl_certificate_key $key;
		ssl_protocols TLSv1.3;
` + nginxRest

// Session tickets are on in both by default. Splicing is not for TLS.
const haproxyTLSConfig = "global\n\tssl-default-bind-options ssl-min-ver TLSv1.3 prefer-client-ciphers\n" + haproxyTop + `frontend bench
	bind fd@3 ssl crt $bundle
` + haproxyBackend

// leveeTLS is levee as its users get it.
const leveeTLS = `version: 1
admin: {listen: "127.0.0.1:0"}
listeners:
  - name: bench
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: $certificate, key: $key}]}
    limits: {max_connections: 9000}
    routes: [{upstream: backend}]
` + leveeBackend

// A session is how a work's connections begin.
type session int

const (
	plaintext session = iota
	fresh             // by a full handshake; and they do not ask for tickets
	resumed           // the first of all by a full handshake, any other by resuming its session
)

const serverName = "bench.test"

// config is the client's. It lets no connection pass that has not done the work.
func (s session) config() *tls.Config {
	if s == plaintext {
		return nil
	}
	var first atomic.Bool
	first.Store(true)
	c := &tls.Config{
		ServerName: serverName, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519},
		InsecureSkipVerify: true, //nolint:gosec // this is not about trust, and the load has to be cheap
		VerifyConnection: func(state tls.ConnectionState) error {
			shouldResume := s == resumed && !first.Swap(false)
			return asAgreed(&state, shouldResume)
		},
	}
	if s == resumed {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c
}

func asAgreed(state *tls.ConnectionState, shouldResume bool) error {
	switch {
	case state.Version != tls.VersionTLS13 || state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 || state.CurveID != tls.X25519:
		return fmt.Errorf("%s with %s and %s; the others' is TLS 1.3 with AES-128-GCM and X25519",
			tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), state.CurveID)
	case state.DidResume != shouldResume:
		return fmt.Errorf("the session was resumed: %t; it should be: %t", state.DidResume, shouldResume)
	}
	return nil
}

// secrets are the files that makeCertificate makes, by their names in configurations.
var secrets = map[string]string{"certificate": "tls.pem", "key": "tls.key", "bundle": "tls.bundle"}

// makeCertificate makes a certificate for a day, and writes it into the folder: as two
// files, and as one for HAProxy.
func makeCertificate(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, content := range map[string][]byte{"certificate": cert, "key": private, "bundle": slices.Concat(cert, private)} {
		err = errors.Join(err, os.WriteFile(filepath.Join(folder, secrets[name]), content, 0o600))
	}
	return err
}

// sniffs measures, by the benchmark that package route has of it, what a hello costs
// until its route is known.
func (b *bench) sniffs(ctx context.Context) (sample, error) {
	out, err := exec.CommandContext(ctx, "taskset", "-c", strconv.Itoa(b.cores.server),
		"go", "test", "-C", "..", "-run", "^$", "-bench", "^BenchmarkHello$", "-cpu", "1", "./route").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	found := nsPerOp.FindSubmatch(out)
	if found == nil {
		return nil, fmt.Errorf("no figure in\n%s", out)
	}
	ns, err := strconv.ParseFloat(string(found[1]), 64)
	return sample{sniff: ns / 1e3}, err
}

var nsPerOp = regexp.MustCompile(`BenchmarkHello\s+\d+\s+([0-9.]+) ns/op`)
