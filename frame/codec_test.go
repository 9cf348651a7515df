package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/frame"
)

// decodeAll decodes a stream that has come whole: the messages, how many bytes are
// left of it, and what the codec said to them.
func decodeAll(codec frame.Codec, stream []byte) (messages []string, rest int, err error) {
	for len(stream) > 0 {
		message, n, err := codec.Decode(stream)
		if err != nil || n == 0 {
			return messages, len(stream), err
		}
		messages = append(messages, string(message))
		stream = stream[n:]
	}
	return messages, 0, nil
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		name   string
		codec  frame.Codec
		stream string
		want   []string
		rest   int // bytes after the last message
		err    error
	}{
		{"lines", frame.Lines(8), "GET a\r\nset\n\n\r\n", []string{"GET a", "set", "", ""}, 0, nil},
		{"the largest line", frame.Lines(8), "12345678\n12345678\r\n", []string{"12345678", "12345678"}, 0, nil},
		{"half a line", frame.Lines(8), "a\n12345678", []string{"a"}, 8, nil},
		{"a line that may yet end in CR LF", frame.Lines(8), "12345678\r", nil, 9, nil},
		{"a line that is too long", frame.Lines(8), "a\n123456789\n", []string{"a"}, 10, frame.ErrTooLarge},
		{"a line that is too long for its end", frame.Lines(8), "12345678\r\r\n", nil, 11, frame.ErrTooLarge},
		{"a line that does not end", frame.Lines(8), "1234567890", nil, 10, frame.ErrTooLarge},
		{"CRs in a line and at its end", frame.Lines(8), "a\rb\r\r\n", []string{"a\rb"}, 0, nil},
		{"any other byte in a line", frame.Lines(8), "\x00\xff\u2028\n", []string{"\x00\xff\u2028"}, 0, nil},
		{"CR LF lines", frame.CRLFLines(8), "GET a\r\nset\n\r\n12345678\r\n", []string{"GET a", "set", "", "12345678"}, 0, nil},

		{"delimited", frame.Delimited([]byte{0}, 4), "ab\x00\x00abcd\x00", []string{"ab", "", "abcd"}, 0, nil},
		{"CR LF and nothing else", frame.Delimited([]byte("\r\n"), 4), "a\nb\r\n\r\r\n", []string{"a\nb", "\r"}, 0, nil},
		{"half a delimiter", frame.Delimited([]byte("\r\n"), 4), "abcd\r", nil, 5, nil},
		{"a delimiter that comes too late", frame.Delimited([]byte("\r\n"), 4), "abcde\r\n", nil, 7, frame.ErrTooLarge},
		{"a delimiter that does not come", frame.Delimited([]byte("\r\n"), 4), "abcdef", nil, 6, frame.ErrTooLarge},

		{"fixed", frame.Fixed(3), "abcdefg", []string{"abc", "def"}, 1, nil},
		{"bytes", frame.Fixed(1), "abc", []string{"a", "b", "c"}, 0, nil},

		{"uint8", frame.Uint8(0), "\x00\x02ab\x01c\x02d", []string{"", "ab", "c"}, 2, nil},
		{"uint8, too large", frame.Uint8(4), "\x04abcd\x05", []string{"abcd"}, 1, frame.ErrTooLarge},
		{"uint16, big", frame.Uint16(binary.BigEndian, 0), "\x00\x02ab\x00\x00\x01", []string{"ab", ""}, 1, nil},
		{"uint16, little", frame.Uint16(binary.LittleEndian, 0), "\x02\x00ab", []string{"ab"}, 0, nil},
		{"uint16, in no order", frame.Uint16(nil, 0), "\x00\x02ab", []string{"ab"}, 0, nil},
		{"uint16, too large", frame.Uint16(nil, 256), "\x01\x01", nil, 2, frame.ErrTooLarge},
		{"uint32, big", frame.Uint32(binary.BigEndian, 0), "\x00\x00\x00\x02ab\x00\x00\x00", []string{"ab"}, 3, nil},
		{"uint32, little", frame.Uint32(binary.LittleEndian, 0), "\x02\x00\x00\x00ab\x00\x00\x00\x00", []string{"ab", ""}, 0, nil},
		{"uint32, more than the default", frame.Uint32(nil, 0), "\x00\x01\x00\x01", nil, 4, frame.ErrTooLarge},
		{"uint32, as much as the default", frame.Uint32(nil, 0), "\x00\x01\x00\x00", nil, 4, nil},
		{"uint32, all ones", frame.Uint32(nil, 1<<30), "\xff\xff\xff\xff", nil, 4, frame.ErrTooLarge},
		{"uint64, big", frame.Uint64(binary.BigEndian, 0), "\x00\x00\x00\x00\x00\x00\x00\x02ab", []string{"ab"}, 0, nil},
		{"uint64, little", frame.Uint64(binary.LittleEndian, 0), "\x02\x00\x00\x00\x00\x00\x00\x00ab", []string{"ab"}, 0, nil},
		{"uint64, negative in an int64", frame.Uint64(nil, 1<<30), "\x80\x00\x00\x00\x00\x00\x00\x00", nil, 8, frame.ErrTooLarge},
		{"uint64, all ones", frame.Uint64(nil, 1<<30), "\xff\xff\xff\xff\xff\xff\xff\xff", nil, 8, frame.ErrTooLarge},

		{"varint", frame.Varint(0), "\x00\x02ab\x80", []string{"", "ab"}, 1, nil},
		{"varint of two bytes", frame.Varint(0), "\x80\x01" + strings.Repeat("x", 128), []string{strings.Repeat("x", 128)}, 0, nil},
		{"varint, too large", frame.Varint(127), "\x80\x01", nil, 2, frame.ErrTooLarge},
		{"varint, too large before it ends", frame.Varint(100), "\xff", nil, 1, frame.ErrTooLarge},
		{"varint with a leading zero", frame.Varint(0), "\x81\x00a", nil, 3, frame.ErrMalformed},
		{"varint zero in two bytes", frame.Varint(0), "\x80\x00", nil, 2, frame.ErrMalformed},
		{"varint of zeros", frame.Varint(1 << 20), "\x80\x80\x80", nil, 3, frame.ErrTooLarge},
		{"varint of two digits where one is enough", frame.Varint(1), "\x80", nil, 1, frame.ErrTooLarge},
		{"varint of 2^63", frame.Varint(1 << 30), "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", nil, 10, frame.ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			messages, rest, err := decodeAll(test.codec, []byte(test.stream))
			if !slices.Equal(messages, test.want) || rest != test.rest || !errors.Is(err, test.err) {
				t.Errorf("decoded %q, %d bytes left, error %v;\nwant %q, %d, %v", messages, rest, err, test.want, test.rest, test.err)
			}
		})
	}
}

