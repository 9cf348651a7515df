package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// doorman is a Gate that keeps a book.
type doorman struct {
	admit func(c *levee.Conn) *levee.Refusal                 // nil lets everybody in
	reach func(c *levee.Conn, at levee.Stage) *levee.Refusal // likewise
	await func(ctx context.Context, c *levee.Conn) *levee.Refusal
	leave func(c *levee.Conn, end levee.End)

	mu     sync.Mutex
	book   []string
	inside int // passes that have not been given back
}

func (d *doorman) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.book = append(d.book, fmt.Sprintf(format, args...))
}

// read returns the book, one entry a line.
func (d *doorman) read() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.book, "\n")
}

func (d *doorman) Admit(c *levee.Conn) (levee.Pass, *levee.Refusal) {
	d.note("admit")
	if d.admit != nil {
		if r := d.admit(c); r != nil {
			return nil, r
		}
	}
	d.mu.Lock()
	d.inside++
	d.mu.Unlock()
	if d.await != nil {
		return &patient{pass{d}}, nil
	}
	return &pass{d}, nil
}

type pass struct{ doorman *doorman }

func (p *pass) Reach(c *levee.Conn, at levee.Stage) *levee.Refusal {
	p.doorman.note("reach %d", at)
	if p.doorman.reach == nil {
		return nil
	}
	return p.doorman.reach(c, at)
}

func (p *pass) Leave(c *levee.Conn, end levee.End) {
	p.doorman.note("leave %v", end.Reason)
	p.doorman.mu.Lock()
	p.doorman.inside--
	p.doorman.mu.Unlock()
	if p.doorman.leave != nil {
		p.doorman.leave(c, end)
	}
}

type patient struct{ pass }

func (p *patient) Await(ctx context.Context, c *levee.Conn) *levee.Refusal {
	p.doorman.note("await")
	return p.doorman.await(ctx, c)
}

var limited = &levee.Refusal{Reason: levee.Limited, Cause: errors.New("one too many")}

// eventually waits until a condition holds that other goroutines bring about, in real time
// or in virtual.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(longest); !holds(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", longest, what)
		}
	}
}

// wantBook waits until the doorman's book reads so.
func wantBook(t testing.TB, d *doorman, entries ...string) {
	t.Helper()
	want := strings.Join(entries, "\n")
	for end := time.Now().Add(longest); len(d.read()) < len(want) && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
	if got := d.read(); got != want {
		t.Errorf("the gate's book reads\n%s\nwant\n%s", got, want)
	}
}

// wantRefused fails the test unless so many were turned away at the door.
func wantRefused(t testing.TB, s *levee.Server, want map[levee.CloseReason]int64) {
	t.Helper()
	refused := s.Stats().Refused
	for _, reason := range []levee.CloseReason{levee.Limited, levee.Denied, levee.Overloaded} {
		n, present := refused[reason]
		if !present || n != want[reason] {
			t.Errorf("%d refused as %v (present: %t), want %d", n, reason, present, want[reason])
		}
	}
	if len(refused) != 3 {
		t.Errorf("Refused is %v, want three reasons", refused)
	}
}

// wantTurnedAway has a client meet its end, which may come before it knows that it was
// connected.
func (s *scene) wantTurnedAway() {
	s.t.Helper()
	c, err := s.tryDial()
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			s.t.Error(err)
		}
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longest))
	wantEnd(s.t, c)
}

// stages are what the gate's book has of a connection's way in.
func (e engine) stages() []string {
	if e.tls {
		return []string{"admit", "reach 1", "reach 2", "reach 3"}
	}
	return []string{"admit", "reach 1"}
}

func TestGateIsAskedAtEveryStageAndGetsItsPassBack(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		var gate doorman
		s := e.serve(t, &levee.Server{Handler: &lines{}, Gate: &gate})
		client, c := s.greet()
		if _, ok := c.Pass().(*pass); !ok {
			t.Errorf("it has the pass %v", c.Pass())
		}
		client.Close()
		s.expectEnd(levee.ClientClosed)
		wantBook(t, &gate, append(e.stages(), "leave client_closed")...)
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ClientClosed: 1})
		wantRefused(t, s.Server, nil)
	})
}

