package route

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/levee-net/levee"
)

// What the dialogues of STARTTLS have in common: lines, and what a server says first.

// starttlsRounds is how often a client may ask for something else before it asks for TLS.
// Those that are there need two at most: what can you do, and do it.
const starttlsRounds = 10

var (
	errGarbage    = errors.New("this is no client of the protocol")
	errLineLength = errors.New("the line is too long")
	errAhead      = errors.New("bytes in plaintext behind the request for TLS")
	errManyRounds = errors.New("too many requests before one for TLS")
)

// refused is how a dialogue ends that did not come to TLS.
func refused(protocol string, why error) error {
	return fmt.Errorf("%w: %s: %w", ErrPlaintext, protocol, why)
}

// A lineProtocol is how a dialogue in lines goes on behind its greeting.
type lineProtocol struct {
	name     string
	limit    int                        // bytes of a line, its end included
	possible func(begun []byte) Verdict // No is that no line begins so
	answer   func(c *levee.Conn, line string) (startTLS bool, err error)

	garbage, tooLong, tooMany string // the last words to those
}

// talk takes lines and answers them, until TLS is to begin.
func (p *lineProtocol) talk(c *levee.Conn) (startTLS bool, err error) {
	for range starttlsRounds {
		line, err := takeLine(c, p.limit, p.possible)
		switch err {
		case nil:
		case errGarbage:
			say(c, p.garbage)
			return false, refused(p.name, err)
		case errLineLength:
			say(c, p.tooLong)
			return false, refused(p.name, err)
		default:
			return false, err
		}
		if agreed, err := p.answer(c, line); agreed || err != nil {
			return agreed, err
		}
	}
	say(c, p.tooMany)
	return false, refused(p.name, errManyRounds)
}

// takeLine takes a line of up to limit bytes, its CRLF included, and returns it without
// that. Whatever cannot become one is garbage as soon as it shows: a byte that is not ASCII
// or does not print, a CR or an LF alone, by which commands are smuggled, an empty line, or
// what possible says No to, which is asked for each beginning of the line.
func takeLine(c *levee.Conn, limit int, possible func(begun []byte) Verdict) (string, error) {
	for seen := 0; ; {
		b, err := c.Peek(max(c.Buffered(), seen+1))
		if err != nil {
			return "", err
		}
		for ; seen < len(b); seen++ {
			v, err := lineGoesOn(b[:seen+1], possible)
			switch {
			case err != nil:
				return "", err
			case v == Yes:
				line := make([]byte, seen+1)
				if _, err := io.ReadFull(c, line); err != nil {
					return "", err
				}
				return string(line[:seen-1]), nil
			case seen+1 >= limit:
				return "", errLineLength
			}
		}
	}
}

// lineGoesOn judges the last byte of a line, and says Yes if it ends it.
func lineGoesOn(b []byte, possible func(begun []byte) Verdict) (Verdict, error) {
	last := len(b) - 1
	after := last > 0 && b[last-1] == '\r'
	switch c := b[last]; {
	case after && c == '\n':
		return Yes, nil
	case after, c == '\n', c == '\r' && last == 0, c != '\r' && c != '\t' && (c < ' ' || c > '~'):
		return No, errGarbage
	case c != '\r' && possible(b) == No:
		return No, errGarbage
	}
	return More, nil
}

// say writes a line. That it could not be written shows when the next one is read.
func say(c io.Writer, words ...string) {
	_, _ = io.WriteString(c, strings.Join(words, "")+"\r\n")
}

// meet runs what deals with a server that was connected to, until ctx ends.
func meet(ctx context.Context, c *levee.Conn, far net.Conn, deal func() error) error {
	unhook := context.AfterFunc(ctx, func() {
		_ = far.SetDeadline(time.Unix(1, 0))
		_ = c.SetReadDeadline(time.Unix(1, 0))
	})
	err := deal()
	if !unhook() {
		return context.Cause(ctx)
	}
	return err
}

// greetingLimit is how long a server's greeting may be, in bytes.
const greetingLimit = 4 << 10

// readGreeting reads from a server until size, asked with all that has come, tells how many
// bytes the greeting has; it answers 0 as long as the end is not there.
func readGreeting(far net.Conn, size func(b []byte) (int, error)) (greeting, rest []byte, err error) {
	b := make([]byte, 0, greetingLimit)
	for {
		n, err := far.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch n, wrong := size(b); {
		case wrong != nil:
			return nil, nil, wrong
		case n > 0:
			return b[:n], b[n:], nil
		case err == io.EOF:
			return nil, nil, fmt.Errorf("the server has closed before its greeting: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return nil, nil, err
		case len(b) == cap(b):
			return nil, nil, errGreetingLength
		}
	}
}

var errGreetingLength = fmt.Errorf("the server's greeting is longer than %d bytes", greetingLimit)

// swallow takes a server's greeting, if it is one that welcomes. Any other is passed on to
// the client, as the answer to what it will say first, and is an error.
func swallow(c *levee.Conn, far net.Conn, size func(b []byte) (int, error), welcomes func(greeting []byte) bool) error {
	greeting, rest, err := readGreeting(far, size)
	if err != nil {
		return err
	}
	if !welcomes(greeting) {
		_, _ = c.Write(greeting) // the connection ends in any case
		return fmt.Errorf("the server greets with %q", greeting)
	}
	if len(rest) > 0 {
		_, err = c.Write(rest)
	}
	return err
}