func TestAppend(t *testing.T) {
	for _, test := range []struct {
		name    string
		codec   frame.Codec
		message string
		want    string
		err     error
	}{
		{"line", frame.Lines(8), "12345678", "12345678\n", nil},
		{"empty line", frame.Lines(8), "", "\n", nil},
		{"CR LF line", frame.CRLFLines(8), "+OK", "+OK\r\n", nil},
		{"line that is too long", frame.Lines(8), "123456789", "", frame.ErrTooLarge},
		{"two lines", frame.CRLFLines(8), "a\nb", "", frame.ErrMalformed},
		{"line that ends in CR", frame.Lines(8), "a\r", "", frame.ErrMalformed},
		{"CR LF line that ends in CR", frame.CRLFLines(8), "a\r", "", frame.ErrMalformed},
		{"line with a CR in it", frame.Lines(8), "a\rb", "a\rb\n", nil},

		{"delimited", frame.Delimited([]byte("--"), 4), "abc", "abc--", nil},
		{"delimited, too large", frame.Delimited([]byte("--"), 4), "abcde", "", frame.ErrTooLarge},
		{"delimited, with the delimiter in it", frame.Delimited([]byte("--"), 4), "a--b", "", frame.ErrMalformed},
		{"delimited, with half of one at its end", frame.Delimited([]byte("--"), 4), "a-", "", frame.ErrMalformed},
		{"delimited, with half of one in it", frame.Delimited([]byte("--"), 4), "-a", "-a--", nil},

		{"fixed", frame.Fixed(3), "abc", "abc", nil},
		{"fixed, too short", frame.Fixed(3), "ab", "", frame.ErrMalformed},
		{"fixed, too long", frame.Fixed(3), "abcd", "", frame.ErrMalformed},

		{"uint8", frame.Uint8(0), "ab", "\x02ab", nil},
		{"uint8, too large", frame.Uint8(0), strings.Repeat("x", 256), "", frame.ErrTooLarge},
		{"uint16, big", frame.Uint16(binary.BigEndian, 0), "ab", "\x00\x02ab", nil},
		{"uint16, little", frame.Uint16(binary.LittleEndian, 0), "ab", "\x02\x00ab", nil},
		{"uint16, too large", frame.Uint16(nil, 1<<20), strings.Repeat("x", 65536), "", frame.ErrTooLarge},
		{"uint32, big", frame.Uint32(binary.BigEndian, 0), "ab", "\x00\x00\x00\x02ab", nil},
		{"uint32, little", frame.Uint32(binary.LittleEndian, 0), "ab", "\x02\x00\x00\x00ab", nil},
		{"uint32, too large", frame.Uint32(nil, 1), "ab", "", frame.ErrTooLarge},
		{"uint64, big", frame.Uint64(binary.BigEndian, 0), "ab", "\x00\x00\x00\x00\x00\x00\x00\x02ab", nil},
		{"uint64, little", frame.Uint64(binary.LittleEndian, 0), "ab", "\x02\x00\x00\x00\x00\x00\x00\x00ab", nil},

		{"varint", frame.Varint(0), "ab", "\x02ab", nil},
		{"varint of two bytes", frame.Varint(0), strings.Repeat("x", 300), "\xac\x02" + strings.Repeat("x", 300), nil},
		{"varint, too large", frame.Varint(1), "ab", "", frame.ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.codec.Append([]byte("before|"), []byte(test.message))
			if string(got) != "before|"+test.want || !errors.Is(err, test.err) {
				t.Errorf("appended %q, %v, want %q, %v", got, err, "before|"+test.want, test.err)
			}
		})
	}
}

