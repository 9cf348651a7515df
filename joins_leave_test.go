package levee_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// How joined connections leave when they are asked to, or told.

// atOnceOnEveryEngine is onEveryEngine for tests that wait for seconds: on all of them at
// the same time.
func atOnceOnEveryEngine(t *testing.T, test func(t testing.TB, e engine)) {
	leveetest.CheckLeaks(t)
	var all sync.WaitGroup
	for _, e := range engines {
		all.Go(func() { test(ofEngine{t, e.name}, e) })
	}
	all.Wait()
}

// ofEngine says which of several it is that has failed, and ends only that.
type ofEngine struct {
	testing.TB
	label string
}

func (l ofEngine) Error(args ...any) {
	l.Helper()
	l.TB.Errorf("%s: %s", l.label, fmt.Sprint(args...))
}

func (l ofEngine) Errorf(format string, args ...any) {
	l.Helper()
	l.TB.Errorf("%s: %s", l.label, fmt.Sprintf(format, args...))
}

func (l ofEngine) Fatal(args ...any) {
	l.Helper()
	l.Error(args...)
	runtime.Goexit()
}

func (l ofEngine) Fatalf(format string, args ...any) {
	l.Helper()
	l.Errorf(format, args...)
	runtime.Goexit()
}

func (l ofEngine) Skip(...any) { runtime.Goexit() }

// answered is meet, and the upstream has had the last word.
func (s *joins) answered() couple {
	s.t.Helper()
	c := s.meet()
	send(s.t, c.far, "welcome\n")
	want(s.t, c.near, "welcome\n")
	return c
}

// shutDown begins to shut the server down.
func (s *joins) shutDown(within time.Duration) <-chan error {
	result := make(chan error, 1)
	go func() { // ends with the shutdown
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		result <- s.Shutdown(ctx)
	}()
	return result
}

// brief is a silence after which pairs leave that are asked to: longer than anything that goes on in a test takes.
const brief = 500 * time.Millisecond

// hasty has its pairs do so.
func hasty(s *levee.Server) *levee.Server {
	levee.SetQuiet(s, brief)
	return s
}

// A pair that is asked to leave waits for a moment, so all of these wait at once.
func TestAPairThatIsAskedToLeaveDoes(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		var all sync.WaitGroup
		for does, test := range map[string]func(testing.TB, engine){
			"soon when it is quiet":                          quietLeavesSoon,
			"once it has its answer":                         leavesOnceAnswered,
			"not while it is busy":                           busyDoesNotLeave,
			"when a slow client has taken all of its answer": slowClientGetsAllOfIt,
			"when it is old enough":                          oldEnoughLeaves,
		} {
			all.Go(func() { test(ofEngine{t, does}, e) })
		}
		all.Wait()
	})
}

func quietLeavesSoon(t testing.TB, e engine) {
	s := e.join(t, hasty(&levee.Server{}), e.itsUpstream())
	c := s.answered()
	began := time.Now()
	done := s.shutDown(longest)
	wantEOF(t, c.near)
	wantEnd(t, c.far)
	s.cleanEnd(levee.Drained)
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

func leavesOnceAnswered(t testing.TB, e engine) {
	s := e.join(t, hasty(&levee.Server{}), e.itsUpstream())
	c := s.meet()
	done := s.shutDown(longest)
	select {
	case p := <-s.over:
		t.Fatalf("left as %v before its answer had come", p.Reason)
	case <-time.After(3 * brief):
	}
	send(t, c.far, "welcome\n")
	want(t, c.near, "welcome\n")
	wantEOF(t, c.near)
	s.cleanEnd(levee.Drained)
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
}

func TestAPairThatGetsNoAnswerIsCutAtTheDeadline(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{}, e.itsUpstream())
		c := s.meet()
		done := s.shutDown(1500 * time.Millisecond)
		wantEnd(t, c.near)
		wantEnd(t, c.far)
		s.cleanEnd(levee.DrainTimeout)
		if cut, ok := errors.AsType[*levee.DrainError](receive(t, done)); !ok || cut.Cut != 1 {
			t.Errorf("Shutdown says %v", cut)
		}
	})
}

func busyDoesNotLeave(t testing.TB, e engine) {
	s := e.join(t, hasty(&levee.Server{}), e.itsUpstream())
	c := s.answered()
	c.conn.Drain(nil)
	ticker := time.NewTicker(brief * 2 / 5)
	defer ticker.Stop()
	last := time.Now()
	for range 4 { // an answer that comes in drips
		<-ticker.C
		if late := time.Since(last); late > brief*4/5 {
			t.Logf("this machine stood still for %v: for a pair it was quiet", late)
			return
		}
		send(t, c.far, "drip\n")
		last = time.Now()
		want(t, c.near, "drip\n")
	}
	wantEOF(t, c.near)
	s.cleanEnd(levee.Drained)
}

// An overtaken is a connection whose Write returns when the answer has been read.
type overtaken struct {
	net.Conn
	answered chan struct{}
}

func (c overtaken) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	<-c.answered
	return n, err
}

func (c overtaken) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		time.AfterFunc(10*time.Millisecond, func() { c.answered <- struct{}{} }) // when it has been passed on
	}
	return n, err
}

