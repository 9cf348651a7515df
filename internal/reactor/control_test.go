//go:build linux

package reactor_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// inode tells one socket from another that has its number.
func inode(t testing.TB, fd int) uint64 {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		t.Errorf("fstat: %v", err)
	}
	return s.Ino
}

func TestControlHasTheSocketUntilTheConnectionEnds(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	o := newOwner(t, nil)
	want, inStep := inode(t, fd), make(chan bool, 1)
	same := func(fd int) {
		if inode(t, fd) != want {
			t.Error("another socket")
		}
	}
	o.step = func(in, _ []byte) (int, []byte, error) {
		inStep <- o.Control(same)
		return len(in), in, nil
	}
	o.adopt(t, r, fd, nil, reactor.Limits{})
	exchange(t, peer, "x")
	if !o.Control(same) || !receive(t, inStep, "the call") {
		t.Error("no socket, though it is open")
	}
	o.Kill()
	o.endsAs(t, reactor.Killed)
	if o.Control(func(int) { t.Error("called") }) {
		t.Error("a socket, though it is closed")
	}
}

func TestASocketIsClosedByTheLastControlThatUsesIt(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	fd, peer := pair(t)
	o := adopt(t, r, fd, reactor.Limits{}, echo)
	want := inode(t, fd)
	const users = 3
	inside, gate, over := make(chan struct{}), make(chan struct{}), make(chan bool)
	for range users {
		go func() { // ends when the test lets it
			over <- o.Control(func(fd int) {
				inside <- struct{}{}
				<-gate
				if inode(t, fd) != want {
					t.Error("another socket")
				}
			})
		}()
		<-inside
	}
	o.Kill()
	o.endsAs(t, reactor.Killed) // End does not wait
	if o.Control(func(int) { t.Error("called") }) {
		t.Error("a socket, though the connection has ended")
	}
	for range users {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Fatalf("while it is in use: %v", err)
		}
		gate <- struct{}{}
		if !<-over {
			t.Error("it has been in use, and was not")
		}
	}
	expectEnd(t, peer, nil)
}

func TestAControlThatPanicsIsOver(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := pair(t)
	o := adopt(t, r, fd, reactor.Limits{}, echo)
	for _, fail := range []func(){func() { panic("oh") }, runtime.Goexit} {
		over := make(chan struct{})
		go func() { // ends with fail
			defer close(over)
			defer func() { _ = recover() }()
			o.Control(func(int) { fail() })
		}()
		<-over
	}
	o.Kill()
	expectEnd(t, peer, nil)
}

func TestASocketIsDiscardedByTheLastControlThatUsesIt(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	fd, peer := tcp(t)
	o, want := adopt(t, r, fd, reactor.Limits{}, echo), inode(t, fd)
	o.elsewhere.Store(true)
	packUp(t, &o.Conn)
	inside, gate, over := make(chan struct{}), make(chan struct{}), make(chan bool)
	go func() { // ends when the test lets it
		over <- o.Control(func(fd int) {
			close(inside)
			<-gate
			if inode(t, fd) != want {
				t.Error("another socket")
			}
		})
	}()
	receive(t, inside, "the socket of a connection that is packed")
	o.Discard()
	if o.Control(func(int) { t.Error("called") }) {
		t.Error("a socket, though it was discarded")
	}
	exchange(t, other, "hello") // nobody waits
	o.Kill()
	o.Leave()
	close(gate)
	if !<-over {
		t.Error("it has been in use, and was not")
	}
	expectEnd(t, peer, nil)
}

func TestControlNeverSeesASocketThatHasTheNumberNow(t *testing.T) {
	r := start(t, reactor.Options{})
	var all sync.WaitGroup
	var calls atomic.Int64
	for range 4 { // whose sockets get each other's numbers
		all.Go(func() {
			for i := range 40 {
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				calls.Add(useUntilTheEnd(t, r, fds[0], i%2 == 0))
				unix.Close(fds[1])
			}
		})
	}
	all.Wait()
	t.Logf("%d calls", calls.Load())
}

// useUntilTheEnd has several goroutines use a connection's socket while it is
// killed, or discarded, and returns how often they have.
func useUntilTheEnd(t *testing.T, r *reactor.Reactor, fd int, kill bool) int64 {
	o, want := newOwner(t, echo), inode(t, fd)
	if err := r.Adopt(&o.Conn, fd, nil, o, &reactor.Limits{}); err != nil {
		t.Error(err)
		return 0
	}
	var users sync.WaitGroup
	var inside, calls atomic.Int64
	started := make(chan struct{}, 3)
	for range cap(started) {
		users.Go(func() {
			use := func(fd int) {
				inside.Add(1)
				calls.Add(1)
				for range 3 {
					if inode(t, fd) != want {
						t.Error("another socket")
					}
					runtime.Gosched()
				}
				inside.Add(-1)
			}
			o.Control(use)
			for started <- struct{}{}; o.Control(use); {
			}
		})
	}
	<-started
	if kill {
		o.Kill()
		<-o.ended
	} else {
		packUp(t, &o.Conn)
		o.Discard()
	}
	users.Wait()
	return calls.Load()
}
