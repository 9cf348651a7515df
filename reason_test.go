package levee_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

var errOwn = errors.New("an error of the handler's own")

// ways are the ways in which a connection of the server's can end by what happens
// on it, or by what its handler does.
var ways = []struct {
	reason levee.CloseReason
	name   string
	server func(ca *leveetest.CA) *levee.Server
	client func(t *testing.T, c *leveetest.Conn, srv *levee.Server)
}{
	{levee.ClientAborted, "the client leaves before it has said which of the two it wants", tlsOrNot, leave},
	{levee.ClientAborted, "the client leaves in the handshake", onlyTLS, sendAndLeave("\x16\x03\x01")},
	{levee.ClientAborted, "the client leaves while it is routed", routed(func(c *levee.Conn) error {
		_, err := c.Peek(3)
		return err
	}), sendAndLeave("xx")},
	{levee.ArrivalTimeout, "the client does not shake hands", onlyTLS, silence},
	{levee.ProxyHeaderInvalid, "no PROXY header from a proxy", proxied("127.0.0.0/8"), sendAndStay("hello, world\r\n")},
	{levee.ProxyHeaderRefused, "a PROXY header from a stranger", proxied("10.0.0.0/8"), sendAndStay("PROXY UNKNOWN\r\n")},
	{levee.TLSFailed, "no TLS", onlyTLS, sendAndStay("hello, world\r\n")},
	{levee.NoRoute, "no route", routed(func(*levee.Conn) error { return errors.New("nobody there") }), silence},
	{levee.NoRoute, "no handler and no error", routed(func(*levee.Conn) error { return nil }), silence},
	{levee.NoRoute, "an end of stream that is not the client's", routed(func(*levee.Conn) error { return io.EOF }), silence},
	{levee.NoRoute, "a reset that is not the client's", routed(func(*levee.Conn) error { return syscall.ECONNRESET }), silence},
	{levee.NoRoute, "another connection's end", routed(func(*levee.Conn) error { return &levee.CloseError{Reason: levee.Killed} }), silence},

	{levee.ClientClosed, "the client leaves and the handler is done", handled(io.ReadAll), leave},
	{levee.ClientClosed, "the client leaves and the handler says so", handled(func(r io.Reader) ([]byte, error) {
		_, err := r.Read(make([]byte, 1))
		return nil, fmt.Errorf("read a request: %w", err)
	}), leave},
	{levee.ClientClosed, "the client leaves in the middle of a message", handled(func(r io.Reader) ([]byte, error) {
		_, err := io.ReadFull(r, make([]byte, 3))
		return nil, fmt.Errorf("read a request: %w", err)
	}), sendAndLeave("xx")},
	{levee.ClientClosed, "the client leaves and the handler closes, as they are used to", closing(io.ReadAll), leave},
	{levee.ClientReset, "the client resets and the handler says so", handled(io.ReadAll), reset},
	{levee.ClientReset, "the client resets and the handler does not mind", handled(func(r io.Reader) ([]byte, error) {
		io.ReadAll(r)
		return nil, nil
	}), reset},
	{levee.ClientReset, "the client has reset before the handler ends its side", handler(func(c *levee.Conn) error {
		time.Sleep(time.Second) // virtual time
		c.Write([]byte("x"))
		return c.CloseWrite()
	}), reset},
	{levee.HandlerClosed, "the handler is done", handler(func(*levee.Conn) error { return nil }), silence},
	{levee.HandlerClosed, "the handler closes", handler(func(c *levee.Conn) error { return c.Close() }), silence},
	{levee.HandlerError, "the handler's error", handler(func(*levee.Conn) error { return errOwn }), silence},
	{levee.HandlerError, "the handler's own deadline", handler(func(c *levee.Conn) error {
		c.SetReadDeadline(time.Now())
		_, err := c.Read(make([]byte, 1))
		return err
	}), silence},
	{levee.HandlerError, "an end of stream that is not the client's", handler(func(*levee.Conn) error { return io.EOF }), silence},
	{levee.HandlerError, "half a message that is not the client's", handler(func(*levee.Conn) error { return io.ErrUnexpectedEOF }), silence},
	{levee.HandlerError, "a reset that is not the client's", handler(func(*levee.Conn) error {
		return &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}), silence},
	{levee.HandlerError, "another connection's end", handler(func(*levee.Conn) error { return &levee.CloseError{Reason: levee.IdleTimeout} }), silence},
	{levee.HandlerError, "an error although the client has left", handler(func(c *levee.Conn) error {
		io.ReadAll(c)
		return errOwn
	}), leave},
	{levee.HandlerPanic, "a panic", handler(func(*levee.Conn) error { panic("at the disco") }), silence},
	{levee.IdleTimeout, "silence", handled(io.ReadAll), silence},
	{levee.MessageTimeout, "half a message", stepped, sendAndStay("ec")},
	{levee.HalfClosedTimeout, "silence after CloseWrite", handler(func(c *levee.Conn) error {
		if err := c.CloseWrite(); err != nil {
			return err
		}
		return echoNothing(c)
	}), silence},
	{levee.WriteStalled, "a client that does not read", handler(func(c *levee.Conn) error {
		_, err := c.Write(make([]byte, 1<<20))
		return err
	}), silence},
	{levee.Drained, "asked to leave", handler(func(c *levee.Conn) error {
		c.Next()
		return nil
	}), func(_ *testing.T, _ *leveetest.Conn, srv *levee.Server) { only(srv).Drain(errOwn) }},
	{levee.Drained, "asked to leave, with a close", handler(func(c *levee.Conn) error {
		c.Next()
		return c.Close()
	}), func(_ *testing.T, _ *leveetest.Conn, srv *levee.Server) { only(srv).Drain(nil) }},
	{levee.Drained, "asked to leave in the arrival", onlyTLS, func(_ *testing.T, _ *leveetest.Conn, srv *levee.Server) { only(srv).Drain(nil) }},
	{levee.Killed, "killed", handled(io.ReadAll), func(_ *testing.T, _ *leveetest.Conn, srv *levee.Server) { only(srv).Kill(errOwn) }},
	{levee.Killed, "killed in the arrival", onlyTLS, func(_ *testing.T, _ *leveetest.Conn, srv *levee.Server) { only(srv).Kill(nil) }},
}