func TestErrorsNameWhatWasWrong(t *testing.T) {
	for want, stream := range map[string]struct {
		codec frame.Codec
		bytes string
	}{
		"message too large: 9223372036854775808 bytes, at most 1048576 allowed": {frame.Uint64(nil, 1<<20), "\x80\x00\x00\x00\x00\x00\x00\x00"},
		"message too large: 6 bytes or more, at most 4 allowed":                 {frame.Lines(4), "abcdef"},
		"malformed message: a length with leading zeros":                        {frame.Varint(200), "\x81\x00"},
	} {
		if _, _, err := stream.codec.Decode([]byte(stream.bytes)); err == nil || err.Error() != want {
			t.Errorf("the error is %q, want %q", err, want)
		}
	}
}

func TestAMaximumCannotBeTakenAway(t *testing.T) {
	for name, codec := range map[string]func(max int) frame.Codec{
		"Lines":     frame.Lines,
		"CRLFLines": frame.CRLFLines,
		"Delimited": func(max int) frame.Codec { return frame.Delimited([]byte{0}, max) },
		"Uint8":     frame.Uint8,
		"Uint16":    func(max int) frame.Codec { return frame.Uint16(nil, max) },
		"Uint32":    func(max int) frame.Codec { return frame.Uint32(nil, max) },
		"Uint64":    func(max int) frame.Codec { return frame.Uint64(nil, max) },
		"Varint":    frame.Varint,
	} {
		if got := codec(0).Max(); got < 255 || got > 64<<10+10 {
			t.Errorf("%s(0).Max() = %d", name, got)
		}
		if codec(1<<30).Max() < 255 {
			t.Errorf("%s(1<<30).Max() = %d", name, codec(1<<30).Max())
		}
		for _, max := range []int{-1, 1<<30 + 1} {
			if !panics(func() { codec(max) }) {
				t.Errorf("%s(%d) does not panic", name, max)
			}
		}
	}
	for name, f := range map[string]func(){
		"Fixed(0)":          func() { frame.Fixed(0) },
		"Fixed(-1)":         func() { frame.Fixed(-1) },
		"Delimited(nil, 0)": func() { frame.Delimited(nil, 0) },
		"Handler(nil, nil)": func() { frame.Handler(nil, nil) },
	} {
		if !panics(f) {
			t.Errorf("%s does not panic", name)
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

func TestADelimiterIsCopied(t *testing.T) {
	delim := []byte("|")
	codec := frame.Delimited(delim, 0)
	delim[0] = '!'
	if messages, _, err := decodeAll(codec, []byte("a|b|")); !slices.Equal(messages, []string{"a", "b"}) || err != nil {
		t.Errorf("decoded %q, %v", messages, err)
	}
}

// oneByteReader returns a stream byte by byte, with its end beside the last one.
type oneByteReader struct{ rest []byte }

func (r *oneByteReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	p[0], r.rest = r.rest[0], r.rest[1:]
	if len(r.rest) == 0 {
		return 1, io.EOF
	}
	return 1, nil
}

func TestReaderReadsMessagesUpToTheEndOfTheStream(t *testing.T) {
	for _, test := range []struct {
		stream string
		want   []string
		err    error
	}{
		{"", nil, io.EOF},
		{"a\nbc\n", []string{"a", "bc"}, io.EOF},
		{"a\nbc", []string{"a"}, io.ErrUnexpectedEOF},
		{"a\nbcdef\n", []string{"a"}, frame.ErrTooLarge},
	} {
		for name, stream := range map[string]io.Reader{
			"at once": strings.NewReader(test.stream),
			"in bits": &oneByteReader{[]byte(test.stream)},
		} {
			messages, err := readAll(frame.NewReader(stream, frame.Lines(4)))
			if !slices.Equal(messages, test.want) || !errors.Is(err, test.err) {
				t.Errorf("%q %s: read %q, %v, want %q, %v", test.stream, name, messages, err, test.want, test.err)
			}
		}
	}
}

func readAll(r *frame.Reader) (messages []string, err error) {
	for {
		message, err := r.Read()
		if err != nil {
			return messages, err
		}
		messages = append(messages, string(message))
	}
}

func TestReaderGivesUpOnAStreamOfNothing(t *testing.T) {
	r := frame.NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }), frame.Lines(0))
	if _, err := r.Read(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Read: %v, want ErrNoProgress", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestReaderGoesOnAfterAnError(t *testing.T) {
	interrupted := errors.New("interrupted")
	parts := []any{"ab", interrupted, "c\nd", interrupted, "\n"}
	r := frame.NewReader(readerFunc(func(p []byte) (int, error) {
		if len(parts) == 0 {
			return 0, io.EOF
		}
		part := parts[0]
		parts = parts[1:]
		if err, ok := part.(error); ok {
			return 0, err
		}
		return copy(p, part.(string)), nil
	}), frame.Lines(0))
	var said []string
	for range 5 {
		message, err := r.Read()
		said = append(said, fmt.Sprintf("%s %v %d", message, err, r.Buffered()))
	}
	want := []string{" interrupted 2", "abc <nil> 1", " interrupted 1", "d <nil> 0", " EOF 0"}
	if !slices.Equal(said, want) {
		t.Errorf("Read and Buffered said %q, want %q", said, want)
	}
}

func TestWriteWritesAllMessagesAtOnceOrNone(t *testing.T) {
	var w countingWriter
	if err := frame.Write(&w, frame.Uint8(4), []byte("a"), nil, []byte("bc")); err != nil {
		t.Error(err)
	}
	if w.String() != "\x01a\x00\x02bc" || w.writes != 1 {
		t.Errorf("wrote %q in %d writes", w.String(), w.writes)
	}
	if err := frame.Write(&w, frame.Uint8(4), []byte("a"), []byte("12345")); !errors.Is(err, frame.ErrTooLarge) || w.writes != 1 {
		t.Errorf("Write: %v, %d writes", err, w.writes)
	}
}

type countingWriter struct {
	bytes.Buffer
	writes int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.writes++
	return w.Buffer.Write(p)
}
