package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// TestWhoDoesNotReadIsDroppedAndNobodyWaits: one member reads nothing, one reads all. The latter misses nothing.
func TestWhoDoesNotReadIsDroppedAndNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dropped error
		srv := &levee.Server{Handler: &room{}, Trace: &levee.Trace{Closed: func(c *levee.Conn, end levee.End) {
			if end.Reason == levee.Killed {
				dropped = end.Err
			}
		}}}
		network := leveetest.Network{Buffer: 4 << 10}.Listen()
		leveetest.Serve(t, srv, network)
		speaker, reader, _ := enter(t, network), enter(t, network), enter(t, network)
		lines := bufio.NewReader(reader)
		synctest.Wait() // all three are in
		for i := range 200 {
			said := fmt.Sprintf("%d %s\n", i, strings.Repeat("a", 100))
			io.WriteString(speaker, said)
			got, err := lines.ReadString('\n')
			if err != nil || got != speaker.LocalAddr().String()+": "+said {
				t.Fatalf("line %d came as %q, %v", i, got, err)
			}
		}
		synctest.Wait()
		if stats := srv.Stats(); stats.Active != 2 || stats.Closed[levee.Killed] != 1 || !errors.Is(dropped, errSlow) {
			t.Errorf("%d members, dropped: %v; want 2, and the silent one dropped", stats.Active, dropped)
		}
	})
}

// TestLeavingIsNoticed: who has left is told nothing, and the others go on.
func TestLeavingIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{}
		network := leveetest.Listen()
		leveetest.Serve(t, &levee.Server{Handler: r}, network)
		one, two, three := enter(t, network), enter(t, network), enter(t, network)
		two.Close()
		synctest.Wait()
		io.WriteString(one, "hello\n")
		got, err := bufio.NewReader(three).ReadString('\n')
		if err != nil || !strings.HasSuffix(got, ": hello\n") || len(r.members) != 2 {
			t.Errorf("got %q, %v with %d members, want 2", got, err, len(r.members))
		}
	})
}

func enter(t *testing.T, network *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := network.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
