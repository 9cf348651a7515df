package levee_test

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// long is a limit that no test waits for; of which pressure leaves a second.
const long = 10 * time.Second

func TestUnderPressureConnectionsThatAreThereHaveATenthOfTheIdleTimeout(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, IdleTimeout: long})
		client, _ := s.greet()
		began := time.Now()
		s.Press(levee.ShortIdle)
		wantEnd(t, client)
		if took := time.Since(began); took < soon-50*time.Millisecond || took > long/2 {
			t.Errorf("idle after %v, want %v", took, soon)
		}
		s.expectCleanEnd(levee.IdleTimeout)
	})
}

func TestUnderPressureJoinedConnectionsHaveATenthOfTheIdleTimeout(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{IdleTimeout: long}, e.itsUpstream())
		c := s.meet()
		began := time.Now()
		s.Press(levee.ShortIdle)
		wantEnd(t, c.near)
		wantEnd(t, c.far)
		if took := time.Since(began); took < soon-50*time.Millisecond || took > long/2 {
			t.Errorf("idle after %v, want %v", took, soon)
		}
		s.cleanEnd(levee.IdleTimeout)
	})
}

func TestUnderPressureHalfClosedConnectionsHaveATenthOfTheTime(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{HalfClosedTimeout: long}, e.itsUpstream())
		eachWay(t, s, func(t testing.TB, from, to peer, _ bool) {
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEOF(t, to)
			began := time.Now()
			s.Press(levee.ShortIdle)
			wantEnd(t, from)
			if took := time.Since(began); took > long/2 {
				t.Errorf("ended after %v, want %v", took, soon)
			}
			s.cleanEnd(levee.HalfClosedTimeout)
		})
	})
}

func TestWithoutPressureTheUsualTimesAreInForceAgain(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, IdleTimeout: long})
		joined := e.join(t, &levee.Server{IdleTimeout: long}, e.itsUpstream())
		client, _ := s.greet()
		c := joined.meet()
		for _, server := range []*levee.Server{s.Server, joined.Server} {
			server.Press(levee.ShortIdle)
			server.Press(levee.NoPressure)
		}
		<-time.After(soon + soon/2)
		send(t, client, "echo still here\n")
		want(t, client, "still here\n")
		send(t, c.near, "x")
		want(t, c.far, "x")
	})
}

func TestUnderPressureNobodyIsListenedToBeforeTheClose(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		var began atomic.Int64
		start := time.Now()
		closeLater := func(_ *levee.Conn, _ string, out []byte) ([]byte, error) {
			<-time.After(50 * time.Millisecond) // until what comes behind is there
			began.Store(int64(time.Since(start)))
			return append(out, "bye\n"...), io.EOF
		}
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"later": closeLater}}})
		for _, p := range []levee.Pressure{levee.NoPressure, levee.NoLinger} {
			s.Press(p)
			client, _ := s.greet()
			var sends sync.WaitGroup
			more := append([]byte("later\n"), big(200<<10)...)
			sends.Go(func() { _, _ = client.Write(more) })
			s.expectEnd(levee.HandlerClosed)
			took := time.Since(start) - time.Duration(began.Load())
			client.Close()
			sends.Wait()
			switch {
			case p == levee.NoPressure && took < 300*time.Millisecond:
				t.Errorf("it was listened to for %v", took) // or this test says nothing
			case p == levee.NoLinger && took > 300*time.Millisecond:
				t.Errorf("it was listened to for %v under pressure", took)
			}
		}
	})
}

