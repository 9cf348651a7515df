package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// expectEndAt waits for the connection's end and wants it that long after start.
func expectEndAt(t *testing.T, ends <-chan levee.End, want levee.CloseReason, start time.Time, after time.Duration) {
	t.Helper()
	expectReason(t, ends, want)
	if took := time.Since(start); took != after {
		t.Errorf("it ended after %v, want %v", took, after)
	}
}

var waysToWait = map[string]func(c *levee.Conn) error{
	"Read": func(c *levee.Conn) error {
		_, err := c.Read(make([]byte, 1))
		return err
	},
	"Peek": func(c *levee.Conn) error {
		_, err := c.Peek(1)
		return err
	},
	"Next": func(c *levee.Conn) error {
		if !c.Next() {
			_, err := c.Read(make([]byte, 1))
			return err
		}
		return nil
	},
	"WriteTo": func(c *levee.Conn) error {
		_, err := c.WriteTo(io.Discard)
		return err
	},
}

func TestIdleTimeoutEndsEveryKindOfWaitExactly(t *testing.T) {
	for name, wait := range waysToWait {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				failed := make(chan error, 1)
				dial, ends := serve(&levee.Server{
					IdleTimeout: time.Minute,
					Handler: does(func(c *levee.Conn) error {
						err := wait(c)
						failed <- err
						return err
					}),
				})
				client := dial()
				start := time.Now()
				expectEndAt(t, ends, levee.IdleTimeout, start, time.Minute)
				if err := <-failed; reasonOf(err) != levee.IdleTimeout || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, net.ErrClosed) {
					t.Errorf("the wait returned %v", err)
				}
				if _, err := client.Read(make([]byte, 1)); err == nil {
					t.Error("the peer can still read")
				}
			})
		})
	}
}

func TestAnyByteInEitherDirectionMovesIdleTimeout(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			IdleTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				go func() {
					time.Sleep(100 * time.Second) // virtual time
					c.Write([]byte("x"))
				}()
				return echoNothing(c)
			}),
		})
		client := dial()
		start := time.Now()
		time.Sleep(50 * time.Second) // virtual time
		send(t, client, "x")
		expectEndAt(t, ends, levee.IdleTimeout, start, 160*time.Second)
	})
}

// echoNothing reads until an error.
func echoNothing(c net.Conn) error {
	buffer := make([]byte, 512)
	for {
		if _, err := c.Read(buffer); err != nil {
			return err
		}
	}
}

func TestHandlerThatComputesForLongerThanIdleTimeoutIsNotPunished(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			IdleTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				for c.Next() {
					b := make([]byte, 8)
					n, err := c.Read(b)
					if err != nil {
						return err
					}
					time.Sleep(time.Hour) // virtual time
					if _, err := c.Write(b[:n]); err != nil {
						return err
					}
				}
				return nil
			}),
		})
		client := dial()
		for range 3 {
			send(t, client, "x")
			want(t, client, "x")
			time.Sleep(59 * time.Second) // virtual time
		}
		expectEndAt(t, ends, levee.IdleTimeout, time.Now(), time.Second)
	})
}

// What came while the handler was busy between two waits was in time, even if the
// earlier wait ended without a byte.
func TestBytesThatCameWhileTheHandlerWasBusyAreRead(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			IdleTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				c.SetReadDeadline(time.Now().Add(50 * time.Second))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the first read: %v", err)
				}
				time.Sleep(time.Hour) // virtual time
				c.SetReadDeadline(time.Time{})
				want(t, c, "x")
				return nil
			}),
		})
		client := dial()
		time.Sleep(55 * time.Second) // virtual time
		send(t, client, "x")
		expectReason(t, ends, levee.HandlerClosed)
	})
}

func TestPollingWithShortDeadlinesDoesNotKeepSilentPeerAlive(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		polls := 0
		dial, ends := serve(&levee.Server{
			IdleTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				for {
					c.SetReadDeadline(time.Now().Add(7 * time.Second))
					if _, err := c.Read(make([]byte, 1)); reasonOf(err) != levee.ReasonNone {
						return err
					}
					polls++
				}
			}),
		})
		dial()
		expectEndAt(t, ends, levee.IdleTimeout, time.Now(), time.Minute)
		if polls != 8 {
			t.Errorf("the handler polled %d times, want 8", polls)
		}
	})
}

func TestHalfClosedTimeoutCountsFromCloseWrite(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			IdleTimeout:       10 * time.Minute,
			HalfClosedTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				go func() {
					time.Sleep(5 * time.Minute) // virtual time
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				}()
				return echoNothing(c)
			}),
		})
		client := dial()
		start := time.Now()
		if _, err := client.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != 5*time.Minute {
			t.Errorf("the peer read %v after %v", err, time.Since(start))
		}
		time.Sleep(59 * time.Second) // virtual time
		send(t, client, "x")
		expectEndAt(t, ends, levee.HalfClosedTimeout, start, 5*time.Minute+59*time.Second+time.Minute)
	})
}

