package inbox

import (
	"testing"

	"pgregory.net/rapid"
)

// source gives bytes that count up, as many at a time as next says.
type source struct {
	next func(most int) int
	sent int
}

func (s *source) Read(p []byte) (int, error) {
	n := s.next(len(p))
	for i := range p[:n] {
		p[i] = byte(s.sent)
		s.sent++
	}
	return n, nil
}

func TestTheInboxKeepsItsBytesAndItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in Inbox
		defer in.Release()
		taken := 0
		src := &source{next: func(most int) int { return rapid.IntRange(1, most).Draw(t, "read") }}
		for range rapid.IntRange(1, 40).Draw(t, "fills") {
			if err := in.Fill(src); err != nil {
				t.Fatal(err)
			}
			for i, b := range in.Unread() {
				if b != byte(taken+i) {
					t.Fatalf("byte %d is %d", taken+i, b)
				}
			}
			held := len(in.Unread())
			if held != src.sent-taken {
				t.Fatalf("%d bytes are held of %d", held, src.sent-taken)
			}
			if size := len(in.buf.Bytes); size > max(medium, 2*held) {
				t.Fatalf("a buffer of %d bytes for %d", size, held)
			}
			if rapid.Bool().Draw(t, "take") {
				n := rapid.IntRange(0, held).Draw(t, "n")
				in.Discard(n)
				taken += n
			}
		}
	})
}

func TestBuffersAreAsLargeAsTheyWereAskedToBe(t *testing.T) {
	for _, size := range []int{1, Small, Small + 1, medium, 100 << 10, large, large + 1} {
		for _, extra := range []int{0, 1, 5000} { // replies grow buffers to any size
			b := Take(size)
			if len(b.Bytes) < size {
				t.Errorf("a buffer of %d bytes for %d", len(b.Bytes), size)
			}
			b.Bytes = append(b.Bytes, make([]byte, extra)...)
			Give(b)
		}
	}
}
