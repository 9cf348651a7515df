package main

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// TestGame: a network in memory needs no port. CheckLeaks, called first, looks last: nothing may be left of the server.
func TestGame(t *testing.T) {
	leveetest.CheckLeaks(t)
	network := leveetest.Listen()
	leveetest.Serve(t, newServer(42), network)
	client := dial(t, network)
	io.WriteString(client, "50\n7\nfish\n42\n")
	if answer, err := io.ReadAll(client); err != nil || string(answer) != "less\nmore\na number, please\nyes\n" {
		t.Errorf("got %q, %v", answer, err)
	}
}

// TestDeadlines: in a synctest bubble a minute passes in no time, and to the nanosecond. Who says nothing has that long; who begins
// to say something, and does not come to its end, has ten seconds.
func TestDeadlines(t *testing.T) {
	for says, try := range map[string]struct {
		after  time.Duration
		reason levee.CloseReason
	}{
		"":  {time.Minute, levee.IdleTimeout},
		"4": {10 * time.Second, levee.MessageTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			network, srv := leveetest.Listen(), newServer(42)
			leveetest.Serve(t, srv, network)
			client := dial(t, network)
			start := time.Now()
			io.WriteString(client, says)
			_, err := client.Read(make([]byte, 1))
			if err != io.EOF || time.Since(start) != try.after {
				t.Errorf("who says %q: %v after %v, want EOF after %v", says, err, time.Since(start), try.after)
			}
			synctest.Wait()
			if closed := srv.Stats().Closed; closed[try.reason] != 1 {
				t.Errorf("who says %q: closed are %v, want %v", says, closed, try.reason)
			}
		})
	}
}

// TestAnyPieces: a stream may be cut anywhere. Here one byte comes at a time, a second apart, which no message may take ten of.
func TestAnyPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := leveetest.Listen()
		drip := leveetest.Faults{Read: leveetest.Fault{Segment: 1, Delay: time.Second}}
		leveetest.Serve(t, newServer(42), leveetest.FaultyListener(network, drip))
		client := dial(t, network)
		io.WriteString(client, "99\n0\n42\n")
		if answer, err := io.ReadAll(client); err != nil || string(answer) != "less\nmore\nyes\n" {
			t.Errorf("got %q, %v", answer, err)
		}
	})
}

// TestABrokenClientHarmsNobody: the first connection is reset in the middle of a message, and the second served.
func TestABrokenClientHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, srv := leveetest.Listen(), newServer(42)
		breaks := leveetest.Faults{Read: leveetest.Fault{After: 1, Then: leveetest.Reset}}
		leveetest.Serve(t, srv, leveetest.FaultyListener(network, breaks, leveetest.Faults{}))
		broken, well := dial(t, network), dial(t, network)
		io.WriteString(broken, "42\n")
		io.WriteString(well, "42\n")
		if answer, err := io.ReadAll(well); err != nil || string(answer) != "yes\n" {
			t.Errorf("got %q, %v", answer, err)
		}
		synctest.Wait()
		if closed := srv.Stats().Closed; closed[levee.ClientReset] != 1 {
			t.Errorf("closed are %v, want a reset", closed)
		}
	})
}

// TestAbuse: floods, slow clients and garbage, on a real socket. A client that behaves has to be answered all the while.
func TestAbuse(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: an attack takes some seconds")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, newServer(42), listener)
	leveetest.Abuse(t, listener.Addr().String(), leveetest.AbuseOptions{
		Send: []byte("50\n"), Expect: []byte("less\n"), // a round trip that leaves the connection open
		Attacks:  []string{"churn", "garbage", "slow-line", "length-bomb", "slow-read"}, // for all there are leave that out
		Duration: 50 * time.Millisecond, Connections: 50,
		MaxP99: 5 * time.Second, // other tests may have the processors
	})
}

func dial(t *testing.T, network *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := network.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
