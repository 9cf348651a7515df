package attack_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
)

// serve is a server with a goroutine for each connection. It ends with the test.
func serve(t *testing.T, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	return serveOn(t, "127.0.0.1:0", handle)
}

func serveOn(t *testing.T, address string, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no server on %s: %v", address, err)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	open := map[net.Conn]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() {
				defer func() {
					c.Close()
					mu.Lock()
					delete(open, c)
					mu.Unlock()
				}()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// small is a flood that takes no time. However slow the machine, what the probe does must only go well.
func small(target netip.AddrPort, names ...string) attack.Flood {
	f := attack.Flood{Target: target, Connections: 20, Duration: 300 * time.Millisecond, Interval: 5 * time.Millisecond, Floor: 2 * time.Second}
	for _, name := range names {
		a, _ := attack.Named(name)
		f.Attacks = append(f.Attacks, a)
	}
	return f
}

// A sight is what a server sees of an attack. It ends the attack when it has seen
// enough.
type sight[T any] struct {
	seen   chan T
	ctx    context.Context
	enough context.CancelFunc
}

func look[T any](t *testing.T) *sight[T] {
	ctx, enough := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(enough)
	return &sight[T]{make(chan T, 1), ctx, enough}
}

// tell keeps the first.
func (s *sight[T]) tell(what T) {
	select {
	case s.seen <- what:
		s.enough()
	default:
	}
}

// of is what was seen of the attack on the server.
func (s *sight[T]) of(t *testing.T, f attack.Flood, name string) (T, attack.Tally) {
	t.Helper()
	tally := attack.Strike(s.ctx, t, f, name)
	select {
	case what := <-s.seen:
		return what, tally
	default:
		t.Fatalf("the server saw nothing of %s: %+v", name, tally)
		panic("unreachable")
	}
}
