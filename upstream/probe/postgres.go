package probe

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Postgres begins a session of the user, in the protocol of PostgreSQL 7.4 and later. A
// server that asks for a password, lets the user in, or refuses this user or database
// is well. One that is starting up or shutting down (57P03) or is full (53300), or
// that reports anything else, is not, and the error has the server's own words.
//
// An empty user is "levee", an empty database has the user's name. Neither has to exist,
// but a server that trusts everybody logs a refusal each time if they do not. PgBouncer
// calls an unknown database what it calls any trouble, so for it they have to exist.
//
// Where a session begins, it is ended as the protocol wants. Where a password is asked
// for, the connection just ends, which PostgreSQL does not log. A server that speaks TLS
// only after an SSLRequest (all before PostgreSQL 17, and 17 without ALPN
// "postgresql") has to be probed in plaintext.
func Postgres(user, database string) Probe {
	startup := postgresStartup(user, database)
	return converse(maxAnswer, func(w io.Writer, r *bufio.Reader) error {
		if err := write(w, startup); err != nil {
			return err
		}
		for {
			kind, body, err := readPostgres(r)
			if err != nil {
				return err
			}
			switch kind {
			case 'E':
				return postgresError(body)
			case 'R':
				if len(body) < 4 {
					return errNotPostgres
				}
				if binary.BigEndian.Uint32(body) != 0 {
					return nil // it wants a password
				}
				// The user is let in, but "too many connections" may still follow.
			case 'Z': // ready for a query
				_ = write(w, []byte{'X', 0, 0, 0, 4}) // Terminate
				return nil
			case 'S', 'K', 'N': // parameters, the key for cancelling, notices
			default:
				return errNotPostgres
			}
		}
	})
}

var errNotPostgres = errors.New("the answer is not PostgreSQL's")

func postgresStartup(user, database string) []byte {
	if user == "" {
		user = "levee"
	}
	const version = 3 << 16 // 3.0
	b := binary.BigEndian.AppendUint32(make([]byte, 4), version)
	b = append(b, "user\x00"+user+"\x00"...)
	if database != "" {
		b = append(b, "database\x00"+database+"\x00"...)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// readPostgres reads a message: its kind, four bytes of length that count themselves,
// and the body.
func readPostgres(r *bufio.Reader) (kind byte, body []byte, err error) {
	kind, err = r.ReadByte()
	if err != nil {
		return 0, nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 4 || length > maxAnswer {
		// A server that cannot even fork says why in the form of the protocol before: an E and its words.
		rest, _ := r.Peek(r.Buffered())
		text, _, _ := bytes.Cut(append(head[:], rest...), []byte{0})
		return 0, nil, fmt.Errorf("%w: %s", errNotPostgres, quote(append([]byte{kind}, text...)))
	}
	body = make([]byte, length-4)
	_, err = io.ReadFull(r, body)
	return kind, body, err
}

// postgresError is nil if only the login was wrong.
func postgresError(body []byte) error {
	var code, message []byte
	for len(body) > 0 && body[0] != 0 {
		field := body[0]
		text, rest, ended := bytes.Cut(body[1:], []byte{0})
		if !ended {
			return errNotPostgres
		}
		switch field {
		case 'C':
			code = text
		case 'M':
			message = text
		}
		body = rest
	}
	// PostgreSQL's appendix A: 28 is invalid authorization, 3D an unknown database, 42501 a database that the user may
	// not connect to.
	if c := string(code); strings.HasPrefix(c, "28") || strings.HasPrefix(c, "3D") || c == "42501" {
		return nil
	}
	return fmt.Errorf("%s: %s", words(code), words(message))
}