func stepped(*leveetest.CA) *levee.Server { return &levee.Server{Handler: &lines{}} }

func only(srv *levee.Server) *levee.Conn { return srv.Conns()[0] }

func onlyTLS(ca *leveetest.CA) *levee.Server {
	return &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: echoing}
}

func tlsOrNot(ca *leveetest.CA) *levee.Server {
	srv := onlyTLS(ca)
	srv.AllowPlaintext = true
	return srv
}

func proxied(from string) func(*leveetest.CA) *levee.Server {
	return func(*leveetest.CA) *levee.Server {
		return &levee.Server{ProxyFrom: []netip.Prefix{netip.MustParsePrefix(from)}, Handler: echoing}
	}
}

func routed(route func(c *levee.Conn) error) func(*leveetest.CA) *levee.Server {
	return func(*leveetest.CA) *levee.Server {
		return &levee.Server{Handler: router(func(c *levee.Conn) (levee.Handler, error) { return nil, route(c) })}
	}
}

func handler(f func(c *levee.Conn) error) func(*leveetest.CA) *levee.Server {
	return func(*leveetest.CA) *levee.Server { return &levee.Server{Handler: does(f)} }
}

func handled(read func(r io.Reader) ([]byte, error)) func(*leveetest.CA) *levee.Server {
	return handler(func(c *levee.Conn) error {
		_, err := read(c)
		return err
	})
}

func closing(read func(r io.Reader) ([]byte, error)) func(*leveetest.CA) *levee.Server {
	return handler(func(c *levee.Conn) error {
		defer c.Close()
		_, err := read(c)
		return err
	})
}

func leave(_ *testing.T, c *leveetest.Conn, _ *levee.Server) { c.Close() }
func reset(_ *testing.T, c *leveetest.Conn, _ *levee.Server) { c.Reset() }
func silence(*testing.T, *leveetest.Conn, *levee.Server)     {}
func sendAndLeave(s string) func(*testing.T, *leveetest.Conn, *levee.Server) {
	return func(t *testing.T, c *leveetest.Conn, _ *levee.Server) {
		send(t, c, s)
		c.Close()
	}
}

func sendAndStay(s string) func(*testing.T, *leveetest.Conn, *levee.Server) {
	return func(t *testing.T, c *leveetest.Conn, _ *levee.Server) { send(t, c, s) }
}

func TestEveryEndHasItsReason(t *testing.T) {
	for _, way := range ways {
		t.Run(way.reason.String()+": "+way.name, func(t *testing.T) {
			ca := leveetest.NewCA(t)
			synctest.Test(t, func(t *testing.T) {
				srv := way.server(ca)
				var closed *levee.Conn
				srv.Trace = &levee.Trace{Closed: func(c *levee.Conn, _ levee.End) { closed = c }}
				dial, ends := inMemory(t, srv)
				client := dial()
				synctest.Wait()
				way.client(t, client, srv)
				expectReason(t, ends, way.reason)
				if closed.Reason() != way.reason {
					t.Errorf("Reason() is %v", closed.Reason())
				}
				if n := srv.Stats().Closed[way.reason]; n != 1 {
					t.Errorf("%d connections were counted as %v", n, way.reason)
				}
			})
		})
	}
}

