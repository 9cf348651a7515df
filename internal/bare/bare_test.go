package bare_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/leveetest"
)

// listen returns a listener on the loopback interface, and its address.
func listen(t *testing.T, at string) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Skip("cannot listen here:", err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, to netip.AddrPort) *bare.Conn {
	t.Helper()
	c, err := bare.Dial(t.Context(), netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAConnectionIsANetConnLikeAnyOther(t *testing.T) {
	leveetest.CheckLeaks(t)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, to := listen(t, at)
		c := dial(t, to)
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if _, err := c.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		long := strings.Repeat("x", 1<<20)
		go func() {
			_, _ = io.WriteString(c, long) // what fails shows at the other end
			_ = c.NetConn().(*net.TCPConn).CloseWrite()
		}()
		if got, err := io.ReadAll(peer); err != nil || string(got) != "first"+long {
			t.Errorf("%d bytes arrived, %v", len(got), err)
		}
		if _, err := peer.Write([]byte("back")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "back" {
			t.Errorf("read %q, %v", got, err)
		}
		if c.RemoteAddr().String() != to.String() || c.LocalAddr().String() != peer.RemoteAddr().String() {
			t.Errorf("it is from %v to %v, want %v to %v", c.LocalAddr(), c.RemoteAddr(), peer.RemoteAddr(), to)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(got); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading it when it is closed: %v", err)
		}
	}
}

func TestARefusalIsWhatNetWouldHaveMadeOfIt(t *testing.T) {
	l, to := listen(t, "127.0.0.1:0")
	l.Close()
	_, err := bare.Dial(t.Context(), netip.AddrPort{}, to)
	own, ok := errors.AsType[*net.OpError](err)
	if !ok || own.Op != "dial" || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the error is %v", err)
	}
	if _, theirs := net.Dial("tcp", to.String()); theirs.Error() != err.Error() {
		t.Errorf("it reads %q, net's %q", err, theirs)
	}
}

func TestALocalAddressIsUsed(t *testing.T) {
	l, to := listen(t, "127.0.0.1:0")
	from := netip.MustParseAddrPort("127.0.0.2:0")
	c, err := bare.Dial(t.Context(), from, to)
	if err != nil {
		t.Skip("this machine has no 127.0.0.2:", err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if got := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != from.Addr() {
		t.Errorf("connected from %v, want %v", got, from)
	}
}

func TestAnEndedContextEndsADialThatWaits(t *testing.T) {
	leveetest.CheckLeaks(t)
	to := blackHole(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(nil) })
	if _, err := bare.Dial(ctx, netip.AddrPort{}, to); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := bare.Dial(ctx, netip.AddrPort{}, to); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timed out: %v", err)
	}
}
