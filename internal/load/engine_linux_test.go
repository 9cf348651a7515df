package load_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/load"
)

func TestReconnectOpensAConnectionForEveryMessage(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		var n atomic.Int64
		result, err := run(load.Load{
			Addr: serve(t, opened(&n, echo)), Protocol: mustEcho(t, 64), Connections: 4, Reconnect: true, Duration: 50 * time.Millisecond,
		}, t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if result.Messages == 0 || n.Load() < result.Messages {
			t.Errorf("%d messages over %d connections", result.Messages, n.Load())
		}
	})
}

func TestHTTPGoesOnAfterAServerHasEndedAConnection(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	server.Config.SetKeepAlivesEnabled(false)
	server.Start()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, depth := range []int{1, 4} {
		result, err := load.Load{Addr: u.Host, Protocol: load.HTTP(u), Connections: 2, Depth: depth, Duration: 50 * time.Millisecond}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if result.Messages == 0 {
			t.Error("no responses")
		}
	}
}

func TestHoldOpensEveryConnectionAndLeavesWithTheServer(t *testing.T) {
	plain := func(handle func(net.Conn)) func(net.Conn) { return handle }
	for name, way := range map[string]struct {
		conns int
		tls   *tls.Config
		serve func(handle func(net.Conn)) func(net.Conn)
	}{
		"plaintext": {300, nil, plain},
		"TLS":       {20, newGuest().Config, func(handle func(net.Conn)) func(net.Conn) { return secured(t, handle) }},
	} {
		var n atomic.Int64
		leave := make(chan struct{})
		address := serve(t, opened(&n, way.serve(echoUntil(1, 64, func(net.Conn) { <-leave }))))
		held, err := load.Load{Addr: address, TLS: way.tls, Protocol: mustEcho(t, 64), Connections: way.conns}.Hold(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer held.Close()
		if n.Load() != int64(way.conns) {
			t.Errorf("%s: %d connections; want %d", name, n.Load(), way.conns)
		}
		close(leave)
		if err := held.Leave(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHoldTellsWhatKeepsItFromOpening(t *testing.T) {
	l := load.Load{Addr: serve(t, func(net.Conn) {}), Protocol: mustEcho(t, 64), Connections: 3}
	if held, err := l.Hold(t.Context()); err == nil {
		held.Close()
		t.Error("held connections that the server has closed")
	}
}

// What a message costs the load is what it keeps from the server.
func TestAMessageIsNotAllocated(t *testing.T) {
	l := load.Load{Addr: serve(t, echo), Protocol: mustEcho(t, 64), Connections: 4, Depth: 4}
	var allocations []float64
	for _, d := range []time.Duration{20 * time.Millisecond, 400 * time.Millisecond} {
		l.Duration = d
		allocations = append(allocations, testing.AllocsPerRun(1, func() {
			if _, err := l.Run(t.Context()); err != nil {
				t.Error(err)
			}
		}))
	}
	// A server in this process does not allocate for a message either. Opening varies by a few.
	if allocations[1] > 2*allocations[0]+500 {
		t.Errorf("%.0f allocations in a short run, %.0f in one 20 times as long", allocations[0], allocations[1])
	}
}
