package levee_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// What Steps, hooks and others may do with a connection, and what a slow Step costs.

func TestReadingAndWritingInAStepFails(t *testing.T) {
	try := func(c *levee.Conn, _ string, out []byte) ([]byte, error) {
		_, read := c.Read(make([]byte, 1))
		_, write := c.Write([]byte("x"))
		_, peek := c.Peek(1)
		_, to := c.WriteTo(io.Discard)
		_, from := c.ReadFrom(strings.NewReader("x"))
		for i, err := range []error{
			read, write, peek, to, from, c.CloseWrite(), c.SetDeadline(time.Now()),
			c.SetReadDeadline(time.Now()), c.SetWriteDeadline(time.Now()), levee.ServeSteps(c, &lines{}),
		} {
			if err == nil {
				out = fmt.Append(out, i, " succeeds; ")
			}
		}
		return fmt.Appendf(out, "%t %d %t\n", c.Next(), c.Buffered(), c.TLS() != nil), nil
	}
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"try": try}}})
		c, conn := s.greet()
		send(t, c, "try\necho a\n")
		want(t, c, fmt.Sprintf("false 0 %t\na\n", e.tls))
		if !e.tls && e.onLoop() { // from outside, too: it is nobody else's at any time
			if _, err := conn.Write([]byte("x")); err == nil {
				t.Error("a Write from outside succeeds")
			}
		}
		send(t, c, "echo b\n")
		want(t, c, "b\n")
		c.CloseWrite()
		wantEOF(t, c)
		s.expectCleanEnd(levee.ClientClosed)
	})
}

func TestBothSidesAgreeOnTheAddresses(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		checkAddresses(t, e.serve(t, &levee.Server{Handler: &lines{}}), "")
	})
}

func TestAWildcardListenersConnectionsHaveTheirOwnAddresses(t *testing.T) {
	for _, e := range engines {
		if e.network != "tcp" {
			continue
		}
		for _, dialled := range []string{"127.0.0.1", "::1"} {
			t.Run(e.name+" by "+dialled, func(t *testing.T) {
				leveetest.CheckLeaks(t)
				if dialled == "::1" {
					needIPv6(t)
				}
				l, err := levee.Listen(t.Context(), ":0")
				if err != nil {
					t.Fatal(err)
				}
				checkAddresses(t, e.serveAt(t, &levee.Server{Handler: &lines{}}, l), dialled)
			})
		}
	}
}

func needIPv6(t testing.TB) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	l.Close()
}

// checkAddresses compares what the two sides call themselves and each other.
func checkAddresses(t testing.TB, s *scene, dialled string) {
	t.Helper()
	var client net.Conn = s.dial()
	if dialled != "" {
		client.Close()
		_, port, _ := net.SplitHostPort(s.listener.Addr().String())
		raw, err := net.Dial("tcp", net.JoinHostPort(dialled, port))
		if err != nil {
			t.Fatal(err)
		}
		if client = raw; s.client != nil {
			client = handshaken(t, raw, s.client)
		}
		t.Cleanup(func() { client.Close() })
	}
	send(t, client, "echo a\n")
	want(t, client, "a\n")
	c := byPeer(s, client.LocalAddr().String())
	if c == nil {
		t.Fatalf("no connection from %v", client.LocalAddr())
	}
	if got := c.LocalAddr(); got.String() != client.RemoteAddr().String() || got.Network() != client.RemoteAddr().Network() {
		t.Errorf("LocalAddr is %v, the client says %v", got, client.RemoteAddr())
	}
	for name, got := range map[string]net.Addr{"PeerAddr": c.PeerAddr(), "RemoteAddr": c.RemoteAddr()} {
		if got.Network() != client.LocalAddr().Network() {
			t.Errorf("%s is of network %v", name, got.Network())
		}
	}
	if tcp, ok := client.LocalAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		if got, wanted := c.ClientAddr(), netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()); got != wanted {
			t.Errorf("ClientAddr is %v, want %v", got, wanted)
		}
	} else if c.ClientAddr().IsValid() {
		t.Errorf("ClientAddr is %v", c.ClientAddr())
	}
}

