//go:build linux

package reactor_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/levee-net/levee/internal/reactor"
	"pgregory.net/rapid"
)

func TestEchoesOverTCPAndASocketpair(t *testing.T) {
	r := start(t, reactor.Options{})
	unixFD, unixPeer := pair(t)
	tcpFD, tcpPeer := tcp(t)
	for fd, peer := range map[int]net.Conn{unixFD: unixPeer, tcpFD: tcpPeer} {
		o := adopt(t, r, fd, reactor.Limits{}, echo)
		exchange(t, peer, "hello")
		exchange(t, peer, "again")
		peer.Close()
		o.endsAs(t, reactor.EOF)
		if read, written := o.Traffic(); read != 10 || written != 10 {
			t.Errorf("read %d and wrote %d bytes, want 10 each", read, written)
		}
	}
}

func TestTrafficGoesOnFromWhatWasCountedBefore(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	o := newOwner(t, echo)
	o.SetTraffic(1000, 1<<40)
	o.adopt(t, r, fd, []byte("first"), reactor.Limits{})
	expect(t, peer, "first")
	exchange(t, peer, "hello")
	if v := o.view(t); v.Read != 1005 || v.Written != 1<<40+10 {
		t.Errorf("%+v", v)
	}
	if read, written := o.Traffic(); read != 1005 || written != 1<<40+10 {
		t.Errorf("read %d and wrote %d bytes", read, written)
	}
}

func TestBytesThatWereReadBeforeComeFirst(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	peer.Write([]byte("second"))
	o := adoptWith(t, r, fd, []byte("first"), reactor.Limits{}, echo)
	expect(t, peer, "firstsecond")
	peer.Close()
	o.endsAs(t, reactor.EOF)
}

// records steps through messages that are a length in two bytes and so much
// content, at most so many at a time, and answers with the same.
func records(atATime int) step {
	return func(in, out []byte) (n int, reply []byte, err error) {
		for range atATime {
			if len(in)-n < 2 {
				break
			}
			end := n + 2 + int(binary.BigEndian.Uint16(in[n:]))
			if end > len(in) {
				break
			}
			out = append(out, in[n:end]...)
			n = end
		}
		return n, out, nil
	}
}

func record(content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(content))), content...)
}

func TestMessagesAreAnsweredInOrderHoweverTheStreamIsCut(t *testing.T) {
	r := start(t, reactor.Options{})
	rapid.Check(t, func(rt *rapid.T) {
		var stream []byte
		for range rapid.IntRange(1, 40).Draw(rt, "messages") {
			stream = append(stream, record(bytes.Repeat([]byte{byte(len(stream))}, rapid.IntRange(0, 3000).Draw(rt, "length")))...)
		}
		fd, peer := tcp(t)
		defer peer.Close()
		must(t, peer.SetNoDelay(true))
		o := adopt(t, r, fd, reactor.Limits{}, records(rapid.IntRange(1, 5).Draw(rt, "at a time")))
		cuts := rapid.SliceOfN(rapid.IntRange(1, 5000), 1, 20).Draw(rt, "cuts")
		go sendCut(peer, stream, cuts) // ends with the stream, or the peer's deadline
		got, err := io.ReadAll(peer)
		if err != nil || !bytes.Equal(got, stream) {
			rt.Fatalf("got %d bytes, %v; want the %d that were sent", len(got), err, len(stream))
		}
		if end := receive(t, o.ended, "the end"); end.cause != reactor.EOF || end.err != nil {
			rt.Fatalf("ended as %d, %v", end.cause, end.err)
		}
	})
}

type halfCloser interface {
	io.Writer
	CloseWrite() error
}

// sendCut sends a stream in segments of these sizes, again and again, and closes
// its side.
func sendCut(peer halfCloser, stream []byte, cuts []int) {
	for i := 0; len(stream) > 0; i++ {
		n := min(cuts[i%len(cuts)], len(stream))
		peer.Write(stream[:n])
		stream = stream[n:]
	}
	peer.CloseWrite()
}

func TestManyConnectionsPipelineAndHalfCloseAtOnce(t *testing.T) {
	r := start(t, reactor.Options{})
	var all sync.WaitGroup
	for i := range 100 {
		o, peer := serve(t, r, reactor.Limits{}, records(1+i%7))
		stream := bytes.Repeat(record([]byte(strings.Repeat("x", i))), 3000)
		random := rand.New(rand.NewPCG(uint64(i), 0))
		cuts := []int{1 + random.IntN(100), 1 + random.IntN(10000), 1 + random.IntN(100000)}
		all.Go(func() { sendCut(peer, stream, cuts) })
		all.Go(func() {
			got, err := io.ReadAll(peer)
			if err != nil || !bytes.Equal(got, stream) {
				t.Errorf("connection %d: got %d bytes, %v; want the %d that were sent", i, len(got), err, len(stream))
			}
			if end := <-o.ended; end.cause != reactor.EOF || end.err != nil {
				t.Errorf("connection %d ended as %d, %v", i, end.cause, end.err)
			}
		})
	}
	all.Wait()
}

