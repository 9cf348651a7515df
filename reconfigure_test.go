package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// A namesake is a Stepper that answers each line with its name.
type namesake string

func (n namesake) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, n) }

func (n namesake) Step(_ *levee.Conn, in []byte, _ int, out []byte) (int, []byte, error) {
	for i, b := range in {
		if b == '\n' {
			return i + 1, append(out, n+"\n"...), nil
		}
	}
	return 0, out, nil
}

// ask returns who serves the connection.
func ask(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return "", err
	}
	var name []byte
	for b := make([]byte, 1); ; name = append(name, b[0]) {
		if _, err := io.ReadFull(c, b); err != nil {
			return string(name), err
		}
		if b[0] == '\n' {
			return string(name), nil
		}
	}
}

func wantName(t testing.TB, c net.Conn, want string) {
	t.Helper()
	if got, err := ask(c); got != want || err != nil {
		t.Errorf("%q serves it, %v; want %q", got, err, want)
	}
}

// like returns a server with the fields that must be the same, and a handler.
func (s *scene) like(h levee.Stepper) *levee.Server {
	return &levee.Server{
		Handler: s.engine.engaged(s.t, h), GoroutinePerConn: s.GoroutinePerConn,
		TLSConfig: s.TLSConfig, Trace: s.Trace, Logger: s.Logger,
	}
}

func reconfigure(t testing.TB, s, like *levee.Server) (past <-chan struct{}) {
	t.Helper()
	past, err := s.Reconfigure(like)
	if err != nil {
		t.Fatal(err)
	}
	return past
}

func isOver(past <-chan struct{}) bool {
	select {
	case <-past:
		return true
	default:
		return false
	}
}

func TestReconfigureIsForTheConnectionsToCome(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: namesake("old")})
		first := s.dial()
		wantName(t, first, "old")

		past := reconfigure(t, s.Server, s.like(namesake("new")))
		second := s.dial()
		wantName(t, second, "new")
		wantName(t, first, "old")

		generations := make(map[uint64]int)
		for _, c := range s.Conns() {
			generations[c.Generation()]++
		}
		if generations[1] != 1 || generations[2] != 1 || s.Generation() != 2 {
			t.Errorf("connections by generation: %v; the server's is %d", generations, s.Generation())
		}
		if isOver(past) {
			t.Error("the old settings are over, but not their connection")
		}
		_ = first.Close()
		receive(t, past)
		wantName(t, second, "new")
	})
}

func TestSettingsWithoutConnectionsAreOverAtOnce(t *testing.T) {
	s := &levee.Server{Handler: echoing}
	for range 3 {
		if !isOver(reconfigure(t, s, &levee.Server{Handler: echoing})) {
			t.Error("nobody was let in by them, and they are not over")
		}
	}
	if s.Generation() != 4 {
		t.Errorf("it is generation %d", s.Generation())
	}
}

func TestRefusedConnectionsDoNotKeepSettings(t *testing.T) {
	for _, manner := range []levee.Manner{levee.Reset, levee.Politely, levee.Slowly} {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			gate := &doorman{admit: func(*levee.Conn) *levee.Refusal { return &levee.Refusal{Reason: levee.Denied, Manner: manner} }}
			s := serve(t, &levee.Server{Handler: echoing, Gate: gate}, l)
			wantEnd(t, dial(t, l))
			synctest.Wait()
			if past := reconfigure(t, s.Server, &levee.Server{Handler: echoing, Logger: s.Logger}); !isOver(past) {
				t.Errorf("a client that was refused (manner %v) keeps the settings", manner)
			}
		})
	}
}

func TestReconfigureRefusesWhatCannotBe(t *testing.T) {
	s := &levee.Server{Name: "a", Handler: echoing}
	for want, like := range map[string]*levee.Server{
		"Handler is nil":                 {Name: "a"},
		"AllowPlaintext":                 {Name: "a", Handler: echoing, AllowPlaintext: true},
		"neither Certificates":           {Name: "a", Handler: echoing, TLSConfig: new(tls.Config)},
		"Server.Name cannot":             {Handler: echoing},
		"Server.Trace cannot":            {Name: "a", Handler: echoing, Trace: new(levee.Trace)},
		"Server.StepBudget cannot":       {Name: "a", Handler: echoing, StepBudget: time.Second},
		"Server.GoroutinePerConn cannot": {Name: "a", Handler: echoing, GoroutinePerConn: true},
	} {
		if past, err := s.Reconfigure(like); err == nil || !strings.Contains(err.Error(), want) || past != nil {
			t.Errorf("it returned %v, %v; want %s", past, err, want)
		}
	}
	if s.Generation() != 1 {
		t.Errorf("it is generation %d, but nothing was taken", s.Generation())
	}
}