func TestGateTurnsAwayAtTheDoor(t *testing.T) {
	for at, book := range map[string][]string{"admit": {"admit"}, "reach": {"admit", "reach 1", "leave limited"}} {
		t.Run(at, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				gate := doorman{}
				if at == "admit" {
					gate.admit = func(*levee.Conn) *levee.Refusal { return limited }
				} else {
					gate.reach = func(*levee.Conn, levee.Stage) *levee.Refusal { return limited }
				}
				refused := make(chan *levee.Conn, 1)
				s := e.serve(t, &levee.Server{Handler: &lines{t: t}, Gate: &gate, Trace: &levee.Trace{
					Accepted: func(*levee.Conn) { t.Error("it was accepted") },
					Closed:   func(*levee.Conn, levee.End) { t.Error("it was told to be closed, not refused") },
					Refused: func(c *levee.Conn, r *levee.Refusal) {
						if r != limited {
							t.Errorf("refused as %v", r)
						}
						refused <- c
					},
				}})
				s.wantTurnedAway()
				if c := receive(t, refused); c.Reason() != levee.Limited {
					t.Errorf("its reason is %v", c.Reason())
				}
				wantBook(t, &gate, book...)
				checkStats(t, s.Stats(), 0, nil)
				wantRefused(t, s.Server, map[levee.CloseReason]int64{levee.Limited: 1})
			})
		})
	}
}

func TestRefusalAtAReachedStageEndsAnAcceptedConnection(t *testing.T) {
	for _, at := range []levee.Stage{levee.StageHandshake, levee.StageSecured} {
		ca := leveetest.NewCA(t)
		gate := doorman{reach: func(_ *levee.Conn, reached levee.Stage) *levee.Refusal {
			if reached == at {
				return &levee.Refusal{Reason: levee.Overloaded}
			}
			return nil
		}}
		ends := make(chan levee.End, 1)
		l := listenTCP(t)
		s := serve(t, &levee.Server{
			Handler: echoing, Gate: &gate, TLSConfig: ca.ServerConfig("localhost"),
			Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }},
		}, l)
		client := tls.Client(dialTCP(t, l), ca.ClientConfig("localhost"))
		_, err := client.Read(make([]byte, 1))
		if secured := at == levee.StageSecured; secured && err != io.EOF || !secured && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("stage %d: the client reads %v", at, err)
		}
		end := receive(t, ends)
		if r, ok := errors.AsType[*levee.Refusal](end.Err); !ok || end.Reason != levee.Overloaded {
			t.Errorf("stage %d: ended as %v, %v (%v)", at, end.Reason, end.Err, r)
		}
		eventually(t, "the pass is given back", func() bool { return strings.HasSuffix(gate.read(), "leave overloaded") })
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Overloaded: 1})
		wantRefused(t, s.Server, nil)
	}
}

func TestGateIsAskedAgainOnceTheProxyHeaderHasSaidWhoItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clients []netip.AddrPort
		gate := doorman{
			admit: func(c *levee.Conn) *levee.Refusal { clients = append(clients, c.ClientAddr()); return nil },
			reach: func(c *levee.Conn, _ levee.Stage) *levee.Refusal {
				clients = append(clients, c.ClientAddr())
				if c.ClientAddr().Addr() == netip.MustParseAddr("192.0.2.66") {
					return &levee.Refusal{Reason: levee.Denied}
				}
				return nil
			},
		}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, Gate: &gate, ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, l)
		good := dial(t, l)
		synctest.Wait()
		if got := gate.read(); got != "admit" {
			t.Errorf("before its header, the gate's book reads %q", got)
		}
		if err := exchangeAfter(good, "PROXY TCP4 192.0.2.1 192.0.2.2 1001 80\r\n", "hello"); err != nil {
			t.Error(err)
		}
		bad := dial(t, l)
		_, _ = io.WriteString(bad, "PROXY TCP4 192.0.2.66 192.0.2.2 1001 80\r\n")
		if _, err := bad.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v", err)
		}
		synctest.Wait()
		wantBook(t, &gate, "admit", "reach 1", "admit", "reach 1", "leave denied")
		checkStats(t, s.Stats(), 1, map[levee.CloseReason]int64{levee.Denied: 1})
		wantRefused(t, s.Server, nil)
		if got, want := fmt.Sprint(clients[1], clients[3]), "192.0.2.1:1001 192.0.2.66:1001"; got != want {
			t.Errorf("the clients are %s, want %s", got, want)
		}
	})
}

