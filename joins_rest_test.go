package levee_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/proxy"
)

// How joined connections leave whose upstream's words are known.

// joinResting is join with an upstream of which it is known when its client rests.
func (e engine) joinResting(t testing.TB, srv *levee.Server, to upstreamKind, rest func(first, last []byte) levee.Rest) *joins {
	t.Helper()
	s := e.join(t, srv, to)
	s.mu.Lock()
	s.rest = rest
	s.mu.Unlock()
	return s
}

// exchange has the client ask, and the upstream answer.
func (c couple) exchange(t testing.TB, question, answer string) {
	t.Helper()
	send(t, c.near, question)
	want(t, c.far, question)
	send(t, c.far, answer)
	want(t, c.near, answer)
}

const (
	begun     = "C\x00\x00\x00\x0aBEGIN\x00Z\x00\x00\x00\x05T"
	failed    = "E\x00\x00\x00\x0bSERROR\x00\x00Z\x00\x00\x00\x05E"
	committed = "C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I"
)

func TestAPairLeavesAlmostAtOnceBetweenTwoTransactions(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.joinResting(t, &levee.Server{}, to, proxy.PostgresRest)
		c := s.meet()
		c.exchange(t, "BEGIN", begun)
		c.exchange(t, "COMMIT", committed)
		began := time.Now()
		done := s.shutDown(longest)
		wantEOF(t, c.near)
		wantEnd(t, c.far)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it left after %v", took)
		}
		s.cleanEnd(levee.Drained)
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	})
}

func TestATransactionIsFinishedFirst(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		srv := &levee.Server{}
		levee.SetQuiet(srv, 10*time.Millisecond) // to those of which no more is known
		s := e.joinResting(t, srv, e.itsUpstream(), proxy.PostgresRest)
		c := s.meet()
		c.exchange(t, "BEGIN", begun)
		done := s.shutDown(longest)
		for _, answer := range []string{begun, failed} {
			c.exchange(t, "UPDATE", answer)
			select {
			case p := <-s.over:
				t.Fatalf("left as %v behind %q", p.Reason, answer)
			case <-time.After(200 * time.Millisecond):
			}
		}
		c.exchange(t, "ROLLBACK", committed)
		wantEOF(t, c.near)
		s.cleanEnd(levee.Drained)
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	})
}

func TestATransactionThatDoesNotEndIsCutAtTheDeadlineAndNotBefore(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		const limit = 700 * time.Millisecond
		srv := &levee.Server{}
		levee.SetQuiet(srv, 10*time.Millisecond)
		s := e.joinResting(t, srv, e.itsUpstream(), proxy.PostgresRest)
		c := s.meet()
		c.exchange(t, "BEGIN", begun)
		began := time.Now()
		done := s.shutDown(limit)
		wantEnd(t, c.near)
		if took := time.Since(began); took < limit {
			t.Errorf("cut after %v", took)
		}
		s.cleanEnd(levee.DrainTimeout)
		if cut, ok := errors.AsType[*levee.DrainError](receive(t, done)); !ok || cut.Cut != 1 {
			t.Errorf("Shutdown says %v", cut)
		}
		if r := s.DrainReport(); r != (levee.DrainReport{Cut: 1}) {
			t.Errorf("the report is %+v", r)
		}
	})
}

func TestARedisClientLeavesBetweenTwoCommands(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.joinResting(t, hasty(&levee.Server{}), e.itsUpstream(), proxy.RedisRest)
		idle, queued, subscribed := s.meet(), s.meet(), s.meet()
		idle.exchange(t, "SET a b\r\n", "+OK\r\n")
		queued.exchange(t, "SET a b\r\n", "+QUEUED\r\n")
		subscribed.exchange(t, "SUBSCRIBE news\r\n", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n")
		done := s.shutDown(longest)
		began := time.Now()
		wantEOF(t, idle.near)
		if took := time.Since(began); took > brief*4/5 {
			t.Errorf("who was idle left after %v", took)
		}
		wantEOF(t, subscribed.near)
		if took := time.Since(began); took < brief*4/5 {
			t.Errorf("who had subscribed left after %v", took)
		}
		select {
		case err := <-done:
			t.Fatalf("MULTI was left without EXEC: %v", err)
		case <-time.After(brief):
		}
		queued.exchange(t, "EXEC\r\n", "*1\r\n+OK\r\n")
		wantEOF(t, queued.near)
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
		if r := s.DrainReport(); r != (levee.DrainReport{Drained: 3}) {
			t.Errorf("the report is %+v", r)
		}
	})
}

