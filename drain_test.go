package levee_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// slack is what an end takes beyond the work that is left: Shutdown listens for
// a last newcomer, and a network in memory can be asked for bytes only by waiting.
const slack = 10 * time.Millisecond

// staying is a handler that stays until its connection is ended.
var staying = handle(func(ctx context.Context, _ *levee.Conn) error {
	<-ctx.Done()
	return ctx.Err()
})

// working answers each line after it has worked on it for a time.
func working(d time.Duration) levee.Handler {
	return handle(func(_ context.Context, c *levee.Conn) error {
		for c.Next() {
			line := make([]byte, 64)
			n, err := c.Read(line)
			if err != nil {
				return err
			}
			time.Sleep(d) // virtual time
			if _, err := c.Write(line[:n]); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestIdleConnectionsLeaveAtOnceAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 1000
		l := leveetest.Network{Backlog: -1}.Listen()
		s := serve(t, &levee.Server{Handler: answering}, l)
		all := make([]net.Conn, clients)
		for i := range all {
			all[i] = dial(t, l)
			if err := exchange(all[i], "hello\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		start := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > slack {
			t.Errorf("Shutdown took %v", took)
		}
		for _, c := range all {
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("a client read %d bytes, %v, want EOF", n, err)
			}
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: clients})
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
	})
}

func TestShutdownReturnsWithTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: working(3 * time.Second)}, l)
		var clients sync.WaitGroup
		start := time.Now()
		for i := range 3 {
			c := dial(t, l)
			clients.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 4) // virtual time
				if err := exchange(c, "work to do\n"); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second) // virtual time
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 3500*time.Millisecond || took > 3500*time.Millisecond+slack {
			t.Errorf("Shutdown returned after %v, want the 3.5s that the last answer took", took)
		}
		clients.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 3})
	})
}

func TestRequestsInFlightAreAnsweredWhenTheContextEnds(t *testing.T) {
	leveetest.CheckLeaks(t)
	const clients = 200
	l := listenTCP(t)
	var inFlight sync.WaitGroup
	inFlight.Add(clients)
	goOn := make(chan struct{})
	s := serve(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		for c.Next() {
			request := make([]byte, 64)
			n, err := c.Read(request)
			if err != nil {
				return err
			}
			inFlight.Done()
			<-goOn
			if _, err := c.Write(request[:n]); err != nil {
				return err
			}
		}
		return nil
	})}, l)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c := dialTCP(t, l)
			if err := exchange(c, fmt.Sprintln("request", i)); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("client %d was told %v, want EOF", i, err)
			}
		})
	}
	inFlight.Wait()
	s.end()
	for !s.Stats().Draining {
	}
	close(goOn)
	if err := s.result(); err != nil {
		t.Errorf("Serve returned %v", err)
	}
	all.Wait()
	checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: clients})
}

// The bug that taught us: closing a listener resets whoever waits in its queue,
// though they have connected and sent their request.
func TestConnectionsParkedInTheKernelsQueueAreServedNotReset(t *testing.T) {
	const clients = 100
	for _, test := range []struct {
		name     string
		maxConns int
		shutdown func(t *testing.T, srv *levee.Server, l net.Listener) (served <-chan error)
	}{
		{"the context has ended before Serve", 0, func(t *testing.T, srv *levee.Server, l net.Listener) <-chan error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			served := make(chan error, 1)
			go func() { served <- srv.Serve(ctx, l) }()
			return served
		}},
		{"at the cap", 3, func(t *testing.T, srv *levee.Server, l net.Listener) <-chan error {
			s := serve(t, srv, l)
			s.end()
			served := make(chan error, 1)
			go func() { served <- s.result() }()
			return served
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			l := listenTCP(t)
			parked := make([]net.Conn, clients)
			for i := range parked {
				parked[i] = dialTCP(t, l)
				if _, err := fmt.Fprintln(parked[i], "parked", i); err != nil {
					t.Fatal(err)
				}
			}
			srv := &levee.Server{Handler: answering, MaxConns: test.maxConns}
			served := test.shutdown(t, srv, l)
			for i, c := range parked {
				if err := expect(c, fmt.Sprintln("parked", i)); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
			if err := <-served; err != nil {
				t.Errorf("Serve returned %v", err)
			}
			checkStats(t, srv.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: clients})
		})
	}
}

