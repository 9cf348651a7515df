package leveetest_test

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/nettest"

	"github.com/levee-net/levee/leveetest"
)

func TestPipeIsAConnByTheBook(t *testing.T) {
	for name, network := range map[string]leveetest.Network{
		"DefaultBuffer": {},
		"SmallBuffer":   {Buffer: 100},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := network.Pipe()
				return client, server, func() { client.Close(); server.Close() }, nil
			})
		})
	}
}

func TestDialledConnIsAConnByTheBook(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		listener := leveetest.Listen()
		client, err := listener.Dial(t.Context())
		if err != nil {
			return nil, nil, nil, err
		}
		server, err := listener.Accept()
		return client, server, func() { client.Close(); server.Close(); listener.Close() }, err
	})
}

// inBubble runs test with the two ends of a pipe, in a synctest bubble.
func inBubble(t *testing.T, network leveetest.Network, test func(t *testing.T, client, server *leveetest.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		client, server := network.Pipe()
		defer client.Close()
		defer server.Close()
		test(t, client, server)
	})
}

func TestWriteBlocksWhileThePeersBufferIsFull(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 4}, func(t *testing.T, client, server *leveetest.Conn) {
		written := make(chan struct{})
		go func() {
			defer close(written)
			wantTransfer(t, client.Write, "abcdef", 6, nil)
		}()
		synctest.Wait()
		select {
		case <-written:
			t.Error("6 bytes went into a buffer of 4")
		default:
		}
		wantRead(t, server, 2, "ab")
		<-written
		wantRead(t, server, 10, "cdef")
	})
}

func TestWriteWithNoLimitNeverBlocks(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: -1}, func(t *testing.T, client, _ *leveetest.Conn) {
		n, err := client.Write(make([]byte, 1<<20))
		if n != 1<<20 || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
	})
}

func TestWriteDeadlineReturnsHowMuchWentOut(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 4}, func(t *testing.T, client, server *leveetest.Conn) {
		start := time.Now()
		client.SetWriteDeadline(start.Add(time.Hour))
		wantTransfer(t, client.Write, "abcdef", 4, os.ErrDeadlineExceeded)
		if waited := time.Since(start); waited != time.Hour {
			t.Errorf("waited %v, want 1h", waited)
		}
		wantRead(t, server, 10, "abcd")
	})
}

func TestReadDeadlineFollowsChangesWhileBlocked(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*leveetest.Conn)
		after  time.Duration
	}{
		"Earlier": {func(c *leveetest.Conn) { c.SetReadDeadline(time.Now().Add(time.Minute)) }, 2 * time.Minute},
		"Later":   {func(c *leveetest.Conn) { c.SetDeadline(time.Now().Add(2 * time.Hour)) }, 2*time.Hour + time.Minute},
		"Past":    {func(c *leveetest.Conn) { c.SetReadDeadline(time.Unix(1, 0)) }, time.Minute},
		"Removed": {func(c *leveetest.Conn) {
			time.AfterFunc(24*time.Hour, func() { c.SetReadDeadline(time.Unix(1, 0)) })
			c.SetReadDeadline(time.Time{})
		}, 24*time.Hour + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, leveetest.Network{}, func(t *testing.T, client, _ *leveetest.Conn) {
				start := time.Now()
				client.SetReadDeadline(start.Add(time.Hour))
				time.AfterFunc(time.Minute, func() { test.change(client) })
				wantTransfer(t, client.Read, "?", 0, os.ErrDeadlineExceeded)
				if waited := time.Since(start); waited != test.after {
					t.Errorf("waited %v, want %v", waited, test.after)
				}
			})
		})
	}
}

func TestAPastDeadlineFailsReadEvenWithBytesThere(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		server.Write([]byte("x"))
		client.SetReadDeadline(time.Unix(1, 0))
		wantTransfer(t, client.Read, "?", 0, os.ErrDeadlineExceeded)
		client.SetReadDeadline(time.Time{})
		wantRead(t, client, 1, "x")
	})
}

