package upstream

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

func TestAServerThatFailsIsLeftAloneAndNobodyNotices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{})
		where["b"].become(greets)
		where["a"].become(refuses)
		for range 30 {
			if got := use(p); got != "b" {
				t.Fatalf("a client noticed: %s", got)
			}
		}
		if tries := where["a"].dialled(); tries != 5 {
			t.Errorf("it was dialled %d times before the breaker opened", tries)
		}
		if s := stats(t, p, "a"); s.State() != "breaker_open" {
			t.Errorf("it is %s", s.State())
		}
	})
}

func TestAServerThatClosesAtOnceOpensItsBreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(slams)
		where["b"].become(greets)
		var early int
		p := found(t, where, &Pool{Trace: &Trace{EarlyClosed: func(string, error) { early++ }}})
		for range 20 {
			use(p)
		}
		s := stats(t, p, "a")
		if s.Breaker != BreakerOpen || s.EarlyCloses != 5 || early != 5 {
			t.Errorf("the breaker is %v after %d early closes, of which %d were told", s.Breaker, s.EarlyCloses, early)
		}
	})
}

func TestAResetByTheServerCountsAsAnEarlyClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		c := dial(t, p)
		where["a"].ends[0].Reset()
		c.Read(make([]byte, 1))
		c.Close()
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen || s.EarlyCloses != 1 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestWhoeverTakesTheSocketSaysHowItEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{Breaker: Breaker{Failures: 1}})
		c := dial(t, p)
		c.NetConn().Close()
		c.Ended(End{Sent: 3, ByServer: true, Err: io.ErrUnexpectedEOF})
		c.Ended(End{Sent: 5, Received: 5})
		c.Close()
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen || s.Sent != 3 || s.Received != 0 || s.Active != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestClientsThatLeaveNeverOpenABreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{Breaker: Breaker{Failures: 2}})
		for range 100 {
			dial(t, p).Close()
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.EarlyCloses != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestAServerThatClosesLateOrAfterItsAnswerDidWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		late := dial(t, p)
		time.Sleep(time.Second) // virtual time
		late.Ended(End{ByServer: true})
		where["a"].become(greets)
		use(p)
		answered := dial(t, p)
		answered.Ended(End{ByServer: true, Received: 1})
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.EarlyCloses != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestWithoutEarlyCloseConnectingIsEnough(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{EarlyClose: -1, Breaker: Breaker{Failures: 1}})
		dial(t, p).Ended(End{ByServer: true})
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.EarlyCloses != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

// A row of failures is broken by a connection that lives on: its success is heard of when
// it is old enough, not when it ends.
func TestAConnectionThatLivesOnBreaksARowOfFailures(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Tries: 1, Breaker: Breaker{Failures: 2}})
		for range 5 {
			where["a"].become(accepts)
			dial(t, p)
			time.Sleep(time.Second) // virtual time
			where["a"].become(refuses)
			use(p)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed {
			t.Errorf("stats are %+v", s)
		}
	})
}

// halfOpen returns a pool whose only server's breaker has been open for long enough.
func halfOpen(t *testing.T, where town, settings Breaker) *Pool {
	t.Helper()
	p := found(t, where, &Pool{Tries: 1, Breaker: settings})
	where["a"].become(refuses)
	for range 5 {
		use(p)
	}
	where["a"].become(accepts)
	time.Sleep(10 * time.Second) // virtual time
	return p
}

func TestAHalfOpenBreakerLetsOneConnectionThroughUntilItIsDecided(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := halfOpen(t, newTown("a"), Breaker{})
		probe := dial(t, p)
		for range 10 {
			mustFail(t, p, "upstream test: no server available: a: breaker half-open, others are probing")
		}
		time.Sleep(999 * time.Millisecond) // virtual time
		mustFail(t, p, "upstream test: no server available: a: breaker half-open, others are probing")
		time.Sleep(time.Millisecond) // virtual time
		dial(t, p)
		probe.Close()
		time.Sleep(time.Second) // virtual time
		dial(t, p)
		if s := stats(t, p, "a"); s.Breaker != BreakerHalfOpen {
			t.Errorf("the breaker is %v after two probes", s.Breaker)
		}
		time.Sleep(time.Second) // virtual time
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed {
			t.Errorf("the breaker is %v after three probes", s.Breaker)
		}
	})
}

func TestTheFirstByteDecidesAProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := halfOpen(t, newTown("a"), Breaker{Probes: 1})
		dial(t, p).FirstByte()
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestAProbeThatIsClosedEarlyOpensTheBreakerAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := halfOpen(t, newTown("a"), Breaker{})
		dial(t, p).Ended(End{ByServer: true})
		mustFail(t, p, "upstream test: no server available: a: breaker open")
	})
}

