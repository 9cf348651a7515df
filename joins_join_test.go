package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// What happens while a connection is being joined.

// errDial is a Joiner's.
var errDial = errors.New("dial 192.0.2.1:80: no route to host")

// joinBy serves with srv and a Join of the test's own.
func (e engine) joinBy(t testing.TB, srv *levee.Server, dial dialer) *joins {
	l, _ := tcpUpstream.start(t)
	t.Cleanup(func() { l.Close() })
	return e.joinAt(t, srv, e.listen(t), tcpUpstream, l, dial)
}

func TestAClientWithoutAnUpstreamReadsAnEndAndNotAReset(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		for name, dial := range map[string]dialer{
			"an error": func(context.Context) (net.Conn, error) { return nil, errDial },
			"nothing":  func(context.Context) (net.Conn, error) { return nil, nil }, //nolint:nilnil // a mistake
		} {
			t.Run(name, func(t *testing.T) {
				s := e.joinBy(t, &levee.Server{}, dial)
				for range 3 {
					c := s.dial()
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") // which may be too late
					wantEOF(t, c)
					c.Close()
					end := s.expectEnd(levee.UpstreamUnavailable)
					if end.Err == nil || name == "an error" && end.Err != errDial {
						t.Errorf("the error is %v", end.Err)
					}
				}
				stats := s.Stats()
				checkStats(t, stats, 0, map[levee.CloseReason]int64{levee.UpstreamUnavailable: 3})
			})
		}
	})
}

func TestAPanicInJoinEndsItsConnectionAlone(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		panics := true
		l, dial := dialed(listenTCP(t))
		s := e.joinAt(t, &levee.Server{}, e.listen(t), tcpUpstream, l, func(ctx context.Context) (net.Conn, error) {
			if panics {
				panics = false
				panic("bang")
			}
			return dial(ctx)
		})
		c := s.dial()
		_, _ = io.WriteString(c, "hello\n") // which may be too late
		wantEnd(t, c)
		s.expectEnd(levee.HandlerPanic)
		s.meet().converseBothWays(t, 1000)
		receive(t, s.over)
		if stats := s.Stats(); stats.Panics != 1 {
			t.Errorf("%d panics counted", stats.Panics)
		}
	})
}

// waiting returns a dialer that waits for its context's end, and tells when it does.
func waiting() (dial dialer, waits <-chan context.Context) {
	begun := make(chan context.Context, 16)
	return func(ctx context.Context) (net.Conn, error) {
		begun <- ctx
		<-ctx.Done()
		return nil, ctx.Err()
	}, begun
}

func TestAJoinThatWaitsIsEndedWithItsConnection(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(s *joins, c *levee.Conn)
		want levee.CloseReason
	}{
		"Kill":         {func(_ *joins, c *levee.Conn) { c.Kill(nil) }, levee.Killed},
		"Close":        {func(_ *joins, c *levee.Conn) { c.Close() }, levee.HandlerClosed},
		"Server.Close": {func(s *joins, _ *levee.Conn) { s.Close() }, levee.ServerClosed},
		"Shutdown":     {func(s *joins, _ *levee.Conn) { s.shutDown(soon / 3) }, levee.DrainTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				dial, waits := waiting()
				s := e.joinBy(t, &levee.Server{}, dial)
				c := s.dial()
				send(t, c, "hello\n")
				ctx := receive(t, waits)
				test.end(s, s.Conns()[0])
				<-ctx.Done()
				wantEnd(t, c)
				s.expectCleanEnd(test.want)
			})
		})
	}
}

// gated returns a dialer that waits for the test.
func gated(dial dialer) (_ dialer, waits <-chan struct{}, goOn chan<- struct{}) {
	begun, gate := make(chan struct{}, 16), make(chan struct{})
	return func(ctx context.Context) (net.Conn, error) {
		begun <- struct{}{}
		<-gate
		return dial(ctx)
	}, begun, gate
}

func TestAClientThatLeavesDuringJoinIsStillHeard(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		l, dial := to.start(t)
		t.Cleanup(func() { l.Close() })
		dial, waits, goOn := gated(dial)
		s := e.joinAt(t, &levee.Server{}, e.listen(t), to, l, dial)

		near := s.dial()
		send(t, near, "one last thing\n")
		receive(t, waits)
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		goOn <- struct{}{}
		far := s.accept()
		want(t, far, "one last thing\n")
		wantEOF(t, far)
		send(t, far, "heard\n")
		far.Close()
		want(t, near, "heard\n")
		wantEOF(t, near)
		s.cleanEnd(levee.ClientClosed)
	})
}