func TestReconfiguredTimeoutsAreForTheConnectionsToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := make(chan levee.End, 2)
		trace := &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, IdleTimeout: 10 * time.Second, Trace: trace}, l)
		dial(t, l)
		synctest.Wait()
		reconfigure(t, s.Server, &levee.Server{Handler: echoing, IdleTimeout: time.Second, Trace: trace, Logger: s.Logger})
		dial(t, l)
		for _, want := range []time.Duration{time.Second, 10 * time.Second} {
			if end := <-ends; end.Reason != levee.IdleTimeout || end.Duration != want {
				t.Errorf("it ended as %v after %v, want %v", end.Reason, end.Duration, want)
			}
		}
	})
}

func TestALowerCapLetsThoseStayWhoAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, MaxConns: 3}, l)
		clients := make([]*leveetest.Conn, 3)
		for i := range clients {
			clients[i] = dial(t, l)
		}
		synctest.Wait()
		resize := func(most int) {
			reconfigure(t, s.Server, &levee.Server{Handler: echoing, MaxConns: most, Logger: s.Logger})
		}
		open := func(want int64) {
			t.Helper()
			synctest.Wait()
			if got := s.Stats().Active; got != want {
				t.Errorf("%d connections are open, want %d", got, want)
			}
		}
		resize(1)
		for _, c := range clients {
			if err := exchange(c, "still here\n"); err != nil {
				t.Error(err)
			}
		}
		dial(t, l)
		open(3)
		_ = clients[0].Close()
		_ = clients[1].Close()
		open(1)
		_ = clients[2].Close() // the one that waited has its place
		open(1)
		for range 4 {
			dial(t, l)
		}
		open(1)
		resize(4)
		open(4)
		resize(-1)
		open(5)
		resize(2) // those that came while there was no cap count
		dial(t, l)
		open(5)
	})
}

func TestMoreHandshakesAreLetInAtOnce(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	inside, release := make(chan struct{}, 10), make(chan struct{})
	config := ca.ServerConfig("localhost")
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		inside <- struct{}{}
		<-release
		return nil, nil
	}
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: echoing, TLSConfig: config, MaxHandshakes: 1}, l)
	var all sync.WaitGroup
	defer all.Wait()
	defer close(release)
	for range 4 {
		all.Go(func() {
			c := tls.Client(dialTCP(t, l), ca.ClientConfig("localhost"))
			if err := c.Handshake(); err != nil {
				t.Error(err)
			}
		})
	}
	within := func(want int) {
		t.Helper()
		for range want {
			receive(t, inside)
		}
		for s.Stats().HandshakesWaiting+len(inside) == 0 { // until those who wait do
			runtime.Gosched()
		}
		if len(inside) > 0 {
			t.Errorf("more than %d came in", want)
		}
	}
	within(1)
	for s.Stats().HandshakesWaiting < 3 {
		runtime.Gosched()
	}
	reconfigure(t, s.Server, &levee.Server{Handler: echoing, TLSConfig: config, MaxHandshakes: 2, Logger: s.Logger})
	within(1)
	reconfigure(t, s.Server, &levee.Server{Handler: echoing, TLSConfig: config, MaxHandshakes: -1, Logger: s.Logger})
	for range 2 {
		receive(t, inside)
	}
}

func TestAConnectionLeavesTheGateThatLetItIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var left []string
		gate := func(name string) levee.Gate {
			return &doorman{admit: func(*levee.Conn) *levee.Refusal { return nil }, leave: func(*levee.Conn, levee.End) { left = append(left, name) }}
		}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, Gate: gate("old")}, l)
		c := dial(t, l)
		synctest.Wait()
		reconfigure(t, s.Server, &levee.Server{Handler: echoing, Gate: gate("new"), Logger: s.Logger})
		d := dial(t, l)
		synctest.Wait()
		_ = d.Close()
		synctest.Wait()
		_ = c.Close()
		synctest.Wait()
		if got := strings.Join(left, " "); got != "new old" {
			t.Errorf("they left %q", got)
		}
	})
}

