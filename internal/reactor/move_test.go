//go:build linux

package reactor_test

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// pack returns what Pack says.
func pack(c *reactor.Conn) <-chan *reactor.Snapshot {
	came := make(chan *reactor.Snapshot, 1)
	c.Pack(func(s *reactor.Snapshot) { came <- s })
	return came
}

// packUp packs a connection that can be.
func packUp(t testing.TB, c *reactor.Conn) *reactor.Snapshot {
	t.Helper()
	s := receive(t, pack(c), "the connection")
	if s == nil {
		t.Fatal("it is not to be had")
	}
	return s
}

func refusesToBePacked(t testing.TB, c *reactor.Conn) {
	t.Helper()
	if s := receive(t, pack(c), "the answer"); s != nil {
		t.Errorf("packed as %+v", s)
	}
}

// copied returns what another process gets.
func copied(t testing.TB, s *reactor.Snapshot, sockets []int) (*reactor.Snapshot, []int) {
	t.Helper()
	text, err := json.Marshal(s)
	must(t, err)
	s = new(reactor.Snapshot)
	must(t, json.Unmarshal(text, s))
	var copies []int
	for _, fd := range sockets {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		copies = append(copies, fd)
	}
	return s, copies
}

// moveTo has a connection that is packed as s go on with another owner, when that is unpacked.
func (o *owner) moveTo(t testing.TB, r *reactor.Reactor, s *reactor.Snapshot, limits reactor.Limits, do step) *owner {
	t.Helper()
	s, sockets := copied(t, s, o.Sockets())
	now := newOwner(t, do)
	now.calls = 1 // without bytes there is none
	o.elsewhere.Store(true)
	r.Restore(&now.Conn, nil, sockets, s, now, &limits)
	o.Discard()
	now.endsWithTest(t)
	return now
}

// moveTo is that of a pair.
func (j *joint) moveTo(t testing.TB, r *reactor.Reactor, s *reactor.Snapshot, limits reactor.Limits) *joint {
	t.Helper()
	s, sockets := copied(t, s, j.Sockets())
	now := &joint{owner: newOwner(t, j.step), near: j.near, far: j.far}
	j.elsewhere.Store(true)
	r.Restore(&now.Conn, &now.farConn, sockets, s, now.owner, &limits)
	j.Discard()
	now.endsWithTest(t)
	return now
}

func TestAConnectionThatMovesGoesOnToTheByte(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	for name, how := range map[string]struct {
		size int64
		do   step
	}{
		"records": {32 << 20, records(2)},
		"slow": {3 << 20, func(in, out []byte) (int, []byte, error) {
			for began := time.Now(); time.Since(began) < 3*time.Millisecond; {
				runtime.Gosched()
			}
			return records(20)(in, out)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			fd, peer := tcp(t)
			size, do := how.size, how.do
			o := adopt(t, r, fd, reactor.Limits{}, do)
			sent := make(chan [32]byte, 1)
			go func() { sent <- sendStream(peer, int(size)) }() // ends with the stream, or the peer's deadline
			received := sha256.New()
			var got atomic.Int64
			all := make(chan error, 1)
			go func() { // ends with the stream, or the peer's deadline
				_, err := io.Copy(io.MultiWriter(received, (*counter)(&got)), peer)
				all <- err
			}()
			for i := int64(1); i <= 20; i++ { // in mid-stream
				eventually(t, "it flows", func() bool { return got.Load() > i*size/64 })
				s := packUp(t, &o.Conn)
				if i%3 > 0 {
					o = o.moveTo(t, []*reactor.Reactor{r, another}[i%2], s, reactor.Limits{}, do)
				}
				o.Unpack()
			}
			must(t, receive(t, all, "all"))
			if want := receive(t, sent, "the sum"); [32]byte(received.Sum(nil)) != want {
				t.Errorf("%d bytes came back, and not those that were sent", got.Load())
			}
			o.endsAs(t, reactor.EOF)
			if read, written := o.Traffic(); read < size || written != got.Load() {
				t.Errorf("read %d, wrote %d of %d", read, written, got.Load())
			}
		})
	}
}

type counter atomic.Int64

func (c *counter) Write(p []byte) (int, error) {
	(*atomic.Int64)(c).Add(int64(len(p)))
	return len(p), nil
}

// sendStream sends so many bytes in records, and returns their sum.
func sendStream(peer *net.TCPConn, size int) [32]byte {
	sum := sha256.New()
	for i := 0; size > 0; i++ {
		p := record(make([]byte, 1+i%2000))
		p[len(p)-1]++
		sum.Write(p)
		peer.Write(p)
		size -= len(p)
	}
	peer.CloseWrite()
	return [32]byte(sum.Sum(nil))
}