func TestConnectionsParkedAtTheCapAreServedAsOthersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: working(time.Second), MaxConns: 2}, l)
		var clients sync.WaitGroup
		for range 10 {
			c := dial(t, l)
			clients.Go(func() {
				if err := exchange(c, "patient\n"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 5*time.Second || took > 5*time.Second+slack {
			t.Errorf("ten requests of a second, two at a time, took %v", took)
		}
		clients.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 10})
	})
}

func TestFloodOfNewcomersDoesNotKeepADrainingServerOpen(t *testing.T) {
	for name, maxConns := range map[string]int{"uncapped": -1, "capped": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Network{Backlog: -1}.Listen()
				s := serve(t, &levee.Server{Handler: working(10 * time.Millisecond), MaxConns: maxConns}, l)
				var flood sync.WaitGroup
				flood.Go(func() {
					for {
						c, err := l.Dial(t.Context())
						if err != nil {
							return // the listener is closed at last
						}
						flood.Go(func() {
							defer c.Close()
							_ = exchange(c, "me too\n")
						})
						time.Sleep(time.Millisecond) // virtual time
					}
				})
				time.Sleep(100 * time.Millisecond) // virtual time
				start := time.Now()
				if err := s.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("Shutdown took %v", took)
				}
				flood.Wait()
			})
		})
	}
}

func TestDrainDeadlineCutsTheRestAndCountsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		causes := make(chan error, 3)
		s := serve(t, &levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
			if b, err := c.Peek(1); err != nil || b[0] == 'i' {
				return answering(ctx, c)
			}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return nil
		})}, l)
		idle := dial(t, l)
		if err := exchange(idle, "idle\n"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := dial(t, l).Write([]byte("staying")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		start := time.Now()
		s.end()
		err := s.result()
		if took := time.Since(start); took != 25*time.Second {
			t.Errorf("Serve returned after %v, want the default DrainTimeout of 25s", took)
		}
		var cut *levee.DrainError
		if !errors.As(err, &cut) || cut.Cut != 3 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Serve returned %v, want a DrainError of 3", err)
		}
		if err.Error() != "levee: 3 connections cut at the drain deadline" {
			t.Errorf("the error says %q", err)
		}
		for range 3 {
			var ended *levee.CloseError
			if cause := <-causes; !errors.As(cause, &ended) || ended.Reason != levee.DrainTimeout || !ended.Timeout() {
				t.Errorf("the handler's context ended of %v, want drain_timeout", cause)
			}
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 1, levee.DrainTimeout: 3})
	})
}

func TestHandlerThatNeverReturnsDoesNotHoldShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		never := make(chan struct{})
		s := serve(t, &levee.Server{Handler: handle(func(context.Context, *levee.Conn) error {
			<-never
			return nil
		})}, l)
		c := dial(t, l)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		err := s.Shutdown(ctx)
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("Shutdown returned after %v, want the deadline of 1s and some last words", took)
		}
		if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 1 {
			t.Errorf("Shutdown returned %v, want a DrainError of 1", err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Error("the connection is still open")
		}
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
		checkStats(t, s.Stats(), 1, nil) // it holds its connection, and is counted as long as it does
		close(never)
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.DrainTimeout: 1})
	})
}

func TestCloseCutsEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: staying, MaxConns: 2}, l)
		dial(t, l)
		dial(t, l)
		parked := dial(t, l)
		synctest.Wait()
		start := time.Now()
		err := s.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
		if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 2 {
			t.Errorf("Close returned %v, want a DrainError of 2", err)
		}
		if _, err := parked.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client in the queue was told %v", err)
		}
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ServerClosed: 2})
	})
}

// An acceptor whose listener was quiet when the cap was reached has accepted one
// more, and waits for room.
func TestConnectionThatWaitsForRoomIsClosedWithTheServer(t *testing.T) {
	for name, handler := range map[string]levee.Handler{
		"staying": staying,
		"stuck":   stuck,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, other := leveetest.Listen(), leveetest.Listen()
				s := serve(t, &levee.Server{Handler: handler, MaxConns: 1}, one, other)
				synctest.Wait()
				dial(t, one)
				synctest.Wait()
				waiting := dial(t, other)
				synctest.Wait()
				if queued := other.Queued(); queued != 0 {
					t.Fatalf("%d queued: the test tests nothing", queued)
				}
				err := s.Close()
				if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 1 {
					t.Errorf("Close returned %v, want a DrainError of 1", err)
				}
				synctest.Wait()
				if _, err := waiting.Read(make([]byte, 1)); err == nil {
					t.Error("it is still open")
				}
				<-s.returned
				time.Sleep(2 * time.Hour) // virtual time
			})
		})
	}
}

