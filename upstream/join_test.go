package upstream_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/upstream"
)

// joiner is what a proxy.Proxy makes of a pool.
type joiner struct{ pool *upstream.Pool }

func (j joiner) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	return j.pool.Join(ctx, c, []byte("header "))
}

func (j joiner) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, j)
}

func port(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestWhatIsJoinedIsCountedAndItsTargetKnown, from the dial to the end.
func TestWhatIsJoinedIsCountedAndItsTargetKnown(t *testing.T) {
	behind, front := port(t), port(t)
	leveetest.Serve(t, &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.Copy(c, c)
		return err
	})}, behind)
	pool := &upstream.Pool{Name: "echo"}
	if err := pool.Update([]upstream.Server{{Name: "one", Addresses: []string{behind.Addr().String()}}}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan levee.Story, 1)
	srv := &levee.Server{Handler: joiner{pool}, Trace: &levee.Trace{Closed: func(c *levee.Conn, _ levee.End) { ended <- c.Story() }}}
	leveetest.Serve(t, srv, front)

	client, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "hello")
	answer := make([]byte, len("header hello"))
	if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "header hello" {
		t.Fatalf("got %q, %v", answer, err)
	}
	if server := pool.Stats().Servers[0]; server.Active != 1 {
		t.Errorf("while it is joined the pool counts %+v", server)
	}
	client.Close()
	if story := <-ended; story.Upstream != "echo" || story.Server != "one" || story.Tries != 1 {
		t.Errorf("its story is %+v", story)
	}
	if server := pool.Stats().Servers[0]; server.Active != 0 {
		t.Errorf("after its end the pool counts %+v", server)
	}
}

// TestWhatCannotBeJoinedEndsForThatReason.
func TestWhatCannotBeJoinedEndsForThatReason(t *testing.T) {
	gone, front := port(t), port(t)
	gone.Close()
	pool := &upstream.Pool{Name: "gone"}
	if err := pool.Update([]upstream.Server{{Addresses: []string{gone.Addr().String()}}}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan levee.CloseReason, 1)
	srv := &levee.Server{Handler: joiner{pool}, Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ended <- end.Reason }}}
	leveetest.Serve(t, srv, front)
	client, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if reason := <-ended; reason != levee.UpstreamUnavailable {
		t.Errorf("it ended with %v", reason)
	}
}

// TestRejoinCountsWhatThePoolHasJoined, and nothing else; and a client of Rebalance's is asked to leave by Drain.
func TestRejoinCountsWhatThePoolHasJoined(t *testing.T) {
	pool := &upstream.Pool{Name: "echo"}
	if err := pool.Update([]upstream.Server{{Name: "one", Addresses: []string{"127.0.0.1:1"}}}); err != nil {
		t.Fatal(err)
	}
	network := leveetest.Listen()
	leveetest.Serve(t, &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		if _, err := pool.Rejoin(c); err == nil {
			t.Error("a connection without a target is the pool's")
		}
		c.SetTarget(&levee.Target{Upstream: "echo", Server: "one"}, 1)
		joined, err := pool.Rejoin(c)
		if err != nil || joined.Conn != nil || pool.Stats().Servers[0].Active != 1 {
			t.Errorf("rejoin: %+v, %v; the pool counts %+v", joined, err, pool.Stats().Servers[0])
		}
		joined.Ended(levee.UpstreamEnd{})
		if active := pool.Stats().Servers[0].Active; active != 0 {
			t.Errorf("after its end the pool counts %d", active)
		}
		client := upstream.ClientOf(c)
		if quiet := client.Quiet(); quiet > time.Minute {
			t.Errorf("it has been quiet for %v", quiet)
		}
		client.Leave(upstream.ErrRebalancing)
		<-c.Draining()
		client.Cut(upstream.ErrServerDown)
		return nil
	})}, network)
	client, err := network.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, _ = io.ReadAll(client)
}