// exchangeAfter is exchange behind some first bytes.
func exchangeAfter(c net.Conn, first, line string) error {
	if _, err := io.WriteString(c, first+line); err != nil {
		return err
	}
	return expect(c, line)
}

func TestStartTLSAsksTheGateToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		gate := doorman{reach: func(_ *levee.Conn, at levee.Stage) *levee.Refusal {
			if at == levee.StageSecured {
				return limited
			}
			return nil
		}}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Gate: &gate, Handler: handle(func(_ context.Context, c *levee.Conn) error {
			err := c.StartTLS(ca.ServerConfig("localhost"))
			if !errors.Is(err, limited) {
				t.Errorf("StartTLS returned %v", err)
			}
			return err
		})}, l)
		if _, err := tls.Client(dial(t, l), ca.ClientConfig("localhost")).Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client reads %v", err)
		}
		synctest.Wait()
		wantBook(t, &gate, "admit", "reach 1", "reach 2", "reach 3", "leave limited")
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Limited: 1})
	})
}

func TestMannerOfARefusal(t *testing.T) {
	for _, test := range []struct {
		manner levee.Manner
		network,
		address string
		want error
	}{
		{levee.Reset, "bare", "", syscall.ECONNRESET},
		{levee.Reset, "tcp", "127.0.0.1:0", syscall.ECONNRESET},
		{levee.Politely, "bare", "", io.EOF},
		{levee.Politely, "tcp", "127.0.0.1:0", io.EOF},
		{levee.Slowly, "bare", "", syscall.ECONNRESET},
		{levee.Slowly, "tcp", "127.0.0.1:0", syscall.ECONNRESET},
	} {
		t.Run(fmt.Sprint(test.network, test.manner), func(t *testing.T) {
			leveetest.CheckLeaks(t)
			refusal := &levee.Refusal{Reason: levee.Denied, Manner: test.manner, Delay: 50 * time.Millisecond}
			gate := doorman{admit: func(*levee.Conn) *levee.Refusal { return refusal }}
			var l net.Listener
			if test.network == "bare" {
				l = listenTCP(t)
			} else {
				l = listenAt(t, test.network, test.address)
			}
			serve(t, &levee.Server{Handler: &lines{}, Gate: &gate}, l)
			began := time.Now()
			c, err := net.Dial("tcp", l.Addr().String())
			if err == nil {
				defer c.Close()
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, test.want) {
				t.Errorf("the client meets %v, want %v", err, test.want)
			}
			if took := time.Since(began); test.manner == levee.Slowly && took < refusal.Delay {
				t.Errorf("it was kept waiting for %v, want %v", took, refusal.Delay)
			}
		})
	}
}

func TestThoseTurnedAwaySlowlyWaitInALobbyWithLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 1024
		delay := time.Duration(0)
		gate := doorman{reach: func(*levee.Conn, levee.Stage) *levee.Refusal {
			return &levee.Refusal{Reason: levee.Denied, Manner: levee.Slowly, Delay: delay}
		}}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, Gate: &gate}, l)
		impatient := dial(t, l)
		synctest.Wait()
		delay = time.Second
		sooner := dial(t, l)
		synctest.Wait()
		wantBook(t, &gate, "admit", "reach 1", "admit", "reach 1")
		waitFor(t, sooner, time.Second)
		waitFor(t, impatient, 4*time.Second)

		clients := make([]*leveetest.Conn, most+1)
		began := time.Now()
		for i := range clients {
			clients[i] = dial(t, l)
			synctest.Wait()
		}
		waitFor(t, clients[most], 0)
		for _, c := range clients[:most] {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("the client reads %v", err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("they were kept waiting for %v", took)
		}

		delay = time.Hour
		last := dial(t, l)
		synctest.Wait()
		began = time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Shutdown took %v", took)
		}
		waitFor(t, last, 0)
		gate.mu.Lock()
		defer gate.mu.Unlock()
		if gate.inside != 0 {
			t.Errorf("%d passes were not given back", gate.inside)
		}
		wantRefused(t, s.Server, map[levee.CloseReason]int64{levee.Denied: most + 4})
	})
}

