package levee_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// How connections end, and what is told of it.

// untilTold is a command that says that it has been called and waits for a word.
func untilTold() (run command, called, goOn chan struct{}) {
	called, goOn = make(chan struct{}, 100), make(chan struct{})
	return func(_ *levee.Conn, _ string, out []byte) ([]byte, error) {
		called <- struct{}{}
		<-goOn
		return append(out, "done\n"...), nil
	}, called, goOn
}

// isClosed reports whether a channel is.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestAnIdleConnectionLeavesWhenAskedTo(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		var d diary
		s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: d.trace()})
		client, c := s.greet()
		leaving := c.Draining()
		if isClosed(leaving) {
			t.Error("the channel is closed before anybody has asked")
		}
		c.Drain(nil)
		c.Drain(errStep)
		if !isClosed(leaving) || !isClosed(c.Draining()) {
			t.Error("the channel is not closed")
		}
		wantEOF(t, client)
		client.Close()
		s.expectCleanEnd(levee.Drained)
		if c.Reason() != levee.Drained {
			t.Errorf("Reason says %v", c.Reason())
		}
		c.Drain(errStep)
		expectDiary(t, &d, e, c, "draining", "closed: drained")
	})
}

// expectDiary expects what a Trace was told after a connection was served.
func expectDiary(t testing.TB, d *diary, e engine, c *levee.Conn, rest ...string) {
	t.Helper()
	wanted := []string{"accepted"}
	if e.tls {
		wanted = append(wanted, "handshake ok: true")
	}
	wanted = append(append(wanted, "serving by *levee_test.engaged"), rest...)
	d.mu.Lock()
	defer d.mu.Unlock()
	if got := d.entries[c.ID()]; fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("the Trace was told %q, want %q", got, wanted)
	}
}

func TestHalfAMessageIsCompletedBeforeALeave(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		partial := make(chan struct{}, 10)
		s := e.serve(t, &levee.Server{Handler: &lines{partial: func(*levee.Conn) { partial <- struct{}{} }}})
		client, c := s.greet()
		send(t, client, "echo ab")
		receive(t, partial)
		c.Drain(nil)
		send(t, client, "cd")
		receive(t, partial)
		send(t, client, "ef\n")
		want(t, client, "abcdef\n")
		wantEOF(t, client)
		client.Close()
		s.expectCleanEnd(levee.Drained)
	})
}

func TestWhatHasArrivedIsAnsweredBeforeALeave(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}, single: true}})
		client, c := s.greet()
		send(t, client, "wait\necho 1\necho 2\n")
		receive(t, called)
		send(t, client, "echo 3\necho 4\n")
		c.Drain(nil)
		goOn <- struct{}{}
		want(t, client, "done\n1\n2\n3\n4\n")
		wantEOF(t, client)
		client.Close()
		s.expectCleanEnd(levee.Drained)
	})
}

func TestSilenceEndsAConnectionAlsoWithinAMessage(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		const limit = 400 * time.Millisecond
		s := e.serve(t, &levee.Server{Handler: &lines{}, IdleTimeout: limit})
		moving := s.dial()
		send(t, moving, "e")
		start := time.Now()
		idle, _ := s.greet()
		within, _ := s.greet()
		send(t, within, "echo pa")
		every := time.NewTicker(limit / 8)
		defer every.Stop()
		for _, b := range "cho 0123456789" { // longer than the timeout
			<-every.C
			send(t, moving, string(b))
		}
		send(t, moving, "\n")
		want(t, moving, "0123456789\n")
		if took := time.Since(start); took < limit*5/4 {
			t.Fatalf("a message in %v proves nothing", took)
		}
		for _, c := range []peer{idle, within} {
			wantEnd(t, c)
			s.expectCleanEnd(levee.IdleTimeout)
		}
		wantEnd(t, moving)
		s.expectCleanEnd(levee.IdleTimeout)
	})
}

func TestAMessageHasToBeCompleteInTime(t *testing.T) {
	const limit = 300 * time.Millisecond
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, MessageTimeout: limit})
		client, _ := s.greet()
		every := time.NewTicker(20 * time.Millisecond)
		defer every.Stop()
		send(t, client, "echo ")
		for began := time.Now(); time.Since(began) < 2*limit; <-every.C { // each is complete soon, and the next has begun
			send(t, client, "1\necho ")
			want(t, client, "1\n")
		}
		began := time.Now()
		go func() { // ends with the connection
			for _, err := io.WriteString(client, "2\necho "); err == nil; _, err = io.WriteString(client, "x") {
				<-time.After(limit / 20) // that is what it is about
			}
		}()
		want(t, client, "2\n")
		wantEnd(t, client)
		if took := time.Since(began); took < limit || took > limit+time.Second {
			t.Errorf("it ended after %v, want %v", took, limit)
		}
		s.expectCleanEnd(levee.MessageTimeout)
	})
}

