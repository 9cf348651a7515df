package levee_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// peekServer runs a handler that peeks, on a client that sends what it is to send.
func peekServer(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End), sends string, handler func(c *levee.Conn) error) {
	t.Helper()
	dial, ends := serve(&levee.Server{Handler: does(handler)})
	client := dial()
	send(t, client, sends)
	client.CloseWrite()
	if end := <-ends; end.Err != nil {
		t.Error(end.Err)
	}
}

// wantPeek peeks n bytes and wants to see them.
func wantPeek(t *testing.T, c *levee.Conn, n int, want string, wantErr error) {
	t.Helper()
	got, err := c.Peek(n)
	if string(got) != want || !errors.Is(err, wantErr) {
		t.Errorf("Peek(%d): %.50q, %v; want %.50q, %v", n, got, err, want, wantErr)
	}
	if c.Buffered() < len(want) {
		t.Errorf("%d bytes are buffered after a Peek of %d", c.Buffered(), len(want))
	}
}

func TestPeekShowsMoreAndMoreAndTakesNothing(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		peekServer(t, serve, "hello, world", func(c *levee.Conn) error {
			if c.Buffered() != 0 {
				t.Errorf("%d bytes are buffered before the first Peek", c.Buffered())
			}
			wantPeek(t, c, 0, "", nil)
			wantPeek(t, c, 1, "h", nil)
			wantPeek(t, c, 5, "hello", nil)
			wantPeek(t, c, 1, "h", nil)
			want(t, c, "he")
			wantPeek(t, c, 4, "llo,", nil)
			wantPeek(t, c, 11, "llo, world", io.EOF)
			wantPeek(t, c, 11, "llo, world", io.EOF)
			want(t, c, "llo, world")
			if c.Buffered() != 0 {
				t.Errorf("%d bytes are buffered after the last", c.Buffered())
			}
			wantPeek(t, c, 1, "", io.EOF)
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("Read at the end: %d, %v", n, err)
			}
			if c.Next() {
				t.Error("Next at the end said true")
			}
			return nil
		})
	})
}

func TestPeekAcrossSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		dripping := leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: 1, Delay: time.Second}})
		message := strings.Repeat("0123456789", 30)
		ends := stage(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
			for n := 1; n <= len(message); n *= 3 {
				wantPeek(t, c, n, message[:n], nil)
			}
			want(t, c, message)
			return nil
		})}, dripping)
		client := dial(t, l)
		send(t, client, message)
		expectReason(t, ends, levee.HandlerClosed)
	})
}

func TestPeekTakesUpTo80KiB(t *testing.T) {
	const budget = 80 << 10
	message := strings.Repeat("0123456789abcdef", 3*budget/16)
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		peekServer(t, serve, message, func(c *levee.Conn) error {
			wantPeek(t, c, 3, message[:3], nil)
			wantPeek(t, c, 5000, message[:5000], nil)
			wantPeek(t, c, budget, message[:budget], nil)
			wantPeek(t, c, budget+1, message[:budget], bufio.ErrBufferFull)
			want(t, c, message[:100])
			wantPeek(t, c, budget, message[100:100+budget], nil)
			want(t, c, message[100:])
			return nil
		})
	})
}

func TestPeekOfANegativeNumberIsAnError(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		peekServer(t, serve, "x", func(c *levee.Conn) error {
			wantPeek(t, c, -1, "", bufio.ErrNegativeCount)
			want(t, c, "x")
			return nil
		})
	})
}

func TestPeekGivesUpAtTheHandlersDeadlineAndKeepsWhatCame(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			c.SetReadDeadline(time.Now().Add(time.Second))
			wantPeek(t, c, 3, "ab", os.ErrDeadlineExceeded)
			c.SetReadDeadline(time.Time{})
			wantPeek(t, c, 3, "abc", nil)
			want(t, c, "abc")
			return nil
		})})
		client := dial()
		send(t, client, "ab")
		time.Sleep(2 * time.Second) // virtual time
		send(t, client, "c")
		expectReason(t, ends, levee.HandlerClosed)
	})
}

func TestWriteToBeginsWithWhatWasPeeked(t *testing.T) {
	message := strings.Repeat("0123456789abcdef", 10<<10)
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		peekServer(t, serve, message, func(c *levee.Conn) error {
			wantPeek(t, c, 5000, message[:5000], nil)
			var got strings.Builder
			n, err := io.Copy(&got, c)
			if got.String() != message || n != int64(len(message)) || err != nil {
				t.Errorf("copied %d bytes, %d say so, %v", got.Len(), n, err)
			}
			return nil
		})
	})
}

// A handler that returns while a goroutine of its own still peeks is at fault;
// neither the process nor another connection must suffer.
func TestReadersLeftBehindAreHarmless(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		for _, wait := range []func(c *levee.Conn) error{
			func(c *levee.Conn) error { _, err := c.Peek(10_000); return err },
			func(c *levee.Conn) error { _, err := c.WriteTo(io.Discard); return err },
			func(c *levee.Conn) error { c.Next(); _, err := c.Peek(10_000); return err },
		} {
			left := make(chan error, 10)
			dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
				c.Peek(1)
				go func() { left <- wait(c) }()
				return nil
			})})
			for range 20 {
				client := dial()
				send(t, client, "x")
				client.Write([]byte("late"))
				client.Close()
				<-ends
				<-left // with whatever error
			}
		}
	})
}
