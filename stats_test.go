package levee_test

import (
	"net"
	"reflect"
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

// Every field has a say: one that Add forgets shows here.
func TestStatsOfTwoServersAddUp(t *testing.T) {
	one, other := levee.Stats{}, levee.Stats{}
	fill := func(s *levee.Stats, n int64) {
		for _, f := range reflect.ValueOf(s).Elem().Fields() {
			switch f.Kind() {
			case reflect.Int, reflect.Int64:
				f.SetInt(n)
			case reflect.Map:
				f.Set(reflect.ValueOf(map[levee.CloseReason]int64{levee.ClientClosed: n, levee.Limited: n}))
			}
		}
	}
	fill(&one, 3)
	fill(&other, 4)
	for field, f := range reflect.ValueOf(one.Add(other)).Fields() {
		name, want := field.Name, int64(7)
		switch {
		case name == "LoopLag":
			want = 4
			fallthrough
		case f.Kind() == reflect.Int || f.Kind() == reflect.Int64:
			if name == "MaxConns" {
				want = 3
			}
			if f.Int() != want {
				t.Errorf("%s: %d, want %d", name, f.Int(), want)
			}
		case f.Kind() == reflect.Map:
			if got := f.Interface().(map[levee.CloseReason]int64); got[levee.ClientClosed] != 7 || got[levee.Limited] != 7 || len(got) != 2 {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	if one.Closed[levee.ClientClosed] != 3 || other.Closed[levee.ClientClosed] != 4 {
		t.Error("it has changed what it was given")
	}
	if got := (levee.Stats{}).Add(one).Add(levee.Stats{}); !reflect.DeepEqual(got, one) {
		t.Errorf("%+v and nothing is %+v", one, got)
	}
}

func TestTheStatsOfTwoServersSayHowTheOneIsThatServes(t *testing.T) {
	leaving := levee.Stats{MaxConns: 10, Draining: true, Pressure: 1}
	serving := levee.Stats{MaxConns: -1}
	for _, got := range []levee.Stats{leaving.Add(serving), serving.Add(leaving)} {
		if got.MaxConns != -1 || got.Draining || got.Pressure != 0 {
			t.Errorf("%+v", got)
		}
	}
	if got := leaving.Add(levee.Stats{MaxConns: 5, Draining: true}); got.MaxConns != 10 || !got.Draining {
		t.Errorf("both leave: %+v", got)
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