// waitFor reads the connection's end, a reset, that comes after a time.
func waitFor(t *testing.T, c net.Conn, want time.Duration) {
	t.Helper()
	began := time.Now()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
	if took := time.Since(began); took != want {
		t.Errorf("it was kept waiting for %v, want %v", took, want)
	}
}

func TestPanicOfTheGateTurnsAwayOneConnection(t *testing.T) {
	explode := func(c *levee.Conn) { panic("bang") }
	for name, gate := range map[string]*doorman{
		"Admit": {admit: func(c *levee.Conn) *levee.Refusal { explode(c); return nil }},
		"Reach": {reach: func(c *levee.Conn, _ levee.Stage) *levee.Refusal { explode(c); return nil }},
		"Leave": {
			admit: func(*levee.Conn) *levee.Refusal { return nil },
			reach: func(*levee.Conn, levee.Stage) *levee.Refusal { return limited },
			leave: func(c *levee.Conn, _ levee.End) { explode(c) },
		},
		"Await": {await: func(_ context.Context, c *levee.Conn) *levee.Refusal { explode(c); return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				var calm atomic.Bool
				own := &doorman{}
				if gate.admit != nil {
					own.admit = func(c *levee.Conn) *levee.Refusal {
						if calm.Load() {
							return nil
						}
						return gate.admit(c)
					}
				}
				if gate.reach != nil {
					own.reach = func(c *levee.Conn, at levee.Stage) *levee.Refusal {
						if calm.Load() {
							return nil
						}
						return gate.reach(c, at)
					}
				}
				if gate.await != nil {
					own.await = func(ctx context.Context, c *levee.Conn) *levee.Refusal {
						if calm.Load() {
							return nil
						}
						return gate.await(ctx, c)
					}
				}
				own.leave = func(c *levee.Conn, end levee.End) {
					if gate.leave != nil && !calm.Load() {
						gate.leave(c, end)
					}
				}
				s := e.serve(t, &levee.Server{Handler: &lines{}, Gate: own})
				for range 3 { // it does not end an acceptor
					s.wantTurnedAway()
				}
				eventually(t, "three panics", func() bool { return s.Stats().Panics == 3 })
				if name == "Await" {
					for range 3 {
						s.expectEnd(levee.HandlerPanic)
					}
				} else {
					checkStats(t, s.Stats(), 0, nil)
				}
				calm.Store(true)
				client, _ := s.greet()
				client.Close()
				s.expectEnd(levee.ClientClosed)
				eventually(t, "every pass is given back", func() bool {
					own.mu.Lock()
					defer own.mu.Unlock()
					return own.inside == 0
				})
			})
		})
	}
}

func TestWaiterIsAwaitedBeforeAByteIsRead(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		decide := make(chan *levee.Refusal)
		gate := doorman{await: func(_ context.Context, c *levee.Conn) *levee.Refusal {
			r := <-decide
			if read, _ := c.Traffic(); read != 0 {
				t.Errorf("%d bytes were read before", read)
			}
			return r
		}}
		s := e.serve(t, &levee.Server{Handler: &lines{}, Gate: &gate})
		good := s.dial()
		go io.WriteString(good, "echo hello\n") // TLS waits for an answer
		decide <- nil
		want(t, good, "hello\n")
		good.Close()
		s.expectEnd(levee.ClientClosed)
		bad := s.dial()
		decide <- limited
		wantEnd(t, bad)
		if end := s.expectEnd(levee.Limited); !errors.Is(end.Err, limited) {
			t.Errorf("the error is %v", end.Err)
		}
		stages := slices.Insert(e.stages(), 2, "await")
		wantBook(t, &gate, append(stages, "leave client_closed", "admit", "reach 1", "await", "leave limited")...)
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ClientClosed: 1, levee.Limited: 1})
	})
}