func TestAMessageMayTakeItsTimeWhereThereIsNoLimit(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, MessageTimeout: -1, IdleTimeout: 400 * time.Millisecond})
		client, _ := s.greet()
		every := time.NewTicker(50 * time.Millisecond)
		defer every.Stop()
		for _, b := range "echo 0123456789\n" {
			send(t, client, string(b))
			<-every.C
		}
		want(t, client, "0123456789\n")
		client.Close()
		s.expectCleanEnd(levee.ClientClosed)
	})
}

func TestAClientThatReadsNothingIsNotReadAndThenCut(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, WriteStallTimeout: 200 * time.Millisecond})
		c := s.dial()
		request := []byte(strings.Repeat("echo "+strings.Repeat("x", 1000)+"\n", 64))
		var err error
		for err == nil {
			_, err = c.Write(request)
		}
		end := s.expectCleanEnd(levee.WriteStalled)
		if end.Read > 8<<20 {
			t.Errorf("%d bytes were read for a client that reads none", end.Read)
		}
		_, readErr := io.Copy(io.Discard, c)
		if err = errors.Join(err, readErr); e.overTCP() && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client meets %v, want a reset", err)
		}
	})
}

func TestASlowReaderIsNotStalled(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, WriteStallTimeout: time.Second})
		c := s.dial()
		const size = 8 << 20
		send(t, c, fmt.Sprintln("big", size))
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for range 16 {
			<-every.C
			if _, err := io.CopyN(io.Discard, c, size/16); err != nil {
				t.Fatal(err)
			}
		}
		c.CloseWrite()
		s.expectCleanEnd(levee.ClientClosed)
	})
}

func TestKillFromOutsideEndsAConnectionAtOnce(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, c := s.greet()
		c.Kill(errStep)
		if c.Reason() != levee.Killed {
			t.Errorf("Reason says %v", c.Reason())
		}
		wantEnd(t, client)
		s.expectEndBy(levee.Killed, errStep)
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close says %v", err)
		}
	})
}

func TestCloseFromOutsideIsHandlerClosedAndSucceedsOnce(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, c := s.greet()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wantEnd(t, client)
		s.expectCleanEnd(levee.HandlerClosed)
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second Close says %v", err)
		}
	})
}

// No later Step is made, and no reply sent.
func TestAStepThatEndsItsConnectionIsTheLast(t *testing.T) {
	for _, ending := range []struct {
		command string
		reason  levee.CloseReason
	}{{"kill", levee.Killed}, {"hangup", levee.HandlerClosed}} {
		t.Run(ending.command, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				testLastStep(t, e, ending.command, ending.reason)
				testLastStep(t, e, ending.command+" without a reply", ending.reason)
			})
		})
	}
}

func testLastStep(t *testing.T, e engine, ending string, reason levee.CloseReason) {
	t.Helper()
	var after atomic.Int64
	verb, rest, _ := strings.Cut(ending, " ")
	commands := map[string]command{
		"count": func(_ *levee.Conn, _ string, out []byte) ([]byte, error) { after.Add(1); return out, nil },
		verb: func(c *levee.Conn, _ string, out []byte) ([]byte, error) {
			reply, err := commonCommands[verb](c, "", out)
			if rest != "" {
				reply = nil
			}
			return reply, err
		},
	}
	s := e.serve(t, &levee.Server{Handler: &lines{single: true, commands: commands}})
	client, _ := s.greet()
	send(t, client, verb+"\n"+strings.Repeat("count\n", 100))
	wantEnd(t, client)
	if end := s.expectEnd(reason); end.Err != nil && !errors.Is(end.Err, net.ErrClosed) && (reason != levee.Killed || !errors.Is(end.Err, errStep)) {
		t.Errorf("the error is %v", end.Err)
	}
	if n := after.Load(); n != 0 {
		t.Errorf("%d Steps came after the end", n)
	}
}

// What goes wrong in one connection's Step is no other's.
func TestAMishapInAStepEndsItsConnectionOnly(t *testing.T) {
	badCounts := map[string]int{"less": -1, "more": 1000}
	for _, mishap := range []struct {
		command string
		reason  levee.CloseReason
		told    string // the panic
	}{
		{"panic", levee.HandlerPanic, "bang "},
		{"goexit", levee.HandlerError, ""},
		{"less", levee.HandlerPanic, "levee: Step has taken -1 bytes of 5"},
		{"more", levee.HandlerPanic, "levee: Step has taken 1000 bytes of 5"},
	} {
		t.Run(mishap.command, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				var panics sync.Map
				inner := &lines{}
				s := e.serve(t, &levee.Server{
					Handler: steps(func(c *levee.Conn, in []byte, seen int, out []byte) (int, []byte, error) {
						if n := badCounts[strings.TrimSpace(string(in))]; n != 0 {
							return n, append(out, "never\n"...), nil
						}
						return inner.Step(c, in, seen, out)
					}),
					Trace: &levee.Trace{Panicked: func(_ *levee.Conn, value any, stack []byte) {
						panics.Store(fmt.Sprint(value), string(stack))
					}},
				})
				testMishap(t, s, mishap.command, mishap.reason)
				stack, told := panics.Load(mishap.told)
				if told != (mishap.told != "") {
					t.Errorf("a panic that says %q was told: %t", mishap.told, told)
				}
				if mishap.command == "panic" && !strings.Contains(fmt.Sprint(stack), "explodeOnPurpose") {
					t.Errorf("the stack does not name who panicked:\n%v", stack)
				}
			})
		})
	}
}

