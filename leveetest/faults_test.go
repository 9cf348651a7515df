package leveetest_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/levee-net/levee/leveetest"
)

func TestFaultyConnIsAConnByTheBook(t *testing.T) {
	for name, faults := range map[string]leveetest.Faults{
		"Healthy": {},
		"Segments": {
			Read:  leveetest.Fault{Segment: 1000, Seed: 1},
			Write: leveetest.Fault{Segment: 1000, Seed: 2},
		},
		"Delays": {Read: leveetest.Fault{Delay: time.Microsecond}, Write: leveetest.Fault{Delay: time.Microsecond}},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := leveetest.Pipe()
				c1, c2 = leveetest.Faulty(client, faults), leveetest.Faulty(server, faults)
				return c1, c2, func() { c1.Close(); c2.Close() }, nil
			})
		})
	}
}

// onBothNetworks runs test with a connection in memory, under virtual time, and
// with one over loopback. ours is the end to make faulty.
func onBothNetworks(t *testing.T, test func(t *testing.T, ours, peer net.Conn)) {
	t.Helper()
	t.Run("Memory", func(t *testing.T) {
		inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
			test(t, client, server)
		})
	})
	t.Run("TCP", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("other kernels report a reset in other ways, or drop what came before it")
		}
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		client, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server := mustAccept(t, listener)
		defer server.Close()
		test(t, client, server)
	})
}

func TestReadReturnsNoMoreThanASegment(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Read: leveetest.Fault{Segment: 1}})
		peer.Write([]byte("ab"))
		wantRead(t, faulty, 10, "a")
		wantRead(t, faulty, 10, "b")
	})
}

// recorder is a connection that keeps what is written to it, call by call.
type recorder struct {
	net.Conn
	writes []string
}

func (r *recorder) Write(p []byte) (int, error) {
	r.writes = append(r.writes, string(p))
	return len(p), nil
}

func writesOf(t *testing.T, fault leveetest.Fault, text string) []string {
	t.Helper()
	pipe, _ := leveetest.Pipe()
	inside := &recorder{Conn: pipe}
	wantTransfer(t, leveetest.Faulty(inside, leveetest.Faults{Write: fault}).Write, text, len(text), nil)
	return inside.writes
}

func TestWriteIsCutIntoSegments(t *testing.T) {
	for segment, want := range map[int][]string{
		0: {"abcde"},
		1: {"a", "b", "c", "d", "e"},
		2: {"ab", "cd", "e"},
		9: {"abcde"},
	} {
		if got := writesOf(t, leveetest.Fault{Segment: segment}, "abcde"); !slices.Equal(got, want) {
			t.Errorf("segment %d: %q, want %q", segment, got, want)
		}
	}
}

func TestSeedMakesTheSameRandomSegments(t *testing.T) {
	text := strings.Repeat("levee", 100)
	first := writesOf(t, leveetest.Fault{Segment: 7, Seed: 42}, text)
	if again := writesOf(t, leveetest.Fault{Segment: 7, Seed: 42}, text); !slices.Equal(first, again) {
		t.Error("the same seed cut differently")
	}
	if other := writesOf(t, leveetest.Fault{Segment: 7, Seed: 43}, text); slices.Equal(first, other) {
		t.Error("another seed cut alike")
	}
	sizes := map[int]bool{}
	for _, segment := range first {
		sizes[len(segment)] = true
	}
	if len(sizes) != 7 || sizes[0] {
		t.Errorf("sizes %v, want all of 1 to 7", sizes)
	}
	if strings.Join(first, "") != text {
		t.Error("bytes changed")
	}
}

func TestStalledReadEndsAtItsDeadline(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Read: leveetest.Fault{After: 3, Then: leveetest.Stall}})
		peer.Write([]byte("abcdef"))
		peer.Close()
		wantRead(t, faulty, 10, "abc")
		faulty.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		wantTransfer(t, faulty.Read, "?", 0, os.ErrDeadlineExceeded)
	})
}

