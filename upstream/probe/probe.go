// Package probe asks a server whether it is well, in the server's own protocol.
//
//	pool := &upstream.Pool{
//		Name:   "postgres",
//		Health: upstream.Health{Probe: probe.Postgres("levee", "postgres")},
//	}
//
// Its secret is which answers mean yes. A server that is starting up, full or about to
// leave still accepts connections and says so only in its protocol. One that refuses
// the probe's login is well all the same: others have a login that it accepts.
//
// A probe never reads more than 64 KiB of an answer, nor waits longer than its context
// allows. What it quotes of an answer in an error is short and printable, so that it
// can be logged as it is.
package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode"
)

// A Probe returns nil if the server at the other end of the connection is well, and
// otherwise why it is not. The connection has just been made, with its TLS handshake
// if it has one; the probe sets its deadline and leaves it for the caller to close. The
// probe ends when ctx does, and after 10 seconds if ctx has no deadline.
//
// The probes of this package may be used by many goroutines at once.
type Probe = func(ctx context.Context, conn net.Conn) error

const (
	patience  = 10 * time.Second // where ctx has no deadline
	maxAnswer = 64 << 10         // bytes; the longest that is expected, of PostgreSQL, is under 1 KiB
	maxQuoted = 200              // bytes of an answer in an error
)

// converse makes a probe of a conversation in which the server may say at most most bytes.
func converse(most int64, talk func(w io.Writer, r *bufio.Reader) error) Probe {
	return func(ctx context.Context, conn net.Conn) error {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(patience)
		}
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		answer := &io.LimitedReader{R: conn, N: most}
		err := talk(conn, bufio.NewReader(answer))
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return err
		case answer.N <= 0:
			return fmt.Errorf("an answer of more than %d bytes", most)
		}
		return fmt.Errorf("closed by the server: %w", err)
	}
}

// SendExpect sends, and is content once what it has read contains expect: somewhere in
// the first 16 KiB. Where the server speaks first, send is empty. An empty expect asks
// for no answer at all. Both are copied.
func SendExpect(send, expect []byte) Probe {
	const window = 16 << 10 // bytes; a banner or the head of an answer
	send, expect = bytes.Clone(send), bytes.Clone(expect)
	return converse(window, func(w io.Writer, r *bufio.Reader) error {
		if err := write(w, send); err != nil {
			return err
		}
		var read []byte
		for searched := 0; !bytes.Contains(read[searched:], expect); {
			searched = max(0, len(read)-len(expect)+1) // it may have begun
			if _, err := r.Peek(1); err != nil {
				return fmt.Errorf("%s is not in the answer %s: %w", quote(expect), quote(read), err)
			}
			come, _ := r.Peek(r.Buffered())
			read = append(read, come...)
			_, _ = r.Discard(len(come))
		}
		return nil
	})
}

func write(w io.Writer, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// quote is what of a server's bytes is shown where they are not what they should be.
func quote(b []byte) string { return fmt.Sprintf("%.*q", maxQuoted, b) }

// words is what a server says to people, without what would disturb their terminals.
func words(b []byte) string {
	text := strings.ToValidUTF8(string(b[:min(len(b), maxQuoted)]), "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text))
}
