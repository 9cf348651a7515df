package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/leveetest"
	"golang.org/x/sys/unix"
)

// openNow counts the files that are open, and the ends of pipes among them.
func openNow(t testing.TB) (files, pipes int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		what, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil {
			continue // ReadDir's own
		}
		files++
		if strings.HasPrefix(what, "pipe:") {
			pipes++
		}
	}
	return files, pipes
}

func TestAnIdlePairHasTwoFilesOpen(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network == "memory" {
			return
		}
		s := e.join(t, &levee.Server{}, tcpUpstream)
		s.answered()
		before, _ := openNow(t)
		for range 20 {
			s.answered()
		}
		if after, _ := openNow(t); after-before != 20*4 { // two are the server's
			t.Errorf("20 pairs and their ends have %d files open, want 80", after-before)
		}
	})
}

func TestBulkGoesThroughPipesThatAreGivenBack(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.onLoop() || e.network != "tcp" {
			return
		}
		s := e.join(t, &levee.Server{}, tcpUpstream)
		_, before := openNow(t)
		var couples []couple
		for range 4 {
			couples = append(couples, s.meet())
		}
		var all sync.WaitGroup
		for _, c := range couples {
			for _, c := range []couple{c, c.swapped()} {
				all.Go(func() {
					b := payload(4 << 20)
					go c.near.Write(b) // ends with the reading, or the connection
					got := make([]byte, len(b))
					if _, err := io.ReadFull(c.far, got); err != nil {
						t.Error(err)
					}
					wantBytes(t, got, b)
				})
			}
		}
		all.Wait()
		_, kept := openNow(t)
		if kept == before {
			t.Error("no pipe was used")
		}
		if most := before + 2*8; kept > most {
			t.Errorf("%d ends of pipes are open, for 8 directions", kept-before)
		}
		for _, c := range couples { // and what comes now is small
			send(t, c.near, "x")
			want(t, c.far, "x")
		}
	})
}

// delivered waits until the other side's kernel has all that c has sent.
func delivered(t testing.TB, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for queue := 1; queue > 0; runtime.Gosched() {
		if e := raw.Control(func(fd uintptr) { queue, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
}

// readUpTo reads so many bytes, fewer if there are no more.
func readUpTo(r io.Reader, n int) []byte {
	b := make([]byte, n)
	n, _ = io.ReadFull(r, b)
	return b[:n]
}

// The receiver reads nothing before the sender is gone: what it gets is what was taken for
// it in time.
func TestASlowReceiverGetsAllThatWasSentBeforeAReset(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.overTCP() {
			return
		}
		for _, halfClosed := range []bool{false, true} {
			s := e.join(t, &levee.Server{}, tcpUpstream)
			eachWay(t, s, func(t testing.TB, from, to peer, upward bool) {
				b := payload(1_000 + rand.IntN(100_000)) // which the kernel holds also for who has not shown yet that he is quick
				send(t, from, string(b))
				if halfClosed {
					_ = from.CloseWrite()
				}
				delivered(t, from)
				resetByClient(t, from)
				if !halfClosed {
					wantReset(t, to, b)
				} else { // an end is an end: who writes learns more
					wantBytes(t, readUpTo(to, len(b)), b)
					for err := error(nil); err == nil; {
						_, err = to.Write([]byte("x"))
					}
				}
				s.end(resetReason(upward))
			})
		}
	})
}

func TestAResetThatFollowsTheEndAtOnceIsOne(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.overTCP() || !e.onLoop() {
			return
		}
		s := e.join(t, &levee.Server{}, tcpUpstream)
		for range 20 {
			eachWay(t, s, func(t testing.TB, from, to peer, upward bool) {
				send(t, from, "bye")
				_ = from.CloseWrite()
				resetByClient(t, from)
				got, err := readRandomly(newRandom(), to)
				if string(got) != "bye" && len(got) > 0 {
					t.Errorf("got %q", got)
				}
				if err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Error(err)
				}
				s.end(resetReason(upward))
			})
		}
	})
}

