package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestServersTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := found(t, newTown("a", "b"), &Pool{})
		counts := map[string]int{}
		for range 10 {
			c := dial(t, p)
			counts[c.Server()]++
			c.Close()
		}
		if counts["a"] != 5 || counts["b"] != 5 {
			t.Errorf("servers were picked %v times", counts)
		}
	})
}

func TestAConnectionCarriesBytesAndTheFirstOnesComeFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{})
		c, err := p.Dial(t.Context(), Request{First: []byte("PROXY\r\n")})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "ping")
		c.CloseWrite()
		far := where["a"].ends[0]
		got, _ := io.ReadAll(far)
		if string(got) != "PROXY\r\nping" {
			t.Errorf("the server got %q", got)
		}
		far.Write([]byte("pong!"))
		far.Close()
		got, _ = io.ReadAll(c)
		if string(got) != "pong!" {
			t.Errorf("the client got %q", got)
		}
		c.Close()
		if s := stats(t, p, "a"); s.Sent != 4 || s.Received != 5 || s.Active != 0 || s.Dials != 1 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestAServerThatRefusesIsReplacedByAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(refuses)
		var retried []string
		p := found(t, where, &Pool{Trace: &Trace{Retried: func(server string, err error) {
			retried = append(retried, fmt.Sprint(server, " ", err))
		}}})
		for range 4 {
			if got := useQuietly(t, p); got != "b" {
				t.Fatalf("got %s", got)
			}
		}
		if len(retried) == 0 || retried[0] != "a connection refused" {
			t.Errorf("retried %q", retried)
		}
		if n := stats(t, p, "a").Failures[Refused]; n != int64(len(retried)) {
			t.Errorf("%d refusals for %d retries", n, len(retried))
		}
	})
}

// useQuietly dials and closes without having read.
func useQuietly(t *testing.T, p *Pool) string {
	t.Helper()
	c := dial(t, p)
	defer c.Close()
	return c.Server()
}

func TestEachTryGetsTheFirstBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(refuses)
		p := found(t, where, &Pool{})
		for range 2 {
			c, err := p.Dial(t.Context(), Request{First: []byte("hello")})
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		for _, far := range where["b"].ends {
			if got, _ := io.ReadAll(far); string(got) != "hello" {
				t.Errorf("the server got %q", got)
			}
		}
	})
}

func TestWhoDialsIsToldOfEachTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(refuses)
		p := found(t, where, &Pool{})
		for range 2 { // one of them begins with a
			var all []Attempt
			began := time.Now()
			c, err := p.Dial(t.Context(), Request{Tried: func(a Attempt) { all = append(all, a) }})
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			last := len(all) - 1
			if last < 0 || all[last].Server != "b" || all[last].Err != nil || all[last].Began.Before(began) {
				t.Fatalf("told of %+v", all)
			}
			for _, a := range all[:last] {
				if a.Server != "a" || a.Err == nil || a.Kind != Refused || a.Began.Before(began) || a.Took != 0 { // no time passes
					t.Errorf("told of %+v", a)
				}
			}
		}
		if n := where["a"].dialled(); n != 1 {
			t.Errorf("a was tried %d times", n)
		}
	})
}

func TestWhenAllRefuseTheErrorSaysWhatEachSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(refuses)
		where["b"].become(refuses)
		p := found(t, where, &Pool{Name: "postgres", Tries: 2, RetryBudget: 10})
		failure := mustFail(t, p, "upstream postgres: no server available: a: connection refused; b: connection refused")
		if !errors.Is(failure, syscall.ECONNREFUSED) || len(failure.Tries) != 2 {
			t.Errorf("the error holds %+v", failure)
		}
		for range 5 {
			p.Dial(t.Context(), Request{})
		}
		mustFail(t, p, "upstream postgres: no server available: a: breaker open; b: breaker open")
	})
}

func TestTheOnlyServerIsTriedAgainAfterAPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		where["a"].become(refuses)
		p := found(t, where, &Pool{})
		go func() {
			time.Sleep(50 * time.Millisecond) // virtual time
			where["a"].become(accepts)
		}()
		began := time.Now()
		c := dial(t, p)
		c.Close()
		if took := time.Since(began); took < 50*time.Millisecond || took > 500*time.Millisecond {
			t.Errorf("the second connection came after %v", took)
		}
	})
}

func TestADialNeverTakesLongerThanTotalTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		for _, h := range where {
			h.become(hangs)
		}
		p := found(t, where, &Pool{DialTimeout: 4 * time.Second, TotalTimeout: 9 * time.Second})
		began := time.Now()
		mustFail(t, p, "upstream test: no server available: a: no answer within 4s: i/o timeout; "+
			"b: no answer within 4s: i/o timeout; c: no answer within 1s: i/o timeout")
		if took := time.Since(began); took != 9*time.Second {
			t.Errorf("it took %v", took)
		}
		if n := stats(t, p, "a").Failures[TimedOut]; n != 1 {
			t.Errorf("%d timeouts are counted", n)
		}
	})
}

