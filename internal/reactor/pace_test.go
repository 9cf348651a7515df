//go:build linux

package reactor_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A lull is a Pacer that asks for a wait after each chunk.
type lull struct {
	chunk int
	wait  time.Duration
	spent atomic.Int64
	most  atomic.Int64 // at once
}

func (l *lull) Chunk() int { return l.chunk }

func (l *lull) Spend(n int) time.Duration {
	l.spent.Add(int64(n))
	l.most.Store(max(l.most.Load(), int64(n)))
	return l.wait
}

// servePaced is serve for a connection that is paced.
func servePaced(t testing.TB, r *reactor.Reactor, in, out reactor.Pacer, s step) (*owner, *net.TCPConn) {
	t.Helper()
	fd, peer := tcp(t)
	o := newOwner(t, s)
	o.SetPace(in, out)
	o.adopt(t, r, fd, nil, reactor.Limits{})
	return o, peer
}

// joinPaced is join for a pair that is paced.
func joinPaced(t testing.TB, r *reactor.Reactor, in, out reactor.Pacer, limits reactor.Limits) *joint {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	return joinAs(t, r, limits, "", func(j *joint) reactor.Owner {
		j.SetPace(in, out)
		return j.owner
	}, nearFD, farFD, near, far)
}

func TestAPacedConnectionIsReadAChunkAtATime(t *testing.T) {
	r := start(t, reactor.Options{})
	for _, out := range []bool{false, true} {
		pacer := &lull{chunk: 10, wait: 5 * time.Millisecond}
		in, back := reactor.Pacer(pacer), reactor.Pacer(nil)
		if out {
			in, back = nil, pacer
		}
		var seen atomic.Int64
		_, peer := servePaced(t, r, in, back, func(in, _ []byte) (int, []byte, error) {
			seen.Store(max(seen.Load(), int64(len(in))))
			return len(in), in, nil
		})
		began := time.Now()
		message := bytes.Repeat([]byte("0123456789"), 41)
		if _, err := peer.Write(message); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(message))
		if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("read %q, %v", got, err)
		}
		if took := time.Since(began); took < 200*time.Millisecond || took > 2*time.Second {
			t.Errorf("41 chunks, 5 ms apart, took %v", took)
		}
		eventually(t, "the Pacer is told of all", func() bool { return pacer.spent.Load() == int64(len(message)) })
		if seen.Load() != 10 || pacer.most.Load() != 10 {
			t.Errorf("shown %d bytes at once; the Pacer was told of %d", seen.Load(), pacer.most.Load())
		}
	}
}

func TestOfTwoPacersTheSlowerOneCounts(t *testing.T) {
	r := start(t, reactor.Options{})
	quick, slow := &lull{chunk: 1, wait: 2 * time.Millisecond}, &lull{chunk: 1, wait: 50 * time.Millisecond}
	for _, pacers := range [][2]reactor.Pacer{{quick, slow}, {slow, quick}} {
		_, peer := servePaced(t, r, pacers[0], pacers[1], echo)
		began := time.Now()
		if _, err := peer.Write([]byte("abcde")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	}
}

func TestWaitsUnderAMillisecondAreNotWaitedFor(t *testing.T) {
	r := start(t, reactor.Options{})
	pacer := &lull{chunk: 1 << 20, wait: time.Millisecond - 1}
	_, peer := servePaced(t, r, pacer, pacer, echo)
	began := time.Now()
	for range 2000 {
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("2000 echoes took %v", took)
	}
}

func TestAReplyThatWaitsIsWrittenWhileAPacerIsWaitedFor(t *testing.T) {
	r := start(t, reactor.Options{})
	big := random(8 << 20)
	o, peer := servePaced(t, r, nil, &lull{chunk: 100, wait: time.Hour}, func(in, _ []byte) (int, []byte, error) {
		return len(in), big, nil
	})
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(big))
	if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, big) {
		t.Fatal("the reply did not come:", err)
	}
	eventually(t, "all is written", func() bool { _, written := o.Traffic(); return written == int64(len(big)) && o.Held() == 0 })
}