func TestCloseEndsBlockedCalls(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 1}, func(t *testing.T, client, _ *leveetest.Conn) {
		time.AfterFunc(time.Minute, func() { client.Close() })
		done := make(chan struct{})
		go func() {
			defer close(done)
			wantTransfer(t, client.Write, "ab", 1, net.ErrClosed)
		}()
		wantTransfer(t, client.Read, "?", 0, net.ErrClosed)
		<-done
	})
}

func TestEveryCallAfterCloseReturnsErrClosed(t *testing.T) {
	client, _ := leveetest.Pipe()
	client.Close()
	for name, call := range map[string]func() error{
		"Read":             func() error { _, err := client.Read(make([]byte, 1)); return err },
		"Read nothing":     func() error { _, err := client.Read(nil); return err },
		"Write":            func() error { _, err := client.Write([]byte("x")); return err },
		"Close":            client.Close,
		"CloseRead":        client.CloseRead,
		"CloseWrite":       client.CloseWrite,
		"SetDeadline":      func() error { return client.SetDeadline(time.Time{}) },
		"SetReadDeadline":  func() error { return client.SetReadDeadline(time.Time{}) },
		"SetWriteDeadline": func() error { return client.SetWriteDeadline(time.Time{}) },
		"SetLinger":        func() error { return client.SetLinger(0) },
	} {
		t.Run(name, func(t *testing.T) { wantOpError(t, call(), net.ErrClosed) })
	}
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		client.Write([]byte("request"))
		client.CloseWrite()
		wantAll(t, server, "request")
		wantTransfer(t, client.Write, "more", 0, syscall.EPIPE)

		server.Write([]byte("answer"))
		server.CloseWrite()
		wantAll(t, client, "answer")
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		client.Write([]byte("last words"))
		client.Close()
		wantAll(t, server, "last words")
	})
}

func TestCloseWithUnreadBytesResetsThePeer(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		client.Write([]byte("unread"))
		server.Write([]byte("answer"))
		server.Close()
		wantRead(t, client, 10, "answer")
		wantTransfer(t, client.Read, "?", 0, syscall.ECONNRESET)
		wantTransfer(t, client.Read, "?", 0, io.EOF)
		wantTransfer(t, client.Write, "x", 0, syscall.EPIPE)
	})
}

func TestResetIsReportedOnceByWhicheverCallComesFirst(t *testing.T) {
	for name, reset := range map[string]func(*leveetest.Conn){
		"Reset":     func(c *leveetest.Conn) { c.Reset() },
		"SetLinger": func(c *leveetest.Conn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
				reset(server)
				wantTransfer(t, client.Write, "x", 0, syscall.ECONNRESET)
				wantTransfer(t, client.Write, "x", 0, syscall.EPIPE)
				wantTransfer(t, client.Read, "?", 0, io.EOF)
				wantOpError(t, client.CloseWrite(), syscall.ENOTCONN)
			})
		})
	}
}

func TestSetLingerOtherThanZeroClosesInPeace(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		client.SetLinger(0)
		client.SetLinger(-1)
		client.Close()
		wantAll(t, server, "")
	})
}

func TestResetEndsThePeersBlockedCalls(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 1}, func(t *testing.T, client, server *leveetest.Conn) {
		time.AfterFunc(time.Minute, server.Reset)
		wantTransfer(t, client.Write, "ab", 1, syscall.ECONNRESET)
	})
}

func TestFirstWriteToAClosedPeerIsLostAndTheNextFails(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		server.Close()
		wantTransfer(t, client.Write, "lost", 4, nil)
		wantTransfer(t, client.Write, "x", 0, syscall.EPIPE)
		wantTransfer(t, client.Read, "?", 0, io.EOF)
	})
}

func TestWriteLargerThanTheBufferToAClosedPeerFails(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 4}, func(t *testing.T, client, server *leveetest.Conn) {
		server.Close()
		wantTransfer(t, client.Write, "abcdef", 4, syscall.EPIPE)
	})
}