func TestBothSidesMayBeResetAtOnce(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.overTCP() {
			return
		}
		s := e.join(t, &levee.Server{}, tcpUpstream)
		began := time.Now()
		for range 5 {
			c := s.meet()
			for _, side := range []peer{c.near, c.far} { // which wait on the other
				_ = side.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				_, _ = side.Write(make([]byte, 16<<20))
			}
			resetByClient(t, c.near)
			resetByClient(t, c.far)
			if p := receive(t, s.over); p.Reason != levee.ClientReset && p.Reason != levee.UpstreamReset {
				t.Errorf("ended as %v (%v)", p.Reason, p.Err)
			}
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestBytesAroundUrgentDataArePassedOn(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.overTCP() {
			return
		}
		s := e.join(t, &levee.Server{}, tcpUpstream)
		eachWay(t, s, func(t testing.TB, from, to peer, _ bool) {
			raw, err := from.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				b := payload(600_000)
				go func() { // ends with the reading, or the connection
					_, _ = from.Write(b[:len(b)/2])
					_ = raw.Write(func(fd uintptr) bool {
						return unix.Send(int(fd), []byte("!"), unix.MSG_OOB|unix.MSG_DONTWAIT) != unix.EAGAIN
					})
					_, _ = from.Write(b[len(b)/2:])
				}()
				got := make([]byte, len(b))
				if n, err := io.ReadFull(to, got); err != nil {
					t.Fatalf("after %d of %d bytes: %v", n, len(b), err)
				}
				wantBytes(t, got, b)
			}
		})
	})
}

// Out of files, a connection that was accepted bare may find no way to be joined. Its
// socket must be closed once: the number may be another file's by then.
func TestAConnectionThatCannotBeJoinedForWantOfFilesIsClosedOnce(t *testing.T) {
	leveetest.CheckLeaks(t)
	e := engines[0]
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before) }
	t.Cleanup(restore)
	l, dial := memoryUpstream.start(t)
	s := e.joinAt(t, &levee.Server{}, e.listen(t), memoryUpstream, l, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		few := before
		few.Cur = 3 // the files that are open stay so
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
			t.Error(err)
		}
		return c, err
	})
	for range 10 {
		client := s.dial()
		wantEnd(t, client)
		receive(t, s.scene.ends)
		restore()
		r, w, err := os.Pipe() // takes the number
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		runtime.GC()
		if _, err := w.Write([]byte("x")); err != nil {
			t.Errorf("somebody has closed another's file: %v", err)
		}
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Errorf("somebody has closed another's file: %v", err)
		}
		r.Close()
		w.Close()
		client.Close()
	}
}

// A loop may refuse a pair, for want of memory or as the server ends. Its only descriptor
// is needed then.
func TestAPairThatNoLoopTakesIsJoinedByGoroutines(t *testing.T) {
	for _, e := range []engine{engines[0], engines[1], tlsOnLoop} {
		t.Run(e.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			srv := &levee.Server{}
			l := listenTCP(t)
			s := e.joinAt(t, srv, e.listen(t), tcpUpstream, l, func(ctx context.Context) (net.Conn, error) {
				levee.CloseLoops(srv)
				return bare.Dial(ctx, netip.AddrPort{}, l.Addr().(*net.TCPAddr).AddrPort())
			})
			s.rough.Store(true)
			s.meet().converseBothWays(t, 100_000)
			if reason := receive(t, s.over).Reason; reason != levee.ClientClosed && reason != levee.UpstreamClosed {
				t.Errorf("ended as %v", reason)
			}
		})
	}
}

// sendBuffer sets how much may wait for a socket's peer.
func sendBuffer(t testing.TB, socket syscall.Conn, size int) {
	raw, err := socket.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size) })
	}
	if err != nil {
		t.Error(err)
	}
}