// stuck is a handler that takes a while to notice that its connection is gone.
var stuck = handle(func(context.Context, *levee.Conn) error {
	time.Sleep(time.Hour) // virtual time
	return nil
})

func TestCloseOfAServerWithoutConnectionsIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{Handler: staying}, leveetest.Listen())
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second time: %v", err)
		}
	})
}

// The second signal: a Close while Shutdown waits.
func TestCloseDuringShutdownIsImmediate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: staying}, l)
		for range 5 {
			dial(t, l)
		}
		synctest.Wait()
		s.end()                 // begins to drain, for 25 s
		time.Sleep(time.Second) // virtual time
		start := time.Now()
		for _, err := range []error{s.Close(), s.result()} {
			if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 5 {
				t.Errorf("%v, want a DrainError of 5", err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ServerClosed: 5})
	})
}

// slowToClose is a connection whose first Close takes a while.
type slowToClose struct {
	net.Conn
	closing atomic.Bool
}

func (c *slowToClose) Close() error {
	if !c.closing.Swap(true) {
		time.Sleep(time.Millisecond) // virtual time
	}
	return c.Conn.Close()
}

// slowlyClosing is a listener whose connections are slowToClose.
type slowlyClosing struct{ *leveetest.Listener }

func (l slowlyClosing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowToClose{Conn: c}, nil
}

// A connection may have left before Close is done with cutting it.
func TestShutdownTellsOfWhatCloseCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: staying}, slowlyClosing{l})
		dial(t, l)
		synctest.Wait()
		drained := make(chan error)
		go func() { drained <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		for _, err := range []error{<-drained, <-closed} {
			if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 1 {
				t.Errorf("%v, want a DrainError of 1", err)
			}
		}
	})
}

func TestFirstDeadlineOfSeveralShutdownsCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: staying}, l)
		dial(t, l)
		synctest.Wait()
		start := time.Now()
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i)*time.Second)
				defer cancel()
				err := s.Shutdown(ctx)
				if cut := new(levee.DrainError); !errors.As(err, &cut) || cut.Cut != 1 {
					t.Errorf("Shutdown %d returned %v, want a DrainError of 1", i, err)
				}
				if took := time.Since(start); took != time.Second {
					t.Errorf("Shutdown %d took %v, want 1s", i, took)
				}
			})
		}
		all.Wait()
	})
}

func TestShutdownBeforeServeEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, stop := range []func(*levee.Server) error{
			func(s *levee.Server) error { return s.Shutdown(t.Context()) },
			(*levee.Server).Close,
		} {
			srv := &levee.Server{Handler: answering}
			for range 2 {
				if err := stop(srv); err != nil {
					t.Error(err)
				}
			}
			l := leveetest.Listen()
			if err := srv.Serve(t.Context(), l); !errors.Is(err, levee.ErrServerClosed) {
				t.Errorf("Serve returned %v, want ErrServerClosed", err)
			}
			if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the listener was left open: %v", err)
			}
		}
	})
}

func TestShutdownFromWithinAHandlerEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		result := make(chan error, 1)
		s := serve(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			result <- c.Server().Shutdown(ctx)
			return nil
		})}, l)
		dial(t, l)
		start := time.Now()
		if cut := new(levee.DrainError); !errors.As(<-result, &cut) || cut.Cut != 1 {
			t.Errorf("Shutdown cut %d connections, want its own", cut.Cut)
		}
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("Shutdown took %v, want 1s and some last words", took)
		}
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
	})
}