// byPeer returns the connection whose other end has that address; a Unix socket's
// has none worth comparing.
func byPeer(s *scene, addr string) *levee.Conn {
	for _, c := range s.Conns() {
		if s.engine.network == "unix" || c.PeerAddr().String() == addr && c.RemoteAddr().String() == addr {
			return c
		}
	}
	return nil
}

func TestBytesBehindAPROXYHeaderReachStep(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network != "tcp" || e.tls {
			t.Skip("its clients cannot be listed, or greet by TLS")
		}
		s := e.serve(t, &levee.Server{Handler: &lines{}, ProxyFrom: loopbackOnly})
		c := s.dial()
		header := "PROXY TCP4 203.0.113.7 192.0.2.1 1234 80\r\n"
		send(t, c, header+"echo a\necho b\necho pa")
		want(t, c, "a\nb\n")
		send(t, c, "rt\n")
		want(t, c, "part\n")
		conn := s.Conns()[0]
		if got := conn.ClientAddr().String(); got != "203.0.113.7:1234" || conn.RemoteAddr().String() != got {
			t.Errorf("ClientAddr is %v, RemoteAddr %v", got, conn.RemoteAddr())
		}
		if got := conn.PeerAddr().String(); got != c.LocalAddr().String() {
			t.Errorf("PeerAddr is %v, want %v", got, c.LocalAddr())
		}
		c.CloseWrite()
		end := s.expectCleanEnd(levee.ClientClosed)
		checkTraffic(s, end.Read, end.Written, len(header)+len("echo a\necho b\necho part\n"), len("a\nb\npart\n"))
	})
}

func TestAPROXYHeaderOfAnUnlistedSourceIsRefused(t *testing.T) {
	for _, e := range engines {
		if e.network != "tcp" || e.tls {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			somebody := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
			e.loop = e.routed // a goroutine looks for the header, but a Router has it looked for before
			s := e.serve(t, &levee.Server{Handler: &lines{}, ProxyFrom: somebody})
			c := s.dial()
			send(t, c, "PROXY TCP4 203.0.113.7 192.0.2.1 1234 80\r\necho never\n")
			wantEnd(t, c)
			s.expectEnd(levee.ProxyHeaderRefused)
			s.greet()
		})
	}
}

func TestARoutersContextEndsWithTheConnection(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		contexts := make(chan context.Context, 1)
		h := e.engaged(t, &lines{})
		s := e.serve(t, &levee.Server{Handler: routing(func(ctx context.Context, _ *levee.Conn) (levee.Handler, error) {
			contexts <- ctx
			return h, nil
		})})
		for _, ending := range []struct {
			command string
			reason  levee.CloseReason
		}{
			{"close", levee.HandlerClosed},
			{"fail", levee.HandlerError},
			{"kill", levee.Killed},
			{"panic", levee.HandlerPanic},
			{"drain", levee.Drained},
			{"hangup", levee.HandlerClosed},
		} {
			c, _ := s.greet()
			ctx := receive(t, contexts)
			if ctx.Err() != nil {
				t.Errorf("it is over at the beginning: %v", context.Cause(ctx))
			}
			send(t, c, ending.command+"\n")
			receive(t, ctx.Done())
			cause := context.Cause(ctx)
			if reasonOf(cause) != ending.reason {
				t.Errorf("after %q the cause is %v, want %v", ending.command, cause, ending.reason)
			}
			if ending.command == "kill" && !errors.Is(cause, errStep) || ending.command == "fail" && !errors.Is(cause, errStep) {
				t.Errorf("after %q the cause is %v, want the error in it", ending.command, cause)
			}
			c.Close()
			s.expectEnd(ending.reason)
		}
	})
}