// crypto/tls gives its own end 5 seconds to be written, and then gives it up. A Unix
// socket that is full has room for nothing at all.
func TestAnEndOverTLSWaitsForASlowReader(t *testing.T) {
	leveetest.CheckLeaks(t)
	e := engine{network: "unix", tls: true, listen: listenUnix}
	ca := leveetest.NewCA(t)
	plain, dialPlain := dialed(listenUnix(t))
	t.Cleanup(func() { plain.Close() })
	l := tls.NewListener(plain, ca.ServerConfig("localhost"))
	dialled := make(chan syscall.Conn, 1)
	s := e.joinAt(t, &levee.Server{}, e.listen(t), tlsUpstream, l, func(ctx context.Context) (net.Conn, error) {
		c, err := dialPlain(ctx)
		if err != nil {
			return nil, err
		}
		dialled <- c.(syscall.Conn)
		return tls.Client(c, ca.ClientConfig("localhost")), nil
	})
	var all sync.WaitGroup
	for _, upward := range []bool{true, false} {
		c := s.meet()
		socket := receive(t, dialled)
		if !upward {
			c, socket = c.swapped(), c.conn
		}
		all.Go(func() {
			sendBuffer(t, socket, 1<<20)
			b := payload(100_000)
			send(t, c.near, string(b))
			untilQuiet(c.conn)
			sendBuffer(t, socket, 0) // nothing has room now beside what has not been taken
			if err := c.near.CloseWrite(); err != nil {
				t.Error(err)
			}
			<-time.After(6 * time.Second)
			got, err := io.ReadAll(c.far)
			if err != nil {
				t.Errorf("upward %t: after %d bytes: %v", upward, len(got), err)
			}
			wantBytes(t, got, b)
			send(t, c.far, "thanks")
			want(t, c.near, "thanks")
		})
	}
	all.Wait()
}

// A router has had a look at what was decrypted, and crypto/tls has read records behind it.
func TestWhatWasReadAheadOverTLSGoesToTheLoopFirst(t *testing.T) {
	leveetest.CheckLeaks(t)
	e := engine{joins: true, routed: true, tls: true, network: "tcp", listen: listenTCP}
	s := e.join(t, &levee.Server{}, tcpUpstream)
	for _, size := range []int{1, 100, 5000, 100_000} {
		b, near := payload(size), s.dial()
		written := make(chan error, 1)
		go func() { // ends with the reading, or the connection
			_, err := near.Write(b)
			written <- err
		}()
		far, got := s.accept(), make([]byte, size)
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, got, b)
		if err := receive(t, written); err != nil {
			t.Error(err)
		}
		c := receive(t, s.joined)
		isKnown := func(when string) {
			if state := c.TLS(); state == nil || !state.HandshakeComplete || state.ServerName != "localhost" {
				t.Errorf("%s: TLS is %+v", when, state)
			}
			if c.TLSConfig() != s.TLSConfig {
				t.Errorf("%s: the handshake is said to have been made with another configuration", when)
			}
		}
		isKnown("on the loop")
		near.Close()
		wantEOF(t, far)
		far.Close()
		s.end(levee.ClientClosed)
		isKnown("at the end")
	}
}

func TestASlowReceiverGetsAllThatEndedByCloseNotifyBeforeAReset(t *testing.T) {
	onEveryTLS(t, func(t *testing.T, e engine) {
		s := e.tightly(t, &levee.Server{})
		for range 5 {
			c, b := s.meet(), payload(rand.IntN(100_000))
			var writing sync.WaitGroup
			writing.Go(func() {
				_, _ = c.near.Write(b)
				_ = c.near.CloseWrite()
				delivered(t, c.near.(*tls.Conn).NetConn())
				resetByClient(t, c.near)
			})
			got, err := readRandomly(newRandom(), c.far)
			wantBytes(t, got, b)
			if err != nil {
				t.Errorf("behind them came %v, want the end", err)
			}
			writing.Wait()
			c.far.Close()
			receive(t, s.over)
		}
	})
}
