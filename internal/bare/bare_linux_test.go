package bare_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/bare"
)

// blackHole returns an address that answers no SYN: the queue of its listener is full.
func blackHole(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for range 16 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		c, err := bare.Dial(ctx, netip.AddrPort{}, to)
		cancel()
		if err != nil {
			return to
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue is never full")
	return to
}

// Whoever detaches a socket gets it alone, non-blocking, and in no poller.
func TestADetachedSocketIsTheCallersAlone(t *testing.T) {
	l, to := listen(t, "127.0.0.1:0")
	before := openFiles(t)
	c := dial(t, to)
	if got := openFiles(t); got != before+1 {
		t.Errorf("a connection has %d files open, want 1", got-before)
	}
	fd, ok := c.Detach()
	if !ok {
		t.Fatal("there was nothing to detach")
	}
	if _, again := c.Detach(); again {
		t.Error("it was detached twice")
	}
	if err := c.Close(); err == nil {
		t.Error("closing what was detached went well")
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Error(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if n, err := peer.Read(make([]byte, 9)); n != 1 {
		t.Errorf("%d bytes arrived, %v", n, err)
	}
	if _, err := unix.Read(fd, make([]byte, 1)); err != unix.EAGAIN {
		t.Errorf("reading where there is nothing: %v, want EAGAIN", err)
	}
	bare.KeepAlive(fd)
	checkKeepAlive(t, fd)
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

func TestWhatBecomesNetsOwnIsKeptAlive(t *testing.T) {
	_, to := listen(t, "127.0.0.1:0")
	raw, err := dial(t, to).NetConn().(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { checkKeepAlive(t, int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

func checkKeepAlive(t *testing.T, fd int) {
	t.Helper()
	for _, option := range []struct{ level, name, want int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
	} {
		if v, err := unix.GetsockoptInt(fd, option.level, option.name); v != option.want || err != nil {
			t.Errorf("socket option %v is %d, %v", option, v, err)
		}
	}
}

// The kernel may choose the very port that is dialled, if nobody listens there, and
// connect the socket with itself.
func TestNobodyIsConnectedWithItself(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Skip(err)
	}
	var first, last uint16
	if _, err := fmt.Sscan(string(b), &first, &last); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(to), (first+(last-first)/2)&^1) // which is tried before odd ones
		for range int(last-first) / 2 {
			c, err := bare.Dial(t.Context(), netip.AddrPort{}, to)
			if err == nil {
				t.Fatalf("%v is connected with %v", c.LocalAddr(), c.RemoteAddr())
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Skip(err) // somebody listens there, or this machine has no such address
			}
		}
	}
}

// One that has been used as a net.Conn is in Go's poller, and stays there.
func TestAUsedConnectionCannotBeDetached(t *testing.T) {
	_, to := listen(t, "127.0.0.1:0")
	c := dial(t, to)
	if err := c.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Detach(); ok {
		t.Error("it was detached")
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/" + strconv.Itoa(os.Getpid()) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