func TestNegativeDrainTimeoutWaitsForAsLongAsItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: working(100 * time.Hour), DrainTimeout: -1}, l)
		c := dial(t, l)
		go exchange(c, "a long story\n")
		synctest.Wait()
		s.end()
		if err := s.result(); err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func TestEndOfOneServeShutsTheWholeServerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, other := leveetest.Listen(), leveetest.Listen()
		srv := &levee.Server{Handler: answering}
		first, second := serve(t, srv, one), serve(t, srv, other)
		for _, l := range []*leveetest.Listener{one, other} {
			if err := exchange(dial(t, l), "hello\n"); err != nil {
				t.Fatal(err)
			}
		}
		first.end()
		if err := first.result(); err != nil {
			t.Errorf("the Serve whose context ended returned %v", err)
		}
		if err := second.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("the other Serve returned %v, want ErrServerClosed", err)
		}
		checkStats(t, srv.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 2})
	})
}

// handed is what a handler was called with.
type handed struct {
	ctx context.Context
	c   *levee.Conn
}

// telling passes on what it is called with, and then answers.
func telling(calls chan<- handed) levee.Handler {
	return handle(func(ctx context.Context, c *levee.Conn) error {
		calls <- handed{ctx, c}
		return answering(ctx, c)
	})
}

func TestOneConnectionCanBeToldToLeave(t *testing.T) {
	errWhy := errors.New("rebalancing")
	for _, test := range []struct {
		reason levee.CloseReason
		tell   func(*levee.Conn, error)
	}{
		{levee.Drained, (*levee.Conn).Drain},
		{levee.Killed, (*levee.Conn).Kill},
	} {
		for _, cause := range []error{errWhy, nil} {
			t.Run(fmt.Sprint(test.reason, " ", cause), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := leveetest.Listen()
					calls := make(chan handed, 3)
					s := serve(t, &levee.Server{Handler: telling(calls)}, l)
					others := []net.Conn{dial(t, l), dial(t, l)}
					<-calls
					<-calls
					client := dial(t, l)
					one := <-calls
					synctest.Wait() // in Next

					start := time.Now()
					test.tell(s.Conn(one.c.ID()), cause)
					<-one.ctx.Done()
					why := context.Cause(one.ctx)
					var ended *levee.CloseError
					if !errors.As(why, &ended) || ended.Reason != test.reason || !errors.Is(why, net.ErrClosed) || ended.Timeout() {
						t.Errorf("its context ended of %v, want %v", why, test.reason)
					}
					if errors.Is(why, errWhy) != (cause != nil) {
						t.Errorf("its context ended of %v, want it to wrap %v", why, cause)
					}
					if n, err := client.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("the client read %d, %v; want EOF", n, err)
					}
					time.Sleep(slack - time.Since(start)) // virtual time
					synctest.Wait()
					if one.c.Reason() != test.reason || s.Conn(one.c.ID()) != nil {
						t.Errorf("%v, want %v, and forgotten", one.c.Reason(), test.reason)
					}
					for _, other := range others {
						if err := exchange(other, "undisturbed\n"); err != nil {
							t.Error(err)
						}
					}
					checkStats(t, s.Stats(), 2, map[levee.CloseReason]int64{test.reason: 1})
				})
			})
		}
	}
}

func TestConnThatIsAskedToLeaveFinishesItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: working(time.Second)}, l)
		client := dial(t, l)
		answer := make(chan error)
		go func() { answer <- exchange(client, "one more\n") }()
		synctest.Wait()
		for _, c := range s.Conns() {
			c.Drain(nil)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after the answer: %v, want EOF", err)
		}
	})
}

func TestUnknownConnIsNil(t *testing.T) {
	var srv levee.Server
	if c := srv.Conn(4711); c != nil {
		t.Errorf("%v before Serve", c)
	}
	s := serve(t, &levee.Server{Handler: answering}, leveetest.Listen())
	if c := s.Conn(0); c != nil {
		t.Errorf("%v", c)
	}
}