// lost is a connection whose network has gone.
type lost struct {
	net.Conn
	errno syscall.Errno
}

func (l lost) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", l.errno)}
}

// losing is a listener all of whose connections are lost.
type losing struct {
	net.Listener
	errno syscall.Errno
}

func (l losing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return lost{c, l.errno}, err
}

func TestLostPeerIsANetworkError(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN} {
		for _, serves := range []func(c *levee.Conn) error{silent, func(c *levee.Conn) error {
			c.Next()
			return nil
		}} {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				ends := stage(t, &levee.Server{Handler: does(serves)}, losing{l, errno})
				dial(t, l)
				expectReason(t, ends, levee.NetworkError)
			})
		}
	}
}

func silent(c *levee.Conn) error { return echoNothing(c) }

// With the kernel's own words for it.
func TestClientResetOverTCP(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	for _, secure := range []bool{false, true} {
		for name, serves := range map[string]func(c *levee.Conn) error{
			"Read":    silent,
			"Next":    answerRequests,
			"Peek":    func(c *levee.Conn) error { _, err := c.Peek(1); return err },
			"WriteTo": func(c *levee.Conn) error { _, err := io.Copy(io.Discard, c); return err },
			"Write": func(c *levee.Conn) error {
				for {
					if _, err := c.Write(make([]byte, 100)); err != nil {
						return err
					}
				}
			},
		} {
			srv := &levee.Server{Handler: does(serves)}
			if secure {
				srv.TLSConfig = ca.ServerConfig("localhost")
			}
			dial, ends := overTCP(t, srv)
			client := dial()
			if secure {
				handshaken(t, client, ca.ClientConfig("localhost"))
			}
			client.SetLinger(0)
			client.Close()
			if end := <-ends; end.Reason != levee.ClientReset {
				t.Errorf("%s, TLS %t: it ended as %v: %v", name, secure, end.Reason, end.Err)
			}
		}
	}
}

// A peer that closes without TLS's goodbye has closed all the same.
func TestTruncatedTLSIsTheClientsDoing(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	dial, ends := overTCP(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(silent)})
	bare := handshaken(t, dial(), ca.ClientConfig("localhost"))
	bare.NetConn().Close()
	expectReason(t, ends, levee.ClientClosed)
	inMiddle := handshaken(t, dial(), ca.ClientConfig("localhost"))
	inMiddle.NetConn().Write([]byte("\x17\x03\x03\x00\x50 half a record"))
	inMiddle.NetConn().Close()
	expectReason(t, ends, levee.ClientClosed)
}

func TestNumberThatIsNoReasonStillPrints(t *testing.T) {
	if got := levee.CloseReason(200).String(); got != "CloseReason(200)" {
		t.Errorf("it prints as %q", got)
	}
}

func TestCloseErrorMatchesWhatCallersLookFor(t *testing.T) {
	for _, reason := range levee.CloseReasons() {
		var err error = &levee.CloseError{Reason: reason, Cause: errOwn}
		late := strings.HasSuffix(reason.String(), "_timeout") || strings.HasSuffix(reason.String(), "_stalled") || reason == levee.LifetimeExpired
		var netErr net.Error
		if !errors.As(err, &netErr) || netErr.Timeout() != late || errors.Is(err, os.ErrDeadlineExceeded) != late {
			t.Errorf("%v: a timeout: %t, want %t", err, netErr.Timeout(), late)
		}
		if !errors.Is(err, net.ErrClosed) || !errors.Is(err, errOwn) || errors.Is(err, io.EOF) {
			t.Errorf("%v does not match what it should", err)
		}
		if want := "connection ended: " + reason.String() + ": " + errOwn.Error(); err.Error() != want {
			t.Errorf("it reads %q, want %q", err, want)
		}
		if netErr.Temporary() { //nolint:staticcheck // crypto/tls still asks
			t.Errorf("%v is temporary", err)
		}
	}
	if got := (&levee.CloseError{Reason: levee.Killed}).Error(); got != "connection ended: killed" {
		t.Errorf("without a cause it reads %q", got)
	}
}

func TestCauseOfAKillIsInEveryError(t *testing.T) {
	leveetest.CheckLeaks(t)
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			go c.Kill(errOwn)
			err := echoNothing(c)
			_, write := c.Write([]byte("x"))
			_, peek := c.Peek(1)
			for what, err := range map[string]error{
				"Read": err, "Write": write, "Peek": peek,
				"SetDeadline": c.SetDeadline(time.Now()), "CloseWrite": c.CloseWrite(),
			} {
				if reasonOf(err) != levee.Killed || !errors.Is(err, errOwn) || !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close: %v", err)
			}
			return nil
		})})
		dial()
		expectReason(t, ends, levee.Killed)
	})
}
