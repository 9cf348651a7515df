package levee_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// How joined connections end: each side learns what became of the other, and the reason
// says whose doing it was.

func TestAHalfCloseIsPassedOn(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		eachWay(t, s, func(t testing.TB, first, last peer, upward bool) {
			send(t, first, "that was all\n")
			if err := first.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			want(t, last, "that was all\n")
			wantEOF(t, last)
			for range 3 { // the other direction goes on
				send(t, last, "not yet\n")
				want(t, first, "not yet\n")
			}
			if err := last.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEOF(t, first)
			first.Close()
			last.Close()
			if upward {
				s.cleanEnd(levee.ClientClosed)
			} else {
				s.cleanEnd(levee.UpstreamClosed)
			}
		})
	})
}

// canReset reports whether a reset can be told from a close.
func (s *joins) canReset(upward bool) bool {
	if upward {
		return s.engine.network == "tcp"
	}
	return s.upstream.name == "TCP" || s.upstream.name == "TLS"
}

// wantReset reads the reset, behind the bytes.
func wantReset(t testing.TB, c io.Reader, behind []byte) {
	t.Helper()
	got, err := readRandomly(newRandom(), c)
	wantBytes(t, got, behind)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("behind %d bytes came %v, want a reset", len(got), err)
	}
}

// resetReason is the reason for a reset by one side.
func resetReason(upward bool) levee.CloseReason {
	if upward {
		return levee.ClientReset
	}
	return levee.UpstreamReset
}

func TestAResetIsPassedOnBehindTheBytes(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		eachWay(t, s, func(t testing.TB, from, to peer, upward bool) {
			if !s.canReset(upward) {
				from.Close()
				to.Close()
				receive(t, s.over)
				return
			}
			b := payload(20_000)
			send(t, from, string(b))
			if _, err := io.ReadFull(to, make([]byte, len(b))); err != nil {
				t.Fatal(err)
			}
			resetByClient(t, from)
			if s.canReset(!upward) {
				wantReset(t, to, nil)
			} else {
				wantEnd(t, to)
			}
			p := s.end(resetReason(upward))
			if !errors.Is(p.Err, syscall.ECONNRESET) {
				t.Errorf("the error is %v, want a reset", p.Err)
			}
			if upward == (p.upstream.Err != nil) {
				t.Errorf("the upstream's error is %v", p.upstream.Err)
			}
		})
	})
}

func TestAResetBehindAHalfCloseIsPassedOn(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.join(t, &levee.Server{}, tcpUpstream)
		eachWay(t, s, func(t testing.TB, from, to peer, upward bool) {
			if !s.canReset(upward) || !s.canReset(!upward) {
				from.Close()
				to.Close()
				receive(t, s.over)
				return
			}
			send(t, from, "that was all\n")
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			want(t, to, "that was all\n")
			wantEOF(t, to)
			resetByClient(t, from)
			for err := error(nil); err == nil; {
				_, err = to.Write([]byte("x"))
			}
			s.end(resetReason(upward))
		})
	})
}

func TestTheEndTellsWhetherTheClientWentFirst(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		check := func(when string, p parting, want bool) {
			t.Helper()
			if p.upstream.ClientFirst != want {
				t.Errorf("%s (%v) the client went first: %t, want %t", when, p.Reason, p.upstream.ClientFirst, want)
			}
		}
		eachWay(t, s, func(t testing.TB, first, last peer, upward bool) {
			if err := first.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEOF(t, last)
			last.Close()
			first.Close()
			check("when one side closes", receive(t, s.over), upward)
		})
		eachWay(t, s, func(t testing.TB, first, last peer, upward bool) {
			if !s.canReset(upward) {
				first.Close()
				last.Close()
				receive(t, s.over)
				return
			}
			resetByClient(t, first)
			wantEnd(t, last)
			check("when one side resets", receive(t, s.over), upward)
		})
		if !s.canReset(false) {
			return
		}
		c := s.meet()
		if err := c.near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEOF(t, c.far)
		resetByClient(t, c.far)
		wantEnd(t, c.near)
		check("when the upstream resets what the client has ended", s.end(levee.UpstreamReset), true)
	})
}

