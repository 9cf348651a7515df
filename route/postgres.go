package route

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/levee-net/levee"
)

// PostgresTLS is the [Dialogue] of PostgreSQL clients
// (https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-FLOW-SSL): it agrees to
// an SSLRequest, and declines encryption by GSSAPI, after which clients go on with such a
// request or in plaintext. Clients that begin with their hello, and those of other
// protocols, are left as they are.
//
// Where TLS is required, a client that goes on in plaintext is told so. A request to cancel
// a query, which clients before libpq 17 always send in plaintext, is then refused without
// a word: the protocol has no answer to it.
//
// A route with Passthrough gives its handler the hello without the request before it.
// PostgreSQL takes that since version 17, if the hello offers the ALPN "postgresql".
func PostgresTLS(_ context.Context, c *levee.Conn, required bool) (startTLS bool, err error) {
	for declined := false; ; declined = true {
		kind, err := peekPostgres(c)
		switch {
		case err != nil:
			return false, err
		case kind == postgresTLS:
			return true, agreePostgres(c)
		case kind == postgresGSS && declined:
			return false, errPostgresRounds
		case kind == postgresGSS:
			if err := answerPostgres(c, 'N'); err != nil {
				return false, err
			}
		case kind == postgresStartup && required:
			_, _ = c.Write(postgresRefusal) // the connection ends in any case
			return false, ErrPlaintext
		default:
			return false, nil
		}
	}
}

var (
	errPostgresRounds = errors.New("PostgreSQL: GSSAPI encryption is asked for again")
	errPostgresAhead  = errors.New("PostgreSQL: bytes in plaintext behind the SSLRequest")
)

// peekPostgres looks at the request that comes next, and returns 0 if it is none.
func peekPostgres(c *levee.Conn) (postgresKind, error) {
	var first []byte
	for {
		kind, v := postgresRequest(first)
		if v != More {
			return kind, nil
		}
		b, err := c.Peek(len(first) + 1)
		switch {
		case errors.Is(err, io.EOF):
			return 0, nil
		case err != nil:
			return 0, err
		}
		first = b
	}
}

// agreePostgres agrees to TLS. What the client has sent ahead, or somebody in its name, must
// not be taken for something that came encrypted (CVE-2021-23214).
func agreePostgres(c *levee.Conn) error {
	if c.Buffered() > postgresHeader {
		return errPostgresAhead
	}
	return answerPostgres(c, 'S')
}

// answerPostgres takes the request and answers it.
func answerPostgres(c *levee.Conn, answer byte) error {
	if _, err := io.ReadFull(c, make([]byte, postgresHeader)); err != nil {
		return err
	}
	_, err := c.Write([]byte{answer})
	return err
}

// postgresRefusal is an ErrorResponse. 28000 is what PostgreSQL itself says to clients that
// it does not let in without encryption.
var postgresRefusal = func() []byte {
	const fields = "SFATAL\x00VFATAL\x00C28000\x00Mthis server takes encrypted connections only\x00\x00"
	return append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(fields))), fields...)
}()
