package levee_test

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"golang.org/x/sys/unix"
)

const shortQueue = 8

// shorten has a listener's accept queue hold few.
func shorten(t *testing.T, l net.Listener) {
	t.Helper()
	sock, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := sock.Control(func(fd uintptr) { err = unix.Listen(int(fd), shortQueue) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// atTheCap serves one client, who stays, before an accept queue that is short.
func atTheCap(t *testing.T, srv *levee.Server, l net.Listener) (s *service, inside net.Conn) {
	t.Helper()
	shorten(t, l)
	srv.MaxConns = 1
	s = serve(t, srv, l)
	inside = dialTCP(t, l)
	if err := exchange(inside, "hello\n"); err != nil {
		t.Fatal(err)
	}
	return s, inside
}

func TestLargeCrowdBeforeAFullServerIsTurnedAwayOldestFirst(t *testing.T) {
	for name, listen := range map[string]func(testing.TB) net.Listener{"levee's listener": listenTCP, "net's listener": listenPlain} {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			refused := make(chan *levee.Conn, 3*shortQueue)
			l := listen(t)
			s, inside := atTheCap(t, &levee.Server{Handler: answering, Trace: &levee.Trace{Refused: func(c *levee.Conn, r *levee.Refusal) {
				if r.Reason != levee.Overloaded {
					t.Errorf("refused as %v", r)
				}
				refused <- c
			}}}, l)
			began := time.Now()
			crowd := parkOn(t, l, shortQueue)
			const stay = shortQueue / 4
			for i, c := range crowd[:shortQueue-stay] {
				_ = c.SetReadDeadline(time.Now().Add(longest))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("client %d reads %v", i, err)
				}
				if got, want := receive(t, refused).PeerAddr().String(), c.LocalAddr().String(); got != want {
					t.Errorf("%s was turned away, want the oldest, %s", got, want)
				}
			}
			if took := time.Since(began); took < time.Second || took > 5*time.Second {
				t.Errorf("they waited for %v", took)
			}
			// It goes on for as long as it lasts, and a look each second.
			began = time.Now()
			more := parkOn(t, l, shortQueue-stay)
			for range shortQueue - stay {
				receive(t, refused)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("the second time it took %v", took)
			}
			wantRefused(t, s.Server, map[levee.CloseReason]int64{levee.Overloaded: 2 * (shortQueue - stay)})
			checkStats(t, s.Stats(), 1, nil)

			inside.Close()
			for i, c := range more[len(more)-stay:] { // who had still time
				if _, err := c.Read(make([]byte, len("parked 0\n"))); err != nil {
					t.Errorf("client %d, who was left waiting, reads %v", i, err)
				}
				c.Close()
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSmallCrowdWaitsForRoom(t *testing.T) {
	leveetest.CheckLeaks(t)
	l := listenTCP(t)
	s, inside := atTheCap(t, &levee.Server{Handler: answering}, l)
	crowd := parkOn(t, l, shortQueue/2-1)
	<-time.After(2500 * time.Millisecond) // the kernel's queue knows no virtual time
	wantRefused(t, s.Server, nil)
	inside.Close()
	for _, c := range crowd {
		if _, err := c.Read(make([]byte, len("parked 0\n"))); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

func TestCrowdIsServedWhenTheServerShutsDown(t *testing.T) {
	leveetest.CheckLeaks(t)
	l := listenTCP(t)
	s, inside := atTheCap(t, &levee.Server{Handler: answering}, l)
	crowd := parkOn(t, l, shortQueue)
	shut := make(chan error, 1)
	go func() { shut <- s.Shutdown(t.Context()) }()
	inside.Close()
	for i, c := range crowd {
		if _, err := c.Read(make([]byte, len("parked 0\n"))); err != nil {
			t.Errorf("client %d reads %v", i, err)
		}
		c.Close()
	}
	if err := receive(t, shut); err != nil {
		t.Error(err)
	}
	wantRefused(t, s.Server, nil)
}