// A server may need an arrival for its connections at one time and none at another: bare
// sockets are what they are accepted as where none is needed.
func TestReconfigureChangesHowConnectionsAreAccepted(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: namesake("bare")}, l)
	like := func(srv *levee.Server) *levee.Server { srv.Logger = s.Logger; return srv }
	routed := routing(func(context.Context, *levee.Conn) (levee.Handler, error) { return namesake("routed"), nil })
	for range 3 {
		wantName(t, dialTCP(t, l), "bare")
		reconfigure(t, s.Server, like(&levee.Server{Handler: namesake("sealed"), TLSConfig: ca.ServerConfig("localhost")}))
		wantName(t, tls.Client(dialTCP(t, l), ca.ClientConfig("localhost")), "sealed")
		wantName(t, tls.Client(dialTCP(t, l), ca.ClientConfig("localhost")), "sealed")
		reconfigure(t, s.Server, like(&levee.Server{Handler: routed}))
		wantName(t, dialTCP(t, l), "routed")
		reconfigure(t, s.Server, like(&levee.Server{Handler: namesake("bare")}))
	}
}

func TestNobodyIsLostWhileAServerIsReconfigured(t *testing.T) {
	leveetest.CheckLeaks(t)
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: namesake("0")}, l)
	routed := routing(func(context.Context, *levee.Conn) (levee.Handler, error) { return namesake("1"), nil })
	handlers := []levee.Handler{namesake("0"), routed, handle(func(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, namesake("2")) })}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				first, err := ask(c)
				again, err2 := ask(c)
				if err != nil || err2 != nil || first != again || first == "" {
					t.Errorf("%q, then %q: %v", first, again, errors.Join(err, err2))
				}
				_ = c.Close()
			}
		})
	}
	var last <-chan struct{}
	for i := range 300 {
		last = reconfigure(t, s.Server, &levee.Server{Handler: handlers[i%3], MaxConns: 2 + i%7, Logger: s.Logger})
		<-time.After(time.Millisecond / 2) // for some to come by them
	}
	close(stop)
	clients.Wait()
	receive(t, last)
	if s.Generation() != 301 {
		t.Errorf("it is generation %d", s.Generation())
	}
}

func TestStopListeningServesThoseWhoWait(t *testing.T) {
	for name, listen := range map[string]func(testing.TB) net.Listener{
		"bare": listenTCP, "plain": listenPlain, "memory": func(testing.TB) net.Listener { return leveetest.Listen() },
	} {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			l, other := listen(t), listenTCP(t)
			s := serve(t, &levee.Server{Handler: namesake("x"), MaxConns: 1}, l)
			second := make(chan error, 1)
			go func() { second <- s.Serve(context.Background(), other) }()
			dialIt := func() net.Conn {
				if m, ok := l.(*leveetest.Listener); ok {
					return dial(t, m)
				}
				return dialTCP(t, l)
			}
			first := dialIt()
			wantName(t, first, "x")
			waits := dialIt() // in the queue, as there is no room
			if !s.StopListening(l) {
				t.Error("it does not know its listener")
			}
			s.StopListening(l) // it may have gone by now, or not
			_ = first.Close()
			wantName(t, waits, "x")
			if err := s.result(); err != nil {
				t.Errorf("Serve returned %v", err)
			}
			if s.StopListening(l) {
				t.Error("it still knows the listener")
			}
			_ = waits.Close()
			last := dialTCP(t, other)
			wantName(t, last, "x")
			if c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second); name != "memory" && err == nil {
				_ = c.Close()
				t.Error("somebody still listens")
			}
			_ = s.Close()
			if err := <-second; !errors.Is(err, levee.ErrServerClosed) {
				t.Errorf("the other Serve returned %v", err)
			}
		})
	}
}

// As when a listener gets another name: the one server stops listening on the socket on which
// the other has begun.
func TestASocketPassesToAnotherServer(t *testing.T) {
	leveetest.CheckLeaks(t)
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: namesake("first")}, l)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for !isOver(stop) {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				if name, err := ask(c); err != nil {
					t.Errorf("%q: %v", name, err)
				}
				_ = c.Close()
			}
		})
	}
	for s.Stats().Accepted == 0 {
		runtime.Gosched()
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	own, err := levee.FileListener(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	other := serve(t, &levee.Server{Handler: namesake("second")}, own)
	if !s.HandOver(l) {
		t.Error("it does not know its listener")
	}
	if err := s.result(); err != nil {
		t.Error(err)
	}
	if s.HandOver(l) {
		t.Error("it still knows the listener")
	}
	c := dialTCP(t, own)
	wantName(t, c, "second")
	close(stop)
	clients.Wait()
	if other.Stats().Accepted == 0 {
		t.Error("nobody came to the second")
	}
}
