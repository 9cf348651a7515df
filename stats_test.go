package levee_test

import (
	"net"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestStatsNameEveryReasonFromTheStart(t *testing.T) {
	var srv levee.Server
	stats := srv.Stats()
	for _, reason := range levee.CloseReasons() {
		if n, present := stats.Closed[reason]; !present || n != 0 {
			t.Errorf("%v: %d, present: %t", reason, n, present)
		}
	}
	if _, present := stats.Closed[levee.ReasonNone]; present {
		t.Error("ReasonNone is counted")
	}
}

// A pair is two files.
func TestAServerThatJoinsHoldsHalfAsManyConnections(t *testing.T) {
	most := levee.DefaultMaxConns()
	if most < 0 {
		t.Skip("there is no limit here")
	}
	srv := levee.Server{Handler: &joins{}}
	if n := srv.Stats().MaxConns; n < most/4 || n > most/2 {
		t.Errorf("up to %d pairs, where there is room for %d connections", n, most)
	}
	srv = levee.Server{Handler: &joins{}, MaxConns: 7}
	if n := srv.Stats().MaxConns; n != 7 {
		t.Errorf("up to %d pairs, want the 7 that were asked for", n)
	}
}

func TestStatsCountTheOpenAndTheEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		l.FailAccepts(syscall.EMFILE)
		s := serve(t, &levee.Server{Handler: answering, MaxConns: 3}, l)
		clients := make([]net.Conn, 5)
		for i := range clients {
			clients[i] = dial(t, l)
		}
		for _, c := range clients[:3] {
			if err := exchange(c, "12345678\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stats := s.Stats()
		if stats.Read != 27 || stats.Written != 27 || stats.AcceptErrors != 1 || stats.QueueLength != 2 || stats.MaxConns != 3 || stats.Draining {
			t.Errorf("%+v", stats)
		}
		checkStats(t, stats, 3, nil)

		clients[0].Close()
		clients[1].Close()
		synctest.Wait()
		checkStats(t, s.Stats(), 3, map[levee.CloseReason]int64{levee.ClientClosed: 2})
		if stats := s.Stats(); stats.Read != 27 || stats.Written != 27 || stats.QueueLength != 0 {
			t.Errorf("the traffic of the ended is forgotten: %+v", stats)
		}

		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if stats := s.Stats(); !stats.Draining || stats.Active != 0 {
			t.Errorf("%+v", stats)
		}
	})
}
