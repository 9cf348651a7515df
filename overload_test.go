package levee_test

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestNewestIsTurnedAwayWhenTooManyArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, TLSConfig: ca.ServerConfig("localhost"), AllowPlaintext: true, MaxArrivals: 3}, l)
		silent := make([]net.Conn, 3)
		for i := range silent {
			silent[i] = dial(t, l)
			synctest.Wait()
		}
		if n := s.Stats().Arriving; n != 3 {
			t.Errorf("%d are arriving, want 3", n)
		}
		if _, err := dial(t, l).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the fourth reads %v", err)
		}
		wantRefused(t, s.Server, map[levee.CloseReason]int64{levee.Overloaded: 1})
		checkStats(t, s.Stats(), 3, nil)

		if err := exchange(silent[0], "hello"); err != nil { // it has a handler now
			t.Error(err)
		}
		if n := s.Stats().Arriving; n != 2 {
			t.Errorf("%d are arriving, want 2", n)
		}
		silent[1].Close()
		synctest.Wait()
		if n := s.Stats().Arriving; n != 1 {
			t.Errorf("%d are arriving, want 1", n)
		}
		time.Sleep(10 * time.Second) // virtual time
		if n := s.Stats().Arriving; n != 0 {
			t.Errorf("%d are arriving, want none", n)
		}
		if err := exchange(dial(t, l), "hello"); err != nil {
			t.Error(err)
		}
	})
}

func TestNoArrivalIsLimitedByANegativeMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
			_, err := c.Peek(1)
			return echoing, err
		}), MaxArrivals: -1}, l)
		for range 100 {
			dial(t, l)
		}
		synctest.Wait()
		if stats := s.Stats(); stats.Arriving != 100 || stats.Active != 100 {
			t.Errorf("%d of %d are arriving", stats.Arriving, stats.Active)
		}
	})
}

// A burst that is served as soon as it is looked at is not a crowd that arrives.
func TestABurstIsNotTakenForACrowdThatArrives(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, ArrivalTimeout: longest}) // for 200 handshakes on a busy machine
		clients := make([]peer, 200)
		for i := range clients {
			clients[i] = s.dial()
		}
		for _, c := range clients {
			go io.WriteString(c, "echo hello\n")
		}
		for _, c := range clients {
			want(t, c, "hello\n")
		}
		wantRefused(t, s.Server, nil)
		if n := s.Stats().Arriving; n != 0 {
			t.Errorf("%d are arriving", n)
		}
	})
}
