//go:build linux

package reactor_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"github.com/levee-net/levee/leveetest"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// A step is an owner's Step.
type step func(in, out []byte) (n int, reply []byte, err error)

func echo(in, _ []byte) (int, []byte, error) { return len(in), in, nil }

// An owner is the connection of a test. It minds that what Owner promises is kept.
type owner struct {
	reactor.Conn
	t         testing.TB
	step      step
	greet     step // for a first call without bytes
	onSlow    func()
	onSlowed  func(took time.Duration)
	ended     chan ending
	over      chan struct{} // closed at the end
	onEnd     func()
	elsewhere atomic.Bool // it will not end here

	seen  int // by the call that runs, or the last
	calls int
	kept  []byte // what the last call was shown, and consumed none of
	began time.Time
	slack time.Duration // by which a call may seem to have begun later than it has
	slow  atomic.Int32  // calls of Slow whose Slowed has not come
}

func newOwner(t testing.TB, s step) *owner {
	return &owner{t: t, step: s, slack: time.Second, ended: make(chan ending, 1), over: make(chan struct{})}
}

type ending struct {
	cause reactor.Cause
	err   error
	at    time.Time
}

func (o *owner) Step(in []byte, seen int, out []byte) (int, []byte, error) {
	o.began = time.Now()
	if o.calls++; len(in) == 0 && o.calls > 1 {
		o.t.Errorf("call %d has no bytes", o.calls)
	}
	if seen != len(o.kept) || len(in) < seen || !bytes.Equal(in[:seen], o.kept) {
		o.t.Errorf("seen is %d, of %d bytes, after a call that left %d", seen, len(in), len(o.kept))
	}
	if o.calls > 1 && seen == len(in) {
		o.t.Errorf("called with %d bytes, all of which it has seen", seen)
	}
	o.seen = seen
	do := o.step
	if len(in) == 0 {
		if do = o.greet; do == nil {
			return 0, nil, nil
		}
	}
	n, reply, err := do(in, out)
	if o.kept = o.kept[:0]; n == 0 {
		o.kept = append(o.kept, in...)
	}
	return n, reply, err
}

func (o *owner) Slow() {
	if o.slow.Add(1) != 1 {
		o.t.Error("told twice that a call is slow")
	}
	if o.onSlow != nil {
		o.onSlow()
	}
}

func (o *owner) Slowed(took time.Duration) {
	if o.slow.Add(-1) != 0 {
		o.t.Error("told how long a call took, but not that it was slow")
	}
	if most := time.Since(o.began) + o.slack; took > most {
		o.t.Errorf("told that a call took %v, more than %v", took, most)
	}
	if o.onSlowed != nil {
		o.onSlowed(took)
	}
}

func (o *owner) End(cause reactor.Cause, err error) {
	if o.slow.Load() != 0 {
		o.t.Error("ended, and was not told how long a slow call took")
	}
	o.ended <- ending{cause, err, time.Now()}
	close(o.over)
	if o.onEnd != nil {
		o.onEnd()
	}
}

// start starts a reactor that ends with the test, when its connections have.
func start(t testing.TB, options reactor.Options) *reactor.Reactor {
	t.Helper()
	leveetest.CheckLeaks(t)
	return startAnother(t, options)
}

// startAnother is start for a second one, which the first one's check for leaks is for as well.
func startAnother(t testing.TB, options reactor.Options) *reactor.Reactor {
	t.Helper()
	r, err := reactor.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// tcp returns a connection's two ends: a bare socket and its peer.
func tcp(t testing.TB) (fd int, peer *net.TCPConn) {
	t.Helper()
	listening, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(listening)
	must(t, unix.Bind(listening, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(listening, 1))
	name, err := unix.Getsockname(listening)
	must(t, err)
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port)))
	must(t, err)
	fd, _, err = unix.Accept4(listening, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	must(t, err)
	return fd, safe(t, conn).(*net.TCPConn)
}

// pair is tcp with a socketpair.
func pair(t testing.TB) (fd int, peer net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	return fds[0], fileConn(t, fds[1])
}

func fileConn(t testing.TB, fd int) net.Conn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "peer")
	defer file.Close()
	conn, err := net.FileConn(file)
	must(t, err)
	return safe(t, conn)
}

// safe sees to it that a connection neither outlives the test nor blocks it.
func safe(t testing.TB, conn net.Conn) net.Conn {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// adopt gives one end of a connection to the reactor.
func adopt(t testing.TB, r *reactor.Reactor, fd int, limits reactor.Limits, s step) *owner {
	t.Helper()
	return adoptWith(t, r, fd, nil, limits, s)
}

// adoptWith is adopt with bytes that have been read before.
func adoptWith(t testing.TB, r *reactor.Reactor, fd int, first []byte, limits reactor.Limits, s step) *owner {
	t.Helper()
	o := newOwner(t, s)
	o.adopt(t, r, fd, first, limits)
	return o
}

// adopt gives one end of a connection to the reactor until the test ends.
func (o *owner) adopt(t testing.TB, r *reactor.Reactor, fd int, first []byte, limits reactor.Limits) {
	t.Helper()
	must(t, r.Adopt(&o.Conn, fd, first, o, &limits))
	o.endsWithTest(t)
}

// endsWithTest has the connection end, unless it goes on elsewhere.
func (o *owner) endsWithTest(t testing.TB) {
	t.Cleanup(func() {
		if !o.elsewhere.Load() {
			o.Kill()
			receive(t, o.over, "the end of a connection that was killed")
		}
	})
}

// serve has a step serve one end of a new connection, and returns both.
func serve(t testing.TB, r *reactor.Reactor, limits reactor.Limits, s step) (*owner, *net.TCPConn) {
	t.Helper()
	fd, peer := tcp(t)
	return adopt(t, r, fd, limits, s), peer
}

// endsAs waits for the end.
func (o *owner) endsAs(t testing.TB, want reactor.Cause) ending {
	t.Helper()
	got := receive(t, o.ended, "the connection's end")
	if got.cause != want {
		t.Fatalf("ended as %d, %v; want %d", got.cause, got.err, want)
	}
	return got
}

// view waits until the loop has obeyed all that was asked of the connection.
func (o *owner) view(t testing.TB) reactor.View {
	t.Helper()
	views := make(chan reactor.View, 1)
	o.Inspect(func(v reactor.View) { views <- v })
	select {
	case v := <-views:
		return v
	case end := <-o.ended:
		t.Fatalf("ended as %d, %v", end.cause, end.err)
	case <-time.After(patience):
		t.Fatal("the loop does not answer")
	}
	panic("unreachable")
}

// eventually asks until it is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); !so(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func receive[T any](t testing.TB, from <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
	}
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exchange sends p and wants it back.
func exchange(t testing.TB, peer net.Conn, p string) {
	t.Helper()
	peer.Write([]byte(p))
	expect(t, peer, p)
}

func expect(t testing.TB, peer net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(peer, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got[:n], err, want)
	}
}

// expectEnd wants exactly that, and then the end of the stream.
func expectEnd(t testing.TB, peer net.Conn, want []byte) {
	t.Helper()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v; want exactly these %d and EOF", len(got), err, len(want))
	}
}
