package levee_test

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// sights returns what shows of the server's connections, each of which must be there once.
func sights(t testing.TB, s *levee.Server) map[*levee.Conn]levee.Sight {
	t.Helper()
	all := make(map[*levee.Conn]levee.Sight)
	for seen := range s.Sights() {
		if _, twice := all[seen.Conn]; twice {
			t.Errorf("connection %d shows twice", seen.Conn.ID())
		}
		all[seen.Conn] = seen
	}
	return all
}

func TestOpenConnectionsShowWhenAByteLastMovedAndWhetherTheyWereAskedToLeave(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		quiet, c := s.greet()
		_, other := s.greet()
		<-time.After(20 * time.Millisecond) // for its engine to wait again
		before := sights(t, s.Server)
		if len(before) != 2 {
			t.Fatalf("%d show, want 2", len(before))
		}
		seen := before[c]
		if seen.Arriving || seen.Draining || seen.OnLoop != e.onLoop() || seen.Held != 0 {
			t.Errorf("%+v", seen)
		}
		if idle := time.Since(seen.Moved); seen.Moved.Before(c.Accepted()) || idle < 15*time.Millisecond || idle > longest {
			t.Errorf("idle for %v, %v after it was accepted", idle, seen.Moved.Sub(c.Accepted()))
		}
		if again := sights(t, s.Server)[c].Moved; again.Sub(seen.Moved).Abs() > time.Microsecond {
			t.Errorf("nothing has moved, and yet it was at %v and now at %v", seen.Moved, again)
		}
		send(t, quiet, "echo more\nand a beginning")
		want(t, quiet, "more\n")
		<-time.After(20 * time.Millisecond)
		seen = sights(t, s.Server)[c]
		if !seen.Moved.After(before[c].Moved) || seen.Held < len("and a beginning") && e.onLoop() {
			t.Errorf("%+v, and before that %+v", seen, before[c])
		}
		c.Drain(nil)
		if seen, open := sights(t, s.Server)[c]; open && !seen.Draining {
			t.Errorf("it was asked to leave, and shows %+v", seen)
		}
		if now := sights(t, s.Server)[other]; now.Draining || !now.Moved.Equal(before[other].Moved) && now.Moved.Sub(before[other].Moved).Abs() > time.Microsecond {
			t.Errorf("the other shows %+v, and before that %+v", now, before[other])
		}
	})
}

func TestConnectionsThatArriveShowAsThat(t *testing.T) {
	leveetest.CheckLeaks(t)
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: &lines{}, TLSConfig: leveetest.NewCA(t).ServerConfig("localhost")}, l)
	dialTCP(t, l) // and says nothing
	for until := time.Now().Add(longest); ; <-time.After(time.Millisecond) {
		for _, seen := range sights(t, s.Server) {
			if !seen.Arriving || seen.OnLoop {
				t.Errorf("%+v", seen)
			}
			return
		}
		if time.Now().After(until) {
			t.Fatal("it does not show")
		}
	}
}

// Whoever stays is shown, however many come and go, and wherever they are served.
func TestWhoStaysShowsWhileOthersComeAndGo(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		var stay []*levee.Conn
		for range 10 {
			_, c := s.greet()
			stay = append(stay, c)
		}
		stop := make(chan struct{})
		var others sync.WaitGroup
		for range 3 {
			others.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					c, err := s.tryDial()
					if err != nil {
						return
					}
					if s.client == nil {
						_, _ = io.WriteString(c, "echo hello\n")
						_ = expect(c, "hello\n")
					}
					c.Close()
				}
			})
		}
		for range 100 {
			shown := sights(t, s.Server)
			for _, c := range stay {
				if _, ok := shown[c]; !ok {
					t.Fatalf("connection %d does not show among %d", c.ID(), len(shown))
				}
			}
		}
		close(stop)
		others.Wait()
	})
}
