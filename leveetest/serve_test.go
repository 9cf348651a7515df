package leveetest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func echoing(_ context.Context, c *levee.Conn) error {
	_, err := io.Copy(c, c)
	return err
}

// TestServeServesUntilTheTestEnds: clients are served, what is registered later is cleaned up before, and the server's
// end is waited for.
func TestServeServesUntilTheTestEnds(t *testing.T) {
	srv := &levee.Server{Handler: levee.HandlerFunc(echoing)}
	t.Run("a test", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := leveetest.Listen()
			leveetest.Serve(t, srv, network)
			client, err := network.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { client.Close() })
			_, _ = io.WriteString(client, "hello")
			answer := make([]byte, 5)
			if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "hello" {
				t.Errorf("got %q, %v", answer, err)
			}
		})
	})
	if stats := srv.Stats(); stats.Active != 0 || stats.Closed[levee.ClientClosed] != 1 {
		t.Errorf("after the test: %d connections, closed %v; want one that its client has closed", stats.Active, stats.Closed)
	}
}

// TestServeFailsATestWhoseServerHadToCut: a connection that does not leave in the server's DrainTimeout is a failure.
func TestServeFailsATestWhoseServerHadToCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &scapegoat{TB: t}
		network := leveetest.Listen()
		leveetest.Serve(inner, &levee.Server{Handler: levee.HandlerFunc(echoing), DrainTimeout: time.Second}, network)
		client, err := network.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is being served
		inner.end()
		if !inner.failed {
			t.Error("the test has not failed, though its client was still there")
		}
		client.Close()
	})
}

// TestServeFailsATestWhoseServerFails: whatever else Serve returns.
func TestServeFailsATestWhoseServerFails(t *testing.T) {
	inner := &scapegoat{TB: t}
	leveetest.Serve(inner, broken{})
	inner.end()
	if !inner.failed {
		t.Error("the test has not failed")
	}
}

type broken struct{}

func (broken) Serve(context.Context, ...net.Listener) error { return errors.New("out of order") }

// A scapegoat is a test that may fail, and ends when it is told to.
type scapegoat struct {
	testing.TB
	cleanups []func()
	failed   bool
}

func (s *scapegoat) Cleanup(f func())      { s.cleanups = append(s.cleanups, f) }
func (s *scapegoat) Errorf(string, ...any) { s.failed = true }

func (s *scapegoat) end() {
	for _, f := range s.cleanups {
		f()
	}
}
