//go:build linux

package reactor_test

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// hold keeps the loop of a connection from all else until the returned function is called.
func hold(t testing.TB, o *owner) (letGo func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	o.Inspect(func(reactor.View) {
		close(held)
		<-free
	})
	receive(t, held, "the loop's attention")
	return func() { close(free) }
}

// waiting returns how many bytes have come and not been read.
func waiting(t testing.TB, o *owner) (n int) {
	t.Helper()
	o.Control(func(fd int) {
		var err error
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		must(t, err)
	})
	return n
}

func TestWhoWantsLittleDoesNotWaitForAllThatManyWant(t *testing.T) {
	const many, much = 200, 256 << 10
	r := start(t, reactor.Options{Loops: 1})
	var taken, before atomic.Int64 // before: taken when the quiet one had its turn
	quiet, small := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
		before.Store(taken.Load())
		return len(in), in, nil
	})
	var greedy []*owner
	var peers []*net.TCPConn
	for range many {
		o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
			taken.Add(int64(len(in)))
			return len(in), nil, nil
		})
		greedy, peers = append(greedy, o), append(peers, peer)
	}
	letGo := hold(t, quiet)
	wrote := make(chan struct{}, many)
	for _, peer := range peers {
		go func() { // ends when all is written, which the kernel holds or the loop takes
			peer.Write(make([]byte, much))
			wrote <- struct{}{}
		}()
	}
	for _, o := range greedy {
		eventually(t, "much waits for the loop", func() bool { return waiting(t, o) >= 64<<10 })
	}
	small.Write([]byte("a little"))
	letGo()
	expect(t, small, "a little")
	for range many {
		receive(t, wrote, "the end of a large write")
	}
	if most := int64(many) * (64 << 10); before.Load() > most {
		t.Errorf("%d bytes of the others were read before a small message that came with them; at most %d should be", before.Load(), most)
	}
}