func testMishap(t *testing.T, s *scene, command string, reason levee.CloseReason) {
	t.Helper()
	others := make([]peer, 8)
	for i := range others {
		others[i], _ = s.greet()
	}
	const victims = 3
	for range victims {
		victim, _ := s.greet()
		send(t, victim, command+"\n")
		wantEnd(t, victim)
		if end := s.expectEnd(reason); end.Err == nil {
			t.Error("there is no error")
		}
		for i, c := range others {
			send(t, c, fmt.Sprintln("echo", i))
			want(t, c, fmt.Sprintln(i))
		}
	}
	checkStats(t, s.Stats(), int64(len(others)), map[levee.CloseReason]int64{reason: victims})
}

func TestTraceTellsOfASteppersLifeInOrder(t *testing.T) {
	for _, life := range []struct {
		command string
		told    []string
		reason  levee.CloseReason
	}{
		{"close", []string{"closed: handler_closed"}, levee.HandlerClosed},
		{"fail", []string{"closed: handler_error"}, levee.HandlerError},
		{"drain", []string{"draining", "closed: drained"}, levee.Drained},
		{"kill", []string{"closed: killed"}, levee.Killed},
		{"panic", []string{"panicked: bang ", "closed: handler_panic"}, levee.HandlerPanic},
	} {
		t.Run(life.command, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				var d diary
				s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: d.trace()})
				client, c := s.greet()
				checkStats(t, s.Stats(), 1, nil)
				send(t, client, life.command+"\n")
				io.Copy(io.Discard, client)
				client.Close()
				s.expectEnd(life.reason)
				expectDiary(t, &d, e, c, life.told...)
				checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{life.reason: 1})
				if s.Conn(c.ID()) != nil {
					t.Error("the server still knows the connection")
				}
			})
		})
	}
}

func TestServingIsToldTheStepper(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		served := make(chan levee.Handler, 1)
		stepper := &lines{}
		s := e.serve(t, &levee.Server{Handler: stepper, Trace: &levee.Trace{
			Serving: func(_ *levee.Conn, h levee.Handler) { served <- h },
		}})
		s.greet()
		if h := (<-served).(*engaged); h.Stepper != stepper {
			t.Errorf("told of %v", h)
		}
	})
}

func TestShutdownAsksAllAndCutsWhoStays(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}})
		defer close(goOn)
		const idle, busy = 5, 3
		for range idle {
			s.greet()
		}
		for range busy {
			c, _ := s.greet()
			send(t, c, "wait\n")
			receive(t, called)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(ctx) }()
		for range idle {
			s.expectCleanEnd(levee.Drained)
		}
		cancel()
		err := receive(t, result)
		if cut, ok := errors.AsType[*levee.DrainError](err); !ok || cut.Cut != busy {
			t.Errorf("Shutdown says %v, want %d cut", err, busy)
		}
		for range busy {
			goOn <- struct{}{}
			s.expectCleanEnd(levee.DrainTimeout)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: idle, levee.DrainTimeout: busy})
	})
}

func TestShutdownWaitsForAStep(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}})
		client, c := s.greet()
		send(t, client, "wait\n")
		receive(t, called)
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(context.Background()) }()
		receive(t, c.Draining())
		goOn <- struct{}{}
		want(t, client, "done\n")
		wantEOF(t, client)
		client.Close()
		if err := receive(t, result); err != nil {
			t.Error("Shutdown:", err)
		}
		s.expectCleanEnd(levee.Drained)
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func TestCloseEndsEveryConnection(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		const clients = 5
		all := make([]peer, clients)
		for i := range all {
			all[i], _ = s.greet()
		}
		if cut, ok := errors.AsType[*levee.DrainError](s.Close()); !ok || cut.Cut != clients {
			t.Errorf("Close says %v", cut)
		}
		for _, c := range all {
			wantEnd(t, c)
			s.expectCleanEnd(levee.ServerClosed)
		}
	})
}

func TestTheEndOfServesContextDrains(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, _ := s.greet()
		s.end()
		wantEOF(t, client)
		client.Close()
		s.expectCleanEnd(levee.Drained)
		if err := s.result(); err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func TestAtItsAgeAnIdleConnectionLeavesAndABusyOneIsCut(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{
			Handler:     &lines{commands: map[string]command{"wait": run}},
			MaxLifetime: 100 * time.Millisecond, DrainTimeout: 100 * time.Millisecond,
		})
		defer close(goOn)
		idle, _ := s.greet()
		busy, _ := s.greet()
		send(t, busy, "wait\n")
		receive(t, called)
		wantEOF(t, idle)
		idle.Close()
		s.expectCleanEnd(levee.LifetimeExpired)
		wantEnd(t, busy)
		goOn <- struct{}{}
		s.expectCleanEnd(levee.LifetimeExpired)
	})
}