// Who asks again soon when it has its answer is never quiet, but need not be cut for that.
func TestWhoIsNeverQuietLeavesBetweenTwoTransactionsBeforeTheDeadline(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.joinResting(t, &levee.Server{}, e.itsUpstream(), proxy.PostgresRest)
		c := s.meet()
		got, answered := make(chan int, 1), make(chan int, 1)
		go func() { // ends with the connection
			got <- countUntilError(func(b []byte) error {
				if _, err := io.ReadFull(c.far, b[:len("SELECT")]); err != nil {
					return err
				}
				_, err := io.WriteString(c.far, committed)
				return err
			})
		}()
		go func() { // likewise
			answered <- countUntilError(func(b []byte) error {
				if _, err := io.WriteString(c.near, "SELECT"); err != nil {
					return err
				}
				_, err := io.ReadFull(c.near, b[:len(committed)])
				<-time.After(time.Millisecond)
				return err
			})
		}()
		const limit = 2 * time.Second
		began := time.Now()
		err := receive(t, s.shutDown(limit))
		if took := time.Since(began); err != nil || took > limit+time.Second {
			t.Errorf("%v after %v", err, took)
		}
		s.end(levee.Drained)
		if got, answered := receive(t, got), receive(t, answered); got != answered || got == 0 {
			t.Errorf("%d questions have got through, and %d answers come back", got, answered)
		}
	})
}

func countUntilError(do func(b []byte) error) (n int) {
	for b := make([]byte, 64); do(b) == nil; n++ {
	}
	return n
}

// What a Rest is shown are the ends of what has come since the client has last said something.
func TestARestIsShownBothEndsOfAnAnswer(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		type shown struct{ first, last string }
		seen := make(chan shown, 1000)
		s := e.joinResting(t, &levee.Server{}, to, func(first, last []byte) levee.Rest {
			seen <- shown{string(first), string(last)}
			if bytes.HasSuffix(last, []byte("over")) {
				return levee.AtRest
			}
			return levee.NotAtRest
		})
		await := func(first, last string) { // before it can be shown what comes next instead
			t.Helper()
			for receive(t, seen) != (shown{first, last}) {
			}
		}
		c := s.meet()
		c.conn.Drain(nil)
		c.exchange(t, "one", "the first")
		await("the first", "the first")
		long := string(bytes.Repeat([]byte("0123456789"), 10)) // more than is kept
		c.exchange(t, "two", long)
		send(t, c.far, "and its end")
		want(t, c.near, "and its end")
		whole := long + "and its end"
		await(whole[:levee.RestBytes], whole[len(whole)-levee.RestBytes:])
		c.exchange(t, "three", "over")
		await("over", "over")
		wantEOF(t, c.near)
	})
}

func TestARestThatPanicsEndsItsConnectionAlone(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.joinResting(t, &levee.Server{Logger: slog.New(slog.DiscardHandler)}, e.itsUpstream(), func(_, last []byte) levee.Rest {
			if string(last) == "bang" {
				panic("bang")
			}
			return levee.AtRest
		})
		bad, good := s.meet(), s.meet()
		good.exchange(t, "ask", "fine")
		bad.exchange(t, "ask", "bang")
		bad.conn.Drain(nil)
		s.end(levee.HandlerPanic)
		good.exchange(t, "ask", "fine")
	})
}
