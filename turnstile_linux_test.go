package levee

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Each would find room, as the one before it has left by then, and Go would let nobody else in between.
func TestWhoIsThereHasItsTurnBetweenHandshakesThatBeginAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var turns atomic.Int64
	for _, c := range []net.Conn{near, far} { // they wait for each other
		go func() { // ends with the connection
			for b := []byte{0}; ; turns.Add(1) {
				if _, err := c.Read(b); err != nil {
					return
				}
				_, _ = c.Write(b)
			}
		}()
	}
	if _, err := near.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}

	const handshakes = 100
	var s turnstile
	defer s.breath.close()
	s.resize(1)
	var all sync.WaitGroup
	before := turns.Load()
	for n := range handshakes {
		all.Go(func() {
			s.enter(nth(n), time.Time{})
			defer s.leave()
			for began := time.Now(); time.Since(began) < time.Millisecond; { // a processor computes
			}
		})
	}
	all.Wait()
	if n := turns.Load() - before; n < handshakes/2 {
		t.Errorf("who is there has had %d turns beside %d handshakes", n, handshakes)
	}
}
