//go:build linux

package reactor_test

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
	"unsafe"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// largestConn is what a connection may cost while it is idle. There may be
// hundreds of thousands.
const largestConn = 128 // bytes

func TestAnIdleConnectionIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(reactor.Conn{}); size > largestConn {
		t.Errorf("a Conn takes %d bytes, more than %d", size, largestConn)
	} else {
		t.Logf("a Conn takes %d bytes", size)
	}
}

// bare is the least that an owner can be.
type bare struct{ reactor.Conn }

func (*bare) Step(in []byte, _ int, _ []byte) (int, []byte, error) { return len(in), in, nil }
func (*bare) Slow()                                                {}
func (*bare) Slowed(time.Duration)                                 {}
func (*bare) End(reactor.Cause, error)                             {}

func TestAConnectionThatHasEchoedHoldsNothing(t *testing.T) {
	r := start(t, reactor.Options{})
	const many = 2000
	conns := make([]bare, many)
	peers := make([]int, many)
	limits := &reactor.Limits{Idle: 1 << 40}
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	buffer := make([]byte, 64)
	before := used()
	for i := range conns {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		must(t, unix.SetNonblock(fds[0], true))
		peers[i] = fds[1]
		must(t, r.Adopt(&conns[i].Conn, fds[0], nil, &conns[i], limits))
		_, err = unix.Write(fds[1], buffer)
		must(t, err)
		_, err = unix.Read(fds[1], buffer)
		must(t, err)
	}
	each := (int64(used()) - int64(before)) / many
	t.Logf("%d bytes each, beside the Conn", each)
	if each > 200 {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	for i := range conns {
		conns[i].Kill()
		unix.Read(peers[i], buffer) // its end
		unix.Close(peers[i])
	}
	runtime.KeepAlive(conns)
}

func TestAnEchoAllocatesNothing(t *testing.T) {
	r := start(t, reactor.Options{})
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for name, s := range map[string]step{
		"in place": echo,
		"copied":   func(in, out []byte) (int, []byte, error) { return len(in), append(out, in...), nil },
	} {
		fd, peer := pair(t)
		o := adopt(t, r, fd, reactor.Limits{Idle: 1 << 40, WriteStall: 1 << 40}, s)
		message := make([]byte, 64)
		allocations := testing.AllocsPerRun(1000, func() {
			peer.Write(message)
			io.ReadFull(peer, message)
		})
		if allocations >= 0.5 {
			t.Errorf("%s: %v allocations for a message", name, allocations)
		}
		peer.Close()
		o.endsAs(t, reactor.EOF)
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprintf("%d bytes", size), func(b *testing.B) {
			r := start(b, reactor.Options{Loops: 1})
			_, peer := serve(b, r, reactor.Limits{}, echo)
			message := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				peer.Write(message)
				if _, err := io.ReadFull(peer, message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