// explosive is a Trace in which one hook goes off for connections that are armed.
func explosive(hook string, bang func(c *levee.Conn)) *levee.Trace {
	var trace levee.Trace
	switch hook {
	case "Accepted":
		trace.Accepted = bang
	case "Serving":
		trace.Serving = func(c *levee.Conn, _ levee.Handler) { bang(c) }
	case "Draining":
		trace.Draining = bang
	case "Closed":
		trace.Closed = func(c *levee.Conn, _ levee.End) { bang(c) }
	}
	return &trace
}

func TestAHookThatPanicsEndsItsConnectionOnly(t *testing.T) {
	for _, hook := range []string{"Accepted", "Serving", "Draining", "Closed"} {
		t.Run(hook, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				var armed atomic.Bool
				told := make(chan struct{}, 1)
				trace := explosive(hook, func(*levee.Conn) {
					if armed.Swap(false) {
						panic("hook")
					}
				})
				trace.Panicked = func(*levee.Conn, any, []byte) { told <- struct{}{} }
				s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: trace})
				bystander, _ := s.greet()
				testExplosiveHook(t, s, hook, &armed, told)
				send(t, bystander, "echo still here\n")
				want(t, bystander, "still here\n")
			})
		})
	}
}

func testExplosiveHook(t *testing.T, s *scene, hook string, armed *atomic.Bool, told <-chan struct{}) {
	t.Helper()
	reason := levee.HandlerPanic
	switch hook {
	case "Accepted", "Serving":
		armed.Store(true)
		c := s.dial()
		io.WriteString(c, "echo never\n") // it may be over already
		wantEnd(t, c)
		s.expectEnd(reason)
	case "Draining":
		c, conn := s.greet()
		armed.Store(true)
		conn.Drain(nil)
		wantEnd(t, c)
		c.Close()
		end := receive(t, s.ends) // it may have left before the hook went off
		if reason = end.Reason; reason != levee.Drained && reason != levee.HandlerPanic {
			t.Errorf("the connection ended as %v", end.Reason)
		}
	case "Closed":
		c, conn := s.greet()
		armed.Store(true)
		c.Close()
		receive(t, told) // the end is not: that would have been the next thing
		if reason = conn.Reason(); reason != levee.ClientClosed {
			t.Errorf("the connection ended as %v", reason)
		}
	}
	stats := s.Stats()
	checkStats(t, stats, 1, map[levee.CloseReason]int64{reason: 1})
	if stats.Panics != 1 {
		t.Errorf("%d panics are counted", stats.Panics)
	}
}

// By a hook a connection may end before it has begun.
func TestAHookMayEndTheConnection(t *testing.T) {
	for _, hook := range []string{"Accepted", "Serving"} {
		for name, ending := range map[string]struct {
			end    func(c *levee.Conn)
			reason levee.CloseReason
		}{
			"Kill":  {func(c *levee.Conn) { c.Kill(errStep) }, levee.Killed},
			"Close": {func(c *levee.Conn) { c.Close() }, levee.HandlerClosed},
		} {
			t.Run(name+" in "+hook, func(t *testing.T) {
				onEveryEngine(t, func(t *testing.T, e engine) {
					if name+hook == "CloseAccepted" && !e.servesTheSilent() {
						t.Skip("the reason is that of the arrival, which fails")
					}
					var late atomic.Int64
					s := e.serve(t, &levee.Server{
						Trace: explosive(hook, ending.end),
						Handler: steps(func(*levee.Conn, []byte, int, []byte) (int, []byte, error) {
							late.Add(1)
							return 0, nil, nil
						}),
					})
					const clients = 20
					for range clients {
						c := s.dial()
						io.WriteString(c, "echo never\n")
						wantEnd(t, c)
						c.Close()
						if end := s.expectEnd(ending.reason); end.Written > 0 && !e.tls {
							t.Errorf("%d bytes were written", end.Written)
						}
					}
					if n := late.Load(); n > 0 && !e.tls {
						t.Errorf("%d of %d connections were served when they had been ended", n, clients)
					}
				})
			})
		}
	}
}

