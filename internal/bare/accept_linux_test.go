package bare_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/levee-net/levee/internal/bare"
	"golang.org/x/sys/unix"
)

const acceptPatience = 20_000 // milliseconds

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listenOn listens, if this machine has the address.
func listenOn(t testing.TB, network, address string) (net.Listener, syscall.RawConn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { l.Close() })
	raw, err := l.(syscall.Conn).SyscallConn()
	must(t, err)
	return l, raw
}

// accept accepts the connection that is about to be there.
func accept(t testing.TB, listener syscall.RawConn) (fd int, peer netip.AddrPort) {
	t.Helper()
	var err error
	must(t, listener.Control(func(l uintptr) {
		for fd, peer, err = bare.Accept(int(l)); err == unix.EAGAIN; fd, peer, err = bare.Accept(int(l)) {
			unix.Poll([]unix.PollFd{{Fd: int32(l), Events: unix.POLLIN}}, acceptPatience)
		}
	}))
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd, peer
}

func TestAcceptTellsWhoThePeerIsAsPackageNetDoes(t *testing.T) {
	for name, c := range map[string]struct{ listen, dial string }{
		"IPv4":              {"127.0.0.1:0", "127.0.0.1"},
		"IPv6":              {"[::1]:0", "::1"},
		"IPv4 through IPv6": {"[::]:0", "127.0.0.1"},
		"IPv6 link-local":   {"[::]:0", linkLocal()},
	} {
		t.Run(name, func(t *testing.T) {
			if c.dial == "" {
				t.Skip("no interface has such an address")
			}
			l, raw := listenOn(t, "tcp", c.listen)
			_, port, err := net.SplitHostPort(l.Addr().String())
			must(t, err)
			conn, err := net.Dial("tcp", net.JoinHostPort(c.dial, port))
			must(t, err)
			t.Cleanup(func() { conn.Close() })
			fd, peer := accept(t, raw)
			if want := conn.LocalAddr().String(); peer.String() != want {
				t.Errorf("accepted %v, want %v", peer, want)
			}
			if got, want := bare.Local(fd).String(), conn.RemoteAddr().String(); got != want {
				t.Errorf("it is bound to %v, want %v", got, want)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v: it blocks", flags, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("flags %#x, %v: a child would inherit it", flags, err)
			}
		})
	}
}

// linkLocal returns an address of this machine that has a zone, if there is one.
func linkLocal() string {
	interfaces, _ := net.Interfaces()
	for _, ifi := range interfaces {
		addrs, _ := ifi.Addrs()
		for _, addr := range addrs {
			if ip, ok := addr.(*net.IPNet); ok && ip.IP.To4() == nil && ip.IP.IsLinkLocalUnicast() {
				return ip.IP.String() + "%" + ifi.Name
			}
		}
	}
	return ""
}

func TestAcceptKnowsNoAddressOfAnotherFamily(t *testing.T) {
	for _, from := range []string{"", "client"} {
		l, raw := listenOn(t, "unix", filepath.Join(t.TempDir(), "socket"))
		dialer := net.Dialer{}
		if from != "" {
			dialer.LocalAddr = &net.UnixAddr{Name: filepath.Join(t.TempDir(), from), Net: "unix"}
		}
		conn, err := dialer.Dial("unix", l.Addr().String())
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		fd, peer := accept(t, raw)
		if local := bare.Local(fd); peer != (netip.AddrPort{}) || local != (netip.AddrPort{}) {
			t.Errorf("accepted %v, bound to %v; want neither", peer, local)
		}
		unix.Write(fd, []byte("hello"))
		got := make([]byte, len("hello"))
		if _, err := io.ReadFull(conn, got); string(got) != "hello" {
			t.Errorf("read %q, %v from it", got, err)
		}
	}
}

func TestAcceptSaysWhyItDoesNot(t *testing.T) {
	_, raw := listenOn(t, "tcp", "127.0.0.1:0")
	must(t, raw.Control(func(l uintptr) {
		if fd, peer, err := bare.Accept(int(l)); fd != -1 || peer.IsValid() || err != unix.EAGAIN {
			t.Errorf("accepted %d of %v, %v; want nobody and a bare EAGAIN", fd, peer, err)
		}
	}))
	fd, _, err := bare.Accept(1 << 20)
	var failed *os.SyscallError
	if fd != -1 || !errors.As(err, &failed) || failed.Syscall != "accept4" || !errors.Is(err, unix.EBADF) {
		t.Errorf("accepted %d from a socket that is none, %v", fd, err)
	}
	if local := bare.Local(1 << 20); local.IsValid() {
		t.Errorf("a socket that is none is bound to %v", local)
	}
}

func TestAcceptAllocatesNothing(t *testing.T) {
	const many = 50
	l, raw := listenOn(t, "tcp", "127.0.0.1:0")
	for range many + 2 {
		conn, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		t.Cleanup(func() { conn.Close() })
	}
	fd, _ := accept(t, raw)
	var accepted [many + 1]int
	i := 0
	must(t, raw.Control(func(l uintptr) {
		allocations := testing.AllocsPerRun(many, func() {
			var err error
			if accepted[i], _, err = bare.Accept(int(l)); err != nil {
				t.Errorf("of connections that are there: %v", err)
			}
			i++
		})
		if allocations != 0 {
			t.Errorf("%v allocations for a connection", allocations)
		}
		if allocations := testing.AllocsPerRun(many, func() { bare.Local(fd) }); allocations != 0 {
			t.Errorf("%v allocations for an address", allocations)
		}
	}))
	for _, fd := range accepted {
		unix.Close(fd)
	}
}