func TestAPairThatMovesGoesOnToTheByte(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	for name, small := range map[string]bool{"by pipes": false, "in memory": true} {
		t.Run(name, func(t *testing.T) {
			limits := reactor.Limits{Uneven: small} // which is not spliced
			j := join(t, r, limits, "")
			const size, moves = 24 << 20, 100
			var all sync.WaitGroup
			var moved atomic.Int64
			last := make(chan struct{}) // there is no end before the last move, however slow the mover is
			for _, way := range [][2]net.Conn{{j.near, j.far}, {j.far, j.near}} {
				sum := make(chan [32]byte, 1)
				all.Go(func() {
					sent := sha256.New()
					for left := size; left > 0; {
						b := random(min(left, 1+rand.IntN(256<<10)))
						if left -= len(b); left == 0 {
							<-last
						}
						sent.Write(b)
						if _, err := way[0].Write(b); err != nil {
							t.Error(err)
						}
					}
					way[0].(*net.TCPConn).CloseWrite()
					sum <- [32]byte(sent.Sum(nil))
				})
				all.Go(func() {
					got := sha256.New()
					if _, err := io.Copy(io.MultiWriter(got, (*counter)(&moved)), way[1]); err != nil {
						t.Error(err)
					}
					if [32]byte(got.Sum(nil)) != <-sum {
						t.Error("not what was sent")
					}
				})
			}
			waiting, piped := 0, 0
			for i := int64(1); i <= moves; i++ {
				eventually(t, "it flows", func() bool { return moved.Load() > i*2*size/128 })
				s := packUp(t, &j.Conn)
				if n := len(s.Near.Out) + len(s.Far.Out); n > 0 {
					if waiting++; n > 64<<10 {
						piped++
					}
				}
				if i%4 > 0 {
					j = j.moveTo(t, []*reactor.Reactor{r, another}[i%2], s, limits)
				}
				j.Unpack()
			}
			close(last)
			all.Wait()
			end := receive(t, j.ended, "the end")
			if end.cause != reactor.EOF && end.cause != reactor.FarEOF || end.err != nil {
				t.Errorf("ended as %d, %v", end.cause, end.err)
			}
			near, written := j.Traffic()
			far, out := j.farConn.Traffic()
			if near != size || written != size || far != size || out != size {
				t.Errorf("the counts are %d, %d, %d and %d", near, written, far, out)
			}
			t.Logf("bytes waited in %d of %d moves, out of a pipe in %d", waiting, moves, piped)
		})
	}
}

func TestPackWaitsForTheCallThatIsUnderWay(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	o, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
		<-gate
		return 1, append(out, 'r'), nil
	})
	peer.Write([]byte("abc"))
	eventually(t, "it is away", func() bool { return o.view(t).Away })
	before := pack(&o.Conn)
	came := pack(&o.Conn)
	if s := receive(t, before, "the first answer"); s != nil { // who asks last gets it
		t.Errorf("packed as %+v", s)
	}
	if len(came) > 0 {
		t.Error("packed in the middle of a call")
	}
	close(gate)
	s := receive(t, came, "the connection")
	if s == nil || string(s.Near.In) != "bc" || len(s.Near.Out) > 0 {
		t.Fatalf("packed as %+v", s)
	}
	expect(t, peer, "r")
	o.moveTo(t, r, s, reactor.Limits{}, echo).Unpack()
	expect(t, peer, "bc")
}

func TestACallThatEndsItsConnectionHasItNotPacked(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for _, end := range []func(o *owner){func(*owner) {}, (*owner).kills} {
		gate := make(chan struct{})
		o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
			<-gate
			return len(in), nil, errEnough
		})
		peer.Write([]byte("a"))
		eventually(t, "it is away", func() bool { return o.view(t).Away })
		came := pack(&o.Conn)
		end(o)
		close(gate)
		if s := receive(t, came, "the answer"); s != nil {
			t.Errorf("packed as %+v", s)
		}
		receive(t, o.ended, "the end")
	}
}

func (o *owner) kills() { o.Kill() }

func TestWhoIsToLeaveIsNotPacked(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	o, peer := serve(t, r, reactor.Limits{}, waits(gate))
	peer.Write([]byte("a"))
	eventually(t, "it is away", func() bool { return o.view(t).Away })
	o.Leave()
	came := pack(&o.Conn)
	close(gate)
	if s := receive(t, came, "the answer"); s != nil {
		t.Errorf("packed as %+v", s)
	}
	o.endsAs(t, reactor.Left)
	j := join(t, r, reactor.Limits{}, "ask")
	j.Leave()
	refusesToBePacked(t, &j.Conn)
	sealed := joinSealed(t, r, reactor.Limits{}, "")
	refusesToBePacked(t, &sealed.Conn)
}

