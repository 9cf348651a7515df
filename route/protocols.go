package route

import "encoding/binary"

// HTTP matches HTTP/1 by its request methods (RFC 9110 section 9, and PATCH of
// RFC 5789), each with the space that follows it, and HTTP/2 by its connection
// preface (RFC 9113 section 3.4).
func HTTP(b *Beginning) Verdict {
	return b.carries(func(first []byte) Verdict {
		return begins(first, "GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH ", "PRI * HTTP/2.0\r\n")
	})
}

// SSH matches SSH clients that speak first, as most do, by their identification
// (RFC 4253 section 4.2). One that waits for the server's is not matched.
func SSH(b *Beginning) Verdict {
	return b.carries(func(first []byte) Verdict { return begins(first, "SSH-") })
}

// Postgres matches what a PostgreSQL client sends first: a StartupMessage of protocol 3,
// an SSLRequest, a GSSENCRequest or a CancelRequest
// (https://www.postgresql.org/docs/18/protocol-message-formats.html), by length and code.
func Postgres(b *Beginning) Verdict {
	return b.carries(func(first []byte) Verdict {
		_, v := postgresRequest(first)
		return v
	})
}

// Redis matches what clients of Redis, and of what speaks its protocol, send first
// (https://redis.io/docs/latest/develop/reference/protocol-spec/): an array of 1 to
// 9,999,999 bulk strings, looked at as far as the first digit of the first one's length. Of
// inline commands, which could as well be another protocol's, it matches PING, AUTH, HELLO
// and INFO, in any case.
func Redis(b *Beginning) Verdict {
	return b.carries(func(first []byte) Verdict {
		if len(first) > 0 && first[0] != '*' {
			return redisInline(first)
		}
		return redisArray(first)
	})
}

// redisArray tells whether the bytes are an array's: *2\r\n$4, say.
func redisArray(b []byte) Verdict {
	digits := 0
	for digits < 8 && len(b) > 1+digits && isDigit(b[1+digits]) {
		digits++
	}
	switch {
	case len(b) <= 1:
		return More
	case digits == 8, b[1] == '0', !isDigit(b[1]):
		return No
	}
	v := begins(b[1+digits:], "\r\n$")
	if v != Yes {
		return v
	}
	length := b[1+digits+len("\r\n$"):]
	if len(length) == 0 {
		return More
	}
	return verdict(isDigit(length[0]))
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// redisInline tells whether the bytes are an inline command with what ends its name.
func redisInline(b []byte) Verdict {
	v := No
	for _, name := range [...]string{"PING", "AUTH", "HELLO", "INFO"} {
		n := min(len(b), len(name))
		if !sameLetters(b[:n], name[:n]) {
			continue
		}
		if len(b) <= len(name) {
			v = More
			continue
		}
		switch b[len(name)] {
		case ' ', '\r', '\n':
			return Yes
		}
	}
	return v
}

// sameLetters reports whether b is upper, which has upper-case ASCII letters only, in any case.
func sameLetters(b []byte, upper string) bool {
	for i, c := range b {
		if c != upper[i] && c != upper[i]+'a'-'A' {
			return false
		}
	}
	return true
}

// MQTT matches MQTT clients by their CONNECT packet, of version 3.1, 3.1.1 or 5
// (https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html section 3.1): its type, a
// length, and the name and level of the protocol.
func MQTT(b *Beginning) Verdict {
	return b.carries(func(first []byte) Verdict {
		if v := begins(first, "\x10"); v != Yes {
			return v
		}
		rest := first[1:]
		for i, c := range rest {
			if c < 0x80 {
				return begins(rest[i+1:], "\x00\x04MQTT\x04", "\x00\x04MQTT\x05", "\x00\x06MQIsdp\x03")
			}
			if i == 3 { // section 1.5.5: a length has at most four bytes
				return No
			}
		}
		return More
	})
}

// carries asks the bytes in plaintext. What TLS carries only its termination would tell.
func (b *Beginning) carries(match func(first []byte) Verdict) Verdict {
	if b.Sealed() {
		return More
	}
	return match(b.First)
}

// A postgresKind is what a PostgreSQL client can begin with.
type postgresKind uint8

const (
	postgresStartup postgresKind = iota + 1
	postgresCancel
	postgresTLS
	postgresGSS
)

// postgresHeader is the length and the code that all of them begin with.
const postgresHeader = 8

// postgresRequest tells what the bytes begin with.
func postgresRequest(b []byte) (postgresKind, Verdict) {
	const (
		startupLimit = 10_000 // the server's own, its MAX_STARTUP_PACKET_LENGTH
		cancelLimit  = 12 + 256
	)
	if v := begins(b, "\x00\x00"); v != Yes {
		return 0, v
	}
	if len(b) > 4 && begins(b[4:], "\x00\x03", "\x04\xd2\x16") == No {
		return 0, No
	}
	if len(b) < postgresHeader {
		return 0, More
	}
	length, code := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	switch {
	case code>>16 == 3 && length > postgresHeader && length <= startupLimit:
		return postgresStartup, Yes
	case code == 80877102 && length >= 16 && length <= cancelLimit:
		return postgresCancel, Yes
	case code == 80877103 && length == postgresHeader:
		return postgresTLS, Yes
	case code == 80877104 && length == postgresHeader:
		return postgresGSS, Yes
	}
	return 0, No
}
