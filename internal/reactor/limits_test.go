//go:build linux

package reactor_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// stalled is the short limit of these tests: long for this machine, short for a reader.
const stalled = 400 * time.Millisecond

func TestAPeerThatTakesNothingIsReset(t *testing.T) {
	r := start(t, reactor.Options{})
	for name, limits := range map[string]reactor.Limits{
		"with an idle limit":    {WriteStall: stalled, Idle: time.Hour},
		"with a short one":      {WriteStall: stalled, Idle: time.Millisecond},
		"without an idle limit": {WriteStall: stalled},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			o, peer := serve(t, r, limits, refuses(make([]byte, 16<<20)))
			peer.Write([]byte("x"))
			end := o.endsAs(t, reactor.Stalled)
			if took := end.at.Sub(began); took < stalled {
				t.Errorf("cut after %v", took)
			}
			if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer saw %v, want a reset", err)
			}
		})
	}
}

func TestAPeerThatTakesNothingIsNotReadFrom(t *testing.T) {
	r := start(t, reactor.Options{})
	var steps atomic.Int64
	reply := make([]byte, 1<<20)
	o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
		steps.Add(1)
		return 1, reply, nil
	})
	go func() { // ends with the peer
		for {
			if _, err := peer.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	}()
	eventually(t, "bytes wait for the peer", func() bool { return o.view(t).Out > 0 })
	v := o.view(t)
	for range 100 {
		v = o.view(t)
	}
	if v.Out > len(reply) || v.In > 64<<10 {
		t.Errorf("%d bytes wait for the peer, %d for their message: more than a reply and a read", v.Out, v.In)
	}
	if read := v.Read; read > 64<<10 {
		t.Errorf("read %d bytes from a peer that does not read", read)
	}
	before := steps.Load()
	io.CopyN(io.Discard, peer, 8<<20)
	eventually(t, "it goes on", func() bool { return steps.Load() > before })
	peer.Close()
	receive(t, o.ended, "the end")
}

func TestASlowButSteadyReaderIsNotCut(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	must(t, peer.SetReadBuffer(128<<10)) // small, as its kernel takes more only when a good part has been read
	const size = 32 << 20                // the kernel takes some 4 MB, and more only when a good part of that has gone
	o := adopt(t, r, fd, reactor.Limits{WriteStall: 5 * stalled, Idle: time.Hour}, refuses(make([]byte, size)))
	peer.Write([]byte("x"))
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	got := 0
	for range 250 { // 1 MB/s
		n, err := io.ReadFull(peer, make([]byte, 10<<10))
		if got += n; err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		<-ticker.C
	}
	if rest, err := io.Copy(io.Discard, peer); err != nil || got+int(rest) != size {
		t.Fatalf("after %d bytes: %v", got+int(rest), err)
	}
	o.endsAs(t, reactor.Refused)
}

func TestSilenceEndsAConnectionNotBeforeItsLimit(t *testing.T) {
	r := start(t, reactor.Options{})
	const idle = 150 * time.Millisecond
	o, peer := serve(t, r, reactor.Limits{Idle: idle}, echo)
	exchange(t, peer, "x")
	began := time.Now()
	peer.Write([]byte("x"))
	end := o.endsAs(t, reactor.Idle)
	if took := end.at.Sub(began); took < idle || took > 20*idle {
		t.Errorf("ended after %v of silence, want %v", took, idle)
	}
	expectEnd(t, peer, []byte("x"))
}

func TestBytesInEitherDirectionPutIdlenessOff(t *testing.T) {
	r := start(t, reactor.Options{})
	const idle = 500 * time.Millisecond
	ticker := time.NewTicker(idle / 10)
	defer ticker.Stop()
	t.Run("in", func(t *testing.T) {
		o, peer := serve(t, r, reactor.Limits{Idle: idle}, func([]byte, []byte) (int, []byte, error) { return 0, nil, nil })
		for range 20 {
			peer.Write([]byte("x"))
			<-ticker.C
		}
		if v := o.view(t); v.In != 20 {
			t.Errorf("%+v, want 20 bytes to be there", v)
		}
		o.endsAs(t, reactor.Idle)
	})
	t.Run("out", func(t *testing.T) {
		const size = 16 << 20
		fd, peer := tcp(t)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 512<<10)) // or most of it lies in the kernel
		must(t, peer.SetReadBuffer(512<<10))
		reply := make([]byte, size)
		o := adopt(t, r, fd, reactor.Limits{Idle: idle}, func(in, _ []byte) (int, []byte, error) { return len(in), reply, nil })
		peer.Write([]byte("x"))
		block := make([]byte, size/20)
		for range 20 {
			if _, err := io.ReadFull(peer, block); err != nil {
				t.Fatal(err)
			}
			<-ticker.C
		}
		if v := o.view(t); v.Out != 0 {
			t.Errorf("%+v, want all to have been sent", v)
		}
		o.endsAs(t, reactor.Idle)
	})
}