// An impatient server has answered before it has read the request, and closes.
func TestAServerThatAnswersEarlyIsHeard(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		for _, answer := range []int{20, 100_000} {
			c := s.meet()
			var uploading sync.WaitGroup
			uploading.Go(func() {
				for err := error(nil); err == nil; {
					_, err = c.near.Write(make([]byte, 10_000))
				}
			})
			b := payload(answer)
			send(t, c.far, string(b))
			c.far.Close()
			got := make([]byte, answer)
			if n, err := io.ReadFull(c.near, got); err != nil {
				t.Errorf("%v after %d bytes", err, n)
			}
			wantBytes(t, got, b)
			uploading.Wait()
			p := receive(t, s.over)
			if p.Reason != levee.UpstreamReset && p.Reason != levee.UpstreamClosed {
				t.Errorf("ended as %v (%v)", p.Reason, p.Err)
			}
		}
	})
}

// A Unix socket may take no more and still have something to say.
func TestAnUpstreamThatTakesNoMoreIsHeard(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
			return
		}
		answers, silent := e.join(t, &levee.Server{}, unixUpstream), e.join(t, &levee.Server{HalfClosedTimeout: soon}, unixUpstream)
		for _, s := range []*joins{answers, silent} {
			c := s.answered()
			if err := c.far.(*net.UnixConn).CloseRead(); err != nil {
				t.Fatal(err)
			}
			send(t, c.near, "what nobody reads")
			if s == answers {
				<-time.After(soon / 2)
				b := payload(100_000)
				send(t, c.far, string(b[:10]))
				<-time.After(soon / 2)
				send(t, c.far, string(b[10:]))
				c.far.Close()
				got, _ := readRandomly(newRandom(), c.near)
				wantBytes(t, got, b)
				s.end(levee.UpstreamReset)
				continue
			}
			wantEnd(t, c.near)
			s.end(levee.HalfClosedTimeout)
		}
	})
}

// soon is a short limit of these tests.
const soon = time.Second

func TestASilentPairIsIdle(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{IdleTimeout: soon}, e.itsUpstream())
		began := time.Now()
		c := s.meet()
		wantEnd(t, c.near)
		wantEnd(t, c.far)
		s.cleanEnd(levee.IdleTimeout)
		if took := time.Since(began); took < soon {
			t.Errorf("it was idle after %v", took)
		}
	})
}

func TestAPairIsNotIdleWhileEitherSideSends(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{IdleTimeout: soon}, tcpUpstream)
		asks, tells := s.meet(), s.meet()
		ticker := time.NewTicker(soon / 6)
		defer ticker.Stop()
		for range 9 {
			<-ticker.C
			send(t, asks.near, "x")
			want(t, asks.far, "x")
			send(t, tells.far, "x")
			want(t, tells.near, "x")
		}
	})
}

func TestJoinedConnectionsMayBeIdleForAnHour(t *testing.T) {
	idle, joined := levee.IdleLimits(&levee.Server{})
	if idle != 5*time.Minute || joined != time.Hour {
		t.Errorf("%v, joined %v", idle, joined)
	}
	idle, joined = levee.IdleLimits(&levee.Server{IdleTimeout: time.Second})
	if idle != time.Second || joined != time.Second {
		t.Errorf("%v, joined %v; want what was asked for", idle, joined)
	}
}

func TestAHalfClosedPairHasItsOwnLimit(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{HalfClosedTimeout: soon}, e.itsUpstream())
		eachWay(t, s, func(t testing.TB, from, to peer, _ bool) {
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEOF(t, to)
			began := time.Now()
			for range 4 { // what comes has it begin anew
				send(t, to, "x")
				want(t, from, "x")
			}
			wantEnd(t, from)
			if took := time.Since(began); took < soon-50*time.Millisecond {
				t.Errorf("ended after %v", took)
			}
			s.cleanEnd(levee.HalfClosedTimeout)
		})
	})
}

// A server may think for long about a request of which the end was all it waited for.
func TestAHalfClosedPairsTimeBeginsAtTheEndNotBefore(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{HalfClosedTimeout: soon}, e.itsUpstream())
		var both sync.WaitGroup
		for _, c := range []couple{s.answered(), s.answered().swapped()} {
			both.Go(func() {
				<-time.After(2 * soon)
				if err := c.near.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				wantEOF(t, c.far)
				<-time.After(soon / 2)
				send(t, c.far, "at last")
				want(t, c.near, "at last")
			})
		}
		both.Wait()
	})
}

func TestAHalfClosedPairMayBeSlowToTakeWhatItGets(t *testing.T) {
	b := payload(16 << 20) // more than there is room for on the way
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{HalfClosedTimeout: 3 * time.Second}, tcpUpstream)
		c := s.meet()
		if err := c.near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEOF(t, c.far)
		go c.far.Write(b) // ends with the reading, or the connection
		<-time.After(4 * time.Second)
		got := make([]byte, len(b))
		if n, err := io.ReadFull(c.near, got); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		wantBytes(t, got, b)
		s.cleanEnd(levee.HalfClosedTimeout)
	})
}

