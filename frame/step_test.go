package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// codecs are one of each, with limits that short messages reach.
var codecs = map[string]frame.Codec{
	"Lines":         frame.Lines(20),
	"CRLFLines":     frame.CRLFLines(20),
	"Delimited":     frame.Delimited([]byte("aab"), 20),
	"Fixed":         frame.Fixed(7),
	"Uint8":         frame.Uint8(20),
	"Uint16 big":    frame.Uint16(binary.BigEndian, 20),
	"Uint16 little": frame.Uint16(binary.LittleEndian, 20),
	"Uint32 big":    frame.Uint32(binary.BigEndian, 20),
	"Uint32 little": frame.Uint32(binary.LittleEndian, 20),
	"Uint64 big":    frame.Uint64(binary.BigEndian, 20),
	"Uint64 little": frame.Uint64(binary.LittleEndian, 20),
	"Varint":        frame.Varint(200),
}

// An engine is what calls Step elsewhere, in its smallest form. It gives and takes
// memory that it then spoils, so that anything that was kept would show.
type engine struct {
	stepper levee.Stepper
	unread  []byte
	written []byte
}

func (e *engine) receive(piece []byte) error {
	seen := len(e.unread)
	e.unread = append(e.unread, piece...)
	for {
		in, out := bytes.Clone(e.unread), make([]byte, 0, 16)
		n, reply, err := e.stepper.Step(nil, in, seen, out)
		seen = 0
		e.written = append(e.written, reply...)
		e.unread = e.unread[n:]
		spoil(in)
		spoil(reply)
		if err != nil || n == 0 {
			return err
		}
	}
}

func spoil(b []byte) {
	b = b[:cap(b)]
	for i := range b {
		b[i] = '!'
	}
}

func TestAnySplitOfTheStreamGivesTheSameMessages(t *testing.T) {
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				stream, messages := anyMessages(t, codec)
				var got [][]byte
				e := engine{stepper: frame.Handler(codec, func(w *frame.Writer, message []byte) error {
					got = append(got, bytes.Clone(message))
					return w.Write(message)
				})}
				for rest := stream; len(rest) > 0; {
					piece := rest[:rapid.IntRange(1, len(rest)).Draw(t, "piece")]
					rest = rest[len(piece):]
					if err := e.receive(piece); err != nil {
						t.Fatal(err)
					}
				}
				if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", messages) || len(e.unread) > 0 {
					t.Fatalf("got %q and %q is left, want %q", got, e.unread, messages)
				}
				if !bytes.Equal(e.written, stream) {
					t.Fatalf("%q came back as %q", stream, e.written)
				}
			})
		})
	}
}

// anyMessages draws messages that the codec can encode.
func anyMessages(t *rapid.T, codec frame.Codec) (stream []byte, messages [][]byte) {
	var message *rapid.Generator[[]byte]
	if fixed, ok := codec.Append(nil, make([]byte, 7)); ok == nil && len(fixed) == 7 {
		message = rapid.SliceOfN(rapid.Byte(), 7, 7)
	} else {
		message = rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]byte("aab\r")), rapid.Byte()), 0, 20)
	}
	for _, m := range rapid.SliceOf(message).Draw(t, "messages") {
		longer, err := codec.Append(stream, m)
		if err == nil {
			stream, messages = longer, append(messages, m)
		}
	}
	return stream, messages
}

func TestStepStopsOnceItsReplyIsLarge(t *testing.T) {
	const messages, size = 1000, 1000
	calls := 0
	s := frame.Handler(frame.Fixed(1), func(w *frame.Writer, _ []byte) error {
		calls++
		w.WriteRaw(make([]byte, size))
		return nil
	})
	in := make([]byte, messages)
	steps := 0
	for len(in) > 0 {
		n, reply, err := s.Step(nil, in, 0, nil)
		if n == 0 || err != nil {
			t.Fatalf("Step took %d of %d, %v", n, len(in), err)
		}
		if len(reply) >= 64<<10+size || len(reply) != n*size {
			t.Fatalf("a reply of %d bytes to %d messages", len(reply), n)
		}
		in = in[n:]
		steps++
	}
	if calls != messages || steps != 16 {
		t.Errorf("%d messages in %d steps, want %d in 16", calls, steps, messages)
	}
	// What is already in out counts too, but one message always gets through.
	if n, _, err := s.Step(nil, make([]byte, 10), 0, make([]byte, 64<<10)); n != 1 || err != nil {
		t.Errorf("Step behind 64 KiB took %d, %v, want 1", n, err)
	}
}

func TestStepAppendsItsReplies(t *testing.T) {
	s := frame.Handler(frame.Lines(0), echo)
	out := append(make([]byte, 0, 100), "before|"...)
	n, reply, err := s.Step(nil, []byte("a\nb\nc"), 0, out)
	if n != 4 || string(reply) != "before|a\nb\n" || err != nil || &reply[0] != &out[0] {
		t.Errorf("Step: %d, %q, %v", n, reply, err)
	}
	for _, in := range []string{"", "c"} {
		if n, reply, err := s.Step(nil, []byte(in), 0, out); n != 0 || string(reply) != "before|" || err != nil {
			t.Errorf("Step with %q: %d, %q, %v", in, n, reply, err)
		}
	}
}