func TestWhatIsAskedOfOneThatIsPackedIsDoneWhenItGoesOn(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for name, test := range map[string]struct {
		ask  func(*reactor.Conn)
		then func(t *testing.T, o *owner, peer net.Conn)
	}{
		"nothing": {func(*reactor.Conn) {}, func(t *testing.T, _ *owner, peer net.Conn) { exchange(t, peer, "hello") }},
		"Kill":    {(*reactor.Conn).Kill, func(t *testing.T, o *owner, _ net.Conn) { o.endsAs(t, reactor.Killed) }},
		"Leave":   {(*reactor.Conn).Leave, func(t *testing.T, o *owner, _ net.Conn) { o.endsAs(t, reactor.Left) }},
		"Pause": {(*reactor.Conn).Pause, func(t *testing.T, o *owner, peer net.Conn) {
			peer.Write([]byte("x"))
			if v := o.view(t); !v.Paused || v.Read > 0 {
				t.Errorf("%+v", v)
			}
			o.Resume()
			expect(t, peer, "x")
		}},
		"Pack": {func(c *reactor.Conn) { refusesToBePacked(t, c) }, func(t *testing.T, _ *owner, peer net.Conn) { exchange(t, peer, "hello") }},
	} {
		t.Run(name, func(t *testing.T) {
			o, peer := serve(t, r, reactor.Limits{}, echo)
			packUp(t, &o.Conn)
			test.ask(&o.Conn)
			o.Unpack()
			test.then(t, o, peer)
		})
	}
	j := join(t, r, reactor.Limits{}, "")
	packUp(t, &j.Conn)
	j.Kill()
	j.Unpack()
	j.endsAs(t, reactor.Killed)
}

func TestOneThatIsPackedIsLeftAlone(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	o, peer := serve(t, r, reactor.Limits{Idle: 20 * time.Millisecond}, echo)
	j := join(t, r, reactor.Limits{Idle: 20 * time.Millisecond}, "")
	s := [...]*reactor.Snapshot{packUp(t, &o.Conn), packUp(t, &j.Conn)}
	peer.Write([]byte("waits"))
	j.near.Write([]byte("waits"))
	_, other := serve(t, r, reactor.Limits{}, echo)
	for deadline := time.Now().Add(60 * time.Millisecond); time.Now().Before(deadline); <-time.After(time.Millisecond) {
		exchange(t, other, "x")
	}
	r.Hurry(reactor.Hurry{Idle: true, Narrow: true})
	seen := make(chan []reactor.Sight, 1)
	r.Survey(func(all []reactor.Sight) { seen <- all })
	if all := <-seen; len(all) != 1 {
		t.Errorf("%d connections are seen, want the other one", len(all))
	}
	for _, c := range []*reactor.Conn{&o.Conn, &j.Conn} {
		if read, written := c.Traffic(); read+written > 0 {
			t.Errorf("%d read, %d written", read, written)
		}
	}
	if len(o.ended)+len(j.ended) > 0 {
		t.Error("ended")
	}
	o.moveTo(t, r, s[0], reactor.Limits{}, echo).Unpack()
	expect(t, peer, "waits")
	j.moveTo(t, r, s[1], reactor.Limits{}).Unpack()
	expect(t, j.far, "waits")
}

func TestTheTimesOfOneThatMovesGoOnFromWhereTheyWere(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	const limit, spent = 1200 * time.Millisecond, 600 * time.Millisecond
	reads := func(in, _ []byte) (int, []byte, error) { return 0, nil, nil }
	full := make([]byte, 16<<20)
	floods := func(in, _ []byte) (int, []byte, error) { return len(in), full, nil }
	for name, test := range map[string]struct {
		limits reactor.Limits
		do     step
		want   reactor.Cause
		gone   func(reactor.Side) time.Duration // of the limit
	}{
		"silence":   {reactor.Limits{Idle: limit}, echo, reactor.Idle, func(s reactor.Side) time.Duration { return s.Silent }},
		"a message": {reactor.Limits{Message: limit}, reads, reactor.Unfinished, func(s reactor.Side) time.Duration { return s.Message }},
		"a stall":   {reactor.Limits{WriteStall: limit}, floods, reactor.Stalled, func(s reactor.Side) time.Duration { return s.Stalled }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, peer := serve(t, r, test.limits, test.do)
			peer.Write([]byte("x"))
			eventually(t, "it has come", func() bool { n, _ := o.Traffic(); return n == 1 })
			<-time.After(spent)
			s := packUp(t, &o.Conn)
			<-time.After(limit) // which does not count
			o = o.moveTo(t, another, s, test.limits, test.do)
			began := time.Now()
			o.Unpack()
			end := o.endsAs(t, test.want)
			left := limit - test.gone(s.Near)
			if took := end.at.Sub(began); took < left-20*time.Millisecond || took > left+limit/reactor.StallLooks+50*time.Millisecond {
				t.Errorf("ended %v after the move, want about %v", took, left)
			}
		})
	}
}

