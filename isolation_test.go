package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
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

// villain is the client for whom everything goes wrong.
var villain = netip.MustParseAddrPort("203.0.113.66:6666")

// An explosion is a place in which something of the user's own may go off. It
// gets the server and a function that goes off for the villain.
type explosion struct {
	place  string
	plant  func(srv *levee.Server, goOff func(net.Addr))
	reason levee.CloseReason // what a panic there ends the connection as
	goexit levee.CloseReason // and what runtime.Goexit does; none if it is not allowed there
}

var explosions = []explosion{
	{"handler", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Handler = handle(func(ctx context.Context, c *levee.Conn) error {
			goOff(c.PeerAddr())
			return answering(ctx, c)
		})
	}, levee.HandlerPanic, levee.HandlerError},
	{"router", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Handler = routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
			goOff(c.PeerAddr())
			return answering, nil
		})
	}, levee.HandlerPanic, levee.HandlerError},
	{"TLS callback", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			goOff(hello.Conn.RemoteAddr())
			return nil, nil
		}
	}, levee.HandlerPanic, levee.HandlerError},
	{"Accepted", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Trace.Accepted = func(c *levee.Conn) { goOff(c.PeerAddr()) }
	}, levee.HandlerPanic, levee.HandlerError},
	{"ProxyHeader", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.ProxyFrom = []netip.Prefix{netip.PrefixFrom(villain.Addr(), 32)}
		srv.Trace.ProxyHeader = func(c *levee.Conn) { goOff(c.PeerAddr()) }
	}, levee.HandlerPanic, levee.HandlerError},
	{"Handshake", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Trace.Handshake = func(c *levee.Conn, _ time.Duration, _ error) { goOff(c.PeerAddr()) }
	}, levee.HandlerPanic, levee.HandlerError},
	{"Serving", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Trace.Serving = func(c *levee.Conn, _ levee.Handler) { goOff(c.PeerAddr()) }
	}, levee.HandlerPanic, levee.HandlerError},
	{"Draining", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Handler = handle(func(ctx context.Context, c *levee.Conn) error {
			if c.PeerAddr().String() == villain.String() {
				srv.Conn(c.ID()).Drain(nil)
			}
			return answering(ctx, c)
		})
		srv.Trace.Draining = func(c *levee.Conn) { goOff(c.PeerAddr()) }
	}, levee.HandlerPanic, levee.HandlerError},
	{"Closed", func(srv *levee.Server, goOff func(net.Addr)) {
		srv.Trace.Closed = func(c *levee.Conn, _ levee.End) { goOff(c.PeerAddr()) }
	}, levee.ClientClosed, levee.ClientClosed},
}

// routing is a function that is a Router.
type routing func(ctx context.Context, c *levee.Conn) (levee.Handler, error)

func (r routing) Route(ctx context.Context, c *levee.Conn) (levee.Handler, error) { return r(ctx, c) }

func (r routing) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, err := r(ctx, c)
	if err != nil {
		return err
	}
	return h.ServeTCP(ctx, c)
}