func TestAnAnswerThatOvertakesItsRequestIsTheLastWord(t *testing.T) {
	leveetest.CheckLeaks(t)
	e, to := engine{network: "tcp", alone: true}, memoryUpstream
	l, dial := to.start(t)
	t.Cleanup(func() { l.Close() })
	s := e.joinAt(t, hasty(&levee.Server{}), listenTCP(t), to, l, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		return overtaken{c, make(chan struct{}, 1)}, err
	})
	c := s.answered()
	s.shutDown(longest)
	wantEOF(t, c.near)
	s.cleanEnd(levee.Drained)
}

// The answer lies where levee can see that there is more. Between tight buffers it would lie on the upstream's side, where
// the kernel waits, hundreds of milliseconds and twice that each time, before it asks whether there is room again; and a pair
// in which nothing moves for longer than brief is quiet.
func slowClientGetsAllOfIt(t testing.TB, e engine) {
	l, dial := tcpUpstream.start(t)
	t.Cleanup(func() { l.Close() })
	at := e.listen(t)
	tighten(at)
	s := e.joinAt(t, hasty(&levee.Server{}), at, tcpUpstream, l, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(400_000)
		}
		return c, err
	})
	c := s.meet()
	answer := payload(150_000)
	go c.far.Write(answer) // ends with the reading, or the connection
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(c.near, got[:1000]); err != nil {
		t.Fatal(err)
	}
	c.conn.Drain(nil)
	select {
	case p := <-s.over:
		t.Fatalf("left as %v with bytes to give", p.Reason)
	case <-time.After(3 * brief):
	}
	if n, err := io.ReadFull(c.near, got[1000:]); err != nil {
		t.Errorf("after %d bytes: %v", 1000+n, err)
	}
	wantBytes(t, got, answer)
	wantEOF(t, c.near)
	s.cleanEnd(levee.Drained)
}

func oldEnoughLeaves(t testing.TB, e engine) {
	s := e.join(t, hasty(&levee.Server{MaxLifetime: soon}), e.itsUpstream())
	c := s.answered()
	wantEOF(t, c.near)
	wantEnd(t, c.far)
	s.cleanEnd(levee.LifetimeExpired)

	s = e.join(t, &levee.Server{MaxLifetime: soon, DrainTimeout: soon}, e.itsUpstream())
	c = s.meet() // and is never answered
	wantEnd(t, c.near)
	wantEnd(t, c.far)
	s.cleanEnd(levee.LifetimeExpired)
}

func TestAPairIsEndedAtOnceByWhoeverMay(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(s *joins, c *levee.Conn)
		want levee.CloseReason
	}{
		"Kill":         {func(_ *joins, c *levee.Conn) { c.Kill(nil) }, levee.Killed},
		"Close":        {func(_ *joins, c *levee.Conn) { c.Close() }, levee.HandlerClosed},
		"Server.Close": {func(s *joins, _ *levee.Conn) { s.Close() }, levee.ServerClosed},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
				s := e.join(t, &levee.Server{}, to)
				c := s.meet()
				began := time.Now()
				test.end(s, c.conn)
				wantEnd(t, c.near)
				wantEnd(t, c.far)
				s.cleanEnd(test.want)
				if took := time.Since(began); took > time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// What was sent so far is not all that there would have been: nobody is to take it for that.
func TestAPairThatIsCutInTheMiddleIsReset(t *testing.T) {
	for name, cut := range map[string]func(s *joins, c *levee.Conn){
		"Kill":         func(_ *joins, c *levee.Conn) { c.Kill(nil) },
		"Close":        func(_ *joins, c *levee.Conn) { c.Close() },
		"Server.Close": func(s *joins, _ *levee.Conn) { s.Close() },
		"Shutdown":     func(s *joins, _ *levee.Conn) { s.shutDown(10 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
				s := e.join(t, &levee.Server{}, to)
				c := s.answered()
				cut(s, c.conn)
				if s.canReset(true) {
					wantReset(t, c.near, nil)
				}
				if s.canReset(false) {
					wantReset(t, c.far, nil)
				}
				receive(t, s.over)
			})
		})
	}
}

func TestAPairThatIsCutAtRestEndsInGoodOrder(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, hasty(&levee.Server{}), tcpUpstream)
		c := s.answered()
		<-time.After(2 * brief)
		c.conn.Kill(nil)
		wantEOF(t, c.far)
		if !e.tls { // which has words of its own for an end in good order
			wantEOF(t, c.near)
		}
		s.cleanEnd(levee.Killed)
	})
}

func TestAPairThatIsStuckCanBeKilled(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		c := s.meet()
		var writing sync.WaitGroup
		for _, side := range []peer{c.near, c.far} {
			writing.Go(func() { // neither reads
				for err := error(nil); err == nil; {
					_, err = side.Write(make([]byte, 64<<10))
				}
			})
		}
		untilQuiet(c.conn)
		c.conn.Kill(nil)
		s.cleanEnd(levee.Killed)
		writing.Wait()
	})
}

// untilQuiet waits until nothing moves.
func untilQuiet(c *levee.Conn) {
	for before := int64(-1); ; {
		read, written := c.Traffic()
		if read+written == before {
			return
		}
		before = read + written
		<-time.After(50 * time.Millisecond)
	}
}