func TestAStallThatIsOverDoesNotPostponeIdleness(t *testing.T) {
	r := start(t, reactor.Options{})
	for name, stall := range map[string]time.Duration{"long": time.Hour, "none": 0} {
		t.Run(name, func(t *testing.T) {
			const size = 16 << 20
			o, peer := serve(t, r, reactor.Limits{Idle: time.Second, WriteStall: stall}, func(in, _ []byte) (int, []byte, error) {
				return len(in), make([]byte, size), nil
			})
			peer.Write([]byte("x"))
			eventually(t, "bytes wait for the peer", func() bool { return o.view(t).Out > 0 })
			if _, err := io.CopyN(io.Discard, peer, size); err != nil {
				t.Fatal(err)
			}
			o.endsAs(t, reactor.Idle)
		})
	}
}

func TestAConnectionIsNotIdleWhileItsCallRunsOrItIsPaused(t *testing.T) {
	r := start(t, reactor.Options{})
	const idle = 100 * time.Millisecond
	gate := make(chan struct{})
	busy, busyPeer := serve(t, r, reactor.Limits{Idle: idle}, func(in, _ []byte) (int, []byte, error) {
		<-gate
		return len(in), in, nil
	})
	paused, pausedPeer := serve(t, r, reactor.Limits{Idle: idle}, echo)
	paused.Pause()
	pausedPeer.Write([]byte("paused"))
	busyPeer.Write([]byte("busy"))
	other, _ := serve(t, r, reactor.Limits{Idle: 5 * idle}, echo)
	other.endsAs(t, reactor.Idle)
	if v := paused.view(t); !v.Paused || v.Read != 0 {
		t.Errorf("%+v, want it to be paused and nothing read", v)
	}
	close(gate)
	paused.Resume()
	expect(t, busyPeer, "busy")
	expect(t, pausedPeer, "paused")
	busy.endsAs(t, reactor.Idle)
	paused.endsAs(t, reactor.Idle)
}

// A pause is for want of memory: it must not keep what is held for ever, least of all for
// a peer that has gone.
func TestAPauseKeepsAMessageNoLongerThanItMayTake(t *testing.T) {
	r := start(t, reactor.Options{})
	const limit = 200 * time.Millisecond
	o, peer := serve(t, r, reactor.Limits{Message: limit}, func([]byte, []byte) (int, []byte, error) { return 0, nil, nil })
	peer.Write([]byte("half a mess"))
	eventually(t, "a part is held", func() bool { return o.view(t).In > 0 })
	<-time.After(limit / 2)
	o.Pause()
	paused := time.Now()
	must(t, peer.SetLinger(0))
	peer.Close()
	if took := o.endsAs(t, reactor.Unfinished).at.Sub(paused); took < limit {
		t.Errorf("it ended %v after the pause began, want %v", took, limit)
	}
}

// Who is not read as its replies have to be taken first is not who takes its time.
func TestTheTimeInWhichRepliesWaitIsNotTheNextMessages(t *testing.T) {
	r := start(t, reactor.Options{})
	const limit = 300 * time.Millisecond
	reply := make([]byte, 16<<20)
	o, peer := serve(t, r, reactor.Limits{Message: limit}, func(in, _ []byte) (int, []byte, error) {
		switch {
		case in[0] == '1':
			return 1, reply, nil
		case len(in) < 2:
			return 0, nil, nil
		}
		return 2, in[:2], nil
	})
	peer.Write([]byte("12"))
	eventually(t, "a reply waits, and the next message", func() bool { v := o.view(t); return v.Out > 0 && v.In > 0 })
	<-time.After(2 * limit)
	if _, err := io.ReadFull(peer, reply); err != nil {
		t.Fatal(err)
	}
	<-time.After(limit / 3)
	peer.Write([]byte("2"))
	expect(t, peer, "22")
}

func TestAResetIsAnError(t *testing.T) {
	r := start(t, reactor.Options{})
	o, peer := serve(t, r, reactor.Limits{}, echo)
	exchange(t, peer, "x")
	must(t, peer.SetLinger(0))
	peer.Close()
	expectSyscallError(t, o.endsAs(t, reactor.IOError).err, "read")
	o, peer = serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) { return len(in), make([]byte, 16<<20), nil })
	peer.Write([]byte("x"))
	eventually(t, "bytes wait for the peer", func() bool { return o.view(t).Out > 0 })
	must(t, peer.SetLinger(0))
	peer.Close()
	expectSyscallError(t, o.endsAs(t, reactor.IOError).err, "read", "write") // whichever is first
}

func TestAReplyToAPeerThatHasGoneIsAnError(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := pair(t)
	o := adopt(t, r, fd, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
		peer.Close()
		return len(in), in, nil
	})
	peer.Write([]byte("x"))
	expectSyscallError(t, o.endsAs(t, reactor.IOError).err, "write")
}

func expectSyscallError(t *testing.T, err error, calls ...string) {
	t.Helper()
	var failed *os.SyscallError
	if !errors.As(err, &failed) || !slices.Contains(calls, failed.Syscall) {
		t.Errorf("ended with %#v, want an error of %q", err, calls)
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("ended with %v", err)
	}
}