func TestATryThatTheTotalTimeoutCutShortIsNotBlamedOnTheServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(hangs)
		where["b"].become(hangs)
		p := found(t, where, &Pool{TotalTimeout: 6 * time.Second, Breaker: Breaker{Failures: 1}})
		mustFail(t, p, "upstream test: no server available: a: no answer within 5s: i/o timeout; b: no answer within 1s: i/o timeout; the time is up")
		if a, b := stats(t, p, "a"), stats(t, p, "b"); a.Breaker != BreakerOpen || b.Breaker != BreakerClosed {
			t.Errorf("the breakers are %v, which had its time, and %v, which had not", a.Breaker, b.Breaker)
		}
	})
}

func TestACallerWhoGivesUpIsAnsweredAtOnceAndBlamesNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		where["a"].become(hangs)
		p := found(t, where, &Pool{Breaker: Breaker{Failures: 1}})
		ctx, cancel := context.WithCancelCause(t.Context())
		hungUp := errors.New("the client hung up")
		time.AfterFunc(time.Second, func() { cancel(hungUp) })
		began := time.Now()
		_, err := p.Dial(ctx, Request{})
		if time.Since(began) != time.Second || !errors.Is(err, hungUp) || errors.Is(err, ErrUnavailable) {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if want := "upstream test: gave up: the client hung up: a: the client hung up"; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.Failures[GaveUp] != 1 {
			t.Errorf("stats are %+v", s)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := p.Dial(ctx, Request{}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
			t.Errorf("with a deadline: %v", err)
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.Active != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestACallerWhoHasGivenUpBeforeDialsNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.Dial(ctx, Request{})
		if want := "upstream test: gave up: context canceled"; err == nil || err.Error() != want || where["a"].dialled() != 0 {
			t.Errorf("got %v after %d dials, want %s", err, where["a"].dialled(), want)
		}
	})
}

func TestThisMachinesTroubleIsToldToNoBreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Tries: 1, Breaker: Breaker{Failures: 1}})
		for _, errno := range localErrors {
			where["a"].failWith(dialError(errno))
			mustFail(t, p, "upstream test: no server available: a: "+errno.Error())
		}
		if s := stats(t, p, "a"); s.Breaker != BreakerClosed || s.Failures[Local] != int64(len(localErrors)) {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestRetriesEndWithTheirBudget(t *testing.T) {
	for share, want := range map[float64]int64{-1: retryFloor, 0: 40, 0.5: 100} {
		bubble(t, func(t *testing.T) {
			where := newTown("a", "b")
			p := found(t, where, &Pool{Tries: 2, RetryBudget: share, Breaker: Breaker{Failures: -1, Rate: -1}})
			where["a"].become(refuses)
			where["b"].become(refuses)
			var last error
			for range 200 {
				_, last = p.Dial(t.Context(), Request{})
			}
			s := p.Stats()
			tries := where["a"].dialled() + where["b"].dialled()
			if s.Retries != want || int64(tries) != 200+want || s.BudgetExhausted != 200-want || s.Refused != 200 {
				t.Errorf("%v: %d retries, %d tries: %+v", share, s.Retries, tries, s)
			}
			if !strings.HasSuffix(last.Error(), "; the retry budget is used up") && share < 0 {
				t.Errorf("%v: the last dial failed with %v", share, last)
			}
		})
	}
}

func TestAPoolWithoutServersSaysSo(t *testing.T) {
	p := &Pool{Name: "nobody"}
	mustFail(t, p, "upstream nobody: no server available: no servers are known")
}

func TestAnErrorNamesOnlyTheFirstServersOfMany(t *testing.T) {
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("s%03d", i)
	}
	where := newTown(names...)
	p := found(t, where, &Pool{})
	for _, s := range where.servers() {
		p.Drain(s.Name)
	}
	_, err := p.Dial(t.Context(), Request{})
	if n := strings.Count(err.Error(), "drained"); n != reasonsTold {
		t.Errorf("%d servers are named: %v", n, err)
	}
}

func TestKindsOfFailuresAreTold(t *testing.T) {
	for _, c := range []struct {
		err  error
		want FailureKind
	}{
		{dialError(syscall.ECONNREFUSED), Refused},
		{dialError(syscall.ETIMEDOUT), TimedOut},
		{fmt.Errorf("x: %w", os.ErrDeadlineExceeded), TimedOut},
		{dialError(syscall.EHOSTUNREACH), Unreachable},
		{dialError(syscall.ECONNRESET), Reset},
		{io.EOF, Reset},
		{&handshakeError{io.EOF}, Handshake},
		{&handshakeError{os.ErrDeadlineExceeded}, TimedOut},
		{dialError(syscall.EMFILE), Local},
		{errors.New("odd"), Other},
	} {
		if got := kindOf(c.err); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
	for _, k := range FailureKinds() {
		if k.String() == "" || strings.Contains(k.String(), "(") {
			t.Errorf("%d has no word", k)
		}
	}
}

func TestFiftyDialsAtOnceOfAHangingPoolAllEndInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		for _, h := range where {
			h.become(hangs)
		}
		p := found(t, where, &Pool{})
		began := time.Now()
		for range 50 {
			go func() {
				if _, err := p.Dial(context.Background(), Request{}); err == nil {
					t.Error("got a connection")
				}
			}()
		}
		time.Sleep(11 * time.Second) // virtual time
		synctest.Wait()
		if s := p.Stats(); s.Refused != 50 || s.Servers[0].Active+s.Servers[1].Active != 0 {
			t.Errorf("after %v: %+v", time.Since(began), s)
		}
	})
}