func TestAPauseOutlastsAWait(t *testing.T) {
	r := start(t, reactor.Options{})
	o, peer := servePaced(t, r, &lull{chunk: 1, wait: 20 * time.Millisecond}, nil, echo)
	if _, err := peer.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	o.Pause()
	if !o.view(t).Paused {
		t.Fatal("it is not paused")
	}
	read, _ := o.Traffic()
	<-time.After(60 * time.Millisecond) // beyond the end of the wait
	if now, _ := o.Traffic(); now != read {
		t.Errorf("%d bytes were read during a pause", now-read)
	}
	o.Resume()
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestAPairWaitsInOneDirectionAlone(t *testing.T) {
	r := start(t, reactor.Options{})
	for _, out := range []bool{false, true} {
		pacer := &lull{chunk: 1, wait: time.Hour}
		j := joinPaced(t, r, pacer, nil, reactor.Limits{Idle: time.Minute})
		from, to := j.near, j.far
		if out {
			j = joinPaced(t, r, nil, pacer, reactor.Limits{Idle: time.Minute})
			from, to = j.far, j.near
		}
		from.Write([]byte("ab"))
		expect(t, to, "a")
		for range 3 {
			to.Write([]byte("the other way"))
			expect(t, from, "the other way")
		}
		if held := j.Held(); held != 0 {
			t.Errorf("it holds %d bytes while it waits", held)
		}
	}
}

// A whim is a Pacer that is no use to anybody.
type whim struct {
	mu     sync.Mutex
	random *rand.Rand
}

// whimIf returns one if it is to be paced.
func whimIf(paced bool) reactor.Pacer {
	if !paced {
		return nil
	}
	return &whim{random: rand.New(rand.NewPCG(rand.Uint64(), 0))}
}

func (w *whim) Chunk() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return 1 + w.random.IntN(1<<w.random.IntN(19))
}

func (w *whim) Spend(int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.random.IntN(4) > 0 {
		return 0
	}
	return time.Duration(w.random.IntN(4000)) * time.Microsecond
}

// A chunk that is read into memory is no more than 32 KiB: what holds more is a pipe.
func TestAPacedPairSplicesBulk(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinPaced(t, r, &lull{chunk: 128 << 10, wait: 2 * time.Millisecond}, nil, reactor.Limits{})
	go func() { // ends with the connection
		for b := make([]byte, 1<<20); ; {
			if _, err := j.near.Write(b); err != nil {
				return
			}
		}
	}()
	var held int
	some := make([]byte, 256<<10) // at a time, so that what is left of a chunk is now more and now less
	eventually(t, "a pipe holds bytes", func() bool {
		if held = j.Held(); held > 64<<10 {
			return true
		}
		if held > 0 { // it waits for the peer
			_, _ = j.far.Read(some)
		}
		return false
	})
	if held > 128<<10 {
		t.Errorf("it holds %d bytes, more than a chunk", held)
	}
	j.Kill()
	j.endsAs(t, reactor.Killed)
	if held := j.Held(); held != 0 {
		t.Errorf("it holds %d bytes when it is over", held)
	}
}

func TestHeldTellsWhatWaits(t *testing.T) {
	const reply = 64 << 20 // bytes: the kernels of both ends have room for 36 MiB
	r := start(t, reactor.Options{})
	o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
		if bytes.Contains(in, []byte("\n")) {
			return len(in), make([]byte, reply), nil
		}
		return 0, nil, nil
	})
	part := random(10_000)
	part = bytes.ReplaceAll(part, []byte("\n"), []byte(" "))
	peer.Write(part)
	eventually(t, "it holds a part of a message", func() bool { return o.Held() >= len(part) && o.Held() < 4*len(part) })
	peer.Write([]byte("\n"))
	eventually(t, "it holds a part of a reply", func() bool { return o.Held() > 100_000 })
	if _, err := io.ReadFull(peer, make([]byte, reply)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it holds nothing", func() bool { return o.Held() == 0 })
}

func TestConnectionsThatEndWhileTheyWaitAreForgotten(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	pacer := &lull{chunk: 1, wait: 30 * time.Millisecond}
	var gone []*owner
	for i := range 50 {
		o, peer := servePaced(t, r, pacer, nil, echo)
		peer.Write([]byte("x"))
		if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			o.Kill()
			gone = append(gone, o)
			continue
		}
		peer.Write([]byte("y")) // they go on, whoever has left before or after them
		if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range gone {
		o.endsAs(t, reactor.Killed)
	}
}

// What it owes its Pacer is not to keep a place for a client that has gone.
func TestAResetEndsAConnectionThatWaits(t *testing.T) {
	r := start(t, reactor.Options{})
	owing := &lull{chunk: 1 << 20, wait: time.Hour}
	for _, joined := range []bool{false, true} {
		var o *owner
		var peer *net.TCPConn
		if joined {
			j := joinPaced(t, r, owing, nil, reactor.Limits{})
			o, peer = j.owner, j.near.(*net.TCPConn)
			peer.Write([]byte("x"))
			expect(t, j.far, "x")
		} else {
			o, peer = servePaced(t, r, owing, nil, echo)
			exchange(t, peer, "x")
		}
		peer.Write(make([]byte, 100<<10)) // which it may have read before the reset
		must(t, peer.SetLinger(0))
		peer.Close()
		o.endsAs(t, reactor.IOError)
	}
	fd, peer := tcp(t)
	peer.Write(make([]byte, 100<<10))
	must(t, peer.SetLinger(0))
	peer.Close() // before the first wait
	o := newOwner(t, func(in, _ []byte) (int, []byte, error) { return len(in), nil, nil })
	o.SetPace(&lull{chunk: 1, wait: time.Hour}, nil)
	o.adopt(t, r, fd, nil, reactor.Limits{})
	o.endsAs(t, reactor.IOError)
}