func TestAConnectionThatAHookDrainsIsServedFirst(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.tls {
			t.Skip("its request comes only after the handshake, and then the connection has left")
		}
		var d diary
		arrived := make(chan struct{})
		s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: levee.Traces(d.trace(), &levee.Trace{
			Accepted: func(c *levee.Conn) { <-arrived; c.Drain(nil) },
		})})
		c := s.dial()
		send(t, c, "echo a\n")
		close(arrived)
		want(t, c, "a\n")
		wantEOF(t, c)
		c.Close()
		s.expectCleanEnd(levee.Drained)
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.entries) != 1 {
			t.Errorf("the Trace was told of %d connections", len(d.entries))
		}
		for _, told := range d.entries {
			if got := fmt.Sprint(told); got != "[accepted draining serving by *levee_test.engaged closed: drained]" {
				t.Errorf("the Trace was told %v", got)
			}
		}
	})
}

func TestAStepThatBlocksHoldsNobodyUp(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		slow := make(chan time.Duration, 10_000) // on a busy machine others may be slow, too
		s := e.serve(t, &levee.Server{
			Handler: &lines{commands: map[string]command{"wait": run}},
			Trace:   &levee.Trace{SlowStep: func(_ *levee.Conn, took time.Duration) { slow <- took }},
		})
		others := make([]peer, 50)
		for i := range others {
			others[i], _ = s.greet()
		}
		blocked, _ := s.greet()
		send(t, blocked, "wait\n")
		receive(t, called)
		for range 2 {
			for i, c := range others {
				send(t, c, fmt.Sprintln("echo", i))
			}
			for i, c := range others {
				want(t, c, fmt.Sprintln(i))
			}
		}
		s.greet()
		goOn <- struct{}{}
		want(t, blocked, "done\n")
		send(t, blocked, "echo again\n")
		want(t, blocked, "again\n")
		if !e.onLoop() {
			if n := s.Stats().SlowSteps; n != 0 || len(slow) != 0 {
				t.Errorf("%d steps are called slow, though nobody waited for them", n)
			}
			return
		}
		if took := receive(t, slow); took < time.Millisecond {
			t.Errorf("a Step is called slow that took %v", took)
		}
		if n := s.Stats().SlowSteps; n < 1 {
			t.Errorf("%d steps are counted as slow", n)
		}
	})
}

func TestASlowStepHookThatPanicsEndsItsConnectionOnly(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.onLoop() {
			t.Skip("no Step is slow where nobody waits for it")
		}
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{
			Handler: &lines{commands: map[string]command{"wait": run}},
			Trace:   &levee.Trace{SlowStep: func(*levee.Conn, time.Duration) { panic("hook") }},
		})
		c, _ := s.greet()
		send(t, c, "wait\n")
		receive(t, called)
		bystander, _ := s.greet() // served by the same loop or another, which the Step has lost by now
		for s.Stats().SlowSteps == 0 {
			send(t, bystander, "echo a\n")
			want(t, bystander, "a\n")
		}
		goOn <- struct{}{}
		wantEnd(t, c)
		s.expectEnd(levee.HandlerPanic)
		send(t, bystander, "echo b\n")
		want(t, bystander, "b\n")
	})
}

func TestADrainWaitsForAStepThatBlocks(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}})
		c, conn := s.greet()
		send(t, c, "wait\n")
		receive(t, called)
		conn.Drain(nil)
		s.greet() // some time passes
		if got := conn.Reason(); got != levee.ReasonNone {
			t.Errorf("it has ended as %v", got)
		}
		goOn <- struct{}{}
		want(t, c, "done\n")
		wantEOF(t, c)
		c.Close()
		s.expectCleanEnd(levee.Drained)
	})
}