func TestWriteStallEndsTheConnectionWithinAQuarterMore(t *testing.T) {
	for _, size := range []int{100 << 10, 4 << 20} {
		inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
			failed := make(chan error, 1)
			dial, ends := serve(&levee.Server{
				WriteStallTimeout: 40 * time.Second,
				Handler: does(func(c *levee.Conn) error {
					for {
						if _, err := c.Write(make([]byte, size)); err != nil {
							failed <- err
							return err
						}
					}
				}),
			})
			client := dial()
			time.Sleep(17 * time.Second) // virtual time
			if _, err := client.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			expectReason(t, ends, levee.WriteStalled)
			if took := time.Since(start); took < 40*time.Second || took > 50*time.Second {
				t.Errorf("it ended %v after the last progress, want 40s to 50s", took)
			}
			if err := <-failed; reasonOf(err) != levee.WriteStalled || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write returned %v", err)
			}
			if _, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer read %v, want a reset", err)
			}
		})
	}
}

func TestSlowButSteadyReaderIsNeverCut(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		const size = 200 << 10
		dial, ends := serve(&levee.Server{
			WriteStallTimeout: 40 * time.Second,
			Handler: does(func(c *levee.Conn) error {
				_, err := c.Write(make([]byte, size))
				return err
			}),
		})
		client := dial()
		start := time.Now()
		sip, pause := 200, 30*time.Second
		if _, ok := client.(*tls.Conn); ok {
			sip, pause = 16<<10, 10*time.Second // crypto/tls takes a record or two at once from the socket
		}
		for got := 0; got < size; {
			time.Sleep(pause) // virtual time
			n, err := client.Read(make([]byte, sip))
			if err != nil {
				t.Fatalf("after %d bytes and %v: %v", got, time.Since(start), err)
			}
			got += n
		}
		client.Close()
		expectReason(t, ends, levee.HandlerClosed)
	})
}

// A peer that downloads slowly and has nothing to say is not idle.
func TestReaderDoesNotIdleOutWhileAWriteIsUnderWay(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		const size = 300 << 10
		wrote := make(chan time.Time, 1)
		dial, ends := serve(&levee.Server{
			IdleTimeout: 5 * time.Second,
			Handler: does(func(c *levee.Conn) error {
				go func() {
					if _, err := c.Write(make([]byte, size)); err != nil {
						t.Error(err)
					}
					wrote <- time.Now()
				}()
				return echoNothing(c)
			}),
		})
		client := dial()
		for got := 0; got < size; {
			time.Sleep(time.Second) // virtual time
			n, err := client.Read(make([]byte, 4<<10))
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			got += n
			if len(wrote) > 0 {
				break
			}
		}
		expectEndAt(t, ends, levee.IdleTimeout, <-wrote, 5*time.Second)
	})
}

func TestEveryLimitCanBeSwitchedOff(t *testing.T) {
	const aWeek = 7 * 24 * time.Hour
	t.Run("idle and half-closed", func(t *testing.T) {
		inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
			dial, ends := serve(&levee.Server{
				IdleTimeout: -1, HalfClosedTimeout: -1,
				Handler: does(func(c *levee.Conn) error {
					want(t, c, "x")
					if err := c.CloseWrite(); err != nil {
						return err
					}
					return echoNothing(c)
				}),
			})
			client := dial()
			for range 2 {
				time.Sleep(aWeek) // virtual time
				send(t, client, "x")
			}
			client.CloseWrite()
			expectReason(t, ends, levee.ClientClosed)
		})
	})
	t.Run("write stall", func(t *testing.T) {
		inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
			dial, ends := serve(&levee.Server{
				WriteStallTimeout: -1,
				Handler: does(func(c *levee.Conn) error {
					_, err := c.Write(make([]byte, 1<<20))
					return err
				}),
			})
			client := dial()
			time.Sleep(aWeek) // virtual time
			if n, err := io.Copy(io.Discard, client); n != 1<<20 || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
			expectReason(t, ends, levee.HandlerClosed)
		})
	})
	t.Run("arrival", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ca := leveetest.NewCA(t)
			dial, ends := inMemory(t, &levee.Server{
				ArrivalTimeout: -1, ProxyHeaderTimeout: -1, SniffTimeout: -1, IdleTimeout: -1,
				ProxyFrom:      loopbackOnly,
				TLSConfig:      ca.ServerConfig("localhost"),
				AllowPlaintext: true,
				Handler:        echoes,
			})
			client := dial()
			time.Sleep(aWeek) // virtual time
			send(t, client, "PROXY UNKNOWN")
			time.Sleep(aWeek) // virtual time
			send(t, client, "\r\n")
			time.Sleep(aWeek) // virtual time
			send(t, client, "x")
			want(t, client, "x")
			client.CloseWrite()
			expectReason(t, ends, levee.ClientClosed)
		})
	})
	t.Run("for all practical purposes", func(t *testing.T) {
		inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
			dial, ends := serve(&levee.Server{
				ArrivalTimeout: math.MaxInt64, IdleTimeout: math.MaxInt64, HalfClosedTimeout: math.MaxInt64, WriteStallTimeout: math.MaxInt64,
				Handler: echoes,
			})
			client := dial()
			time.Sleep(time.Minute) // virtual time
			send(t, client, "x")
			want(t, client, "x")
			time.Sleep(aWeek) // virtual time
			client.CloseWrite()
			expectReason(t, ends, levee.ClientClosed)
		})
	})
}

