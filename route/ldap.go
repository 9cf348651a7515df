package route

import (
	"context"
	"errors"
	"io"

	"github.com/levee-net/levee"
)

// LDAPTLS is the [Dialogue] of LDAP clients, which begin TLS by an extended operation (RFC
// 4511, section 4.14). Those that begin with their hello are left as they are, and where TLS
// is not required so are those that begin with another operation, or speak another protocol.
//
// Where it is, other operations are answered with confidentialityRequired as long as there
// are few, each of no more than 16 KiB. An unbind ends the connection, and so does what is no
// LDAP, with a notice of disconnection.
//
// The server behind a proxy learns nothing of the request: it sees a connection in
// plaintext, or in TLS from the first byte, which is also what a route with Passthrough gives it.
func LDAPTLS(_ context.Context, c *levee.Conn, required bool) (startTLS bool, err error) {
	for range starttlsRounds {
		m, v, err := peekLDAP(c)
		switch {
		case err != nil:
			return false, err
		case m.startTLS:
			err := agreeLDAP(c, m)
			return err == nil, err
		case !required, m.hello:
			return false, nil
		case v == More:
			return false, io.EOF
		case v == No:
			_, _ = c.Write(ldapNotice("this is not LDAP")) // the connection ends in any case
			return false, refused("LDAP", errGarbage)
		case m.operation == ldapUnbind:
			return false, refused("LDAP", errGoodbye)
		}
		if err := declineLDAP(c, m); err != nil {
			return false, err
		}
	}
	_, _ = c.Write(ldapNotice("too many operations before StartTLS"))
	return false, refused("LDAP", errManyRounds)
}

// ldapAnswers has the tags of the operations that a client can ask for, and those of their
// answers (RFC 4511, section 4.2 and following); 0 where there is none.
var ldapAnswers = map[byte]byte{
	0x60: 0x61, // bind
	0x63: 0x65, // search
	0x66: 0x67, // modify
	0x68: 0x69, // add
	0x4a: 0x6b, // delete
	0x6c: 0x6d, // modify DN
	0x6e: 0x6f, // compare
	0x50: 0,    // abandon

	ldapUnbind:   0,
	ldapExtended: ldapExtendedAnswer,
}

const (
	ldapUnbind         = 0x42
	ldapExtended       = 0x77
	ldapExtendedAnswer = 0x78

	ldapSequence     = 0x30 // tags of X.690
	ldapInteger      = 0x02
	ldapOctets       = 0x04
	ldapEnumerated   = 0x0a
	ldapRequestName  = 0x80 // context-specific ones
	ldapResponseName = 0x8a

	ldapSuccess         = 0 // result codes (section 4.1.9)
	ldapProtocolError   = 2
	ldapConfidentiality = 13

	ldapStartTLSName = "1.3.6.1.4.1.1466.20037"
	ldapNoticeName   = "1.3.6.1.4.1.1466.20036" // section 4.4.1

	ldapLimit = 16 << 10 // of a message, which bounds what is read in vain
)

// An ldapRequest is what a client begins with.
type ldapRequest struct {
	hello     bool   // it is TLS's
	startTLS  bool   // it is the request for TLS
	operation byte   // its tag
	id        []byte // the messageID's value
	size      int    // of the message
}

// peekLDAP looks at what comes next: More is that nothing does.
func peekLDAP(c *levee.Conn) (ldapRequest, Verdict, error) {
	var b []byte
	for {
		m, v := ldapMessage(b)
		if v != More {
			return m, v, nil
		}
		more, err := c.Peek(max(c.Buffered(), len(b)+1))
		switch {
		case errors.Is(err, io.EOF):
			return m, More, nil
		case err != nil:
			return m, More, err
		}
		b = more
	}
}

// ldapMessage tells what the bytes begin with. Of an extended operation it has to see the
// name, and of the request for TLS all.
func ldapMessage(b []byte) (m ldapRequest, v Verdict) {
	if len(b) > 0 && b[0] == recordHandshake {
		return ldapRequest{hello: true}, Yes
	}
	head, length, v := berHead(b, ldapSequence)
	m.size = head + length
	switch {
	case v != Yes:
		return m, v
	case m.size > ldapLimit:
		return m, No
	}
	whole := len(b) >= m.size
	b = b[head:min(len(b), m.size)]
	if m.id, b, v = berValue(b, ldapInteger); v != Yes {
		return m, orNo(v, whole)
	}
	if len(m.id) == 0 || len(m.id) > 4 || m.id[0] >= 0x80 {
		return m, No
	}
	if len(b) == 0 {
		return m, orNo(More, whole)
	}
	m.operation = b[0]
	switch _, known := ldapAnswers[m.operation]; {
	case !known:
		return m, No
	case m.operation != ldapExtended:
		return m, Yes
	}
	return m, m.extended(b, whole)
}

