package route

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"

	"github.com/levee-net/levee"
)

// IMAPTLS is the [Dialogue] of IMAP clients (RFC 9051 and 3501, section 6.2.1 of both). It
// greets, and takes CAPABILITY, NOOP, LOGOUT and STARTTLS. TLS is required in any case: to
// anything else it answers NO, and what is no IMAP ends the connection after a BYE.
//
// The server behind a proxy greets as well, which no client expects after STARTTLS: let
// [MeetIMAP] take that. The server sees a connection in plaintext, or in TLS from the first
// byte; it has to be told that clients may log in there. A route with Passthrough is of no use.
func IMAPTLS(_ context.Context, c *levee.Conn, _ bool) (startTLS bool, err error) {
	say(c, "* OK [", imapCapabilities, "] ready")
	return imapLines.talk(c)
}

var imapLines = lineProtocol{
	name: "IMAP", limit: imapLine, possible: imapCommand, answer: answerIMAP,
	garbage: "* BYE This is not IMAP",
	tooLong: "* BYE Line too long",
	tooMany: "* BYE Too many commands before STARTTLS",
}

const (
	imapLine         = 1 << 10 // more than any command that makes sense before TLS
	imapTag          = 64      // bytes at most
	imapCapabilities = "CAPABILITY IMAP4rev1 IMAP4rev2 STARTTLS LOGINDISABLED"
)

// imapCommand tells whether a line can begin so: by a tag, which has no atom-specials and no
// plus (RFC 9051, section 9), and a word of letters.
func imapCommand(begun []byte) Verdict {
	tag, command, tagged := bytes.Cut(begun, []byte(" "))
	if len(tag) == 0 || len(tag) > imapTag || bytes.ContainsAny(tag, "(){%*\"\\+\t") {
		return No
	}
	word, _, whole := bytes.Cut(command, []byte(" "))
	for _, c := range word {
		if c |= 0x20; c < 'a' || c > 'z' {
			return No
		}
	}
	switch {
	case !tagged, !whole && len(word) == 0:
		return More
	case len(word) == 0:
		return No
	}
	return More
}

// answerIMAP answers a command.
func answerIMAP(c *levee.Conn, line string) (startTLS bool, err error) {
	tag, command, _ := strings.Cut(line, " ")
	switch command = strings.ToUpper(command); {
	case command == "CAPABILITY":
		say(c, "* ", imapCapabilities, "\r\n", tag, " OK done")
	case command == "NOOP":
		say(c, tag, " OK done")
	case command == "LOGOUT":
		say(c, "* BYE\r\n", tag, " OK done")
		return false, refused("IMAP", errGoodbye)
	case command == "STARTTLS" && c.Buffered() > 0: // CVE-2011-0411
		say(c, tag, " BAD Nothing may follow STARTTLS before its answer\r\n* BYE")
		return false, refused("IMAP", errAhead)
	case command == "STARTTLS":
		_, err := c.Write([]byte(tag + " OK Begin TLS negotiation now\r\n"))
		return err == nil, err
	case command == "", strings.HasPrefix(command, "STARTTLS "), strings.HasPrefix(command, "CAPABILITY "):
		say(c, tag, " BAD syntax")
	case strings.HasSuffix(command, "+}"): // its literal follows unasked, and is no command (RFC 7888)
		say(c, "* BYE STARTTLS comes first")
		return false, refused("IMAP", errLiteral)
	default:
		say(c, tag, " NO [PRIVACYREQUIRED] STARTTLS comes first") // RFC 5530
	}
	return false, nil
}

var errLiteral = errors.New("a literal in plaintext")

// MeetIMAP takes the greeting of an IMAP server, for a client of [IMAPTLS]: it is what a
// [github.com/levee-net/levee/proxy.Proxy] can have in Meet. What the server says instead
// of OK goes to the client, and is an error: a BYE, and also a PREAUTH, by which every
// client would be logged in.
func MeetIMAP(ctx context.Context, c *levee.Conn, far net.Conn) error {
	return meet(ctx, c, far, func() error {
		return swallow(c, far, imapGreeting, func(line []byte) bool {
			return len(line) > 5 && bytes.EqualFold(line[:5], []byte("* OK "))
		})
	})
}

var errNotIMAP = errors.New("the server does not speak IMAP")

// imapGreeting returns the size of the greeting that b begins with, or 0 if its end is not
// there (RFC 9051, section 7.1).
func imapGreeting(b []byte) (size int, err error) {
	if begins(b, "* ") == No {
		return 0, errNotIMAP
	}
	return bytes.IndexByte(b, '\n') + 1, nil
}
