package frame_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

func echo(w *frame.Writer, message []byte) error { return w.Write(message) }

// service is a server that serves until its test ends, and remembers how its
// connections ended.
type service struct {
	*levee.Server
	ends chan levee.End // with room for all that a test has
}

func serve(t testing.TB, l net.Listener, srv *levee.Server) *service {
	t.Helper()
	s := &service{Server: srv, ends: make(chan levee.End, 1000)}
	srv.Logger = slog.New(slog.DiscardHandler)
	srv.Trace = &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { s.ends <- end }}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_ = srv.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-returned
	})
	return s
}

// checkEnd waits for the next connection to end, and fails the test unless it is for
// that reason.
func (s *service) checkEnd(t testing.TB, reason levee.CloseReason) levee.End {
	t.Helper()
	end := <-s.ends
	if end.Reason != reason {
		t.Fatalf("the connection ended as %+v, want %v", end, reason)
	}
	return end
}

// start serves the handler on a network in memory and returns a client's connection.
func start(t testing.TB, srv *levee.Server) (*leveetest.Conn, *service) {
	t.Helper()
	l := leveetest.Listen()
	s := serve(t, l, srv)
	return dial(t, l), s
}

func dial(t testing.TB, l *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

// expect reads what the server should have sent.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if string(got[:n]) != want {
		t.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

// expectAll reads what the server should have sent before it closed.
func expectAll(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(r)
	if string(got) != want || err != nil {
		t.Fatalf("read %q up to the end, %v, want %q", got, err, want)
	}
}

// countedListener counts the writes of the connections that it accepts.
type countedListener struct {
	net.Listener
	writes atomic.Int32
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{c, &l.writes}, nil
}

type countedConn struct {
	net.Conn
	writes *atomic.Int32
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func (c *countedConn) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// numbered returns the lines "0\n", "1\n" and so on.
func numbered(n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}
