//go:build linux

package reactor_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// brief is a silence after which pairs leave in tests: longer than anything that goes on in one takes.
const brief = 500 * time.Millisecond

// An overhearer makes of the last byte that the far side has sent whether its pair rests.
type overhearer struct {
	*owner
	rest  atomic.Uint32
	heard chan snippet // nil if nobody wants to know
}

type snippet struct {
	bytes string
	first bool
}

func (o *overhearer) Overhear(b []byte, first bool) {
	rest := reactor.RestUnknown
	if len(b) > 0 {
		switch b[len(b)-1] {
		case '.':
			rest = reactor.AtRest
		case ',':
			rest = reactor.NotAtRest
		}
	}
	o.rest.Store(uint32(rest))
	if o.heard != nil {
		o.heard <- snippet{string(b), first}
	}
}

func (o *overhearer) Rest() reactor.Rest { return reactor.Rest(o.rest.Load()) }

// A sealedOverhearer overhears what is sealed.
type sealedOverhearer struct {
	cipher
	overhearer
}

func (o *sealedOverhearer) Step(in []byte, seen int, out []byte) (int, []byte, error) {
	return o.owner().Step(in, seen, out)
}
func (o *sealedOverhearer) owner() *owner                    { return o.cipher.owner }
func (o *sealedOverhearer) Slow()                            { o.owner().Slow() }
func (o *sealedOverhearer) Slowed(d time.Duration)           { o.owner().Slowed(d) }
func (o *sealedOverhearer) End(cause reactor.Cause, e error) { o.owner().End(cause, e) }

// joinOverheard joins two connections whose owner overhears, in plaintext or not.
func joinOverheard(t testing.TB, r *reactor.Reactor, isSealed bool, heard chan snippet) *joint {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	return joinAs(t, r, reactor.Limits{}, "", func(j *joint) reactor.Owner {
		if isSealed {
			return &sealedOverhearer{cipher: cipher{owner: j.owner}, overhearer: overhearer{heard: heard}}
		}
		return &overhearer{owner: j.owner, heard: heard}
	}, nearFD, farFD, near, far)
}

// converse has the near side ask, and the far one answer, on whichever kind of pair.
func (j *joint) converse(t testing.TB, isSealed bool, question, answer string) {
	t.Helper()
	asked, wanted := question, answer
	if isSealed {
		asked, wanted = string(flip([]byte(question))), string(flip([]byte(answer)))
	}
	j.near.Write([]byte(asked))
	expect(t, j.far, question)
	j.far.Write([]byte(answer))
	expect(t, j.near, wanted)
}

func onBothKinds(t *testing.T, test func(t *testing.T, isSealed bool)) {
	for _, isSealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed %t", isSealed), func(t *testing.T) { test(t, isSealed) })
	}
}

func TestAPairThatIsKnownToRestLeavesAlmostAtOnce(t *testing.T) {
	onBothKinds(t, func(t *testing.T, isSealed bool) {
		r := start(t, reactor.Options{})
		for name, leavesFirst := range map[string]bool{"asked before": true, "asked after": false} {
			j := joinOverheard(t, r, isSealed, nil)
			j.converse(t, isSealed, "begin", "begun,")
			if leavesFirst {
				j.Leave()
				j.view(t)
			}
			j.converse(t, isSealed, "end", "ended.")
			began := time.Now()
			j.Leave()
			end := j.endsAs(t, reactor.Left)
			if took := end.at.Sub(began); took > time.Second {
				t.Errorf("%s: left after %v", name, took)
			}
			if rest, err := io.ReadAll(j.near); err != nil || isSealed != bytes.Equal(rest, []byte{ends}) {
				t.Errorf("%s: the near side read %q, %v", name, rest, err)
			}
			expectEnd(t, j.far, nil)
		}
	})
}

func TestAPairThatIsKnownNotToRestDoesNotLeave(t *testing.T) {
	onBothKinds(t, func(t *testing.T, isSealed bool) {
		r := start(t, reactor.Options{Quiet: 10 * time.Millisecond})
		j := joinOverheard(t, r, isSealed, nil)
		j.converse(t, isSealed, "begin", "begun,")
		j.Leave()
		j.Hasten()
		select {
		case end := <-j.ended:
			t.Fatalf("ended as %d", end.cause)
		case <-time.After(brief):
		}
		j.converse(t, isSealed, "end", "ended.")
		j.endsAs(t, reactor.Left)
	})
}

func TestWhatIsNotKnownHasToBeQuietForLonger(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	for name, test := range map[string]struct {
		hasten  bool
		between [2]time.Duration
	}{
		"as always":       {false, [2]time.Duration{brief, 2 * brief}},
		"its time is out": {true, [2]time.Duration{brief / 10, brief * 9 / 10}},
	} {
		j := joinOverheard(t, r, false, nil)
		j.converse(t, false, "ask", "answer")
		began := time.Now()
		j.Leave()
		if test.hasten {
			j.Hasten()
		}
		took := j.endsAs(t, reactor.Left).at.Sub(began)
		if took < test.between[0]*9/10 || took > test.between[1] {
			t.Errorf("%s: left after %v", name, took)
		}
	}
}