func TestWithoutALimitAHalfClosedPairIsNotIdle(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{HalfClosedTimeout: -1, IdleTimeout: soon}, tcpUpstream)
		asks, tells := s.meet(), s.meet().swapped()
		for _, c := range []couple{asks, tells} {
			if err := c.near.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEOF(t, c.far)
		}
		select {
		case p := <-s.over:
			t.Fatalf("ended as %v", p.Reason)
		case <-time.After(soon + soon/2):
		}
		for _, c := range []couple{asks, tells} {
			send(t, c.far, "at last")
			want(t, c.near, "at last")
		}
	})
}

func TestAClientThatTakesNothingIsCut(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.join(t, &levee.Server{WriteStallTimeout: soon}, e.itsUpstream())
		eachWay(t, s, func(t testing.TB, from, to peer, upward bool) {
			wrote := make(chan error, 1)
			go func() { // ends with the connection
				for {
					if _, err := from.Write(make([]byte, 64<<10)); err != nil {
						wrote <- err
						return
					}
				}
			}()
			reason := levee.WriteStalled
			if upward {
				reason = levee.UpstreamStalled
			}
			p := s.cleanEnd(reason)
			if err := receive(t, wrote); isDeadline(err) {
				t.Error("the sender was left waiting")
			}
			held := p.upstream.Received - p.Written
			if upward {
				held = p.Read - p.upstream.Sent
			}
			if most := int64(512 << 10); held > most && !s.engine.tls {
				t.Errorf("%d bytes were held for it, more than %d", held, most)
			}
		})
	})
}

func TestASlowReaderIsNotAStalledOne(t *testing.T) {
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		s := e.tightly(t, &levee.Server{WriteStallTimeout: time.Second})
		c := s.meet()
		var both sync.WaitGroup
		for _, c := range []couple{c, c.swapped()} {
			both.Go(func() {
				wantSlowlyTaken(t, c, payload(120_000))
			})
		}
		both.Wait()
		c.near.Close()
		c.far.Close()
		receive(t, s.over)
	})
}

// The kernel calls a socket writable when a good part of its buffer is free. That may take
// a slow upstream longer than it may stall; and where TLS lies above, no deadline may strike.
func TestASlowUpstreamIsNotAStalledOne(t *testing.T) {
	b := payload(300_000)
	atOnceOnEveryEngine(t, func(t testing.TB, e engine) {
		var all sync.WaitGroup
		for _, to := range []upstreamKind{tcpUpstream, unixUpstream, tlsUpstream} {
			all.Go(func() {
				t := ofEngine{t, "to " + to.name}
				l, dial := to.start(t)
				t.Cleanup(func() { l.Close() })
				s := e.joinAt(t, &levee.Server{WriteStallTimeout: soon}, e.listen(t), to, l, func(ctx context.Context) (net.Conn, error) {
					c, err := dial(ctx)
					if err == nil {
						makeRoom(c)
					}
					return c, err
				})
				c := s.meet()
				tighten(c.far)
				wantSlowlyTaken(t, c, b)
			})
		}
		all.Wait()
	})
}

// wantSlowlyTaken has the near side send b and end its stream, and the far one read slowly.
func wantSlowlyTaken(t testing.TB, c couple, b []byte) {
	t.Helper()
	go func() { // ends with the reading, or the connection
		_, _ = c.near.Write(b)
		_ = c.near.CloseWrite()
	}()
	got, err := readSlowly(c.far)
	if err != io.EOF {
		t.Errorf("after %d bytes: %v", len(got), err)
	}
	wantBytes(t, got, b)
}

// readSlowly reads some KiB ten times a second.
func readSlowly(c io.Reader) (got []byte, err error) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for buffer := make([]byte, 8<<10); err == nil; {
		<-ticker.C
		var n int
		n, err = c.Read(buffer)
		got = append(got, buffer[:n]...)
	}
	return got, err
}

func TestSlowReadersGetEverything(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.tightly(t, &levee.Server{})
		s.meet().converseBothWays(t, 200<<10)
		receive(t, s.over)
	})
}

// tightly joins to a TCP upstream, with buffers as small as the kernel makes them.
func (e engine) tightly(t testing.TB, srv *levee.Server) *joins {
	l, dial := tcpUpstream.start(t)
	t.Cleanup(func() { l.Close() })
	at := e.listen(t)
	tighten(l)
	tighten(at)
	return e.joinAt(t, srv, at, tcpUpstream, l, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err == nil {
			tighten(c)
		}
		return c, err
	})
}