// explode has the villain set off e, beside a client who must not notice.
func explode(t *testing.T, e explosion, srv *levee.Server, bang func()) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		srv.Handler, srv.TLSConfig = answering, ca.ServerConfig("localhost")
		e.plant(srv, func(who net.Addr) {
			if who.String() == villain.String() {
				bang()
			}
		})
		l := leveetest.Listen()
		s := serve(t, srv, l)
		good := tls.Client(dial(t, l), ca.ClientConfig("localhost"))
		if err := exchange(good, "before\n"); err != nil {
			t.Error(err)
		}
		raw, err := l.DialFrom(t.Context(), villain)
		if err != nil {
			t.Fatal(err)
		}
		if len(srv.ProxyFrom) > 0 {
			fmt.Fprintf(raw, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
		}
		bad := tls.Client(raw, ca.ClientConfig("localhost"))
		_ = exchange(bad, "boom?\n")
		bad.Close()
		if err := exchange(good, "after\n"); err != nil {
			t.Error(err)
		}
		good.Close()
		synctest.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestPanicEndsItsOwnConnectionAndNothingElse(t *testing.T) {
	for _, e := range explosions {
		t.Run(e.place, func(t *testing.T) {
			var log safeBuffer
			var told atomic.Int64
			srv := &levee.Server{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Trace: &levee.Trace{
				Panicked: func(_ *levee.Conn, value any, stack []byte) {
					if value == "boom" && strings.Contains(string(stack), "detonate") {
						told.Add(1)
					}
				},
			}}
			explode(t, e, srv, detonate)
			checkStats(t, srv.Stats(), 0, withOneClientClosed(e.reason))
			if n := srv.Stats().Panics; n != 1 || told.Load() != 1 {
				t.Errorf("%d panics counted, %d told to Trace with their stack; want 1", n, told.Load())
			}
			lines := log.lines(t)
			if len(lines) != 1 || lines[0]["value"] != "boom" || !strings.Contains(lines[0]["stack"].(string), "detonate") {
				t.Errorf("logged %v, want the panic with its stack", lines)
			}
		})
	}
}

func detonate() { panic("boom") }

func withOneClientClosed(reason levee.CloseReason) map[levee.CloseReason]int64 {
	closed := map[levee.CloseReason]int64{reason: 1}
	closed[levee.ClientClosed]++
	return closed
}

// What a t.FailNow in a handler or a hook does.
func TestGoexitEndsItsOwnConnectionAndNothingElse(t *testing.T) {
	for _, e := range explosions {
		t.Run(e.place, func(t *testing.T) {
			srv := &levee.Server{Trace: new(levee.Trace)}
			explode(t, e, srv, runtime.Goexit)
			checkStats(t, srv.Stats(), 0, withOneClientClosed(e.goexit))
			if n := srv.Stats().Panics; n != 0 {
				t.Errorf("%d panics counted", n)
			}
		})
	}
}

func TestPanickedHookMayItselfGoOff(t *testing.T) {
	for name, bang := range map[string]func(){"panic": detonate, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			srv := &levee.Server{Trace: &levee.Trace{Panicked: func(*levee.Conn, any, []byte) { bang() }}}
			explode(t, explosions[0], srv, detonate)
			checkStats(t, srv.Stats(), 0, withOneClientClosed(levee.HandlerPanic))
			if n := srv.Stats().Panics; n != 1 {
				t.Errorf("%d panics counted, want 1", n)
			}
		})
	}
}

func TestPanicWhileTellingOfAFailedAcceptHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		l.FailAccepts(syscall.EMFILE, syscall.EMFILE)
		s := serve(t, &levee.Server{Handler: echoing, Trace: &levee.Trace{
			AcceptFailed: func(net.Listener, error, time.Duration) { panic("boom") },
		}}, l)
		if err := exchange(dial(t, l), "hello"); err != nil {
			t.Error(err)
		}
		if n := s.Stats().Panics; n != 2 {
			t.Errorf("%d panics counted, want 2", n)
		}
	})
}

func TestPanicWhileShutdownAsksToLeaveHarmsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: working(time.Second), Trace: &levee.Trace{Draining: func(c *levee.Conn) {
			if c.PeerAddr().String() == villain.String() {
				panic("boom")
			}
		}}}, l)
		good := dial(t, l)
		answer := make(chan error)
		go func() { answer <- exchange(good, "hello\n") }()
		if _, err := l.DialFrom(t.Context(), villain); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 1, levee.HandlerPanic: 1})
	})
}

// A hook has no part in the server's locks: it may ask and tell it anything.
func TestHooksMayCallTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		srv := &levee.Server{Handler: answering}
		ask := func(c *levee.Conn) {
			srv.Stats()
			srv.Conns()
			srv.Conn(c.ID())
			c.Drain(nil)
		}
		srv.Trace = &levee.Trace{
			Accepted:     ask,
			AcceptFailed: func(net.Listener, error, time.Duration) { srv.Stats() },
			Serving:      func(c *levee.Conn, _ levee.Handler) { ask(c) },
			Draining:     ask,
			Closed: func(c *levee.Conn, _ levee.End) {
				ask(c)
				c.Kill(nil)
			},
		}
		l.FailAccepts(syscall.EMFILE)
		s := serve(t, srv, l)
		c := dial(t, l)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%v, want EOF", err)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 1})
	})
}

func TestHookMayKillTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering, Trace: &levee.Trace{
			Accepted: func(c *levee.Conn) { c.Kill(errors.New("not welcome")) },
		}}, l)
		c := dial(t, l)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%v, want EOF", err)
		}
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Killed: 1})
	})
}

// touchy is an error whose own text panics.
type touchy struct{ reason *string }

func (e touchy) Error() string { return *e.reason }