// Who asks again as soon as it has its answer is never quiet. Its time runs out, and it leaves behind an answer: every
// question that has got through has one.
func TestAPairThatIsNeverQuietLeavesBetweenTwoQuestionsIfItHasTo(t *testing.T) {
	onBothKinds(t, func(t *testing.T, isSealed bool) {
		r := start(t, reactor.Options{})
		for range 10 {
			j := joinOverheard(t, r, isSealed, nil)
			got, answered := make(chan int, 1), make(chan int, 1)
			go func() { // ends with the connection
				n := 0
				for buffer := make([]byte, 64); ; n++ {
					if _, err := io.ReadFull(j.far, buffer[:8]); err != nil {
						break
					}
					if _, err := j.far.Write([]byte("answer.")); err != nil {
						break
					}
				}
				got <- n
			}()
			go func() { // ends with the connection
				n, question, answer := 0, []byte("question"), make([]byte, 7)
				if isSealed {
					question = flip(question)
				}
				for ; ; n++ {
					if _, err := j.near.Write(question); err != nil {
						break
					}
					if _, err := io.ReadFull(j.near, answer); err != nil {
						break
					}
				}
				answered <- n
			}()
			j.Leave()
			var end ending
			select {
			case end = <-j.ended: // the machine had other things to do
			case <-time.After(20 * time.Millisecond):
				began := time.Now()
				j.Hasten()
				end = receive(t, j.ended, "the end")
				if took := end.at.Sub(began); took > time.Second {
					t.Errorf("left after %v", took)
				}
			}
			if end.cause != reactor.Left {
				t.Errorf("ended as %d, %v", end.cause, end.err)
			}
			if got, answered := receive(t, got, "the server's count"), receive(t, answered, "the client's"); got != answered || got == 0 {
				t.Fatalf("%d questions have got through, and %d answers come back", got, answered)
			}
		}
	})
}

func TestAnOwnerHearsWhatTheFarSideSends(t *testing.T) {
	onBothKinds(t, func(t *testing.T, isSealed bool) {
		r := start(t, reactor.Options{Quiet: time.Hour})
		told := make(chan snippet, 1000)
		j := joinOverheard(t, r, isSealed, told)
		next := func(want snippet) {
			t.Helper()
			if got := receive(t, told, "what was sent"); got != want {
				t.Errorf("heard %q, first %t; want %q, %t", got.bytes, got.first, want.bytes, want.first)
			}
		}
		j.converse(t, isSealed, "one", "answer one")
		next(snippet{"answer one", true})
		j.far.Write([]byte("more of it"))
		io.ReadFull(j.near, make([]byte, len("more of it")))
		next(snippet{"more of it", false})
		j.converse(t, isSealed, "two", "answer two")
		next(snippet{"answer two", true})
	})
}

// Bulk goes through a pipe, which nobody sees; but not once the pair is to leave.
func TestAnOwnerKnowsWhichBytesItHasNotHeard(t *testing.T) {
	r := start(t, reactor.Options{Quiet: time.Hour})
	for name, leaves := range map[string]bool{"by pipe": false, "leaving": true} {
		t.Run(name, func(t *testing.T) {
			told := make(chan snippet, 100_000)
			j := joinOverheard(t, r, false, told)
			j.converse(t, false, "ask", "so: ")
			if leaves {
				j.Leave()
				j.view(t)
			}
			b := random(8 << 20)
			writing := make(chan error, 1)
			go func() {
				_, err := j.far.Write(b)
				writing <- err
			}()
			got := make([]byte, len(b))
			if _, err := io.ReadFull(j.near, got); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("the bytes are not the same: %v", err)
			}
			must(t, receive(t, writing, "the end of the write"))
			j.view(t)
			var all []byte
			unheard := false
			for len(told) > 0 {
				h := <-told
				unheard = unheard || h.bytes == ""
				all = append(all, h.bytes...)
			}
			if leaves && (unheard || !bytes.Equal(all, slices.Concat([]byte("so: "), b))) {
				t.Errorf("%d bytes were heard of a pair that is to leave, some not: %t", len(all), unheard)
			}
			if !leaves && unheard == (len(all) == len(b)+4) {
				t.Errorf("%d bytes were heard, of %d, some not: %t", len(all), len(b)+4, unheard)
			}
		})
	}
}

func TestToOverhearCostsNoMemory(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinOverheard(t, r, false, nil)
	question, answer := make([]byte, 64), make([]byte, 64)
	if n := testing.AllocsPerRun(500, func() {
		j.near.Write(question)
		io.ReadFull(j.far, question)
		j.far.Write(answer)
		io.ReadFull(j.near, answer)
	}); n >= 0.5 {
		t.Errorf("%v allocations for a question and its answer", n)
	}
}

func BenchmarkRelay(b *testing.B) {
	for name, made := range map[string]func(b *testing.B, r *reactor.Reactor) *joint{
		"plain":     func(b *testing.B, r *reactor.Reactor) *joint { return join(b, r, reactor.Limits{}, "") },
		"overheard": func(b *testing.B, r *reactor.Reactor) *joint { return joinOverheard(b, r, false, nil) },
	} {
		b.Run(name, func(b *testing.B) {
			r := start(b, reactor.Options{Loops: 1})
			j := made(b, r)
			for _, conn := range []net.Conn{j.near, j.far} {
				must(b, conn.SetDeadline(time.Time{}))
			}
			message := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				for _, way := range [][2]net.Conn{{j.near, j.far}, {j.far, j.near}} {
					way[0].Write(message)
					if _, err := io.ReadFull(way[1], message); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
