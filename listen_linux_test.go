package levee_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
)

// option reads a socket's option.
func option(t *testing.T, socket any, level, name int) int {
	t.Helper()
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	if e := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return value
}

func TestWhatALoopTouchesOfAConnectionFitsTwoCacheLines(t *testing.T) {
	if levee.HotSize > 128 || levee.Size > 320 {
		t.Errorf("it takes %d bytes of %d", levee.HotSize, levee.Size)
	}
}

func TestListenIsPlainTCP(t *testing.T) {
	if protocol := option(t, listenTCP(t), unix.SOL_SOCKET, unix.SO_PROTOCOL); protocol != unix.IPPROTO_TCP {
		t.Errorf("protocol %d, want %d: is Multipath TCP (%d) on?", protocol, unix.IPPROTO_TCP, unix.IPPROTO_MPTCP)
	}
}

func TestAcceptedSocketsInheritTheListenersOptions(t *testing.T) {
	l := listenTCP(t)
	got := make(chan string)
	serve(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		got <- fmt.Sprint(
			"keepalive ", option(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE),
			" idle ", option(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE),
			" interval ", option(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL),
			" count ", option(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT),
			" nodelay ", option(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY),
		)
		return nil
	})}, l)
	dialTCP(t, l)
	if got, want := <-got, "keepalive 1 idle 15 interval 15 count 9 nodelay 1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// parkOn fills a listener's accept queue with clients that have each sent a line.
func parkOn(t *testing.T, l net.Listener, n int) []net.Conn {
	t.Helper()
	clients := make([]net.Conn, n)
	for i := range clients {
		clients[i] = dialTCP(t, l)
		if _, err := fmt.Fprintln(clients[i], "parked", i); err != nil {
			t.Fatal(err)
		}
	}
	return clients
}

func TestStatsTellTheKernelsQueue(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Skip(err)
	}
	longest, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	l := listenTCP(t)
	hold := make(chan struct{})
	s := serve(t, &levee.Server{MaxConns: 1, Handler: handle(func(context.Context, *levee.Conn) error {
		<-hold
		return nil
	})}, l)
	t.Cleanup(func() { close(hold) })
	for _, c := range parkOn(t, l, 8) {
		defer c.Close()
	}
	stats := s.Stats()
	for stats.Active < 1 {
		stats = s.Stats()
	}
	if stats.QueueLength != 7 || stats.QueueLimit != longest {
		t.Errorf("%d of %d in the queue, want 7 of somaxconn, %d", stats.QueueLength, stats.QueueLimit, longest)
	}
}

func TestMaxConnsIsDerivedFromTheLimitOfOpenFiles(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	const ofLoops = 3 // each
	loops := runtime.GOMAXPROCS(0)
	if int(limit.Cur) < 2*(128+ofLoops*loops) || limit.Cur > 1<<31-1 {
		t.Skipf("%d open files", limit.Cur) // for fewer see the test of a server out of files
	}
	var srv levee.Server
	if n := srv.Stats().MaxConns; n != int(limit.Cur)-128-ofLoops*loops {
		t.Errorf("MaxConns is %d, want %d less 128 and %d loops' files", n, limit.Cur, loops)
	}
}