func TestStepSaysWhatHasBeenTakenBesideAnError(t *testing.T) {
	broken := errors.New("out of paper")
	for _, test := range []struct {
		in    string
		n     int
		reply string
		err   error
	}{
		{"a\nerror\nb\n", 8, "a\n", broken},
		{"a\nclose\nb\n", 8, "a\n", io.EOF},
		{"a\n0123456789\n", 2, "a\n", frame.ErrTooLarge},
	} {
		s := frame.Handler(frame.Lines(8), func(w *frame.Writer, line []byte) error {
			switch string(line) {
			case "error":
				return broken
			case "close":
				return frame.ErrClose
			}
			return w.Write(line)
		})
		n, reply, err := s.Step(nil, []byte(test.in), 0, nil)
		if n != test.n || string(reply) != test.reply || !errors.Is(err, test.err) {
			t.Errorf("Step with %q: %d, %q, %v, want %d, %q, %v", test.in, n, reply, err, test.n, test.reply, test.err)
		}
	}
}

func TestStepsOfManyConnectionsDoNotMix(t *testing.T) {
	s := frame.Handler(frame.Lines(0), echo)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			stream := strings.Repeat(fmt.Sprintf("message of connection %d\n", i), 100)
			e := engine{stepper: s}
			for piece := range strings.SplitSeq(stream, "f") {
				if err := e.receive([]byte(piece + "f")); err != nil {
					t.Error(err)
				}
			}
			if got := strings.TrimSuffix(string(e.written), "f"); got != stream {
				t.Errorf("connection %d got %q", i, got)
			}
		})
	}
	group.Wait()
}

func TestAWriterThatWasKeptIsOfNoUse(t *testing.T) {
	var kept *frame.Writer
	s := frame.Handler(frame.Lines(0), func(w *frame.Writer, _ []byte) error {
		kept = w
		return nil
	})
	if _, _, err := s.Step(nil, []byte("a\n"), 0, nil); err != nil {
		t.Fatal(err)
	}
	if !panics(func() { _ = kept.Write([]byte("too late")) }) {
		t.Error("Write does not panic")
	}
}

// endless is a codec that breaks its promise: to it all is incomplete.
type endless struct{ frame.Codec }

func (endless) Decode([]byte) ([]byte, int, error) { return nil, 0, nil }
func (endless) Max() int                           { return 10 }

func TestACodecIsHeldToItsMax(t *testing.T) {
	s := frame.Handler(endless{}, echo)
	if n, _, err := s.Step(nil, make([]byte, 9), 0, nil); n != 0 || err != nil {
		t.Errorf("Step with 9 bytes: %d, %v", n, err)
	}
	if _, _, err := s.Step(nil, make([]byte, 10), 0, nil); !errors.Is(err, frame.ErrTooLarge) {
		t.Errorf("Step with 10 bytes: %v, want ErrTooLarge", err)
	}
	r := frame.NewReader(bytes.NewReader(make([]byte, 10)), endless{})
	if _, err := r.Read(); !errors.Is(err, frame.ErrTooLarge) {
		t.Errorf("Read: %v, want ErrTooLarge", err)
	}
}

// hasty is a codec whose parser runs into the end of what has come.
type hasty struct{ frame.Codec }

func (hasty) Decode([]byte) ([]byte, int, error) { return nil, 0, io.EOF }

func TestACodecsEOFIsNoEndInGoodOrder(t *testing.T) {
	s := frame.Handler(hasty{frame.Lines(0)}, echo)
	if _, _, err := s.Step(nil, []byte("a"), 0, nil); err != io.ErrUnexpectedEOF {
		t.Errorf("Step: %v, want ErrUnexpectedEOF", err)
	}
}

// looks counts how many bytes a codec is asked to look at.
type looks struct {
	frame.Searcher
	bytes atomic.Int64
}

func (l *looks) Decode(b []byte) ([]byte, int, error) {
	l.bytes.Add(int64(len(b)))
	return l.Searcher.Decode(b)
}

func (l *looks) Ready(b []byte, seen int) bool {
	l.bytes.Add(int64(len(b) - seen))
	return l.Searcher.Ready(b, seen)
}

func TestALineThatComesInPiecesIsSearchedOnce(t *testing.T) {
	const size = 100 << 10
	line := strings.Repeat("x", size) + "\n"
	for name, read := range map[string]func(*testing.T, frame.Codec) []byte{
		"by a Reader": func(t *testing.T, codec frame.Codec) []byte {
			message, err := frame.NewReader(&oneByteReader{[]byte(line)}, codec).Read()
			if err != nil {
				t.Error(err)
			}
			return message
		},
		"by a Handler": func(t *testing.T, codec frame.Codec) []byte {
			network := leveetest.Listen()
			bits := leveetest.FaultyListener(network, leveetest.Faults{Read: leveetest.Fault{Segment: 100}})
			serve(t, bits, &levee.Server{Handler: frame.Handler(codec, echo)})
			c := dial(t, network)
			go func() { _, _ = io.WriteString(c, line) }()
			reply := make([]byte, size)
			if _, err := io.ReadFull(c, reply); err != nil {
				t.Error(err)
			}
			return reply
		},
	} {
		t.Run(name, func(t *testing.T) {
			codec := &looks{Searcher: frame.Lines(size).(frame.Searcher)}
			if message := read(t, codec); len(message) != size {
				t.Errorf("read %d bytes", len(message))
			}
			if looked := codec.bytes.Load(); looked > 3*size {
				t.Errorf("%d bytes were looked at for a line of %d", looked, size)
			}
		})
	}
}