func TestArrivalDeadlinesAreAbsolute(t *testing.T) {
	hello := clientHello(t)
	for _, arrival := range []struct {
		name   string
		server *levee.Server
		sends  string // a byte each second
		after  time.Duration
	}{
		{
			"PROXY header v1",
			&levee.Server{ProxyFrom: loopbackOnly},
			"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", 5 * time.Second,
		},
		{
			"PROXY header v2",
			&levee.Server{ProxyFrom: loopbackOnly},
			"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x20 no end of the header", 5 * time.Second,
		},
		{"silence instead of a PROXY header", &levee.Server{ProxyFrom: loopbackOnly}, "", 5 * time.Second},
		{"TLS", &levee.Server{}, hello, 10 * time.Second},
		{"silence instead of TLS", &levee.Server{}, "", 10 * time.Second},
		{"silence where the first byte decides", &levee.Server{AllowPlaintext: true}, "", 5 * time.Second},
		{"TLS where the first byte decides", &levee.Server{AllowPlaintext: true}, hello, 10 * time.Second},
		{"a limit of their own above the one over all", &levee.Server{AllowPlaintext: true, SniffTimeout: time.Hour, ArrivalTimeout: 7 * time.Second}, "", 7 * time.Second},
		{
			"TLS after a slow PROXY header",
			&levee.Server{ProxyFrom: loopbackOnly, ProxyHeaderTimeout: time.Hour, ArrivalTimeout: 20 * time.Second},
			"PROXY UNKNOWN\r\n" + hello, 20 * time.Second,
		},
	} {
		t.Run(arrival.name, func(t *testing.T) {
			ca := leveetest.NewCA(t)
			synctest.Test(t, func(t *testing.T) {
				srv := arrival.server
				srv.TLSConfig = ca.ServerConfig("localhost")
				srv.Handler = does(func(*levee.Conn) error {
					t.Error("the handler was called")
					return nil
				})
				dial, ends := inMemory(t, srv)
				client := dial()
				start := time.Now()
				drip := dripping(client, arrival.sends)
				expectEndAt(t, ends, levee.ArrivalTimeout, start, arrival.after)
				<-drip
			})
		})
	}
}

// dripping sends a byte each second until an error, and closes what it returns.
func dripping(c net.Conn, bytes string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range len(bytes) {
			if _, err := c.Write([]byte{bytes[i]}); err != nil {
				return
			}
			time.Sleep(time.Second) // virtual time
		}
	}()
	return done
}

// clientHello returns the bytes with which crypto/tls's client begins.
func clientHello(t *testing.T) string {
	t.Helper()
	client, server := leveetest.Pipe()
	defer client.Close()
	go func() { _ = handshake(server) }()
	b := make([]byte, 16<<10)
	n, err := client.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestRouterIsHeldToTheSniffLimitByteByByte(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: router(func(c *levee.Conn) (levee.Handler, error) {
			_, err := c.Peek(100)
			return nil, err
		})})
		client := dial()
		start := time.Now()
		drip := dripping(client, strings.Repeat("x", 100))
		expectEndAt(t, ends, levee.ArrivalTimeout, start, 5*time.Second)
		<-drip
	})
}

// router is a Router that only routes.
type router func(c *levee.Conn) (levee.Handler, error)

func (r router) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) { return r(c) }
func (r router) ServeTCP(context.Context, *levee.Conn) error                   { panic("routed instead of asked") }

// Once the connection has arrived, nothing of the arrival's deadlines is left.
func TestArrivalDeadlineEndsWithTheArrival(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			ArrivalTimeout: 10 * time.Second,
			IdleTimeout:    time.Minute,
			Handler: router(func(c *levee.Conn) (levee.Handler, error) {
				_, err := c.Peek(1)
				return echoes, err
			}),
		})
		client := dial()
		for range 3 {
			send(t, client, "x")
			want(t, client, "x")
			time.Sleep(50 * time.Second) // virtual time
		}
		expectEndAt(t, ends, levee.IdleTimeout, time.Now(), 10*time.Second)
	})
}

