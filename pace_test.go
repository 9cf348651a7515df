package levee_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// A bucket is a Pacer: tokens come at a rate, up to a burst, and may be owed.
type bucket struct {
	rate  float64 // bytes per second
	burst float64
	chunk int

	mu     sync.Mutex
	tokens float64
	at     time.Time
	most   int // that was ever spent at once
}

// saves is how long a bucket saves up what has not been moved, so that nothing is lost on a busy machine.
const saves = 200 * time.Millisecond

func newBucket(rate float64) *bucket {
	return &bucket{rate: rate, burst: rate * saves.Seconds(), chunk: int(min(max(rate/100, 1), 64<<10)), at: time.Now()}
}

func (b *bucket) Chunk() int { return b.chunk }

func (b *bucket) Spend(n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.at).Seconds()) - float64(n)
	b.at = now
	b.most = max(b.most, n)
	return time.Duration(max(0, -b.tokens/b.rate*float64(time.Second)))
}

// largest returns the most that was spent at once.
func (b *bucket) largest() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// A pacing is who paces the connections that come next, in the order of their coming.
type pacing chan [2]levee.Pacer

// pacingOf has srv pace its connections when they are accepted.
func pacingOf(srv *levee.Server) pacing {
	p := make(pacing, 100)
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{Accepted: func(c *levee.Conn) {
		select {
		case pacers := <-p:
			c.Pace(pacers[0], pacers[1])
		default:
		}
	}})
	return p
}

// bytesEchoed is a Stepper that returns what it gets.
type bytesEchoed struct{}

func (e bytesEchoed) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, e) }

func (bytesEchoed) Step(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) {
	return len(in), in, nil
}

// pour sends until the connection ends.
func pour(to io.Writer) {
	for b := make([]byte, 64<<10); ; {
		if _, err := to.Write(b); err != nil {
			return
		}
	}
}

// A stretch is a connection that is flooded, and what it is to come to.
type stretch struct {
	what string
	conn *levee.Conn
	out  bool
	rate float64
	from int64
	at   time.Time // when that was
}

func (s *stretch) moved() int64 {
	read, written := s.conn.Traffic()
	if s.out {
		return written
	}
	return read
}

const (
	paceSettles = 300 * time.Millisecond
	paceSpan    = 500 * time.Millisecond

	// atMost is what fraction of its rate a connection comes to in a span that follows a standstill of the machine,
	// and a tenth for chunks that are on their way.
	atMost = 1 + float64(saves)/float64(paceSpan) + 0.1
)

// measure returns what fraction of its rate each of the stretches came to.
func measure(stretches []*stretch) []float64 {
	<-time.After(paceSettles)
	for _, s := range stretches {
		s.at, s.from = time.Now(), s.moved()
	}
	<-time.After(paceSpan) // a rate is one of real time
	got := make([]float64, len(stretches))
	for i, s := range stretches {
		moved := s.moved() - s.from // first: it is never more than in the time until now
		got[i] = float64(moved) / time.Since(s.at).Seconds() / s.rate
	}
	return got
}

// checkRates holds connections to their rates: never more, and less only for as long as a machine that
// has other things to do does not get round to it.
func checkRates(t *testing.T, stretches []*stretch) {
	t.Helper()
	for looks := 10; len(stretches) > 0; looks-- {
		var slow []*stretch
		for i, got := range measure(stretches) {
			s := stretches[i]
			t.Logf("%-40s %.3f of its rate", s.what, got)
			switch {
			case got > atMost, got < 0.5 && looks == 1:
				t.Errorf("%s: moves %.3f of its rate", s.what, got)
			case got < 0.5:
				slow = append(slow, s)
			}
		}
		stretches = slow
	}
}

func (p pacing) next(out bool, pacer levee.Pacer) {
	if out {
		p <- [2]levee.Pacer{nil, pacer}
	} else {
		p <- [2]levee.Pacer{pacer, nil}
	}
}

func direction(out bool) string {
	if out {
		return "out"
	}
	return "in"
}

