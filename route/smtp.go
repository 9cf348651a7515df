package route

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"

	"github.com/levee-net/levee"
)

// SMTPTLS is the [Dialogue] of SMTP clients, for submission and between servers (RFC 3207).
// It greets in the name of host, which if empty is the machine's own, and takes EHLO, NOOP,
// QUIT and STARTTLS. TLS is required in any case: to anything else it answers 530, and what
// is no SMTP ends the connection. It panics on a host that cannot be one.
//
// The server behind a proxy greets as well, which no client expects after STARTTLS: let
// [MeetSMTP] take that. The server sees a connection in plaintext, or in TLS from the first
// byte; it should not offer STARTTLS there, and may need to be told that it may offer AUTH. A
// route with Passthrough is of no use.
func SMTPTLS(host string) Dialogue {
	if host == "" {
		host = ownName()
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
		panic("route.SMTPTLS: a host's name cannot be " + host)
	}
	lines := lineProtocol{
		name: "SMTP", limit: smtpLine, possible: smtpCommand,
		answer:  func(c *levee.Conn, line string) (bool, error) { return answerSMTP(c, host, line) },
		garbage: "500 5.5.2 This is not SMTP",
		tooLong: "500 5.5.2 Line too long",
		tooMany: "421 4.7.0 Too many commands before STARTTLS",
	}
	return func(_ context.Context, c *levee.Conn, _ bool) (startTLS bool, err error) {
		say(c, "220 ", host, " ESMTP")
		return lines.talk(c)
	}
}

// ownName returns the machine's name.
func ownName() string {
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return "localhost"
}

// smtpLine is how long a command may be (RFC 5321, section 4.5.3.1.4).
const smtpLine = 512

// smtpCommands are those that a client may come up with, so that others can be told from
// garbage: of RFC 5321, and AUTH, BDAT, ETRN and STARTTLS.
var smtpCommands = [...]string{
	"EHLO", "HELO", "STARTTLS", "NOOP", "QUIT", "MAIL", "RCPT", "DATA", "RSET", "VRFY", "EXPN", "HELP", "AUTH", "BDAT", "ETRN",
}

// smtpCommand tells whether a line can begin so.
func smtpCommand(begun []byte) Verdict {
	verb, _, complete := bytes.Cut(begun, []byte(" "))
	v := No
	for _, known := range smtpCommands {
		n := min(len(verb), len(known))
		switch {
		case len(verb) > len(known), !sameLetters(verb[:n], known[:n]), complete && n < len(known):
		case n == len(known):
			return Yes
		default:
			v = More
		}
	}
	return v
}

// answerSMTP answers a command.
func answerSMTP(c *levee.Conn, host, line string) (startTLS bool, err error) {
	verb, argument, _ := strings.Cut(line, " ")
	argument = strings.Trim(argument, " \t")
	switch verb = strings.ToUpper(verb); {
	case verb == "EHLO" && argument == "":
		say(c, "501 5.5.4 Say who you are")
	case verb == "EHLO":
		say(c, "250-", host, "\r\n250 STARTTLS")
	case verb == "NOOP":
		say(c, "250 2.0.0 OK")
	case verb == "QUIT":
		say(c, "221 2.0.0 Bye")
		return false, refused("SMTP", errGoodbye)
	case verb == "STARTTLS" && argument != "":
		say(c, "501 5.5.4 STARTTLS has no parameters")
	case verb == "STARTTLS" && c.Buffered() > 0: // CVE-2011-0411
		say(c, "503 5.5.1 Nothing may follow STARTTLS before its answer")
		return false, refused("SMTP", errAhead)
	case verb == "STARTTLS":
		_, err := c.Write([]byte("220 2.0.0 Ready to start TLS\r\n"))
		return err == nil, err
	default:
		say(c, "530 5.7.0 Must issue a STARTTLS command first")
	}
	return false, nil
}

var errGoodbye = errors.New("the client has left")

// MeetSMTP takes the greeting of an SMTP server, for a client of [SMTPTLS]: it is what a
// [github.com/levee-net/levee/proxy.Proxy] can have in Meet. What the server says instead
// of a welcome goes to the client, and is an error.
func MeetSMTP(ctx context.Context, c *levee.Conn, far net.Conn) error {
	return meet(ctx, c, far, func() error {
		return swallow(c, far, smtpReply, func(reply []byte) bool { return bytes.HasPrefix(reply, []byte("220")) })
	})
}

var errNotSMTP = errors.New("the server does not speak SMTP")

// smtpReply returns the size of the reply that b begins with, or 0 if its end is not there
// (RFC 5321, section 4.2.1).
func smtpReply(b []byte) (size int, err error) {
	for {
		line, _, whole := bytes.Cut(b[size:], []byte("\n"))
		for i, c := range line[:min(len(line), 3)] {
			if !isDigit(c) || c != b[i] { // b begins with the first line, whose code all have
				return 0, errNotSMTP
			}
		}
		switch {
		case !whole && len(line) <= 3, !whole && (line[3] == ' ' || line[3] == '-' || line[3] == '\r'):
			return 0, nil
		case len(line) <= 3, line[3] != ' ' && line[3] != '-' && string(line[3:]) != "\r":
			return 0, errNotSMTP
		}
		size += len(line) + 1
		if line[3] != '-' {
			return size, nil
		}
	}
}
