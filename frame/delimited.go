package frame

import (
	"bytes"
	"fmt"
	"slices"
)

// Lines is the codec for lines of at most max bytes. It reads lines that end in LF
// or CR LF, mixed as they come, and writes LF. The message is the line without its
// end; it may be empty. CRs before the LF never belong to it, so a message
// that ends in CR, or has an LF in it, cannot be written.
//
// Many protocols say CR LF and accept LF (Redis inline commands, memcached, IRC):
// for their servers there is [CRLFLines]. Where a bare LF must not end a line (SMTP,
// RFC 5321 section 2.3.8), use [Delimited] with "\r\n".
//
// A max of 0 means 64 KiB. Lines panics if it is negative or above 1 GiB.
func Lines(max int) Codec { return lines{max: limit(max), end: "\n"} }

// CRLFLines is [Lines] that writes CR LF.
func CRLFLines(max int) Codec { return lines{max: limit(max), end: "\r\n"} }

type lines struct {
	max int
	end string // what is written
}

const longestLineEnd = len("\r\n") // of those that count; further CRs are part of what may be max bytes long

func (c lines) Max() int { return c.max + longestLineEnd }

func (c lines) Decode(b []byte) (line []byte, n int, err error) {
	end := bytes.IndexByte(b[:min(len(b), c.Max())], '\n')
	switch {
	case end < 0 && len(b) < c.Max():
		return nil, 0, nil
	case end < 0:
		return nil, 0, tooLarge(uint64(len(b)), true, c.max)
	}
	line = b[:end]
	for len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	if len(line) > c.max {
		return nil, 0, tooLarge(uint64(len(line)), false, c.max)
	}
	return slices.Clip(line), end + 1, nil
}

func (c lines) Ready(b []byte, seen int) bool {
	return len(b) >= c.Max() || bytes.IndexByte(b[seen:], '\n') >= 0
}

func (c lines) Append(dst, line []byte) ([]byte, error) {
	switch {
	case len(line) > c.max:
		return dst, tooLarge(uint64(len(line)), false, c.max)
	case bytes.IndexByte(line, '\n') >= 0:
		return dst, malformed("a line with a line end in it")
	case bytes.HasSuffix(line, []byte{'\r'}):
		return dst, malformed("a line that ends in CR, which its reader would drop")
	}
	return append(append(dst, line...), c.end...), nil
}

// Delimited is the codec for messages of at most max bytes, each followed by
// delim, which is not part of the message and cannot be in it. It is strict: a
// delim of "\r\n" takes a bare LF for a part of the message.
//
// A max of 0 means 64 KiB. Delimited panics if it is negative or above 1 GiB, or if
// delim is empty.
func Delimited(delim []byte, max int) Codec {
	if len(delim) == 0 {
		panic("frame: an empty delimiter")
	}
	return delimited{max: limit(max), delim: bytes.Clone(delim)}
}

type delimited struct {
	max   int
	delim []byte
}

func (c delimited) Max() int { return c.max + len(c.delim) }

func (c delimited) Decode(b []byte) (message []byte, n int, err error) {
	end := bytes.Index(b[:min(len(b), c.Max())], c.delim)
	switch {
	case end >= 0:
		return b[:end:end], end + len(c.delim), nil
	case len(b) >= c.Max():
		return nil, 0, tooLarge(uint64(len(b)), true, c.max)
	}
	return nil, 0, nil
}

func (c delimited) Ready(b []byte, seen int) bool {
	begun := max(0, seen-len(c.delim)+1) // the delimiter may have begun within what was seen
	return len(b) >= c.Max() || bytes.Contains(b[begun:], c.delim)
}

func (c delimited) Append(dst, message []byte) ([]byte, error) {
	if len(message) > c.max {
		return dst, tooLarge(uint64(len(message)), false, c.max)
	}
	start := len(dst)
	dst = append(append(dst, message...), c.delim...)
	// Searched with the delimiter in place: the end of the message and its
	// beginning could make another.
	if bytes.Index(dst[start:], c.delim) < len(message) {
		return dst[:start], malformed(fmt.Sprintf("a message with its delimiter %q in it", c.delim))
	}
	return dst, nil
}
