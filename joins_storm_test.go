package levee_test

import (
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

func TestNothingIsLeftOfPairsThatEndInWhateverWay(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		for _, to := range []upstreamKind{e.itsUpstream(), tcpUpstream} {
			s := e.join(t, &levee.Server{}, to)
			s.rough.Store(true)
			const pairs = 40
			var all sync.WaitGroup
			all.Go(func() {
				for {
					far, err := s.listener.Accept()
					if err != nil {
						return
					}
					_ = far.SetDeadline(time.Now().Add(longest))
					all.Go(func() { misbehave(far.(peer)) })
				}
			})
			for range pairs {
				all.Go(func() { interfere(s) })
				near, err := s.tryDial()
				if err != nil {
					continue // it has been reset before it could be told that it is connected
				}
				_ = near.SetDeadline(time.Now().Add(longest))
				if e.tls {
					near = tls.Client(near, s.client)
				}
				all.Go(func() { misbehave(near) })
			}
			for range pairs {
				receive(t, s.scene.ends)
			}
			s.listener.Close()
			all.Wait()
			stats := s.Stats()
			if stats.Active != 0 || stats.Accepted != pairs || stats.Panics != 0 {
				t.Errorf("%d active of %d accepted, %d panics", stats.Active, stats.Accepted, stats.Panics)
			}
		}
	})
}

// misbehave sends and takes for a while, and ends in one way or another.
func misbehave(c peer) {
	_, _ = c.Write(make([]byte, 1+rand.IntN(1<<rand.IntN(18))))
	switch rand.IntN(5) {
	case 0: // leaves at once
	case 1: // takes all there is
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	case 2:
		_, _ = c.Read(make([]byte, 1+rand.IntN(10_000)))
		abandon(c)
	case 3:
		abandon(c)
	case 4: // takes little, and sends more than is taken
		_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = c.Write(make([]byte, 1<<20))
		_, _ = io.CopyN(io.Discard, c, 10_000)
	}
	_ = c.Close()
}

// abandon resets a connection, if it is one that can be.
func abandon(c net.Conn) {
	if under, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = under.NetConn()
	}
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// interfere does something to somebody's connection.
func interfere(s *joins) {
	for range rand.IntN(4) {
		runtime.Gosched()
	}
	conns := s.Conns()
	if len(conns) == 0 {
		return
	}
	switch c := conns[0]; rand.IntN(8) {
	case 0:
		c.Kill(nil)
	case 1:
		c.Close()
	case 2:
		c.Drain(nil)
	case 3:
		c.Traffic()
		s.Stats()
	}
}