func TestStalledWriteEndsWithClose(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Write: leveetest.Fault{After: 3, Then: leveetest.Stall}})
		time.AfterFunc(20*time.Millisecond, func() { faulty.Close() })
		wantTransfer(t, faulty.Write, "abcdef", 3, net.ErrClosed)
		wantAll(t, peer, "abc")
		wantOpError(t, faulty.Close(), net.ErrClosed)
	})
}

func TestStallIsOfOneDirection(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Read: leveetest.Fault{Then: leveetest.Stall}})
		wantTransfer(t, faulty.Write, "out", 3, nil)
		wantRead(t, peer, 10, "out")
	})
}

func TestStallKeepsNoTimer(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, _ *leveetest.Conn) {
		faulty := leveetest.Faulty(client, leveetest.Faults{Read: leveetest.Fault{Then: leveetest.Stall}})
		start := time.Now()
		time.AfterFunc(1000*time.Hour, func() { faulty.Close() })
		wantTransfer(t, faulty.Read, "?", 0, net.ErrClosed)
		if waited := time.Since(start); waited != 1000*time.Hour {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestWriteResetsInTheMiddleOfAFrame(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Write: leveetest.Fault{After: 3, Then: leveetest.Reset}})
		wantTransfer(t, faulty.Write, "abcdef", 3, syscall.ECONNRESET)
		wantRead(t, peer, 10, "abc")
		wantTransfer(t, peer.Read, "?", 0, syscall.ECONNRESET)
		wantTransfer(t, faulty.Read, "?", 0, syscall.ECONNRESET)
		if err := faulty.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestReadResetsOnceTheBytesHavePassed(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Read: leveetest.Fault{After: 3, Then: leveetest.Reset}})
		peer.Write([]byte("abcdef"))
		wantRead(t, faulty, 10, "abc")
		wantTransfer(t, peer.Read, "?", 0, syscall.ECONNRESET)
		wantTransfer(t, faulty.Write, "x", 0, syscall.ECONNRESET)
	})
}

func TestResetAfterNothingComesWithTheFirstCall(t *testing.T) {
	for _, after := range []int64{0, -1} {
		onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
			faulty := leveetest.Faulty(ours, leveetest.Faults{Write: leveetest.Fault{After: after, Then: leveetest.Reset}})
			wantTransfer(t, faulty.Write, "x", 0, syscall.ECONNRESET)
			wantTransfer(t, peer.Read, "?", 0, syscall.ECONNRESET)
		})
	}
}

func TestResetEndsTheOtherDirectionsBlockedCall(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Write: leveetest.Fault{After: 1, Then: leveetest.Reset}})
		time.AfterFunc(20*time.Millisecond, func() { faulty.Write([]byte("x")) })
		wantTransfer(t, faulty.Read, "?", 0, syscall.ECONNRESET)
	})
}

func TestResetEndsTheOtherDirectionsStall(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, _ *leveetest.Conn) {
		faulty := leveetest.Faulty(client, leveetest.Faults{
			Read:  leveetest.Fault{Then: leveetest.Stall},
			Write: leveetest.Fault{After: 1, Then: leveetest.Reset},
		})
		time.AfterFunc(time.Minute, func() { faulty.Write([]byte("x")) })
		wantTransfer(t, faulty.Read, "?", 0, syscall.ECONNRESET)
	})
}

func TestResetGoesRoundTLS(t *testing.T) {
	ca := leveetest.NewCA(t)
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		go func() { _ = tls.Server(server, ca.ServerConfig("example.com")).Handshake() }()
		secure := tls.Client(client, ca.ClientConfig("example.com"))
		faulty := leveetest.Faulty(secure, leveetest.Faults{Write: leveetest.Fault{After: 1, Then: leveetest.Reset}})
		wantTransfer(t, faulty.Write, "xy", 1, syscall.ECONNRESET)
		synctest.Wait()
		if _, err := io.ReadAll(server); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("peer saw %v, want a reset", err)
		}
	})
}