func TestLifetimeIsJitteredThenAsksThenCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 200
		l := leveetest.Network{Backlog: -1}.Listen()
		type leaver struct {
			asked, gone time.Duration
			reason      levee.CloseReason
		}
		leavers := make(chan leaver, clients)
		serve(t, &levee.Server{
			MaxLifetime:  100 * time.Second,
			DrainTimeout: 7 * time.Second,
			Handler: handle(func(ctx context.Context, c *levee.Conn) error {
				<-c.Draining()
				now := leaver{asked: time.Since(c.Accepted())}
				if c.ID()%2 == 0 { // half of them do not listen
					<-ctx.Done()
					now.gone = time.Since(c.Accepted()) - now.asked
				}
				now.reason = c.Reason()
				leavers <- now
				return nil
			}),
		}, l)
		for range clients {
			dial(t, l)
		}
		least, most := time.Hour, time.Duration(0)
		for range clients {
			one := <-leavers
			least, most = min(least, one.asked), max(most, one.asked)
			if one.gone != 0 && (one.gone != 7*time.Second || one.reason != levee.LifetimeExpired) {
				t.Errorf("cut as %v %v after it was asked, want lifetime_expired after 7s", one.reason, one.gone)
			}
		}
		if least < 90*time.Second || least > 94*time.Second || most > 110*time.Second || most < 106*time.Second {
			t.Errorf("asked to leave between %v and %v, want from 90s to 110s", least, most)
		}
	})
}

func TestConnThatLeavesAtItsLifetimeSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering, MaxLifetime: time.Minute}, l)
		c := dial(t, l)
		for range 100 {
			if exchange(c, "busy\n") != nil {
				break
			}
			time.Sleep(time.Second) // virtual time
		}
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.LifetimeExpired: 1})
	})
}

func TestHandlerSeesTheContextsValuesAndNotItsEnd(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		calls := make(chan handed, 1)
		srv := &levee.Server{Handler: telling(calls)}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		served := make(chan error)
		go func() { served <- srv.Serve(ctx, l) }()
		client := dial(t, l)
		call := <-calls
		if got := call.ctx.Value(key{}); got != "value" {
			t.Errorf("the handler's context says %v", got)
		}
		if _, err := io.WriteString(client, "half a requ"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if err := call.ctx.Err(); err != nil {
			t.Errorf("the handler's context has ended with the server's: %v", err)
		}
		if _, err := io.WriteString(client, "est\n"); err != nil {
			t.Fatal(err)
		}
		if err := expect(client, "half a request\n"); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if call.ctx.Err() == nil {
			t.Error("the handler's context outlives its connection")
		}
	})
}

func TestConnectionThatItsHandlerHasClosedIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closedIt := make(chan struct{})
		dial, ends := inMemory(t, &levee.Server{DrainTimeout: time.Second, Handler: does(func(c *levee.Conn) error {
			err := c.Close()
			close(closedIt)
			time.Sleep(time.Minute) // virtual time
			c.Kill(errors.New("too late"))
			return err
		})})
		dial()
		<-closedIt
		expectReason(t, ends, levee.HandlerClosed)
	})
}

func TestShutdownIsNotHeldUpByADrainingHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		release := make(chan struct{})
		s := &levee.Server{
			Handler: does(func(c *levee.Conn) error {
				for c.Next() {
					if _, err := c.Read(make([]byte, 8)); err != nil {
						return err
					}
				}
				<-release
				return nil
			}),
			Trace: &levee.Trace{Draining: func(*levee.Conn) { <-release }},
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), l) }()
		for range 3 {
			dial(t, l)
		}
		synctest.Wait()
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := s.Shutdown(ctx)
		if drained, ok := errors.AsType[*levee.DrainError](err); !ok || drained.Cut != 3 {
			t.Errorf("Shutdown: %v, want 3 cut", err)
		}
		if took := time.Since(began); took > 1200*time.Millisecond {
			t.Errorf("Shutdown took %v, its deadline was 1s", took)
		}
		close(release)
		<-served
	})
}

func TestSilentConnectionThatIsAskedToLeaveWhileItArrivesSaysWhy(t *testing.T) {
	why := errors.New("rebalancing")
	synctest.Test(t, func(t *testing.T) {
		accepted := make(chan *levee.Conn, 1)
		dial, ends := inMemory(t, &levee.Server{
			ProxyFrom: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			Handler:   echoing,
			Trace:     &levee.Trace{Accepted: func(c *levee.Conn) { accepted <- c }},
		})
		dial()
		c := <-accepted
		synctest.Wait()
		c.Drain(why)
		if end := expectReason(t, ends, levee.Drained); !errors.Is(end.Err, why) {
			t.Errorf("ended with %v, want the cause in it", end.Err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, &levee.Server{
			ProxyFrom:   []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			Handler:     echoing,
			MaxLifetime: time.Second,
		})
		dial()
		expectReason(t, ends, levee.LifetimeExpired)
	})
}
