package levee_test

import (
	"crypto/tls"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestRoutersAreFollowedToAHandler(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		byFirstByte := router(func(c *levee.Conn) (levee.Handler, error) {
			first, err := c.Peek(1)
			if err != nil {
				return nil, err
			}
			return router(func(c *levee.Conn) (levee.Handler, error) {
				second, err := c.Peek(2)
				if err != nil || second[0] != first[0] {
					return nil, errors.New("the second router does not see what the first saw")
				}
				return echoing, nil
			}), nil
		})
		serving := make(chan levee.Handler, 1)
		dial, ends := serve(&levee.Server{
			Handler: byFirstByte,
			Trace:   &levee.Trace{Serving: func(_ *levee.Conn, h levee.Handler) { serving <- h }},
		})
		client := dial()
		send(t, client, "hello")
		want(t, client, "hello") // with the bytes that the routers have looked at
		if _, is := (<-serving).(levee.Router); is {
			t.Error("Serving was told of a router")
		}
		client.CloseWrite()
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestRouterSeesWhatTLSAgreedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		dial, ends := inMemory(t, &levee.Server{
			TLSConfig: ca.ServerConfig("db.example.com"),
			Handler: router(func(c *levee.Conn) (levee.Handler, error) {
				if c.TLS() == nil || c.TLS().ServerName != "db.example.com" {
					return nil, errors.New("unknown name")
				}
				return echoing, nil
			}),
		})
		client := handshaken(t, dial(), ca.ClientConfig("db.example.com"))
		send(t, client, "hello")
		want(t, client, "hello")
		client.Close()
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestHandshakeHookIsToldOfFailureToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		var took time.Duration
		var failure error
		dial, ends := inMemory(t, &levee.Server{
			TLSConfig: ca.ServerConfig("localhost"),
			Trace:     &levee.Trace{Handshake: func(_ *levee.Conn, d time.Duration, err error) { took, failure = d, err }},
			Handler:   echoing,
		})
		client := dial()
		time.Sleep(3 * time.Second) // virtual time
		send(t, client, "\x16")
		time.Sleep(2 * time.Second) // virtual time
		client.Close()
		expectReason(t, ends, levee.ClientAborted)
		if took != 2*time.Second || failure == nil {
			t.Errorf("it was told of %v and %v", took, failure)
		}
	})
}

// Those who knock and say nothing cost their goroutine and no buffer.
func TestSilentStrangersHoldNoBuffer(t *testing.T) {
	const strangers = 200
	ca := leveetest.NewCA(t)
	leveetest.CheckLeaks(t)
	srv := &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: echoing}
	dial, _ := overTCP(t, srv)
	handshaken(t, dial(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it only warms the pools up
	before := heapOf()
	for range strangers {
		dial()
	}
	for srv.Stats().Accepted <= strangers {
		runtime.Gosched()
	}
	if cost := (heapOf() - before) / strangers; cost > 4<<10 {
		t.Errorf("a stranger and the test's end of the connection cost %d bytes", cost)
	}
}

// A client that gives each of those who look at its first bytes another one has no more time
// than any other.
func TestAllWhoLookAtTheFirstBytesHaveOneLimit(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		second := router(func(c *levee.Conn) (levee.Handler, error) {
			_, err := c.Peek(3)
			return echoing, err
		})
		first := router(func(c *levee.Conn) (levee.Handler, error) {
			_, err := c.Peek(2)
			return second, err
		})
		dial, ends := inMemory(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), AllowPlaintext: true, SniffTimeout: 4 * time.Second, Handler: first})
		client := dial()
		for range 2 {
			time.Sleep(1500 * time.Millisecond) // virtual time
			send(t, client, "x")
		}
		if end := <-ends; end.Reason != levee.ArrivalTimeout || end.Duration != 4*time.Second {
			t.Errorf("%v after %v", end.Reason, end.Duration)
		}
	})
}