func TestWhatWasPanickedWithIsTheConnectionsError(t *testing.T) {
	for want, value := range map[string]any{
		"panic: boom":                     "boom",
		"panic: EOF":                      io.EOF,
		"panic: 42":                       42,
		"panic: panic called with nil":    nil,
		"panic: %!v(PANIC=Error method: ": touchy{},
	} {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				said := make(chan error, 1)
				s := serve(t, &levee.Server{
					Handler: handle(func(context.Context, *levee.Conn) error { panic(value) }),
					Trace:   &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { said <- end.Err }},
				}, l)
				dial(t, l)
				if err := <-said; err == nil || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("%v, want %s", err, want)
				}
				if n := s.Stats().Panics; n != 1 {
					t.Errorf("%d panics counted, want 1", n)
				}
			})
		})
	}
}

func TestPanicsAreLoggedOnceASecondWithTheNumberHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		l := leveetest.Listen()
		serve(t, &levee.Server{
			Handler: handle(func(context.Context, *levee.Conn) error { panic("boom") }),
			Logger:  slog.New(slog.NewJSONHandler(&log, nil)),
		}, l)
		for range 10 {
			dial(t, l)
		}
		synctest.Wait()
		time.Sleep(time.Second) // virtual time
		dial(t, l)
		synctest.Wait()
		lines := log.lines(t)
		if len(lines) != 2 || lines[1]["more_like_it"] != 9.0 {
			t.Errorf("logged %v, want two lines, the second of which speaks for 9 more", lines)
		}
	})
}

func TestThousandPanickingHandlersAreNotNoticedByTheOthers(t *testing.T) {
	leveetest.CheckLeaks(t)
	const clients, panics = 16, 1000
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		if first, err := c.Peek(1); err == nil && first[0] == '!' {
			panic("boom")
		}
		return echo(c)
	})}, l)

	over := make(chan struct{})
	var good, bad, accountant sync.WaitGroup
	for range clients {
		good.Go(func() {
			c := dialTCP(t, l)
			defer c.Close()
			for {
				if err := exchange(c, "all is well"); err != nil {
					t.Errorf("a client that behaves was told: %v", err)
					return
				}
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	for range 10 {
		bad.Go(func() {
			for range panics / 10 {
				c := dialTCP(t, l)
				if err := exchange(c, "!"); err == nil {
					t.Error("a handler that panicked has answered")
				}
				c.Close()
			}
		})
	}
	accountant.Go(func() {
		scrape := time.NewTicker(time.Millisecond)
		defer scrape.Stop()
		for last := (levee.Stats{}); ; {
			now := s.Stats()
			sum := now.Active
			for reason, n := range now.Closed {
				sum += n
				if n < last.Closed[reason] {
					t.Errorf("%v went from %d to %d", reason, last.Closed[reason], n)
				}
			}
			if now.Accepted != sum || now.Accepted < last.Accepted || now.Read < last.Read || now.Written < last.Written {
				t.Errorf("the accounts do not balance: %+v after %+v", now, last)
			}
			last = now
			select {
			case <-over:
				return
			case <-scrape.C:
			}
		}
	})
	bad.Wait()
	close(over)
	good.Wait()
	accountant.Wait()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.HandlerPanic: panics, levee.ClientClosed: clients})
	if n := s.Stats().Panics; n != panics {
		t.Errorf("%d panics counted, want %d", n, panics)
	}
}

// Some send nothing, some never read, some send a byte now and then.
func TestTiresomeClientsCostTheOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		l := leveetest.Network{Backlog: -1}.Listen()
		s := serve(t, &levee.Server{Handler: echoing, TLSConfig: ca.ServerConfig("localhost"), AllowPlaintext: true}, l)
		var tiresome sync.WaitGroup
		for range 20 {
			dial(t, l)
			flooder, dripper := dial(t, l), dial(t, l)
			tiresome.Go(func() {
				for chunk := make([]byte, 8<<10); ; {
					if _, err := flooder.Write(chunk); err != nil {
						return
					}
				}
			})
			tiresome.Go(func() {
				for {
					if _, err := dripper.Write([]byte{22}); err != nil { // for ever within a ClientHello
						return
					}
					time.Sleep(time.Second) // virtual time
				}
			})
		}
		good := tls.Client(dial(t, l), ca.ClientConfig("localhost"))
		start := time.Now()
		for range 100 {
			if err := exchange(good, "brisk"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("a hundred exchanges took %v", took)
		}
		good.Close()
		tiresome.Wait() // each of them meets a limit
		synctest.Wait()
		stats := s.Stats()
		if stats.Active != 0 || stats.Closed[levee.WriteStalled] != 20 || stats.Closed[levee.ArrivalTimeout] != 20 ||
			stats.Closed[levee.TLSFailed]+stats.Closed[levee.ArrivalTimeout] != 40 {
			t.Errorf("they ended as %+v", stats)
		}
	})
}