func TestAPairThatMovesKnowsHowFarItsEndIs(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	for _, nearFirst := range []bool{true, false} {
		j := join(t, r, reactor.Limits{}, "")
		first, last, want := j.near, j.far, reactor.EOF
		if !nearFirst {
			first, last, want = j.far, j.near, reactor.FarEOF
		}
		first.(*net.TCPConn).CloseWrite()
		expectEnd(t, last, nil)
		eventually(t, "it is told", func() bool {
			s := packUp(t, &j.Conn)
			defer j.Unpack()
			return s.Near.Told || s.Far.Told
		})
		j = j.moveTo(t, another, packUp(t, &j.Conn), reactor.Limits{HalfClosed: time.Minute})
		j.Unpack()
		last.Write([]byte("still here"))
		expect(t, first, "still here")
		last.(*net.TCPConn).CloseWrite()
		expectEnd(t, first, nil)
		j.endsAs(t, want)
		if j.EndedFirst() != nearFirst {
			t.Errorf("the near one has ended first: %t", j.EndedFirst())
		}
	}
}

func TestAPairThatMovesKnowsWhoHasSpokenLast(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	moved := func(waits bool) *joint {
		j := join(t, r, reactor.Limits{}, "ask")
		expect(t, j.far, "ask")
		j.far.Write([]byte("answer"))
		expect(t, j.near, "answer")
		if waits {
			j.near.Write([]byte("ask"))
			expect(t, j.far, "ask")
		}
		s := packUp(t, &j.Conn)
		if asked := s.Near.Silent < s.Far.Silent; asked != waits {
			t.Errorf("the near one has been silent for %v, the far one for %v", s.Near.Silent, s.Far.Silent)
		}
		j = j.moveTo(t, another, s, reactor.Limits{})
		j.Unpack()
		return j
	}
	resting, waiting := moved(false), moved(true)
	resting.Leave()
	waiting.Leave()
	if end := resting.endsAs(t, reactor.Left); end.err != nil {
		t.Error(end.err)
	}
	if len(waiting.ended) > 0 {
		t.Error("one that waits for an answer has left")
	}
	waiting.far.Write([]byte("answer"))
	expect(t, waiting.near, "answer")
}

func TestAWaitForAPacerGoesOnAfterAMove(t *testing.T) {
	r, another := start(t, reactor.Options{}), startAnother(t, reactor.Options{})
	const wait = 300 * time.Millisecond
	o, peer := servePaced(t, r, &lull{chunk: 1 << 20, wait: wait}, nil, echo)
	peer.Write([]byte("a"))
	expect(t, peer, "a")
	began := time.Now()
	peer.Write([]byte("b"))
	s := packUp(t, &o.Conn)
	if s.Near.Waits <= 0 || s.Near.Waits > wait {
		t.Fatalf("it has to wait for %v, want %v at most", s.Near.Waits, wait)
	}
	copied, sockets := copied(t, s, o.Sockets())
	now := newOwner(t, echo)
	now.calls = 1
	now.SetPace(&lull{chunk: 1 << 20}, nil)
	another.Restore(&now.Conn, nil, sockets, copied, now, &reactor.Limits{})
	o.elsewhere.Store(true)
	o.Discard()
	now.endsWithTest(t)
	now.Unpack()
	expect(t, peer, "b")
	if took := time.Since(began); took < wait-20*time.Millisecond {
		t.Errorf("read %v after the last, want %v", took, wait)
	}
}

func TestASnapshotThatMakesNoSenseHarmsNobody(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	odd := reactor.Side{
		In: []byte("in"), Out: []byte("out"), Read: -1, Written: -1, Silent: -1 << 63, Message: 1<<63 - 1, Stalled: -1 << 63,
		Queue: 1<<32 - 1, Waits: 1<<63 - 1, Room: 255, Ended: true, EndedFirst: true, Told: true, Heard: true, Young: true,
	}
	for _, far := range []*reactor.Side{nil, &odd} {
		var sockets []int
		for range 2 {
			fd, peer := tcp(t)
			sockets = append(sockets, fd)
			go io.Copy(io.Discard, peer) // ends with the connection
		}
		o, farConn := newOwner(t, echo), new(reactor.Conn)
		o.calls = 1
		r.Restore(&o.Conn, farConn, sockets, &reactor.Snapshot{Near: odd, Far: far}, o, &reactor.Limits{Idle: time.Hour, WriteStall: time.Hour, Message: time.Hour})
		if far == nil {
			unix.Close(sockets[1])
		}
		o.Unpack()
		receive(t, o.ended, "the end of what has ended")
	}
	exchange(t, other, "hello")
}
