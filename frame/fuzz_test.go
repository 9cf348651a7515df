package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/frame"
)

// A reference decodes a stream slowly and obviously: the messages and what is wrong
// with what follows them, if it is not only incomplete.
type reference func(stream []byte) (messages []string, err error)

// checkCodec checks what every codec promises, with a stream of anybody's bytes and
// a message of the service's. The seed chooses how the stream is cut.
func checkCodec(t *testing.T, codec frame.Codec, want reference, stream, message []byte, seed uint64) {
	t.Helper()
	checkDecode(t, codec, want, stream)
	checkPieces(t, codec, stream, seed)
	checkAppend(t, codec, message)
}

// checkDecode holds the codec against the reference.
func checkDecode(t *testing.T, codec frame.Codec, want reference, stream []byte) {
	t.Helper()
	messages, _, err := decodeAll(codec, stream)
	wantMessages, wantErr := want(stream)
	if !slices.Equal(messages, wantMessages) || !errors.Is(err, wantErr) {
		t.Fatalf("decoded %q, %v, want %q, %v", messages, err, wantMessages, wantErr)
	}
	for b := stream; len(b) > 0; {
		message, n, err := codec.Decode(b)
		if err != nil || n == 0 {
			if err == nil && len(b) >= codec.Max() {
				t.Fatalf("%d bytes are incomplete where the largest message has %d", len(b), codec.Max())
			}
			return
		}
		if n > codec.Max() {
			t.Fatalf("a message of %d bytes where the largest has %d", n, codec.Max())
		}
		if len(message) != cap(message) {
			t.Fatalf("whoever appends to message %q writes over the next", message)
		}
		checkExtent(t, codec, b, message, n)
		checkAgain(t, codec, message)
		b = b[n:]
	}
}

// checkExtent checks that the message ends where the codec says: it needs no byte
// that follows and can do without none that it has.
func checkExtent(t *testing.T, codec frame.Codec, b, message []byte, n int) {
	t.Helper()
	alone, m, err := codec.Decode(slices.Clip(b[:n]))
	if !bytes.Equal(alone, message) || m != n || err != nil {
		t.Fatalf("alone, message %q decodes as %q, %d, %v", message, alone, m, err)
	}
	for _, short := range []int{0, n / 2, n - 1} {
		if part, m, err := codec.Decode(slices.Clip(b[:short])); m != 0 || err != nil {
			t.Fatalf("the first %d of %d bytes decode as %q, %d, %v", short, n, part, m, err)
		}
	}
}

// checkAgain checks that what has been decoded can be sent back.
func checkAgain(t *testing.T, codec frame.Codec, message []byte) {
	t.Helper()
	if _, err := codec.Append(nil, message); err != nil {
		t.Fatalf("message %q was decoded and cannot be encoded: %v", message, err)
	}
}

// checkPieces checks that a stream that comes in pieces has the same messages, and
// that a codec that searches never says no when there is something to find.
func checkPieces(t *testing.T, codec frame.Codec, stream []byte, seed uint64) {
	t.Helper()
	want, _, wantErr := decodeAll(codec, stream)
	searcher, _ := codec.(frame.Searcher)
	pieces := rand.New(rand.NewPCG(seed, 0))
	var (
		got []string
		err error
		b   []byte
	)
	for come := 0; come < len(stream) && err == nil; {
		seen, size := len(b), 1+pieces.IntN(min(9, len(stream)-come))
		b = append(b, stream[come:come+size]...)
		come += size
		var messages []string
		var rest int
		messages, rest, err = decodeAll(codec, b)
		if searcher != nil && seen > 0 && (len(messages) > 0 || err != nil) && !searcher.Ready(b, seen) {
			t.Fatalf("not ready for %q after %d bytes of it", b, seen)
		}
		got = append(got, messages...)
		b = b[len(b)-rest:]
	}
	if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) && wantErr == nil {
		t.Fatalf("in pieces: %q, %v, whole: %q, %v", got, err, want, wantErr)
	}
}

// checkAppend checks that what can be encoded is decoded as what it was.
func checkAppend(t *testing.T, codec frame.Codec, message []byte) {
	t.Helper()
	before := []byte("before")
	encoded, err := codec.Append(slices.Clip(before), message)
	if err != nil {
		if !bytes.Equal(encoded, before) || !errors.Is(err, frame.ErrTooLarge) && !errors.Is(err, frame.ErrMalformed) {
			t.Fatalf("Append left %q and returned %v", encoded, err)
		}
		return
	}
	encoded, found := bytes.CutPrefix(encoded, before)
	if !found || len(encoded) > codec.Max() {
		t.Fatalf("Append made %q of %q", encoded, message)
	}
	decoded, n, err := codec.Decode(encoded)
	if !bytes.Equal(decoded, message) || n != len(encoded) || err != nil {
		t.Fatalf("%q was encoded as %q and decoded as %q, %d, %v", message, encoded, decoded, n, err)
	}
}

// seeds are streams that have something in them for most codecs.
var seeds = []string{
	"",
	"GET a\r\nset b\n\n\r\r\n",
	"\x00\x00\x00\x05hello\x00\x00\x00\x00",
	"\x05hello\x00\x01a",
	"\x05\x00hello",
	"\x80\x00\x00\x00\x00\x00\x00\x00",
	"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
	"\x81\x00a",
	"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	"a--b---c--",
	strings.Repeat("x", 300),
	"\xac\x02" + strings.Repeat("x", 300),
}

