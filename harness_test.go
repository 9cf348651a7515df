package levee_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// service is a server that serves until its test ends.
type service struct {
	*levee.Server
	end      context.CancelFunc // ends the context that Serve was given, as a signal does
	returned chan struct{}
	err      error // what Serve returned, once returned is closed
}

// serve starts srv on the listeners.
func serve(t testing.TB, srv *levee.Server, listeners ...net.Listener) *service {
	t.Helper()
	if srv.Logger == nil {
		srv.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background()) // t's own ends before Cleanup
	s := &service{Server: srv, end: cancel, returned: make(chan struct{})}
	go func() {
		defer close(s.returned)
		s.err = srv.Serve(ctx, listeners...)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-s.returned
		cancel()
	})
	return s
}

// result waits for Serve to return.
func (s *service) result() error {
	<-s.returned
	return s.err
}

// handle saves the tests the name of a type.
func handle(f func(ctx context.Context, c *levee.Conn) error) levee.HandlerFunc { return f }

// echoing is the handler for tests that are not about handlers.
var echoing = handle(func(_ context.Context, c *levee.Conn) error { return echo(c) })

// answering is a request/response protocol: it answers each line with itself,
// and leaves between two of them.
var answering = handle(func(_ context.Context, c *levee.Conn) error {
	r := bufio.NewReader(c)
	for r.Buffered() > 0 || c.Next() {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if _, err := c.Write(line); err != nil {
			return err
		}
	}
	return nil
})

// dial connects to an in-memory listener.
func dial(t testing.TB, l *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// listenTCP listens on the loopback interface.
func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := levee.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialTCP connects to a listener of the kernel's.
func dialTCP(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exchange sends a line and expects it back.
func exchange(c net.Conn, line string) error {
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	return expect(c, line)
}

// expect reads what the peer should have sent.
func expect(c net.Conn, want string) error {
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		return fmt.Errorf("read %q, %w, want %q", got[:n], orNone(err), want)
	}
	return nil
}

var errNone = errors.New("no error")

func orNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// checkStats fails the test unless the counts are what they should be, each
// reason that is not named being 0.
func checkStats(t testing.TB, got levee.Stats, active int64, closed map[levee.CloseReason]int64) {
	t.Helper()
	accepted := active
	for _, reason := range levee.CloseReasons() {
		accepted += closed[reason]
		if got.Closed[reason] != closed[reason] {
			t.Errorf("%d connections ended as %v, want %d", got.Closed[reason], reason, closed[reason])
		}
	}
	if got.Active != active || got.Accepted != accepted {
		t.Errorf("%d active of %d accepted, want %d of %d", got.Active, got.Accepted, active, accepted)
	}
}