func TestAKillDoesNotWaitForAStepThatBlocks(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}})
		c, conn := s.greet()
		send(t, c, "wait\n")
		receive(t, called)
		conn.Kill(errStep)
		if got := conn.Reason(); got != levee.Killed {
			t.Errorf("Reason says %v", got)
		}
		wantEnd(t, c) // while the Step still runs
		goOn <- struct{}{}
		s.expectEndBy(levee.Killed, errStep)
	})
}

func TestAtTheCapTheNextClientWaits(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, MaxConns: 2})
		first, _ := s.greet()
		s.greet()
		next := s.dial()
		served := make(chan error, 1)
		go func() { served <- talk(next, "echo in\n", "in\n") }()
		select {
		case err := <-served:
			t.Fatalf("the client beyond the cap was served: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if n := s.Stats().Active; n != 2 {
			t.Errorf("%d connections are open, of 2 that may be", n)
		}
		first.Close()
		if err := receive(t, served); err != nil {
			t.Error(err)
		}
	})
}

// talk sends and expects, outside of the test's own goroutine.
func talk(c net.Conn, request, reply string) error {
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	return expect(c, reply)
}

func TestClientsInTheAcceptQueueAreServedAtShutdown(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.tls || e.network == "unix" {
			t.Skip("its queue cannot be asked, or its request comes only after the handshake")
		}
		run, called, goOn := untilTold()
		s := e.serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}, MaxConns: 1})
		first, conn := s.greet()
		send(t, first, "wait\n")
		receive(t, called)
		var parked sync.WaitGroup
		const clients = 5
		for i := range clients {
			c := s.dial()
			send(t, c, fmt.Sprintln("echo", i))
			parked.Go(func() {
				if err := expect(c, fmt.Sprintln(i)); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				c.Close()
			})
		}
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(context.Background()) }()
		receive(t, conn.Draining())
		goOn <- struct{}{}
		want(t, first, "done\n")
		first.Close()
		parked.Wait()
		if err := receive(t, result); err != nil {
			t.Error("Shutdown:", err)
		}
		if n := s.Stats().Accepted; n != clients+1 {
			t.Errorf("%d connections were accepted, want %d", n, clients+1)
		}
	})
}

func TestAListenerClosedFromOutsideEndsServe(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		c, _ := s.greet()
		if err := s.listener.Close(); err != nil {
			t.Error(err)
		}
		receive(t, s.returned)
		if !errors.Is(s.err, net.ErrClosed) {
			t.Errorf("Serve returned %v", s.err)
		}
		if c, err := s.tryDial(); err == nil {
			c.Close()
			t.Error("a dial succeeds")
		}
		send(t, c, "echo a\n") // who is in stays
		want(t, c, "a\n")
	})
}

// shouting is a socket with a Read of its own.
type shouting struct{ *net.TCPConn }

func (s shouting) Read(p []byte) (int, error) {
	n, err := s.TCPConn.Read(p)
	copy(p, strings.ToUpper(string(p[:n])))
	return n, err
}

type shoutingListener struct{ net.Listener }

func (l shoutingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return shouting{c.(*net.TCPConn)}, nil
}

func TestASocketWithAReadOfItsOwnIsNotMovedToALoop(t *testing.T) {
	leveetest.CheckLeaks(t)
	e := engine{network: "tcp"}
	whole := steps(func(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) { return len(in), in, nil })
	s := e.serveAt(t, &levee.Server{Handler: whole}, shoutingListener{listenPlain(t)})
	c := s.dial()
	send(t, c, "hello\n")
	want(t, c, "HELLO\n")
}