// whole steps only through a message of so many bytes.
func whole(size int) step {
	return func(in, out []byte) (int, []byte, error) {
		if len(in) < size {
			return 0, nil, nil
		}
		return size, append(out, in[size-4:size]...), nil
	}
}

func TestALargeMessageComesWhole(t *testing.T) {
	const size = 700 << 10
	r := start(t, reactor.Options{})
	o, peer := serve(t, r, reactor.Limits{}, whole(size))
	message := append(bytes.Repeat([]byte("x"), size-4), "done"...)
	for range 3 {
		for i := 0; i < size; i += 5000 {
			peer.Write(message[i:min(i+5000, size)])
		}
		expect(t, peer, "done")
	}
	if v := o.view(t); v.In != 0 || v.Out != 0 || v.Read != 3*size {
		t.Errorf("%+v, want nothing to be left", v)
	}
	peer.Write([]byte("a beginning"))
	peer.CloseWrite()
	if end := o.endsAs(t, reactor.EOF); end.err != io.ErrUnexpectedEOF {
		t.Errorf("ended with %v, want %v", end.err, io.ErrUnexpectedEOF)
	}
}

func TestAMessageBeyondTheMaximumIsRefused(t *testing.T) {
	r := start(t, reactor.Options{})
	never := func([]byte, []byte) (int, []byte, error) { return 0, nil, nil }
	for name, limit := range map[string]int{"by default": 0, "small": 1000, "none": -1} {
		t.Run(name, func(t *testing.T) {
			o, peer := serve(t, r, reactor.Limits{MaxMessage: limit}, never)
			flood := make([]byte, 2<<20)
			if limit < 0 {
				peer.Write(flood)
				eventually(t, "all is held", func() bool { return o.view(t).In == len(flood) })
				peer.CloseWrite()
				o.endsAs(t, reactor.EOF)
				return
			}
			peer.Write(flood)
			if end := o.endsAs(t, reactor.Refused); end.err != reactor.ErrMessageTooLong {
				t.Errorf("ended with %v", end.err)
			}
		})
	}
}

var errEnough = errors.New("enough")

// refuses answers once and has had enough.
func refuses(reply []byte) step {
	return func(in, _ []byte) (int, []byte, error) { return len(in), reply, errEnough }
}

func TestALastReplyReachesAPeerThatIsStillSending(t *testing.T) {
	r := start(t, reactor.Options{})
	for range 50 {
		o, peer := serve(t, r, reactor.Limits{}, refuses([]byte("no")))
		sent := make(chan struct{})
		go func() { // ends when the peer closes, or has taken all
			defer close(sent)
			for range 100 {
				peer.Write(make([]byte, 1000))
			}
			peer.CloseWrite()
		}()
		<-sent
		expectEnd(t, peer, []byte("no"))
		if end := o.endsAs(t, reactor.Refused); end.err != errEnough {
			t.Errorf("ended with %v", end.err)
		}
	}
}

func TestAGoodbyeIsBounded(t *testing.T) {
	r := start(t, reactor.Options{})
	t.Run("in time", func(t *testing.T) {
		gate := make(chan struct{})
		o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
			<-gate
			return len(in), []byte("no"), errEnough
		})
		peer.Write([]byte("a"))
		eventually(t, "it is away", func() bool { return o.view(t).Away })
		peer.Write([]byte("b"))
		close(gate)
		expectEnd(t, peer, []byte("no")) // and goes on to be silent
		o.endsAs(t, reactor.Refused)
	})
	t.Run("in bytes", func(t *testing.T) {
		o, peer := serve(t, r, reactor.Limits{}, refuses([]byte("no")))
		block := make([]byte, 64<<10)
		for {
			if _, err := peer.Write(block); err != nil {
				break
			}
		}
		o.endsAs(t, reactor.Refused)
		if read, _ := o.Traffic(); read > 512<<10 {
			t.Errorf("read %d bytes of a peer whose connection is over", read)
		}
	})
	t.Run("by Kill", func(t *testing.T) {
		gate := make(chan struct{})
		o, peer := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) {
			<-gate
			return len(in), nil, errEnough
		})
		peer.Write([]byte("a"))
		eventually(t, "it is away", func() bool { return o.view(t).Away })
		peer.Write([]byte("b"))
		close(gate)
		expectEnd(t, peer, nil)
		o.Leave()
		o.Pause()
		o.Resume()
		refusesToBePacked(t, &o.Conn)
		o.Kill()
		o.endsAs(t, reactor.Refused)
	})
}