func TestAConnectionIsKeptToItsRate(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		steps := &levee.Server{Handler: bytesEchoed{}}
		stepped := pacingOf(steps)
		echoes := e.serve(t, steps)
		pairs := &levee.Server{}
		joined := pacingOf(pairs)
		joints := e.join(t, pairs, tcpUpstream)
		var all []*stretch
		for _, rate := range []float64{100e3, 2e6} {
			for _, out := range []bool{false, true} {
				stepped.next(out, newBucket(rate))
				client := echoes.dial()
				send(t, client, "x")
				want(t, client, "x")
				go pour(client)                // ends with the connection, as does
				go io.Copy(io.Discard, client) // this
				all = append(all, &stretch{fmt.Sprintf("echo at %.0f, %s", rate, direction(out)), newest(echoes.Conns()), out, rate, 0, time.Time{}})

				joined.next(out, newBucket(rate))
				c := joints.meet()
				from, to := c.near, c.far
				if out {
					from, to = c.far, c.near
				}
				go pour(from)
				go io.Copy(io.Discard, to)
				all = append(all, &stretch{fmt.Sprintf("pair at %.0f, %s", rate, direction(out)), c.conn, out, rate, 0, time.Time{}})
			}
		}
		checkRates(t, all)
	})
}

func TestAPacerIsToldOfNoMoreThanItsChunk(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		for _, chunk := range []int{1, 1000, 20_000, 100_000} {
			for _, out := range []bool{false, true} {
				pacer := newBucket(1e9)
				pacer.chunk = chunk
				srv := &levee.Server{}
				pacingOf(srv).next(out, pacer)
				s := e.join(t, srv, tcpUpstream)
				c := s.meet()
				b := payload(min(200*chunk, 1<<20))
				for _, c := range []couple{c, c.swapped()} {
					go c.near.Write(b) // ends with the reading, or the connection
					got := make([]byte, len(b))
					if _, err := io.ReadFull(c.far, got); err != nil {
						t.Fatal(err)
					}
					wantBytes(t, got, b)
				}
				most := chunk
				if e.tls {
					most += chunk/20 + 4<<10 // what TLS adds, and a flight of its handshake
				}
				if got := pacer.largest(); got > most || got == 0 {
					t.Errorf("%s: told of %d bytes at once, want no more than %d", direction(out), got, chunk)
				}
				s.Close()
			}
		}
	})
}

// A lull is a Pacer that asks for a wait after each chunk.
type lull struct {
	chunk int
	wait  time.Duration
}

func (l lull) Chunk() int              { return l.chunk }
func (l lull) Spend(int) time.Duration { return l.wait }

// pacedByRouter has h be found by a Router that paces its connections.
func pacedByRouter(h levee.Handler, in, out levee.Pacer) levee.Handler {
	return routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
		c.Pace(in, out)
		return h, nil
	})
}

// pacedWhenServed returns what paces connections that are about to be served.
func pacedWhenServed(in, out levee.Pacer) *levee.Trace {
	return &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) { c.Pace(in, out) }}
}

func TestAConnectionMayBePacedByWhoeverSeesItBeforeItIsServed(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		pacer := lull{64 << 10, 300 * time.Millisecond}
		for name, srv := range map[string]*levee.Server{
			"Serving": {Handler: bytesEchoed{}, Trace: pacedWhenServed(pacer, nil)},
			"Router":  {Handler: pacedByRouter(bytesEchoed{}, pacer, nil)},
		} {
			s := e.serve(t, srv)
			client := s.dial()
			began := time.Now()
			for range 3 { // the first may have been read before
				send(t, client, "x")
				want(t, client, "x")
			}
			if took := time.Since(began); took < 300*time.Millisecond {
				t.Errorf("%s: three bytes took %v", name, took)
			}
			s.Close()
		}
	})
}

func TestWaitingForAPacerIsNotSilence(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		const limit, wait = 200 * time.Millisecond, 500 * time.Millisecond
		for _, out := range []bool{false, true} {
			srv := &levee.Server{Handler: &lines{}, IdleTimeout: limit, HalfClosedTimeout: limit, WriteStallTimeout: limit}
			pairs := &levee.Server{IdleTimeout: limit, HalfClosedTimeout: limit, WriteStallTimeout: limit}
			if pacer := (lull{6, wait}); out {
				srv.Trace, pairs.Trace = pacedWhenServed(nil, pacer), pacedWhenServed(nil, pacer)
			} else {
				srv.Trace, pairs.Trace = pacedWhenServed(pacer, nil), pacedWhenServed(pacer, nil)
			}
			s := e.serve(t, srv)
			client := s.dial()
			send(t, client, "echo abcdef\necho ghijkl\n")
			want(t, client, "abcdef\nghijkl\n")
			client.CloseWrite()
			s.expectEnd(levee.ClientClosed)

			j := e.join(t, pairs, tcpUpstream)
			c := j.meet()
			if out {
				c = c.swapped()
			}
			send(t, c.near, "abcdefghijkl")
			c.near.CloseWrite()
			want(t, c.far, "abcdefghijkl")
			c.far.CloseWrite()
			if reason := receive(t, j.over).Reason; reason != levee.ClientClosed && reason != levee.UpstreamClosed {
				t.Errorf("%s: the pair ended as %v", direction(out), reason)
			}
			s.Close()
			j.Close()
		}
	})
}