func seed(f *testing.F) {
	for i, s := range seeds {
		for _, max := range []uint16{0, 3, 255, 1000} {
			f.Add([]byte(s), []byte(s), max, uint64(i))
		}
	}
}

func FuzzLines(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stream, message []byte, max uint16, seed uint64) {
		for _, codec := range []frame.Codec{frame.Lines(int(max) + 1), frame.CRLFLines(int(max) + 1)} {
			checkCodec(t, codec, referenceLines(int(max)+1), stream, message, seed)
		}
	})
}

// referenceLines reads byte by byte.
func referenceLines(max int) reference {
	return func(stream []byte) (messages []string, err error) {
		line := ""
		for _, b := range stream {
			if b == '\n' {
				line = strings.TrimRight(line, "\r")
				if len(line) > max {
					return messages, frame.ErrTooLarge
				}
				messages = append(messages, line)
				line = ""
				continue
			}
			line += string([]byte{b})
			if len(line) == max+len("\r\n") { // and not even the end of the line has come
				return messages, frame.ErrTooLarge
			}
		}
		return messages, nil
	}
}

func FuzzDelimited(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stream, message []byte, max uint16, seed uint64) {
		for _, delim := range []string{"\x00", "\r\n", "--", "abab"} {
			checkCodec(t, frame.Delimited([]byte(delim), int(max)+1), referenceDelimited(delim, int(max)+1), stream, message, seed)
		}
	})
}

// referenceDelimited reads byte by byte.
func referenceDelimited(delim string, max int) reference {
	return func(stream []byte) (messages []string, err error) {
		read := ""
		for _, b := range stream {
			read += string([]byte{b})
			if message, ended := strings.CutSuffix(read, delim); ended {
				messages = append(messages, message)
				read = ""
			} else if len(read) == max+len(delim) {
				return messages, frame.ErrTooLarge
			}
		}
		return messages, nil
	}
}

func FuzzFixed(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stream, message []byte, size uint16, seed uint64) {
		want := func(stream []byte) (messages []string, err error) {
			for m := range slices.Chunk(stream, int(size)+1) {
				if len(m) == int(size)+1 {
					messages = append(messages, string(m))
				}
			}
			return messages, nil
		}
		checkCodec(t, frame.Fixed(int(size)+1), want, stream, message, seed)
	})
}

func FuzzUint(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stream, message []byte, max uint16, seed uint64) {
		limit := int(max) + 1
		for _, test := range []struct {
			codec frame.Codec
			width int
			low   bool // the lowest byte first
		}{
			{frame.Uint8(limit), 1, false},
			{frame.Uint16(binary.BigEndian, limit), 2, false},
			{frame.Uint16(binary.LittleEndian, limit), 2, true},
			{frame.Uint32(binary.BigEndian, limit), 4, false},
			{frame.Uint32(binary.LittleEndian, limit), 4, true},
			{frame.Uint64(binary.BigEndian, limit), 8, false},
			{frame.Uint64(binary.LittleEndian, limit), 8, true},
		} {
			most := min(limit, 1<<(8*test.width)-1)
			if test.width == 8 {
				most = limit
			}
			checkCodec(t, test.codec, referenceUint(test.width, test.low, most), stream, message, seed)
		}
	})
}

// referenceUint counts in numbers that cannot overflow.
func referenceUint(width int, low bool, max int) reference {
	return func(stream []byte) (messages []string, err error) {
		for len(stream) >= width {
			digits := slices.Clone(stream[:width])
			if low {
				slices.Reverse(digits)
			}
			length := new(big.Int).SetBytes(digits)
			if length.Cmp(big.NewInt(int64(max))) > 0 {
				return messages, frame.ErrTooLarge
			}
			end := width + int(length.Int64())
			if len(stream) < end {
				break
			}
			messages = append(messages, string(stream[width:end]))
			stream = stream[end:]
		}
		return messages, nil
	}
}

func FuzzVarint(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stream, message []byte, max uint16, seed uint64) {
		checkCodec(t, frame.Varint(int(max)+1), referenceVarint(int(max)+1), stream, message, seed)
	})
}

// referenceVarint counts in numbers that cannot overflow, and compares with what
// the standard library would have written.
func referenceVarint(max int) reference {
	return func(stream []byte) (messages []string, err error) {
		for len(stream) > 0 {
			length, size, ended := new(big.Int), 0, false
			for size < len(stream) && !ended {
				digit := big.NewInt(int64(stream[size] & 0x7f))
				length.Or(length, digit.Lsh(digit, uint(7*size)))
				ended = stream[size] < 0x80
				size++
				if ended && stream[size-1] == 0 && size > 1 {
					return messages, frame.ErrMalformed
				}
				if length.Cmp(big.NewInt(int64(max))) > 0 || !ended && size == len(binary.AppendUvarint(nil, uint64(max))) {
					return messages, frame.ErrTooLarge
				}
			}
			if !ended || len(stream) < size+int(length.Int64()) {
				break
			}
			if !bytes.Equal(stream[:size], binary.AppendUvarint(nil, length.Uint64())) {
				return messages, errors.New("the reference is wrong")
			}
			stream = stream[size:]
			messages = append(messages, string(stream[:length.Int64()]))
			stream = stream[length.Int64():]
		}
		return messages, nil
	}
}