// awaiting is a gate whose passes wait for their context's end.
func awaiting(waits chan<- *levee.Conn) *doorman {
	return &doorman{await: func(ctx context.Context, c *levee.Conn) *levee.Refusal {
		waits <- c
		<-ctx.Done()
		return nil
	}}
}

func TestConnectionThatWaitsForItsGateCanBeEnded(t *testing.T) {
	errKilled := errors.New("killed")
	for name, test := range map[string]struct {
		by   func(s *scene, c *levee.Conn)
		want levee.CloseReason
	}{
		"Kill":     {func(_ *scene, c *levee.Conn) { c.Kill(errKilled) }, levee.Killed},
		"Close":    {func(s *scene, _ *levee.Conn) { _ = s.Close() }, levee.ServerClosed},
		"deadline": {func(*scene, *levee.Conn) {}, levee.ArrivalTimeout},
		"Shutdown": {func(s *scene, _ *levee.Conn) {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			_ = s.Shutdown(ctx)
		}, levee.DrainTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				waits := make(chan *levee.Conn, 1)
				gate := awaiting(waits)
				srv := &levee.Server{Handler: &lines{}, Gate: gate}
				if name == "deadline" {
					srv.ArrivalTimeout = 50 * time.Millisecond
				}
				s := e.serve(t, srv)
				client := s.dial()
				test.by(s, receive(t, waits))
				wantEnd(t, client)
				s.expectEnd(test.want)
				wantBook(t, gate, "admit", "reach 1", "await", "leave "+test.want.String())
			})
		})
	}
}

func TestRequestThatWasSentBeforeADrainIsServedAfterTheWait(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.tls {
			t.Skip("a handshake that has not begun is not a request")
		}
		waits, decide := make(chan *levee.Conn), make(chan *levee.Refusal)
		gate := &doorman{await: func(_ context.Context, c *levee.Conn) *levee.Refusal {
			waits <- c
			return <-decide
		}}
		s := e.serve(t, &levee.Server{Handler: &lines{}, Gate: gate})
		client := s.dial()
		send(t, client, "echo hello\n")
		receive(t, waits).Drain(nil)
		decide <- nil
		want(t, client, "hello\n")
		wantEOF(t, client)
		s.expectEnd(levee.Drained)
	})
}

// passBy is a Joiner.
type passBy struct{ to string }

func (p passBy) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, p)
}

func (p passBy) Join(ctx context.Context, _ *levee.Conn) (levee.Upstream, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.to)
	return levee.Upstream{Conn: conn}, err
}

func TestWaiterIsAwaitedBeforeAConnectionIsJoined(t *testing.T) {
	leveetest.CheckLeaks(t)
	upstream := listenTCP(t)
	serve(t, &levee.Server{Handler: answering}, upstream)
	for _, alone := range []bool{false, true} {
		decide := make(chan *levee.Refusal)
		gate := &doorman{await: func(context.Context, *levee.Conn) *levee.Refusal { return <-decide }}
		l := listenTCP(t)
		s := serve(t, &levee.Server{Handler: passBy{upstream.Addr().String()}, Gate: gate, GoroutinePerConn: alone}, l)
		good := dialTCP(t, l)
		decide <- nil
		if err := exchange(good, "hello\n"); err != nil {
			t.Error(err)
		}
		good.Close()
		bad := dialTCP(t, l)
		decide <- limited
		if _, err := bad.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v", err)
		}
		eventually(t, "both have left", func() bool { return strings.Count(gate.read(), "leave") == 2 })
		eventually(t, "both are counted", func() bool { return s.Stats().Active == 0 })
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ClientClosed: 1, levee.Limited: 1})
	}
}

func TestWithoutAWaiterNoGoroutineIsSpentOnABareConnection(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no event loops here")
	}
	l := listenTCP(t)
	var accepted atomic.Pointer[string]
	s := serve(t, &levee.Server{Handler: &lines{}, Gate: &doorman{}, Trace: &levee.Trace{Accepted: func(*levee.Conn) {
		stack := make([]byte, 64<<10)
		text := string(stack[:runtime.Stack(stack, false)])
		accepted.Store(&text)
	}}}, l)
	if err := exchangeAfter(dialTCP(t, l), "echo ", "hello\n"); err != nil && !bytes.Contains([]byte(err.Error()), []byte("hello")) {
		t.Error(err)
	}
	if stack := *accepted.Load(); strings.Contains(stack, ".live(") || !strings.Contains(stack, "stepping") {
		t.Errorf("it began in\n%s", stack)
	}
	_ = s
}

func TestRoutersRefusalIsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		var order []string
		s := serve(t, &levee.Server{Handler: routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
			c.AtEnd(func() { order = append(order, "first") })
			c.AtEnd(func() { panic("bang") })
			c.AtEnd(func() { order = append(order, "last") })
			return nil, fmt.Errorf("route 3: %w", limited)
		}), Trace: &levee.Trace{Closed: func(c *levee.Conn, end levee.End) {
			order = append(order, "closed")
			if !errors.Is(end.Err, limited) {
				t.Errorf("the error is %v", end.Err)
			}
			c.AtEnd(func() { order = append(order, "late") })
		}}}, l)
		if _, err := dial(t, l).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v", err)
		}
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Limited: 1})
		if got := strings.Join(order, " "); got != "last first closed late" {
			t.Errorf("in the order %s", got)
		}
		if n := s.Stats().Panics; n != 1 {
			t.Errorf("%d panics, want the one", n)
		}
	})
}

func TestAtEndIsCalledOnEveryEngine(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, c := s.greet()
		ended := make(chan bool, 1)
		c.AtEnd(func() { ended <- c.Reason() == levee.ClientClosed })
		client.Close()
		if !receive(t, ended) {
			t.Errorf("it ended as %v", c.Reason())
		}
	})
}

func TestRefusalIsAnError(t *testing.T) {
	cause := errors.New("8 of 8 connections")
	for _, test := range []struct {
		levee.Refusal
		want string
	}{
		{levee.Refusal{Reason: levee.Limited, Cause: cause}, "refused: limited: 8 of 8 connections"},
		{levee.Refusal{Reason: levee.Overloaded}, "refused: overloaded"},
		{levee.Refusal{Reason: levee.Drained}, "refused: denied"}, // a mistake, which does not get out of hand
		{levee.Refusal{}, "refused: denied"},
	} {
		if got := test.Error(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
		if errors.Is(&test.Refusal, cause) != (test.Cause != nil) {
			t.Errorf("%v does not unwrap", &test.Refusal)
		}
	}
}

// A storm of clients, some of whom are refused at each stage: every pass comes back, and
// every snapshot adds up.
func TestEveryPassComesBackAfterAStorm(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		var turn atomic.Int64
		sometimes := func(*levee.Conn) *levee.Refusal {
			if turn.Add(1)%4 == 0 {
				return limited
			}
			return nil
		}
		gate := &doorman{
			admit: sometimes,
			reach: func(c *levee.Conn, _ levee.Stage) *levee.Refusal { return sometimes(c) },
			await: func(_ context.Context, c *levee.Conn) *levee.Refusal { return sometimes(c) },
		}
		s := e.serve(t, &levee.Server{Handler: &lines{}, Gate: gate, MaxConns: 20})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 25 {
					c, err := s.tryDial()
					if err != nil {
						continue
					}
					_ = c.SetDeadline(time.Now().Add(longest))
					_, _ = io.WriteString(c, "echo hello\n")
					if s.client == nil {
						_, _ = c.Read(make([]byte, 10))
					} else {
						_ = tls.Client(c, s.client).Handshake()
					}
					c.Close()
					stats := s.Stats()
					var closed int64
					for _, n := range stats.Closed {
						closed += n
					}
					if stats.Accepted != stats.Active+closed {
						t.Errorf("%d accepted, %d active, %d closed", stats.Accepted, stats.Active, closed)
					}
				}
			})
		}
		all.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		gate.mu.Lock()
		defer gate.mu.Unlock()
		if gate.inside != 0 {
			t.Errorf("%d passes were not given back", gate.inside)
		}
		stats := s.Stats()
		if refused := stats.Refused[levee.Limited]; refused == 0 || stats.Closed[levee.Limited] == 0 && turn.Load() > 20 {
			t.Errorf("%d refused at the door, %d later: the test tests nothing", refused, stats.Closed[levee.Limited])
		}
	})
}
