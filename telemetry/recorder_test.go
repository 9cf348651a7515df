package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

func kinds(events []telemetry.Event) (all []string) {
	for _, e := range events {
		all = append(all, fmt.Sprint(e.Kind, " ", e.Reason))
	}
	return all
}

func TestWhatEndsBadlyIsRememberedWithItsStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &telemetry.Recorder{TraceID: func(*levee.Conn) string { return "abc" }}
		failing := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			c.SetTarget(&levee.Target{Upstream: "db", Server: "db-1"}, 2)
			time.Sleep(3 * time.Second) // virtual time
			return errors.New("an error\x1b[2J of \n its own")
		})
		l := serve(t, &levee.Server{Name: "main", Handler: failing, Logger: discard, Trace: r.Trace()})
		client := dial(t, l)
		time.Sleep(4 * time.Second) // virtual time
		events := r.Events(0)
		if len(events) != 1 {
			t.Fatalf("%v", kinds(events))
		}
		e := events[0]
		if e.ID != 1 || e.Kind != telemetry.KindClosed || e.Reason != levee.HandlerError || e.Time.IsZero() {
			t.Errorf("%+v", e)
		}
		// A connection takes a moment to leave.
		if want := fmt.Sprintf("conn %d of %v ended after 3.001s: handler_error: an error?[2J of ? its own", e.Ended.ID, client.LocalAddr()); e.Text != want {
			t.Errorf("%q\nwant %q", e.Text, want)
		}
		c := e.Ended
		if c.Listener != "main" || c.Client != client.LocalAddr().String() || c.Peer != "" || c.Duration.Round(time.Second) != 3*time.Second || c.TraceID != "abc" ||
			c.Story.Server != "db-1" || c.Story.Tries != 2 || len(c.Spans) != 2 || c.Spans[1].Phase != levee.PhaseFirstByte || c.Spans[1].Took < 2*time.Second {
			t.Errorf("%+v", c)
		}
	})
}

func TestOrdinaryEndsAreNotRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &telemetry.Recorder{}
		srv := &levee.Server{Handler: moody, Trace: r.Trace(), IdleTimeout: time.Second}
		l := serve(t, srv)
		io.WriteString(dial(t, l), "b")
		dial(t, l).Close()
		dial(t, l)              // idle
		time.Sleep(time.Minute) // virtual time
		if got := r.Events(0); len(got) != 0 || srv.Stats().Accepted != 3 {
			t.Errorf("%v of %d", kinds(got), srv.Stats().Accepted)
		}
	})
}

func TestEveryReasonIsOrdinaryOrNot(t *testing.T) {
	ordinary := map[levee.CloseReason]bool{
		levee.ClientAborted: true, levee.ClientClosed: true, levee.ClientReset: true, levee.HandlerClosed: true, levee.UpstreamClosed: true,
		levee.IdleTimeout: true, levee.LifetimeExpired: true, levee.Drained: true, levee.ServerClosed: true,
	}
	for _, reason := range levee.CloseReasons() {
		if reason.IsAbnormal() == ordinary[reason] {
			t.Errorf("%v: abnormal is %t", reason, reason.IsAbnormal())
		}
	}
}

func TestAFloodByStrangersPushesNothingElseOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &telemetry.Recorder{Size: 40}
		quiet := &levee.Server{Handler: moody, Logger: discard, Trace: r.Trace()}
		hostile := &levee.Server{Handler: noRoute{}, Logger: discard, Trace: r.Trace()}
		io.WriteString(dial(t, serve(t, quiet)), "e")
		synctest.Wait()
		l := serve(t, hostile)
		for range 20 {
			for range 30 {
				dial(t, l)
			}
			time.Sleep(time.Second) // virtual time
		}
		time.Sleep(time.Second) // virtual time
		events := r.Events(0)
		if len(events) != 21 || events[0].Reason != levee.HandlerError {
			t.Fatalf("%v", kinds(events))
		}
		told := 0
		for _, e := range events[11:] { // of the last second; whichever came first
			if strings.HasSuffix(e.Text, "(and 20 more like it)") {
				told++
			}
		}
		if told != 1 {
			t.Errorf("the rest is told %d times: %q", told, events[11].Text)
		}
		for i, e := range events[1:] {
			if e.ID <= events[i].ID {
				t.Errorf("out of order: %d after %d", e.ID, events[i].ID)
			}
		}
		if got := r.Events(events[18].ID); len(got) != 2 || got[0].ID != events[19].ID {
			t.Errorf("after %d: %v", events[18].ID, kinds(got))
		}
	})
}

// noRoute has no route for anybody.
type noRoute struct{}

func (noRoute) Route(context.Context, *levee.Conn) (levee.Handler, error) {
	return nil, errors.New("none")
}
func (noRoute) ServeTCP(context.Context, *levee.Conn) error { return nil }

func TestRefusalsAreOneEventASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &telemetry.Recorder{}
		l := serve(t, &levee.Server{Handler: moody, Gate: &after{}, Trace: r.Trace()})
		for range 2 {
			for range 500 {
				dial(t, l)
			}
			time.Sleep(2 * time.Second) // virtual time
		}
		got := r.Events(0)
		if len(got) != 2 || got[0].Kind != telemetry.KindRefused || got[0].Reason != levee.Denied ||
			!strings.HasPrefix(got[0].Text, "500 turned away at the door: denied 500, such as 127.0.0.1:") {
			t.Errorf("%v", got)
		}
	})
}

func TestPanicsAndFailedAcceptsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &telemetry.Recorder{}
		l := serve(t, &levee.Server{Handler: moody, Logger: discard, Trace: r.Trace()})
		l.FailAccepts(syscall.EMFILE)
		io.WriteString(dial(t, l), "p")
		time.Sleep(time.Second) // virtual time
		want := []string{"accept none", "panic handler_panic", "closed handler_panic"}
		if got := kinds(r.Events(0)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

func TestASubscriberMissesNothingUnlessItIsSlowAndThenIsToldHowMuch(t *testing.T) {
	r := &telemetry.Recorder{}
	for i := range 5 {
		r.Add("reload", fmt.Sprint(i))
	}
	s := r.Subscribe(2, 4)
	defer s.Close()
	r.Add("reload", "5")
	for want := uint64(3); want <= 6; want++ {
		if e := <-s.C; e.ID != want {
			t.Errorf("event %d, want %d", e.ID, want)
		}
	}
	for range 10 {
		r.Add("reload", "too many")
	}
	if n := s.Lost(); n != 6 {
		t.Errorf("%d lost, want 6", n)
	}
	if n := s.Lost(); n != 0 {
		t.Errorf("told twice: %d", n)
	}
	late := r.Subscribe(0, 3) // of 16
	if n := late.Lost(); n != 13 {
		t.Errorf("%d lost of those before, want 13", n)
	}
	if e := <-late.C; e.ID != 14 {
		t.Errorf("it begins with %d", e.ID)
	}
	late.Close()
	late.Close()
	r.Add("reload", "for nobody")
	if len(late.C) != 2 {
		t.Errorf("%d events", len(late.C))
	}
}

func TestAReaderThatTakesItsTimeIsToldWhatItHasMissed(t *testing.T) {
	r := &telemetry.Recorder{Size: 8} // of which 4 are for what strangers bring about
	if events, lost, more := r.After(7, 10); events != nil || lost != 0 || more == nil || r.Last() != 0 {
		t.Errorf("of nothing: %v, %d lost", events, lost)
	}
	for range 10 {
		r.Add("ban", "x")
	}
	had, missed := uint64(0), uint64(0)
	var ids []uint64
	for {
		events, lost, more := r.After(had, 3)
		missed += lost
		if more != nil {
			break
		}
		for _, e := range events {
			ids = append(ids, e.ID)
			had = e.ID
		}
	}
	if fmt.Sprint(ids) != "[7 8 9 10]" || missed != 6 || r.Last() != 10 {
		t.Errorf("events %v, %d missed", ids, missed)
	}
	_, _, more := r.After(10, 1)
	r.Add("ban", "x")
	<-more
	if events, lost, _ := r.After(1<<40, 100); len(events) != 4 || lost != 7 { // of a process before
		t.Errorf("%d events, %d lost", len(events), lost)
	}
}

func TestALineOfAnEventIsShortAndPrintable(t *testing.T) {
	r := &telemetry.Recorder{}
	r.Add("ban", "\x1b]0;evil\a"+strings.Repeat("é", 10_000))
	text := r.Events(0)[0].Text
	if len(text) > 510 || strings.ContainsAny(text, "\x1b\a\n") {
		t.Errorf("%q", text)
	}
}

func TestAnOrdinaryEndCostsTheRecorderNothing(t *testing.T) {
	r := (&telemetry.Recorder{}).Trace()
	c := ended(t)
	if n := testing.AllocsPerRun(100, func() { r.Closed(c, levee.End{Reason: levee.ClientClosed}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// ended returns a connection that has ended, with a story.
func ended(t testing.TB) (conn *levee.Conn) {
	t.Helper()
	l, stop := serving(&levee.Server{Handler: moody, Trace: &levee.Trace{Closed: func(c *levee.Conn, _ levee.End) { conn = c }}})
	c, err := l.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "x123")
	c.CloseWrite()
	io.ReadAll(c)
	stop()
	return conn
}

// serving serves in memory until it is stopped.
func serving(srv *levee.Server) (l *leveetest.Listener, stop func()) {
	l = leveetest.Listen()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	return l, func() {
		_ = srv.Shutdown(context.Background())
		<-served
	}
}