func TestASilentPeerOfAPacedConnectionIsIdle(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		const limit, wait = 200 * time.Millisecond, 600 * time.Millisecond
		srv := &levee.Server{Handler: &lines{}, IdleTimeout: limit, Trace: pacedWhenServed(lull{64 << 10, wait}, nil)}
		s := e.serve(t, srv)
		client, _ := s.greet()
		began := time.Now() // what has come by then may have been read before it was paced
		send(t, client, "echo hello\n")
		want(t, client, "hello\n")
		s.expectEnd(levee.IdleTimeout)
		if took := time.Since(began); took < wait+limit {
			t.Errorf("it was idle after %v, want %v after the wait of %v", took, limit, wait)
		}

		j := e.join(t, &levee.Server{IdleTimeout: limit, Trace: pacedWhenServed(lull{64 << 10, wait}, nil)}, tcpUpstream)
		j.meet()
		j.end(levee.IdleTimeout)
	})
}

func TestAPacedPeerThatTakesNothingStalls(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		pacer := lull{1 << 20, time.Millisecond}
		srv := &levee.Server{Handler: &lines{}, WriteStallTimeout: 300 * time.Millisecond, Trace: pacedWhenServed(pacer, pacer)}
		s := e.serve(t, srv)
		send(t, s.dial(), "big 20000000\n")
		s.expectEnd(levee.WriteStalled)

		j := e.join(t, &levee.Server{WriteStallTimeout: 300 * time.Millisecond, Trace: pacedWhenServed(pacer, pacer)}, tcpUpstream)
		go pour(j.meet().far)
		j.end(levee.WriteStalled)
		go pour(j.meet().near)
		j.end(levee.UpstreamStalled)
	})
}

func TestWhateverEndsAPacedConnectionEndsItsWait(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		for _, way := range []struct {
			name string
			end  func(c *levee.Conn, client peer)
			want levee.CloseReason
		}{
			{"Kill", func(c *levee.Conn, _ peer) { c.Kill(nil) }, levee.Killed},
			{"Close", func(c *levee.Conn, _ peer) { c.Close() }, levee.HandlerClosed},
			{"Drain", func(c *levee.Conn, _ peer) { c.Drain(nil) }, levee.Drained},
			{"a reset", func(_ *levee.Conn, client peer) { resetByClient(t, client) }, levee.ClientReset},
		} {
			if way.want == levee.ClientReset && (e.network != "tcp" || runtime.GOOS != "linux") {
				continue // there is none, or it shows when the wait is over
			}
			for _, out := range []bool{false, true} {
				pacer := lull{64 << 10, time.Hour}
				trace := pacedWhenServed(pacer, nil)
				if out {
					trace = pacedWhenServed(nil, pacer)
				}
				s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: trace})
				client, c := s.greet()
				way.end(c, client)
				s.expectEnd(way.want)
				s.Close()
				if way.want == levee.Drained {
					continue // a pair leaves in quiet
				}
				j := e.join(t, &levee.Server{Trace: trace}, tcpUpstream)
				joined := j.meet()
				if out {
					send(t, joined.far, "hello\n")
					want(t, joined.near, "hello\n")
				}
				way.end(joined.conn, joined.near)
				j.end(way.want)
				j.Close()
			}
		}
	})
}

func TestAPacedConnectionThatIsAskedToLeaveAnswersWhatHasCome(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: pacedWhenServed(lull{64 << 10, 300 * time.Millisecond}, nil)})
		client, c := s.greet()
		send(t, client, "echo last\n")
		<-time.After(50 * time.Millisecond) // until it has come, of which nothing tells as it is not read yet
		c.Drain(nil)
		want(t, client, "last\n")
		s.expectEnd(levee.Drained)
	})
}

