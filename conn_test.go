package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"golang.org/x/net/nettest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// pipe makes nettest's pairs: the first end is a *levee.Conn.
func pipe(srv *levee.Server, l net.Listener, dial func() (net.Conn, error)) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		handed := levee.NewListener(l.Addr())
		s := &levee.Server{Handler: handed, TLSConfig: srv.TLSConfig}
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), l) }()
		dialled := make(chan error, 1)
		go func() {
			var err error
			c2, err = dial()
			if t, ok := c2.(*tls.Conn); ok && err == nil {
				err = t.Handshake()
			}
			dialled <- err
		}()
		c1, err = handed.Accept()
		if err == nil {
			err = <-dialled
		}
		stop = func() {
			_ = c1.Close()
			_ = c2.Close()
			_ = s.Close()
			<-served
		}
		return c1, c2, stop, err
	}
}

func TestConnBehavesAsNetConnOverTCP(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l, err := levee.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		return pipe(&levee.Server{}, l, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })()
	})
}

func TestConnBehavesAsNetConnOverTLS(t *testing.T) {
	ca := leveetest.NewCA(t)
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l, err := levee.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		srv := &levee.Server{TLSConfig: ca.ServerConfig("localhost")}
		return pipe(srv, l, func() (net.Conn, error) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return nil, err
			}
			return tls.Client(c, ca.ClientConfig("localhost")), nil
		})()
	})
}

func TestConnBehavesAsNetConnInMemory(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l := leveetest.Listen()
		return pipe(&levee.Server{}, l, func() (net.Conn, error) { return l.Dial(t.Context()) })()
	})
}

func TestAWriteAfterCloseSaysThatItIsClosed(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		result := make(chan error, 1)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				return err
			}
			c.Close()
			_, err := c.Write([]byte("never"))
			result <- err
			return err
		})})
		send(t, dial(), "a")
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write says %v", err)
		}
		expectReason(t, ends, levee.HandlerClosed)
	})
}

func TestTheContextOfAConnectionThatAHookHasClosedIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := make(chan error, 1)
		dial, ends := inMemory(t, &levee.Server{
			Trace: &levee.Trace{Accepted: func(c *levee.Conn) { c.Close() }},
			Handler: handle(func(ctx context.Context, _ *levee.Conn) error {
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return nil
			}),
		})
		dial()
		if err := <-cause; reasonOf(err) != levee.HandlerClosed {
			t.Errorf("its cause is %v", err)
		}
		expectReason(t, ends, levee.HandlerClosed)
	})
}
