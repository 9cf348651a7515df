package main

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/levee-net/levee/frame"
)

const (
	mostArgs    = 16
	longest     = 1 << 20  // bytes of an argument
	longestLine = 64 << 10 // bytes of an inline command
)

// commands is the codec for what clients of Redis send (https://redis.io/docs/latest/develop/reference/protocol-spec/): arrays of
// bulk strings, or a line of words. The message is the whole command, for parse to take apart.
type commands struct{}

// Max is what the largest command takes.
func (commands) Max() int { return mostArgs * (longest + 32) }

// Decode finds the first command in b.
func (commands) Decode(b []byte) (message []byte, n int, err error) {
	n, err = parse(b, func([]byte) {})
	return b[:n], n, err
}

// Append has nothing to do here: answers are written raw, as they have another form than commands.
func (commands) Append(dst, _ []byte) ([]byte, error) { return dst, frame.ErrMalformed }

// parse calls each for the arguments of the first command in b and returns how long that is: 0 if it has not come as a whole.
func parse(b []byte, each func(arg []byte)) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	if b[0] != '*' {
		return inline(b, each)
	}
	count, n, err := number(b, '*', mostArgs)
	for ; n > 0 && err == nil && count > 0; count-- {
		size, head, err := number(b[n:], '$', longest)
		if head == 0 || err != nil {
			return 0, err
		}
		end := n + head + size
		switch {
		case len(b) < end+2:
			return 0, nil
		case b[end] != '\r' || b[end+1] != '\n':
			return 0, fmt.Errorf("a bulk string is longer than its length: %w", frame.ErrMalformed)
		}
		each(b[n+head : end])
		n = end + 2
	}
	return n, err
}

// number reads a line such as *3 or $10, and returns how long it is: 0 if it has not come as a whole.
func number(b []byte, kind byte, most int) (value, n int, err error) {
	const enough = 12 // for the digits of most, and more
	line, _, found := bytes.Cut(b[:min(len(b), enough)], []byte("\r\n"))
	switch {
	case len(line) > 0 && line[0] != kind:
		return 0, 0, fmt.Errorf("%q where %q should be: %w", line[0], kind, frame.ErrMalformed)
	case !found && len(b) >= enough:
		return 0, 0, fmt.Errorf("a length without an end: %w", frame.ErrMalformed)
	case !found:
		return 0, 0, nil
	}
	value, err = strconv.Atoi(string(line[1:]))
	if err != nil || value < 0 {
		return 0, 0, fmt.Errorf("length %q: %w", line[1:], frame.ErrMalformed)
	}
	if value > most {
		return 0, 0, fmt.Errorf("length %d: %w", value, frame.ErrTooLarge)
	}
	return value, len(line) + 2, nil
}

func inline(b []byte, each func(arg []byte)) (n int, err error) {
	end := bytes.IndexByte(b[:min(len(b), longestLine)], '\n')
	switch {
	case end < 0 && len(b) >= longestLine:
		return 0, frame.ErrTooLarge
	case end < 0:
		return 0, nil
	}
	words := 0
	for word := range bytes.FieldsSeq(b[:end]) {
		if words++; words > mostArgs {
			return 0, frame.ErrTooLarge
		}
		each(word)
	}
	return end + 1, nil
}