func TestASocketOptionCanBeAskedForFromEverywhere(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network == "memory" {
			t.Skip("no socket")
		}
		ask := func(c *levee.Conn, _ string, out []byte) ([]byte, error) {
			return fmt.Appendln(out, askSocket(e, c)), nil
		}
		var hooks, after sync.Map
		s := e.serve(t, &levee.Server{
			Handler: &lines{commands: map[string]command{"ask": ask}},
			Trace: &levee.Trace{
				Accepted: func(c *levee.Conn) { hooks.Store("Accepted", askSocket(e, c)) },
				Serving:  func(c *levee.Conn, _ levee.Handler) { hooks.Store("Serving", askSocket(e, c)) },
				Draining: func(c *levee.Conn) { hooks.Store("Draining", askSocket(e, c)) },
				Closed:   func(c *levee.Conn, _ levee.End) { after.Store("Closed", askSocket(e, c)) },
			},
		})
		client, c := s.greet()
		send(t, client, "ask\n")
		want(t, client, "<nil>\n")
		if err := askSocket(e, c); err != nil {
			t.Error("from outside:", err)
		}
		run, _ := c.SyscallConn()
		c.Drain(nil)
		wantEOF(t, client)
		client.Close()
		s.expectCleanEnd(levee.Drained)
		after.Store("outside", askSocket(e, c))
		after.Store("an earlier SyscallConn", run.Control(func(uintptr) {}))
		hooks.Range(func(hook, err any) bool {
			if err != nil && !(hook == "Draining" && errors.Is(err.(error), net.ErrClosed)) { // it may have left already
				t.Errorf("in %v: %v", hook, err)
			}
			return true
		})
		after.Range(func(where, err any) bool {
			if err == nil || !errors.Is(err.(error), net.ErrClosed) {
				t.Errorf("after the end, in %v: %v, want net.ErrClosed", where, err)
			}
			return true
		})
	})
}

// Whoever takes connections from the server's list may do so at any time.
func TestConnectionsMayBeTakenFromTheListAtAnyTime(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		var strange atomic.Pointer[error]
		rummage(t, e, func(c *levee.Conn) {
			if e.network != "memory" {
				if err := askSocket(e, c); err != nil && !errors.Is(err, net.ErrClosed) {
					strange.Store(&err)
				}
			}
			c.Traffic()
			c.TLS()
			c.SetDeadline(time.Time{})
		})
		if err := strange.Load(); err != nil {
			t.Errorf("a socket could not be asked: %v", *err)
		}
	})
}

// A connection that was accepted bare is among the server's before a loop has it.
func TestAConnectionThatNoEngineHasYetMayBeUsed(t *testing.T) {
	defer func() {
		if value := recover(); value != nil {
			t.Errorf("panic: %v", value)
		}
	}()
	c := levee.BetweenEngines(new(levee.Server))
	if sock, err := c.SyscallConn(); err == nil {
		sock.Control(func(fd uintptr) { t.Errorf("its socket is said to be descriptor %d", fd) })
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a Write succeeds")
	}
	c.Traffic()
	c.TLS()
	c.Drain(nil)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	c.Kill(nil)
}

func TestConnectionsMayBeClosedAtAnyTime(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) { rummage(t, e, func(c *levee.Conn) { c.Close() }) })
}

func TestConnectionsMayBeKilledAtAnyTime(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) { rummage(t, e, func(c *levee.Conn) { c.Kill(nil) }) })
}

func TestConnectionsMayBeDrainedAtAnyTime(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) { rummage(t, e, func(c *levee.Conn) { c.Drain(nil) }) })
}

// rummage does something with each of the server's connections, all the time, while
// clients come and go.
func rummage(t *testing.T, e engine, do func(c *levee.Conn)) {
	t.Helper()
	s := e.serve(t, &levee.Server{Handler: &lines{}})
	var stop atomic.Bool
	var rummaging sync.WaitGroup
	rummaging.Go(func() {
		defer func() {
			if value := recover(); value != nil {
				t.Errorf("panic: %v", value)
			}
		}()
		for !stop.Load() {
			for _, c := range s.Conns() {
				do(c)
			}
		}
	})
	for range 200 {
		c := s.dial()
		talk(c, "echo a\n", "a\n") // perhaps in vain
		c.Close()
		receive(t, s.ends)
	}
	stop.Store(true)
	rummaging.Wait()
}