func TestCloseReadEndsABlockedReadAndNotThePeer(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		time.AfterFunc(time.Minute, func() { client.CloseRead() })
		wantTransfer(t, client.Read, "?", 0, io.EOF)
		wantTransfer(t, server.Write, "x", 1, nil)
	})
}

func TestWriteWaitsForTheOneBeforeIt(t *testing.T) {
	for range 20 { // which goroutine gets the room first is chance
		inBubble(t, leveetest.Network{Buffer: 3}, func(t *testing.T, client, server *leveetest.Conn) {
			go client.Write([]byte("aaaaaa"))
			synctest.Wait()
			wantRead(t, server, 3, "aaa") // room for the first writer, or for the next
			done := make(chan struct{})
			time.AfterFunc(time.Second, func() {
				defer close(done)
				wantAll(t, server, "aaabb")
			})
			client.Write([]byte("bb"))
			client.CloseWrite()
			<-done
		})
	}
}

func TestConcurrentWritesAllEndAtTheDeadline(t *testing.T) {
	inBubble(t, leveetest.Network{Buffer: 3}, func(t *testing.T, client, _ *leveetest.Conn) {
		client.SetWriteDeadline(time.Now().Add(time.Second))
		wantTransfer(t, client.Write, "abc", 3, nil)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { wantTransfer(t, client.Write, "x", 0, os.ErrDeadlineExceeded) })
		}
		all.Wait()
	})
}

func TestErrorsReadAsThoseOfPackageNet(t *testing.T) {
	client, server := leveetest.Pipe()
	server.Reset()
	_, err := client.Read(make([]byte, 1))
	want := "read tcp " + client.LocalAddr().String() + "->" + client.RemoteAddr().String() + ": read: connection reset by peer"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}

	client, _ = leveetest.Pipe()
	client.SetDeadline(time.Unix(1, 0))
	_, err = client.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v does not say that it is a timeout", err)
	}
}

func TestPipesHaveAddressesOfTheirOwn(t *testing.T) {
	client1, server1 := leveetest.Pipe()
	_, server2 := leveetest.Pipe()
	if server1.LocalAddr().String() == server2.LocalAddr().String() {
		t.Errorf("two pipes at %v", server1.LocalAddr())
	}
	if diff := cmp.Diff(client1.LocalAddr(), server1.RemoteAddr()); diff != "" {
		t.Error(diff)
	}
	if _, ok := client1.LocalAddr().(*net.TCPAddr); !ok {
		t.Errorf("%T, want *net.TCPAddr", client1.LocalAddr())
	}
}

// wantTransfer calls a Read or a Write with as many bytes as buffer has.
func wantTransfer(t *testing.T, call func([]byte) (int, error), buffer string, wantN int, wantErr error) {
	t.Helper()
	n, err := call([]byte(buffer))
	if n != wantN || !errors.Is(err, wantErr) {
		t.Errorf("got %d, %v; want %d, %v", n, err, wantN, wantErr)
	}
	if err != nil && err != io.EOF {
		wantOpError(t, err, wantErr)
	}
}

func wantOpError(t *testing.T, err, wantErr error) {
	t.Helper()
	var op *net.OpError
	if !errors.As(err, &op) || !errors.Is(err, wantErr) {
		t.Errorf("got %T %v, want *net.OpError around %v", err, err, wantErr)
	}
}

func wantRead(t *testing.T, c net.Conn, size int, want string) {
	t.Helper()
	buffer := make([]byte, size)
	n, err := c.Read(buffer)
	if string(buffer[:n]) != want || err != nil {
		t.Errorf("Read: %q, %v; want %q", buffer[:n], err, want)
	}
}

// wantAll reads to the end.
func wantAll(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != want || err != nil {
		t.Errorf("ReadAll: %q, %v; want %q", got, err, want)
	}
}
