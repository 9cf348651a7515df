//go:build linux

package reactor_test

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"github.com/levee-net/levee/leveetest"
	"golang.org/x/sys/unix"
)

func TestAnIdleConnectionLeavesAtOnce(t *testing.T) {
	r := start(t, reactor.Options{})
	var all []*owner
	for range 1000 {
		o, peer := serve(t, r, reactor.Limits{Idle: time.Hour}, echo)
		all = append(all, o)
		exchange(t, peer, "x")
	}
	began := time.Now()
	for _, o := range all {
		o.Leave()
		o.Leave()
	}
	for _, o := range all {
		o.endsAs(t, reactor.Left)
	}
	t.Logf("%d left in %v", len(all), time.Since(began))
}

func TestWhatHasArrivedIsAnsweredBeforeLeaving(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for range 200 {
		o, peer := serve(t, r, reactor.Limits{}, records(1))
		o.Pause()
		o.view(t)
		two := append(record([]byte("one")), record([]byte("two"))...)
		peer.Write(two)
		o.Leave()
		o.Resume()
		expectEnd(t, peer, two)
		o.endsAs(t, reactor.Left)
	}
}

func TestARequestThatCameDuringTheLastCallIsAnswered(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	came, gate := make(chan struct{}), make(chan struct{})
	o, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
		if in[0] == 'a' {
			close(came)
			<-gate
		}
		return 1, append(out, in[0]), nil
	})
	peer.Write([]byte("a"))
	receive(t, came, "the call")
	o.Leave()
	peer.Write([]byte("b"))
	close(gate)
	expectEnd(t, peer, []byte("ab"))
	o.endsAs(t, reactor.Left)
}

func TestAMessageThatHasBegunIsWaitedForBeforeLeaving(t *testing.T) {
	r := start(t, reactor.Options{})
	o, peer := serve(t, r, reactor.Limits{}, records(1))
	message := record([]byte("message"))
	peer.Write(message[:4])
	eventually(t, "it has begun", func() bool { return o.view(t).In == 4 })
	o.Leave()
	o.view(t)
	peer.Write(message[4:])
	expectEnd(t, peer, message)
	o.endsAs(t, reactor.Left)
}

func TestAReplyThatWaitsIsTakenBeforeLeaving(t *testing.T) {
	r := start(t, reactor.Options{})
	reply := make([]byte, 16<<20)
	o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) { return len(in), reply, nil })
	peer.Write([]byte("x"))
	eventually(t, "bytes wait for the peer", func() bool { return o.view(t).Out > 0 })
	o.Leave()
	expectEnd(t, peer, reply)
	o.endsAs(t, reactor.Left)
}

func TestKillClosesAtOnceOrAfterTheCallThatIsUnderWay(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	o, peer := serve(t, r, reactor.Limits{}, echo)
	exchange(t, peer, "x")
	o.Kill()
	o.Kill()
	o.endsAs(t, reactor.Killed)
	o.Leave() // nobody is there any more
	o.Inspect(func(reactor.View) { t.Error("inspected after its end") })
	refusesToBePacked(t, &o.Conn)

	gate := make(chan struct{})
	o, peer = serve(t, r, reactor.Limits{}, waits(gate))
	peer.Write([]byte("x"))
	eventually(t, "it is away", func() bool { return o.view(t).Away })
	o.Kill()
	expectEnd(t, peer, nil) // the peer knows before the call is over
	o.view(t)
	select {
	case end := <-o.ended:
		t.Errorf("ended as %d in the middle of a call", end.cause)
	default:
	}
	close(gate)
	o.endsAs(t, reactor.Killed)
}

func TestSocketsThatNumbersAreReusedForGetNobodyElsesEvents(t *testing.T) {
	r := start(t, reactor.Options{})
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for i := range 200 {
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				o := newOwner(t, echo)
				unix.Write(fds[1], []byte("x"))
				if err := r.Adopt(&o.Conn, fds[0], nil, o, &reactor.Limits{}); err != nil {
					t.Error(err)
				}
				switch i % 4 {
				case 0: // ends while events are pending
					o.Kill()
				case 1:
					unix.Write(fds[1], []byte("y"))
					o.Leave()
				case 2:
					unix.Write(fds[1], []byte("z"))
					unix.Shutdown(fds[1], unix.SHUT_WR)
				}
				if i%4 != 3 {
					<-o.ended
				}
				unix.Close(fds[1])
				if i%4 == 3 {
					if end := <-o.ended; end.cause != reactor.EOF && end.cause != reactor.IOError {
						t.Errorf("ended as %d, %v", end.cause, end.err)
					}
				}
				if read, _ := o.Traffic(); read > 2 {
					t.Errorf("read %d bytes", read)
				}
			}
		})
	}
	all.Wait()
}

func TestAdoptThatFailsHasCalledNobody(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	o := newOwner(t, echo)
	o.greet = func([]byte, []byte) (int, []byte, error) {
		t.Error("stepped")
		return 0, nil, nil
	}
	for range 100 {
		err := r.Adopt(&o.Conn, 1<<20, nil, o, &reactor.Limits{})
		if !errors.Is(err, unix.EBADF) {
			t.Fatalf("adopting a socket that is none: %v", err)
		}
	}
	_, peer := serve(t, r, reactor.Limits{}, echo)
	exchange(t, peer, "hello")
}

func TestCloseLeavesConnectionsAsTheyAre(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	o := adopt(t, r, fd, reactor.Limits{}, echo)
	exchange(t, peer, "x")
	gate := make(chan struct{})
	awayFD, awayPeer := tcp(t)
	away := adopt(t, r, awayFD, reactor.Limits{}, waits(gate))
	awayPeer.Write([]byte("x"))
	eventually(t, "it is away", func() bool { return away.view(t).Away })
	o.elsewhere.Store(true)
	away.elsewhere.Store(true)
	r.Close()
	r.Close()
	close(gate) // what it says goes nowhere
	o.Kill()
	o.Leave()
	if n, err := unix.Write(fd, []byte("still here")); n != 10 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	expect(t, peer, "still here")
	if err := r.Adopt(new(reactor.Conn), fd, nil, o, &reactor.Limits{}); err != net.ErrClosed {
		t.Errorf("adopting after Close: %v", err)
	}
	unix.Close(fd)
	unix.Close(awayFD)
}

func TestAdoptsThatRaceWithCloseAreRefusedOrDone(t *testing.T) {
	leveetest.CheckLeaks(t)
	for range 20 {
		r, err := reactor.New(reactor.Options{Loops: 2})
		must(t, err)
		var all sync.WaitGroup
		for range 8 {
			fd, _ := pair(t)
			defer unix.Close(fd)
			all.Go(func() {
				o := newOwner(t, echo)
				if err := r.Adopt(&o.Conn, fd, nil, o, &reactor.Limits{}); err != nil && err != net.ErrClosed {
					t.Error(err)
				}
			})
		}
		r.Close()
		all.Wait()
	}
}
