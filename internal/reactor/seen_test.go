//go:build linux

package reactor_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// lines echoes lines, and looks for their ends only where it has not yet.
func (o *owner) lines(searched *int, times int) step {
	return func(in, out []byte) (int, []byte, error) {
		i := bytes.IndexByte(in[o.seen:], '\n')
		if i < 0 {
			*searched += len(in) - o.seen
			return 0, nil, nil
		}
		*searched += i + 1
		n := o.seen + i + 1
		for range times {
			out = append(out, in[:n]...)
		}
		return n, out, nil
	}
}

func TestNoByteHasToBeSearchedTwice(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1, Budget: 100 * time.Microsecond})
	for name, c := range map[string]struct {
		times int // that a line is sent back, so that the peer owes
		slow  bool
	}{"inline": {times: 1}, "aside": {times: 1, slow: true}, "owed": {times: 100}, "owed aside": {times: 100, slow: true}} {
		t.Run(name, func(t *testing.T) {
			var stream, want []byte
			for i := range 60 {
				line := append(bytes.Repeat([]byte{'a' + byte(i%26)}, i*97%4000), '\n')
				stream = append(stream, line...)
				want = append(want, bytes.Repeat(line, c.times)...)
			}
			fd, peer := pair(t) // the kernel holds less than a reply of those
			o := newOwner(t, nil)
			searched := 0
			find := o.lines(&searched, c.times)
			o.step = func(in, out []byte) (int, []byte, error) {
				for began := time.Now(); c.slow && o.calls%8 == 2 && time.Since(began) < time.Millisecond; {
					runtime.Gosched()
				}
				return find(in, out)
			}
			o.adopt(t, r, fd, stream[:10], reactor.Limits{})
			go sendCut(peer.(*net.UnixConn), stream[10:], []int{1, 100, 3, 500, 7000}) // ends with the stream, or the peer's deadline
			expectEnd(t, peer, want)
			o.endsAs(t, reactor.EOF)
			if searched != len(stream) {
				t.Errorf("searched %d bytes, of a stream of %d", searched, len(stream))
			}
		})
	}
}

// A showing is what a call was given.
type showing struct {
	in   string
	seen int
}

// script has each call consume what its turn says, and tells what it was given.
func (o *owner) script(consume ...int) <-chan showing {
	shown := make(chan showing, len(consume))
	o.step = func(in, _ []byte) (int, []byte, error) {
		n := consume[0]
		consume = consume[1:]
		shown <- showing{string(in), o.seen}
		return n, nil, nil
	}
	return shown
}

func expectShown(t *testing.T, shown <-chan showing, want ...showing) {
	t.Helper()
	for _, w := range want {
		if got := receive(t, shown, "a call"); got != w {
			t.Errorf("a call was given %+v, want %+v", got, w)
		}
	}
}

func TestSeenIsWhatTheLastCallWasShownAndLeft(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for name, slow := range map[string]bool{"inline": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			fd, peer := tcp(t)
			o := newOwner(t, nil)
			shown := o.script(0, 0, 1, 2, 0, 1, 0)
			if do, held := o.step, make(chan struct{}); slow {
				o.onSlow = func() { close(held); o.onSlow = nil } // the calls after the first go through the lane
				o.step = func(in, out []byte) (int, []byte, error) {
					if o.calls == 1 {
						<-held
					}
					return do(in, out)
				}
			}
			o.adopt(t, r, fd, []byte("ab"), reactor.Limits{})
			expectShown(t, shown, showing{"ab", 0})
			o.settles(t, 2)
			peer.Write([]byte("c"))
			expectShown(t, shown, showing{"abc", 2})
			o.settles(t, 3)
			peer.Write([]byte("defg"))
			expectShown(t, shown, showing{"abcdefg", 3}, showing{"bcdefg", 0}, showing{"defg", 0})
			o.settles(t, 4)
			peer.Write([]byte("h"))
			expectShown(t, shown, showing{"defgh", 4}, showing{"efgh", 0})
			if v := o.settles(t, 4); v.Slow != slow {
				t.Errorf("%+v", v)
			}
		})
	}
}

// settles waits until so many bytes wait for more.
func (o *owner) settles(t testing.TB, in int) (v reactor.View) {
	t.Helper()
	eventually(t, "its calls are over", func() bool {
		v = o.view(t)
		return v.In == in && !v.Away
	})
	return v
}

func TestWhatWasKeptForAPeerThatOwesIsNotCalledSeen(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for name, slow := range map[string]bool{"inline": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			fd, peer := tcp(t)
			reply := make([]byte, 16<<20)
			o := newOwner(t, nil)
			shown := o.script(1, 0, 0)
			do, gate := o.step, make(chan struct{})
			o.step = func(in, out []byte) (int, []byte, error) {
				if slow && o.calls == 1 {
					<-gate
				}
				n, _, err := do(in, out)
				if o.calls <= 2 {
					return n, reply, err // the second of a call that consumes nothing
				}
				return n, nil, err
			}
			o.adopt(t, r, fd, []byte("abc"), reactor.Limits{})
			if slow {
				eventually(t, "it is away", func() bool { return o.view(t).Away })
				close(gate)
			}
			for _, want := range []showing{{"abc", 0}, {"bc", 0}} {
				expectShown(t, shown, want)
				eventually(t, "bytes wait for the peer", func() bool { return o.view(t).Out > 0 })
				if _, err := io.CopyN(io.Discard, peer, int64(len(reply))); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "all is taken", func() bool { return o.view(t).Out == 0 })
			o.settles(t, 2)
			if len(shown) > 0 {
				t.Errorf("shown again, with nothing more: %+v", <-shown)
			}
			peer.Write([]byte("d"))
			expectShown(t, shown, showing{"bcd", 2})
		})
	}
}

func TestAMessageTooLongIsRefusedOnceThePeerOwesNothing(t *testing.T) {
	r := start(t, reactor.Options{})
	reply := make([]byte, 16<<20)
	o, peer := serve(t, r, reactor.Limits{MaxMessage: 100}, func([]byte, []byte) (int, []byte, error) { return 0, reply, nil })
	peer.Write([]byte(strings.Repeat("x", 100)))
	if _, err := io.CopyN(io.Discard, peer, int64(len(reply))); err != nil {
		t.Fatal(err)
	}
	if end := o.endsAs(t, reactor.Refused); end.err != reactor.ErrMessageTooLong {
		t.Errorf("ended with %v", end.err)
	}
}