func TestDelayPassesBeforeEverySegment(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		faulty := leveetest.Faulty(client, leveetest.Faults{Write: leveetest.Fault{Segment: 1, Delay: time.Second}})
		start := time.Now()
		wantTransfer(t, faulty.Write, "abc", 3, nil)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
		faulty.SetWriteDeadline(time.Now().Add(1500 * time.Millisecond))
		wantTransfer(t, faulty.Write, "def", 1, os.ErrDeadlineExceeded)
		wantRead(t, server, 10, "abcd")
	})
}

func TestSegmentsOfConcurrentWritesDoNotMix(t *testing.T) {
	inBubble(t, leveetest.Network{}, func(t *testing.T, client, server *leveetest.Conn) {
		faulty := leveetest.Faulty(client, leveetest.Faults{Write: leveetest.Fault{Segment: 1, Delay: time.Second}})
		var all sync.WaitGroup
		for _, word := range []string{"aaa", "bbb", "ccc"} {
			all.Go(func() { faulty.Write([]byte(word)) })
		}
		all.Wait()
		client.CloseWrite()
		got, err := io.ReadAll(server)
		if err != nil || len(got) != 9 || len(slices.Compact(got)) != 3 {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestFaultyConnKeepsHalfClose(t *testing.T) {
	onBothNetworks(t, func(t *testing.T, ours, peer net.Conn) {
		faulty := leveetest.Faulty(ours, leveetest.Faults{Write: leveetest.Fault{Segment: 1}})
		faulty.Write([]byte("request"))
		if err := faulty.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantAll(t, peer, "request")
		peer.Write([]byte("answer"))
		wantRead(t, faulty, 10, "answer")
		if err := errors.Join(faulty.CloseRead(), faulty.SetLinger(0)); err != nil {
			t.Error(err)
		}
	})
}

func TestFaultyConnSaysWhatTheOneInsideCannotDo(t *testing.T) {
	pipe, _ := net.Pipe()
	faulty := leveetest.Faulty(pipe, leveetest.Faults{})
	for _, err := range []error{faulty.CloseRead(), faulty.CloseWrite(), faulty.SetLinger(0)} {
		wantOpError(t, err, errors.ErrUnsupported)
	}
}

func TestFaultyListenerDealsItsFaultsInTurn(t *testing.T) {
	inside := leveetest.Listen()
	listener := leveetest.FaultyListener(inside,
		leveetest.Faults{},
		leveetest.Faults{Read: leveetest.Fault{Segment: 1}})
	defer listener.Close()
	var got []string
	for range 4 {
		client := mustDial(t, inside)
		client.Write([]byte("ab"))
		server := mustAccept(t, listener)
		buffer := make([]byte, 10)
		n, err := server.Read(buffer)
		got = append(got, fmt.Sprint(string(buffer[:n]), err))
	}
	if want := []string{"ab<nil>", "a<nil>", "ab<nil>", "a<nil>"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFaultyListenerCutsNoTwoConnectionsAlike(t *testing.T) {
	inside := leveetest.Listen()
	listener := leveetest.FaultyListener(inside, leveetest.Faults{Read: leveetest.Fault{Seed: 1}})
	defer listener.Close()
	sizes := map[int]bool{}
	for range 10 {
		mustDial(t, inside).Write(make([]byte, 1000))
		n, err := mustAccept(t, listener).Read(make([]byte, 1000))
		if err != nil {
			t.Fatal(err)
		}
		sizes[n] = true
	}
	if len(sizes) < 5 {
		t.Errorf("first reads of only %d sizes in 10 connections", len(sizes))
	}
}

func TestFaultyListenerPassesErrorsOn(t *testing.T) {
	inside := leveetest.Listen()
	inside.FailAccepts(syscall.EMFILE)
	_, err := leveetest.FaultyListener(inside, leveetest.Faults{}).Accept()
	wantOpError(t, err, syscall.EMFILE)
}
