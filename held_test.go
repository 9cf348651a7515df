package levee

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// source is a socket with a known content, of which each read gets a piece.
type source struct {
	rest   []byte
	random *rand.Rand
}

func (s *source) read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), 1+s.random.IntN(1+s.random.IntN(6000)))
	if s.random.IntN(8) == 0 {
		return 0, errWouldBlock // a deadline, perhaps: nothing is lost by one
	}
	n = copy(p[:n], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// A sequence of peeks, takes, discards and reads ahead shows each byte at its
// place, and takes each once: as a bytes.Reader does that is never read ahead.
func FuzzHeldBytesAreThoseOfTheStream(f *testing.F) {
	f.Add(uint64(1), 100, []byte{0, 1, 0, 1, 0, 2, 3, 0})
	f.Add(uint64(2), 40_000, []byte{0, 0, 0, 1, 1, 3, 3, 1, 2})
	f.Add(uint64(3), 0, []byte{0, 1, 3, 2})
	f.Add(uint64(4), 16<<10, bytes.Repeat([]byte{0, 3, 1, 2, 0, 1}, 40))
	f.Fuzz(func(t *testing.T, seed uint64, size int, operations []byte) {
		if size < 0 || size > 1<<20 || len(operations) > 1000 {
			t.Skip("larger than it need be")
		}
		random := rand.New(rand.NewPCG(seed, 0))
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(random.Uint32())
		}
		socket := &source{rest: content, random: random}
		var h held
		taken := 0
		for _, op := range operations {
			n := random.IntN(1 + random.IntN(peekBudget+100))
			switch "ptdn"[op%4] {
			case 'p':
				got, err := h.peek(n, socket.read)
				checkPeek(t, got, err, content[taken:], n)
			case 't': // as wire.Read does it
				p := make([]byte, n)
				m, err, ok := 0, error(nil), false
				if h.some.Load() {
					m, ok, err = h.take(p)
				}
				if !ok {
					m, err = socket.read(p)
				}
				if !bytes.Equal(p[:m], content[taken:taken+m]) {
					t.Fatalf("%d bytes taken at %d are not the stream's", m, taken)
				}
				if err == io.EOF && taken+m != size {
					t.Fatalf("the end came after %d bytes of %d", taken+m, size)
				}
				taken += m
			case 'd':
				n = min(n, h.buffered())
				h.discard(n)
				taken += n
			default: // as wire.await does it
				if h.some.Load() {
					break
				}
				b := blocks.Get().(*block)
				if m, _ := socket.read(b[:]); m > 0 {
					h.put(b, m)
				} else {
					blocks.Put(b)
				}
			}
			checkHeld(t, &h, size-len(socket.rest)-taken)
		}
		h.release()
		checkHeld(t, &h, 0)
	})
}

func checkPeek(t *testing.T, got []byte, err error, want []byte, n int) {
	t.Helper()
	if len(got) > len(want) || !bytes.Equal(got, want[:len(got)]) {
		t.Fatalf("Peek(%d) shows %d bytes that are not the stream's next", n, len(got))
	}
	switch {
	case err == nil && len(got) == n:
	case err == io.EOF && len(got) == len(want) && len(got) < n:
	case errors.Is(err, errWouldBlock) && len(got) < n:
	case err == bufio.ErrBufferFull && n > peekBudget:
	default:
		t.Fatalf("Peek(%d) shows %d bytes of %d, %v", n, len(got), len(want), err)
	}
}

func checkHeld(t *testing.T, h *held, n int) {
	t.Helper()
	if h.buffered() != n || len(h.buf) != n {
		t.Fatalf("%d bytes are held, want %d", h.buffered(), n)
	}
	if n == 0 && (h.block != nil || h.buf != nil) {
		t.Fatal("nothing is held, and memory for it is")
	}
	if h.some.Load() != (n > 0 || h.err != nil) {
		t.Fatalf("%d bytes and %v are held, and some is %t", n, h.err, h.some.Load())
	}
	if cap(h.buf) > peekBudget {
		t.Fatalf("%d bytes of memory are held", cap(h.buf))
	}
}