func TestAClientThatIsResetDuringJoinResetsItsUpstream(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network != "tcp" {
			return
		}
		l, dial := tcpUpstream.start(t)
		t.Cleanup(func() { l.Close() })
		dial, waits, goOn := gated(dial)
		s := e.joinAt(t, &levee.Server{}, e.listen(t), tcpUpstream, l, dial)
		near := s.dial()
		send(t, near, "hello\n")
		receive(t, waits)
		resetByClient(t, near)
		goOn <- struct{}{}
		wantEnd(t, after(s.accept(), "hello\n"))
		s.end(levee.ClientReset)
	})
}

// after reads a beginning, of which not all need come, and returns what is behind it.
func after(r io.Reader, beginning string) io.Reader {
	_, _ = io.ReadFull(r, make([]byte, len(beginning)))
	return r
}

func TestWhatAClientSendsBeforeItIsJoinedIsNotLost(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		for _, size := range []int{1, 4 << 10, 100_000} {
			near, b := s.dial(), payload(size)
			go func() { // ends with the reading, or the connection
				_, _ = near.Write(b)
				_ = near.CloseWrite()
			}()
			far := s.accept()
			got, err := readRandomly(newRandom(), far)
			wantBytes(t, got, b)
			if err != nil {
				t.Error(err)
			}
			far.Close()
			wantEOF(t, near)
			s.cleanEnd(levee.ClientClosed)
		}
	})
}

func TestAProxyHeaderIsNotPassedOn(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network != "tcp" {
			return
		}
		const header = "PROXY TCP4 203.0.113.7 192.0.2.1 1234 80\r\n"
		s := e.join(t, &levee.Server{ProxyFrom: loopbackOnly}, e.itsUpstream())
		near, err := s.tryDial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close() })
		send(t, near, header)
		s.header.Store(int64(len(header)))
		if e.tls {
			near = tls.Client(near, s.client)
		}
		c := s.introduce(near)
		if got := c.conn.ClientAddr(); got != netip.MustParseAddrPort("203.0.113.7:1234") {
			t.Errorf("the client is %v", got)
		}
		c.converseBothWays(t, 100_000)
		receive(t, s.over)
	})
}

// A volatile is an upstream's connection whose code is not to be trusted.
type volatile struct {
	net.Conn
	onRead, onWrite bool
}

func (c volatile) Read(p []byte) (int, error) {
	if c.onRead {
		panic("bang")
	}
	return c.Conn.Read(p)
}

func (c volatile) Write(p []byte) (int, error) {
	if c.onWrite {
		panic("bang")
	}
	return c.Conn.Write(p)
}

func TestAPanicOfAnUpstreamsConnectionEndsThatPairAlone(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		for name, fault := range map[string]volatile{"reading": {onRead: true}, "writing": {onWrite: true}} {
			t.Run(name, func(t *testing.T) {
				to := memoryUpstream // which no event loop can have
				l, dial := to.start(t)
				t.Cleanup(func() { l.Close() })
				connected := make(chan struct{}) // or the client might find itself reset before it knows that it is
				s := e.joinAt(t, &levee.Server{}, e.listen(t), to, l, func(ctx context.Context) (_ net.Conn, err error) {
					<-connected
					c := fault
					c.Conn, err = dial(ctx)
					return c, err
				})
				near := s.dial()
				close(connected)
				_, _ = io.WriteString(near, "hello\n") // which may be too late
				wantEnd(t, near)
				wantEnd(t, after(s.accept(), "hello\n"))
				s.end(levee.HandlerPanic)
			})
		}
	})
}

func TestAPanicInEndedLosesNoConnection(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		s.explodes.Store(true)
		s.meet().converseBothWays(t, 10)
		receive(t, s.over)
		if stats := s.Stats(); stats.Active != 0 || stats.Panics != 1 {
			t.Errorf("%d active, %d panics", stats.Active, stats.Panics)
		}
	})
}

// A whole is a connection that cannot be closed by half.
type whole struct{ net.Conn }

// A wholeListener accepts such connections.
type wholeListener struct{ net.Listener }

func (l wholeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return whole{c}, err
}

func TestAConnectionThatCannotBeHalfClosedIsClosed(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, wraps := range map[string]struct{ near, far bool }{
		"the client's": {near: true}, "the upstream's": {far: true}, "both": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine{name: name, network: "tcp", alone: true}
			to := tcpUpstream
			to.loop = false
			at := listenTCP(t)
			if wraps.near {
				at = wholeListener{at}
			}
			l, dial := dialed(listenTCP(t))
			s := e.joinAt(t, &levee.Server{}, at, to, l, func(ctx context.Context) (net.Conn, error) {
				c, err := dial(ctx)
				if wraps.far && err == nil {
					c = whole{c}
				}
				return c, err
			})
			c := s.meet()
			b := payload(100_000)
			go func() { // ends with the reading, or the connection
				_, _ = c.far.Write(b)
				_ = c.far.Close()
			}()
			got, err := readRandomly(newRandom(), c.near)
			wantBytes(t, got, b)
			if err != nil {
				t.Error(err)
			}
			c.near.Close()
			s.cleanEnd(levee.UpstreamClosed)
		})
	}
}