func TestHandlersOwnReadDeadlineEndsNothing(t *testing.T) {
	for name, wait := range waysToWait {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				dial, ends := serve(&levee.Server{
					IdleTimeout: time.Minute,
					Handler: does(func(c *levee.Conn) error {
						start := time.Now()
						c.SetReadDeadline(start.Add(10 * time.Second))
						err := wait(c)
						var timeout net.Error
						if !errors.Is(err, os.ErrDeadlineExceeded) || reasonOf(err) != levee.ReasonNone || !errors.As(err, &timeout) || !timeout.Timeout() {
							t.Errorf("at the handler's deadline: %v", err)
						}
						if took := time.Since(start); took != 10*time.Second {
							t.Errorf("the deadline of 10s came after %v", took)
						}
						c.SetReadDeadline(time.Time{})
						return echo(c)
					}),
				})
				client := dial()
				time.Sleep(20 * time.Second) // virtual time
				send(t, client, "x")
				want(t, client, "x")
				client.CloseWrite()
				expectReason(t, ends, levee.ClientClosed)
			})
		})
	}
}

func TestIdleTimeoutWinsOverALaterDeadlineOfTheHandler(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{
			IdleTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				c.SetDeadline(time.Now().Add(time.Hour))
				return echoNothing(c)
			}),
		})
		dial()
		expectEndAt(t, ends, levee.IdleTimeout, time.Now(), time.Minute)
	})
}

func TestReadDeadlineCanBeMovedWhileARead(t *testing.T) {
	for _, change := range []struct {
		name  string
		to    func(start time.Time) time.Time
		ends  time.Duration
		fatal bool
	}{
		{"is brought forward", func(s time.Time) time.Time { return s.Add(20 * time.Second) }, 20 * time.Second, false},
		{"is put off", func(s time.Time) time.Time { return s.Add(40 * time.Second) }, 40 * time.Second, false},
		{"is passed", func(s time.Time) time.Time { return s }, 10 * time.Second, false},
		{"is cleared", func(time.Time) time.Time { return time.Time{} }, time.Minute, true},
	} {
		t.Run(change.name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				dial, _ := serve(&levee.Server{
					IdleTimeout: time.Minute,
					Handler: does(func(c *levee.Conn) error {
						start := time.Now()
						c.SetReadDeadline(start.Add(30 * time.Second))
						time.AfterFunc(10*time.Second, func() { c.SetReadDeadline(change.to(start)) })
						_, err := c.Read(make([]byte, 1))
						if took := time.Since(start); took != change.ends {
							t.Errorf("the read ended after %v, want %v", took, change.ends)
						}
						if (reasonOf(err) == levee.IdleTimeout) != change.fatal || !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("the read returned %v", err)
						}
						return err
					}),
				})
				_, _ = io.Copy(io.Discard, dial())
			})
		})
	}
}

func TestHandlersOwnWriteDeadlineEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, &levee.Server{
			WriteStallTimeout: time.Minute,
			Handler: does(func(c *levee.Conn) error {
				message := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
				for sent := 0; sent < len(message); {
					start := time.Now()
					c.SetWriteDeadline(start.Add(10 * time.Second))
					n, err := c.Write(message[sent:])
					sent += n
					if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || reasonOf(err) != levee.ReasonNone || time.Since(start) != 10*time.Second) {
						t.Errorf("after %v: %v", time.Since(start), err)
						return err
					}
				}
				return nil
			}),
		})
		client := dial()
		var got []byte
		for {
			time.Sleep(7 * time.Second) // virtual time
			b := make([]byte, 10_000)
			n, err := client.Read(b)
			got = append(got, b[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if want := bytes.Repeat([]byte("0123456789abcdef"), 10<<10); !bytes.Equal(got, want) {
			t.Errorf("%d bytes arrived and differ from the %d sent", len(got), len(want))
		}
		expectReason(t, ends, levee.HandlerClosed)
	})
}

// With the kernel's own timers and buffers.
func TestLimitsHoldOverRealSockets(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, wait := range waysToWait {
		dial, ends := overTCP(t, &levee.Server{IdleTimeout: 30 * time.Millisecond, Handler: does(wait)})
		client := dial()
		if end := expectReason(t, ends, levee.IdleTimeout); end.Duration < 30*time.Millisecond {
			t.Errorf("%s: idle after %v", name, end.Duration)
		}
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: the peer read %v, want EOF", name, err)
		}
	}
	dial, ends := overTCP(t, &levee.Server{
		WriteStallTimeout: 100 * time.Millisecond,
		Handler: does(func(c *levee.Conn) error {
			_, err := c.Write(make([]byte, 64<<20))
			return err
		}),
	})
	client := dial()
	expectReason(t, ends, levee.WriteStalled)
	if _, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read %v, want a reset", err)
	}
}