func TestUnderTheHardestPressureThoseIdleTheLongestGo(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		began := time.Now()
		clients := make([]peer, 40)
		conns := make([]*levee.Conn, len(clients))
		for i := range clients {
			clients[i], conns[i] = s.greet()
			if i == 1 {
				<-time.After(200 * time.Millisecond)
			}
		}
		s.Press(levee.ShedIdle)
		if took := time.Since(began); took > time.Second {
			t.Logf("this machine took %v to connect 40 clients: some are idle for a second already", took)
			return
		}
		<-time.After(time.Second + 100*time.Millisecond)
		for _, client := range clients[3:] {
			send(t, client, "echo busy\n")
			want(t, client, "busy\n")
		}
		if ended := s.Stats().Closed[levee.Overloaded]; ended != 0 {
			t.Fatalf("%d were closed that had not been idle for a second", ended)
		}
		for _, gone := range [][]int{{0, 1}, {2}, nil} { // 5 % of 40, then of 38; and no others are idle
			s.Press(levee.ShedIdle)
			for _, i := range gone {
				wantEnd(t, clients[i])
				s.expectEnd(levee.Overloaded)
				if got := conns[i].Reason(); got != levee.Overloaded {
					t.Errorf("connection %d ended as %v", i, got)
				}
			}
		}
		if left := len(s.Conns()); left != 37 {
			t.Errorf("%d are left, want 37", left)
		}
	})
}

func TestUnderTheHardestPressurePairsGoThatAreIdle(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, new(levee.Server), e.itsUpstream())
		idle, busy := s.meet(), s.meet()
		<-time.After(soon + 100*time.Millisecond)
		send(t, busy.near, "x")
		want(t, busy.far, "x")
		for range 2 {
			s.Press(levee.ShedIdle)
		}
		wantEnd(t, idle.near)
		wantEnd(t, idle.far)
		s.end(levee.Overloaded)
		send(t, busy.far, "y")
		want(t, busy.near, "y")
	})
}

func TestPressureMayChangeAtAnyTime(t *testing.T) {
	s := engines[0].serve(t, &levee.Server{Handler: &lines{}})
	client, _ := s.greet()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for p := range levee.ShedIdle {
				s.Press((p + levee.Pressure(i)) % (levee.ShedIdle + 1)) //nolint:gosec // a few
			}
		})
	}
	all.Wait()
	s.Press(levee.PauseReads)
	if got := s.Stats().Pressure; got != levee.PauseReads {
		t.Errorf("Stats says %v", got)
	}
	send(t, client, "echo hello\n")
	want(t, client, "hello\n")
	s.Press(levee.NoPressure)
	if got := s.Stats().Pressure; got != levee.NoPressure {
		t.Errorf("Stats says %v", got)
	}
}

func TestPressuresHaveWords(t *testing.T) {
	got := ""
	for p := range levee.ShedIdle + 2 {
		got += fmt.Sprint(p, " ")
	}
	const want = "none short_idle no_linger refuse_new pause_reads shed_idle Pressure(6) "
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUnderPressureNewcomersAreTurnedAwayAndTheOthersServed(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		refused := make(chan *levee.Refusal, 10)
		s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: &levee.Trace{
			Refused: func(_ *levee.Conn, r *levee.Refusal) { refused <- r },
		}})
		client, _ := s.greet()
		for _, press := range []func(){func() { s.Press(levee.RefuseNew) }, func() { s.TurnAway(1) }} {
			press()
			if newcomer, err := s.tryDial(); err == nil { // else the reset was quick
				_ = newcomer.SetDeadline(time.Now().Add(longest))
				_, _ = newcomer.Write([]byte("echo hello\n"))
				wantEnd(t, newcomer)
				newcomer.Close()
			}
			if r := receive(t, refused); r.Reason != levee.Overloaded || r.Manner != levee.Reset {
				t.Errorf("refused as %v, by %v", r.Reason, r.Manner)
			}
			send(t, client, "echo still here\n")
			want(t, client, "still here\n")
			s.Press(levee.NoPressure)
			s.TurnAway(0)
			s.greet()
		}
		if stats := s.Stats(); stats.Refused[levee.Overloaded] != 2 || stats.Active != 3 {
			t.Errorf("%d refused, %d active; want 2 and 3", stats.Refused[levee.Overloaded], stats.Active)
		}
		if got := s.Load().Accepted; got != 5 {
			t.Errorf("%d accepted, want 5", got)
		}
	})
}

func TestAShareOfTheNewcomersIsTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering}, l)
		s.TurnAway(0.5)
		for range 200 {
			dial(t, l)
			synctest.Wait()
		}
		if got := s.Stats().Refused[levee.Overloaded]; got < 60 || got > 140 { // by chance in one of a hundred million runs
			t.Errorf("%d of 200 were turned away", got)
		}
	})
}
