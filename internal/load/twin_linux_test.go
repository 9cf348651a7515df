package load_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/load"
)

// secured makes handle serve TLS, with a certificate of its own.
func secured(t *testing.T, handle func(net.Conn)) func(net.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	return func(c net.Conn) { handle(tls.Server(c, config)) }
}

// A guest is a client's configuration, and how its handshakes have gone.
type guest struct {
	*tls.Config
	mu      sync.Mutex
	resumed []bool
}

func newGuest() *guest {
	g := new(guest)
	g.Config = &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(state tls.ConnectionState) error { //nolint:gosec // the server is the test's own
		g.mu.Lock()
		defer g.mu.Unlock()
		g.resumed = append(g.resumed, state.DidResume)
		return nil
	}}
	return g
}

func TestMessagesGoOverTLS(t *testing.T) {
	for _, shape := range []struct{ conns, size, depth int }{{1, 1, 1}, {20, 64, 4}, {2, 1 << 20, 4}} {
		addr := serve(t, secured(t, echo))
		for duration := 100 * time.Millisecond; ; duration *= 4 {
			g := newGuest()
			result, err := load.Load{
				Addr: addr, TLS: g.Config, Protocol: mustEcho(t, shape.size),
				Connections: shape.conns, Depth: shape.depth, Duration: duration,
			}.Run(t.Context())
			if err != nil {
				t.Fatalf("%+v: %v", shape, err)
			}
			if len(g.resumed) != shape.conns {
				t.Errorf("%+v: %d handshakes", shape, len(g.resumed))
			}
			if result.Messages > 0 {
				break
			}
			if duration > 5*time.Second { // a machine that has other things to do may not get round to one in less
				t.Fatalf("%+v: no message in %v", shape, duration)
			}
		}
	}
}

func TestOverTLSEveryConnectionButTheFirstResumes(t *testing.T) {
	g := newGuest()
	g.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	result, err := load.Load{
		Addr: serve(t, secured(t, echo)), TLS: g.Config, Protocol: mustEcho(t, 1),
		Connections: 4, Reconnect: true, Duration: 100 * time.Millisecond,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if result.Messages == 0 || int64(len(g.resumed)) < result.Messages+4 {
		t.Errorf("%d messages over %d connections", result.Messages, len(g.resumed))
	}
	for i, resumed := range g.resumed {
		if resumed != (i > 0) {
			t.Errorf("handshake %d of %d: resumed %t", i+1, len(g.resumed), resumed)
		}
	}
}

func TestAHandshakeThatFailsEndsTheRun(t *testing.T) {
	for name, reconnect := range map[string]bool{"one connection": false, "many": true} {
		_, err := load.Load{
			Addr: serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "this is not TLS") }), TLS: newGuest().Config,
			Protocol: mustEcho(t, 1), Reconnect: reconnect, Duration: time.Hour,
		}.Run(t.Context())
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAHandshakeThatFailsLaterEndsTheRunToo(t *testing.T) {
	var n atomic.Int64
	proper := secured(t, echo)
	address := serve(t, func(c net.Conn) {
		if n.Add(1) > 20 {
			return
		}
		proper(c)
	})
	_, err := load.Load{Addr: address, TLS: newGuest().Config, Protocol: mustEcho(t, 1), Connections: 4, Reconnect: true, Duration: time.Hour}.Run(t.Context())
	if err == nil || n.Load() <= 20 {
		t.Errorf("error %v after %d connections", err, n.Load())
	}
}
