package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// does makes a Handler of what a test does with a connection.
func does(f func(c *levee.Conn) error) levee.Handler {
	return handle(func(_ context.Context, c *levee.Conn) error { return f(c) })
}

// stage serves l with srv until the test is over, and returns how connections ended.
func stage(t testing.TB, srv *levee.Server, l net.Listener) <-chan levee.End {
	t.Helper()
	ends := make(chan levee.End, 10_000) // more than any test has connections, so that no hook blocks
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{Closed: func(_ *levee.Conn, e levee.End) { ends <- e }})
	serve(t, srv, l)
	return ends
}

// inMemory serves an in-memory listener.
func inMemory(t testing.TB, srv *levee.Server) (dial func() *leveetest.Conn, ends <-chan levee.End) {
	t.Helper()
	l := leveetest.Listen()
	dial = func() *leveetest.Conn {
		c, err := l.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	return dial, stage(t, srv, l)
}

// overTCP serves a listener on the loopback interface.
func overTCP(t testing.TB, srv *levee.Server) (dial func() *net.TCPConn, ends <-chan levee.End) {
	t.Helper()
	l, err := levee.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial = func() *net.TCPConn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.(*net.TCPConn)
	}
	return dial, stage(t, srv, l)
}

// peer is what every kind of client connection can do.
type peer interface {
	net.Conn
	CloseWrite() error
}

// transports are the kinds of connection that a promise holds for.
var transports = []struct {
	name  string
	serve func(t testing.TB, srv *levee.Server) (dial func() peer, ends <-chan levee.End)
}{
	{"TCP", func(t testing.TB, srv *levee.Server) (func() peer, <-chan levee.End) {
		dial, ends := overTCP(t, srv)
		return func() peer { return dial() }, ends
	}},
	{"Unix", func(t testing.TB, srv *levee.Server) (func() peer, <-chan levee.End) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := levee.Listen(context.Background(), "unix:"+path)
		if err != nil {
			t.Skip("no Unix sockets here:", err)
		}
		ends := stage(t, srv, l)
		return func() peer {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c.(*net.UnixConn)
		}, ends
	}},
	{"memory", func(t testing.TB, srv *levee.Server) (func() peer, <-chan levee.End) {
		dial, ends := inMemory(t, srv)
		return func() peer { return dial() }, ends
	}},
	{"TLS over TCP", func(t testing.TB, srv *levee.Server) (func() peer, <-chan levee.End) {
		ca := leveetest.NewCA(t)
		srv.TLSConfig = ca.ServerConfig("localhost")
		dial, ends := overTCP(t, srv)
		return func() peer { return handshaken(t, dial(), ca.ClientConfig("localhost")) }, ends
	}},
	{"TLS in memory", func(t testing.TB, srv *levee.Server) (func() peer, <-chan levee.End) {
		ca := leveetest.NewCA(t)
		srv.TLSConfig = ca.ServerConfig("localhost")
		dial, ends := inMemory(t, srv)
		return func() peer { return handshaken(t, dial(), ca.ClientConfig("localhost")) }, ends
	}},
}

func handshaken(t testing.TB, c net.Conn, config *tls.Config) *tls.Conn {
	t.Helper()
	client := tls.Client(c, config)
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// onEveryTransport runs a test in real time, with a leak check.
func onEveryTransport(t *testing.T, test func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End))) {
	for _, transport := range transports {
		t.Run(transport.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			test(t, func(srv *levee.Server) (func() peer, <-chan levee.End) { return transport.serve(t, srv) })
		})
	}
}

// inVirtualTime runs a test on the transports that a synctest bubble can hold.
func inVirtualTime(t *testing.T, test func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End))) {
	for _, transport := range transports {
		if transport.name != "memory" && transport.name != "TLS in memory" {
			continue
		}
		t.Run(transport.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, func(srv *levee.Server) (func() peer, <-chan levee.End) { return transport.serve(t, srv) })
			})
		})
	}
}

// send writes, and fails the test if it cannot.
func send(t testing.TB, c io.Writer, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
}

// want reads exactly that.
func want(t testing.TB, c io.Reader, message string) {
	t.Helper()
	got := make([]byte, len(message))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != message {
		t.Fatalf("read %.100q, %v; want %.100q", got[:n], err, message)
	}
}

// expectReason waits for the next end of a connection. Waiting in vain is ended by
// go test's own timeout, with every goroutine's stack; in a synctest bubble at once.
func expectReason(t testing.TB, ends <-chan levee.End, want levee.CloseReason) levee.End {
	t.Helper()
	end := <-ends
	if end.Reason != want {
		t.Errorf("the connection ended as %v (%v), want %v", end.Reason, end.Err, want)
	}
	return end
}

// reasonOf returns the CloseReason in err.
func reasonOf(err error) levee.CloseReason {
	if end, ok := errors.AsType[*levee.CloseError](err); ok {
		return end.Reason
	}
	return levee.ReasonNone
}

// handshake greets as crypto/tls's client does.
func handshake(c net.Conn) error {
	return tls.Client(c, &tls.Config{ServerName: "localhost"}).Handshake()
}

// loopbackOnly is a ProxyFrom that lists the tests' own clients.
var loopbackOnly = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
