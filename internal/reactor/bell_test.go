//go:build linux

package reactor_test

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/reactor"
	"github.com/levee-net/levee/leveetest"
)

// listening returns a listener with its socket.
func listening(t *testing.T) (l net.Listener, fd int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	sock, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := sock.Control(func(own uintptr) { fd = int(own) }); err != nil {
		t.Fatal(err)
	}
	return l, fd
}

func started(t *testing.T, loops int) *reactor.Reactor {
	t.Helper()
	return startedWith(t, reactor.Options{Loops: loops})
}

func startedWith(t *testing.T, o reactor.Options) *reactor.Reactor {
	t.Helper()
	leveetest.CheckLeaks(t)
	r, err := reactor.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func knock(t *testing.T, l net.Listener) {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

func heard(t *testing.T, b *reactor.Bell) {
	t.Helper()
	select {
	case <-b.C:
	case <-time.After(patience):
		t.Fatal("no ring")
	}
}

func TestBellRingsForEveryoneWhoComesToAnEmptyQueue(t *testing.T) {
	for _, loops := range []int{1, 3} {
		r := started(t, loops)
		l, fd := listening(t)
		b, err := r.Hang(fd)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			knock(t, l)
			for accepted := false; !accepted; {
				heard(t, b)
				for {
					conn, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK)
					if err == unix.EAGAIN {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					accepted = true
					unix.Close(conn)
				}
			}
		}
		b.Take()
	}
}

func TestBellRingsForThoseWhoWereThereBeforeIt(t *testing.T) {
	r := started(t, 2)
	l, fd := listening(t)
	knock(t, l)
	b, err := r.Hang(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Take()
	heard(t, b)
}

func TestBellThatWasTakenDoesNotRing(t *testing.T) {
	r := started(t, 2)
	l, fd := listening(t)
	first, err := r.Hang(fd)
	if err != nil {
		t.Fatal(err)
	}
	first.Take()
	second, err := r.Hang(fd) // which shows when a ring has come through
	if err != nil {
		t.Fatal(err)
	}
	defer second.Take()
	knock(t, l)
	heard(t, second)
	select {
	case <-first.C:
		t.Error("it rang")
	default:
	}
}

func TestNoBellIsHungInAClosedReactor(t *testing.T) {
	r := started(t, 2)
	_, fd := listening(t)
	b, err := r.Hang(fd)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	b.Take()
	if _, err := r.Hang(fd); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestBellThatCannotBeHungLeavesTheOtherAlone(t *testing.T) {
	r := started(t, 2)
	l, fd := listening(t)
	b, err := r.Hang(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Take()
	if _, err := r.Hang(fd); err == nil {
		t.Fatal("a listener has two bells")
	}
	knock(t, l)
	heard(t, b)
}