func TestAProbeWhoseClientLeavesGivesWayToAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := halfOpen(t, newTown("a"), Breaker{})
		for range 10 {
			dial(t, p).Close()
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerHalfOpen {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestADialDoesNotPauseForServersThatAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		where["a"].become(refuses)
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		began := time.Now()
		mustFail(t, p, "upstream test: no server available: a: connection refused")
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
	})
}

func TestRunDecidesWhenNobodyDials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var states []BreakerState
		where := newTown("a")
		p := found(t, where, &Pool{
			Tries: 1, Breaker: Breaker{Failures: 1, Probes: 1}, Health: Health{Interval: -1},
			Trace: &Trace{BreakerChanged: func(_ string, _, to BreakerState) { states = append(states, to) }},
		})
		run(t, p)
		where["a"].become(refuses)
		use(p)
		where["a"].become(accepts)
		advance(11 * time.Second)
		dial(t, p)
		advance(3 * time.Second)
		synctest.Wait()
		if len(states) != 3 || states[0] != BreakerOpen || states[1] != BreakerHalfOpen || states[2] != BreakerClosed {
			t.Errorf("the breaker became %v", states)
		}
	})
}

func TestAConnectionThatHasEndedKeepsNoOther(t *testing.T) {
	p := found(t, newTown("a"), &Pool{})
	conns := []*Conn{dial(t, p), dial(t, p), dial(t, p)}
	for _, c := range conns {
		c.Close()
		if c.next != nil || c.prev != nil {
			t.Error("it has neighbours")
		}
	}
}

func TestAnIdlePairIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Conn{}); size > 128 {
		t.Errorf("a Conn has %d bytes", size)
	}
}

// refuse is a client that sends garbage, which the server answers by closing.
func refuse(t *testing.T, p *Pool) { dial(t, p).Ended(End{Sent: 9, ByServer: true}) }

func TestClientsThatAreRefusedDoNotOpenTheBreakerOfAServerThatIsWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 5}})
		dial(t, p)
		time.Sleep(time.Second) // virtual time
		for range 20 {
			refuse(t, p)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.EarlyCloses != 20 {
			t.Fatalf("the breaker is %v after %d early closes", s.Breaker, s.EarlyCloses)
		}
		time.Sleep(time.Second + 1) // virtual time
		for range 5 {
			refuse(t, p)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestWithoutProofThatTheServerIsWellClientsThatAreRefusedCount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{Breaker: Breaker{Failures: 5}})
		dial(t, p) // nobody knows yet what becomes of it
		for range 5 {
			refuse(t, p)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestAServerThatClosesUnaskedIsNotWellWhateverElseItDid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a"), &Pool{Breaker: Breaker{Failures: 1}})
		dial(t, p).FirstByte()
		dial(t, p).Ended(End{ByServer: true})
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestACheckThatAskedTheServerProvesThatItIsWell(t *testing.T) {
	for _, c := range []struct {
		name  string
		probe func(context.Context, net.Conn) error
		want  BreakerState
	}{
		{"a probe that passes", func(context.Context, net.Conn) error { return nil }, BreakerClosed},
		{"a probe that fails", func(context.Context, net.Conn) error { return io.EOF }, BreakerOpen},
		{"to connect", nil, BreakerOpen},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := found(t, newTown("a"), &Pool{Breaker: Breaker{Failures: 1}, Health: Health{Probe: c.probe, Fall: 1000}})
				run(t, p)
				advance(time.Minute)
				refuse(t, p)
				if s := stats(t, p, "a"); s.Breaker != c.want {
					t.Errorf("the breaker is %v", s.Breaker)
				}
			})
		})
	}
}

func TestOnceNobodyChecksACheckProvesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		well := func(context.Context, net.Conn) error { return nil }
		where := newTown("a")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}, Health: Health{Probe: well, Timeout: time.Minute}})
		run(t, p)
		advance(time.Minute)
		where["a"].become(hangs)
		advance(4 * time.Second)
		where["a"].become(accepts)
		refuse(t, p)
		where["a"].become(hangs)
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed {
			t.Errorf("the breaker is %v", s.Breaker)
		}
		advance(7 * time.Second) // the next check has begun, and will not end
		where["a"].become(accepts)
		refuse(t, p)
		if s := stats(t, p, "a"); s.Breaker != BreakerOpen {
			t.Errorf("the breaker is %v", s.Breaker)
		}
	})
}

func TestAServerThatClosesBehindItsClientDidNothingWrong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		dial(t, p).Ended(End{ByServer: true, ClientFirst: true})
		c := dial(t, p)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		where["a"].ends[1].Close()
		c.Read(make([]byte, 1))
		c.Close()
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.EarlyCloses != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}
