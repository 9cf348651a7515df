package route

import (
	"bytes"

	"github.com/levee-net/levee"
)

// Prefix matches connections whose first bytes are one of the prefixes.
func Prefix(prefixes ...string) Matcher {
	return func(_ *levee.Conn, first []byte) Verdict {
		verdict := No
		for _, p := range prefixes {
			switch {
			case bytes.HasPrefix(first, []byte(p)):
				return Yes
			case len(first) < len(p) && bytes.HasPrefix([]byte(p), first):
				verdict = More
			}
		}
		return verdict
	}
}

// HTTP matches HTTP/1 by its request methods (RFC 9110 section 9, and PATCH of
// RFC 5789), each with the space that follows it, and HTTP/2 by its connection
// preface (RFC 9113 section 3.4).
func HTTP(c *levee.Conn, first []byte) Verdict { return matchHTTP(c, first) }

var matchHTTP = Prefix("GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH ", "PRI * HTTP/2.0\r\n")

// TLS matches connections that have made a TLS handshake.
func TLS(c *levee.Conn, _ []byte) Verdict {
	if c.TLS() != nil {
		return Yes
	}
	return No
}