// A whim is a Pacer that is no use to anybody.
type whim struct {
	mu     sync.Mutex
	random *rand.Rand
}

func (w *whim) Chunk() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return 1 + w.random.IntN(1<<w.random.IntN(18))
}

func (w *whim) Spend(int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.random.IntN(4) > 0 {
		return 0
	}
	return time.Duration(w.random.IntN(4000)) * time.Microsecond
}

func TestWhateverThePaceAPairsBytesArriveInFull(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{Trace: &levee.Trace{Accepted: func(c *levee.Conn) {
			c.Pace(&whim{random: newRandom()}, &whim{random: newRandom()})
		}}}, to)
		for range 2 {
			s.meet().converseBothWays(t, 256<<10)
			if reason := receive(t, s.over).Reason; reason != levee.ClientClosed && reason != levee.UpstreamClosed {
				t.Errorf("ended as %v", reason)
			}
		}
	})
}

// newest returns the connection that was accepted last.
func newest(conns []*levee.Conn) (last *levee.Conn) {
	for _, c := range conns {
		if last == nil || c.ID() > last.ID() {
			last = c
		}
	}
	return last
}

func TestConnectionsThatShareAPacerKeepToItTogether(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		const many, rate = 10, 2e6 // so little that it is not the clients who hold it up
		for _, out := range []bool{false, true} {
			srv := &levee.Server{}
			paced := pacingOf(srv)
			s := e.join(t, srv, tcpUpstream)
			shared := newBucket(rate)
			shared.chunk = 8 << 10 // less than what a loopback socket receives at once: turns are of equal length then
			var all []*stretch
			for i := range many {
				paced.next(out, shared)
				c := s.meet()
				from, to := c.near, c.far
				if out {
					from, to = c.far, c.near
				}
				go pour(from)
				go io.Copy(io.Discard, to)
				all = append(all, &stretch{fmt.Sprintf("%s %d", direction(out), i), c.conn, out, rate / many, 0, time.Time{}})
			}
			moved, mean := measure(all), 0.0
			for _, got := range moved {
				mean += got / many
			}
			for i, got := range moved { // how much of it is up to a machine that has other things to do as well
				if got == 0 {
					t.Errorf("%s moves nothing", all[i].what)
				}
			}
			if mean > atMost {
				t.Errorf("%s: together they move %.3f of their rate", direction(out), mean)
			}
			s.Close()
		}
	})
}

func TestWhatAConnectionHoldsIsTold(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		got := make(chan int, 10)
		s := e.serve(t, &levee.Server{Handler: &lines{partial: func(*levee.Conn) { got <- 0 }}})
		client, c := s.greet()
		if held := levee.Holds(c); held != 0 {
			t.Errorf("it holds %d bytes between two messages", held)
		}
		if !e.onLoop() {
			return // a part of a message is in its handler's hands
		}
		part := "echo " + strings.Repeat("x", 2000)
		send(t, client, part)
		receive(t, got)
		eventually(t, "what has come is told", func() bool { return levee.Holds(c) >= len(part) })
		send(t, client, "\n")
		want(t, client, part[5:]+"\n")
		eventually(t, "nothing is held", func() bool { return levee.Holds(c) == 0 })
	})
}

func TestAPausedConnectionIsNotRead(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}, IdleTimeout: 300 * time.Millisecond})
		client, c := s.greet()
		if got := levee.Pause(c); got != e.onLoop() {
			t.Errorf("paused: %t, want %t", got, e.onLoop())
		}
		if !e.onLoop() {
			return
		}
		eventually(t, "the loop has heard of it", func() bool { return levee.IsPaused(c) })
		send(t, client, "echo hello\n")
		_ = client.SetReadDeadline(time.Now().Add(600 * time.Millisecond))
		if n, err := client.Read(make([]byte, 1)); n != 0 || !isDeadline(err) {
			t.Fatalf("read %d bytes, %v, of a paused connection", n, err)
		}
		_ = client.SetReadDeadline(time.Now().Add(longest))
		levee.Resume(c)
		want(t, client, "hello\n")
		s.expectEnd(levee.IdleTimeout)
	})
}
