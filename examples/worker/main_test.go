package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// TestThePieceUnderWayIsFinished: a shutdown in the middle of one waits for that, and for no other.
func TestThePieceUnderWayIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, network := newServer(), leveetest.Listen()
		go srv.Serve(context.Background(), network)
		client := begin(t, network, "20\n")
		time.Sleep(2500 * time.Millisecond) // virtual time
		start := time.Now()
		err := srv.Shutdown(t.Context())
		if took := time.Since(start); err != nil || took < 500*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("shutdown: %v after %v, want it to be clean after half a second", err, took)
		}
		answer, err := io.ReadAll(client)
		if err != nil || !strings.HasSuffix(string(answer), ": 3 of 20\nstopped after 3 of 20\n") {
			t.Errorf("got %q, %v", answer, err)
		}
	})
}

// TestOneClientIsToldToLeave, and the other goes on.
func TestOneClientIsToldToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, network := newServer(), leveetest.Listen()
		leveetest.Serve(t, srv, network)
		one := begin(t, network, "5\n")
		synctest.Wait() // it has its number
		number := srv.Conns()[0].ID()
		other := begin(t, network, "5\n")
		time.Sleep(1500 * time.Millisecond) // virtual time
		obey(srv, strings.NewReader(fmt.Sprintf("nonsense\n%d\n", number)))
		answer, err := io.ReadAll(one)
		if want := fmt.Sprintf("client %[1]d: 1 of 5\nclient %[1]d: 2 of 5\nstopped after 2 of 5\n", number); err != nil || string(answer) != want {
			t.Errorf("who was told to leave got %q, %v", answer, err)
		}
		other.CloseWrite()
		answer, err = io.ReadAll(other)
		if err != nil || !strings.HasSuffix(string(answer), ": 5 of 5\n") {
			t.Errorf("the other got %q, %v", answer, err)
		}
	})
}

// TestWhoIsKilledIsNotWaitedFor: the piece under way ends with the connection.
func TestWhoIsKilledIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, network := newServer(), leveetest.Listen()
		leveetest.Serve(t, srv, network)
		begin(t, network, "5\n")
		time.Sleep(500 * time.Millisecond) // virtual time
		srv.Conns()[0].Kill(nil)
		synctest.Wait()
		if stats := srv.Stats(); stats.Active != 0 || stats.Closed[levee.Killed] != 1 {
			t.Errorf("%d connections, closed %v; want it to be gone at once", stats.Active, stats.Closed)
		}
	})
}

func begin(t *testing.T, network *leveetest.Listener, job string) *leveetest.Conn {
	t.Helper()
	c, err := network.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, job)
	return c
}