// extended looks at an extended operation, of which b is what there is.
func (m *ldapRequest) extended(b []byte, whole bool) Verdict {
	head, length, v := berHead(b, ldapExtended)
	if v != Yes {
		return orNo(v, whole)
	}
	last := len(b) == head+length && whole // of the message: there are no controls
	name, rest, v := berValue(b[head:min(len(b), head+length)], ldapRequestName)
	switch {
	case v != Yes:
		return orNo(v, whole)
	case string(name) != ldapStartTLSName:
		return Yes
	case !whole:
		return More
	}
	m.startTLS = last && len(rest) == 0
	return verdict(m.startTLS)
}

// orNo is v, but No where nothing more belongs to the message.
func orNo(v Verdict, whole bool) Verdict {
	if whole && v == More {
		return No
	}
	return v
}

// berHead reads a tag and a length of the definite form, of up to four bytes (X.690,
// section 8.1.3; RFC 4511, section 5.1).
func berHead(b []byte, tag byte) (head, length int, v Verdict) {
	switch {
	case len(b) > 0 && b[0] != tag:
		return 0, 0, No
	case len(b) < 2:
		return 0, 0, More
	case b[1] < 0x80:
		return 2, int(b[1]), Yes
	}
	n := int(b[1] & 0x7f)
	switch {
	case n == 0, n > 4:
		return 0, 0, No
	case len(b) < 2+n:
		return 0, 0, More
	}
	for _, c := range b[2 : 2+n] {
		length = length<<8 | int(c)
	}
	if length < 0 || length > 1<<30 { // 2 GiB do not fit into an int everywhere
		return 0, 0, No
	}
	return 2 + n, length, Yes
}

// berValue returns a value that is all there, and what is behind it.
func berValue(b []byte, tag byte) (value, rest []byte, v Verdict) {
	head, length, v := berHead(b, tag)
	switch {
	case v != Yes:
		return nil, nil, v
	case len(b) < head+length:
		return nil, nil, More
	}
	return b[head : head+length], b[head+length:], Yes
}

// agreeLDAP takes the request for TLS and agrees to it. What the client has sent ahead, or
// somebody in its name, must not be taken for something that came encrypted.
func agreeLDAP(c *levee.Conn, m ldapRequest) error {
	if c.Buffered() > m.size {
		_, _ = c.Write(ldapNotice("nothing may follow StartTLS before its answer"))
		return refused("LDAP", errAhead)
	}
	answer := ldapAnswer(m.id, ldapExtendedAnswer, ldapSuccess, "", ldapStartTLSName)
	return takeLDAP(c, m, answer)
}

// declineLDAP takes a request for something else, and says that TLS has to come first.
func declineLDAP(c *levee.Conn, m ldapRequest) error {
	var answer []byte
	if tag := ldapAnswers[m.operation]; tag != 0 {
		answer = ldapAnswer(m.id, tag, ldapConfidentiality, "StartTLS has to come first", "")
	}
	return takeLDAP(c, m, answer)
}

func takeLDAP(c *levee.Conn, m ldapRequest, answer []byte) error {
	if _, err := io.ReadFull(c, make([]byte, m.size)); err != nil {
		return err
	}
	_, err := c.Write(answer)
	return err
}

// ldapNotice is a notice of disconnection.
func ldapNotice(text string) []byte {
	return ldapAnswer([]byte{0}, ldapExtendedAnswer, ldapProtocolError, text, ldapNoticeName)
}

// ldapAnswer is the answer to a request. Its name is an extended operation's, or empty. It
// has to be short: all lengths are of one byte.
func ldapAnswer(id []byte, operation, code byte, text, name string) []byte {
	result := ber(ldapEnumerated, string([]byte{code})) + ber(ldapOctets, "") + ber(ldapOctets, text)
	if name != "" {
		result += ber(ldapResponseName, name)
	}
	return []byte(ber(ldapSequence, ber(ldapInteger, string(id))+ber(operation, result)))
}

func ber(tag byte, value string) string { return string([]byte{tag, byte(len(value))}) + value }
