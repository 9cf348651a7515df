package route

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/levee-net/levee"
)

// MySQLTLS is the [Dialogue] of clients of MySQL and MariaDB (protocol version 10, see
// https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase.html). It
// greets as a server of the version, by which some clients choose what they say: it should
// be that of the servers behind, and if empty is 8.0.11-levee. TLS is required in any case:
// who logs in without an SSLRequest gets error 3159. It panics on a version that is none.
//
// The server behind a proxy greets as well, with a challenge of its own to which the client
// has to log in: let [MeetMySQL] see to that. A route with Passthrough is of no use.
//
// Clients know their connection by the number 0, not by the server's, which is to be had by
// CONNECTION_ID(): so KILL QUERY by the number of the greeting, which is what Ctrl-C does in
// the command-line client, finds no connection, instead of somebody else's.
func MySQLTLS(version string) Dialogue {
	if version == "" {
		version = "8.0.11-levee"
	}
	if len(version) > mysqlVersionLimit || strings.ContainsFunc(version, func(r rune) bool { return r <= ' ' || r > '~' }) {
		panic("route.MySQLTLS: a version cannot be " + version)
	}
	return func(_ context.Context, c *levee.Conn, _ bool) (startTLS bool, err error) {
		if _, err := c.Write(mysqlPacket(0, mysqlGreeting(version))); err != nil {
			return false, err
		}
		kind, err := peekMySQL(c)
		switch {
		case err != nil:
			return false, err
		case kind == mysqlLogin:
			_, _ = c.Write(mysqlError(2, 3159, "HY000", "this server takes encrypted connections only"))
			return false, refused("MySQL", errMySQLPlain)
		case kind == mysqlNone:
			_, _ = c.Write(mysqlError(2, 1043, "08S01", "bad handshake"))
			return false, refused("MySQL", errGarbage)
		}
		// The request has no answer: the hello may be behind it already, and nothing else is let in.
		_, err = io.ReadFull(c, make([]byte, mysqlTLSRequest))
		return err == nil, err
	}
}

var errMySQLPlain = errors.New("a login in plaintext")

// Capabilities of both sides.
const (
	mysqlConnectWithDB = 1 << 3
	mysqlCompress      = 1 << 5
	mysqlProtocol41    = 1 << 9
	mysqlTLS           = 1 << 11
	mysqlPluginAuth    = 1 << 19
	mysqlLenencAuth    = 1 << 21

	// What the greeting offers is what all servers can that are still about, from MySQL 5.7
	// and MariaDB 10.2 on; compression is not.
	mysqlOffered = 0x01ff_ffff &^ mysqlCompress

	// These change how client and server read each other, who have to agree: compression,
	// tracking of sessions, no EOF packets, and what is newer.
	mysqlShaping = mysqlCompress | 0x1f80_0000
)

const (
	mysqlHeader       = 4  // of a packet: three bytes of length, and its number
	mysqlFixed        = 32 // what logins and SSLRequests begin with, and all that there is of the latter
	mysqlTLSRequest   = mysqlHeader + mysqlFixed
	mysqlLoginLimit   = 64 << 10 // a login's attributes have that much (MySQL's, MariaDB's)
	mysqlVersionLimit = 64
	mysqlAuthRounds   = 32 // packets of a server until a login is decided
)

// mysqlGreeting is a server's first packet. The challenge in it is for show: the server's
// own is what the client will have to meet.
func mysqlGreeting(version string) []byte {
	const (
		protocol   = 10
		utf8mb4    = 45
		autocommit = 2
		plugin     = "mysql_native_password"
		challenge  = 20
	)
	text := rand.Text()
	b := append([]byte{protocol}, version...)
	b = append(b, 0, 0, 0, 0, 0) // and the connection's number
	b = append(b, text[:8]...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint16(b, mysqlOffered&0xffff)
	b = append(b, utf8mb4, autocommit, 0)
	b = binary.LittleEndian.AppendUint16(b, mysqlOffered>>16)
	b = append(b, challenge+1)
	b = append(b, make([]byte, 10)...)
	b = append(b, text[8:challenge]...)
	b = append(b, 0)
	return append(b, plugin+"\x00"...)
}

func mysqlPacket(number byte, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(payload))) //nolint:gosec // short ones
	b[3] = number
	return append(b, payload...)
}

// mysqlError is an error packet.
func mysqlError(number byte, code uint16, state, text string) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{mysqlErr}, code)
	return mysqlPacket(number, append(b, "#"+state+text...))
}

// What packets begin with.
const (
	mysqlOK       = 0x00
	mysqlMoreData = 0x01
	mysqlV10      = 0x0a
	mysqlErr      = 0xff
)

// A mysqlKind is what a client can answer the greeting with.
type mysqlKind uint8

const (
	mysqlNone    mysqlKind = iota // nothing that a client would
	mysqlRequest                  // for TLS
	mysqlLogin
)

// peekMySQL looks at the answer to the greeting.
func peekMySQL(c *levee.Conn) (mysqlKind, error) {
	var b []byte
	for {
		kind, v := mysqlAnswer(b)
		switch v {
		case Yes:
			return kind, nil
		case No:
			return mysqlNone, nil
		}
		more, err := c.Peek(max(c.Buffered(), len(b)+1))
		if err != nil {
			return mysqlNone, err
		}
		b = more
	}
}

// mysqlAnswer tells what the bytes begin with: as soon as their capabilities are there and,
// for a request for TLS, all of it.
func mysqlAnswer(b []byte) (mysqlKind, Verdict) {
	const number = 1
	if len(b) >= 3 && b[2] != 0 || len(b) >= mysqlHeader && b[3] != number {
		return mysqlNone, No
	}
	if len(b) < mysqlHeader {
		return mysqlNone, More
	}
	length := int(b[0]) | int(b[1])<<8
	if length < mysqlFixed {
		return mysqlNone, No
	}
	if len(b) < mysqlHeader+4 {
		return mysqlNone, More
	}
	flags := binary.LittleEndian.Uint32(b[mysqlHeader:])
	switch {
	case flags&mysqlProtocol41 == 0:
		return mysqlNone, No
	case length > mysqlFixed:
		return mysqlLogin, Yes
	case flags&mysqlTLS == 0:
		return mysqlNone, No
	case len(b) < mysqlTLSRequest:
		return mysqlNone, More
	}
	return mysqlRequest, Yes
}

// MeetMySQL logs the client of [MySQLTLS] in to a server of MySQL or MariaDB: it is what a
// [github.com/levee-net/levee/proxy.Proxy] can have in Meet. The server's challenge differs
// from the one that the client was shown, so its login goes to the server without the
// answer, and in the name of a way to authenticate that there is not; the server then says
// which way is the user's, and asks once more. Until it has decided, the packets' numbers are put
// right, as the client has sent one more than the server has seen: its SSLRequest.
//
// The server gets all that in plaintext. One that has TLS for clients is not asked for it. A
// user of caching_sha2_password has to be in the server's cache, or to come over a Unix socket:
// the client, which is on TLS, would show its password otherwise, and the server not take it. A
// client without CLIENT_PLUGIN_AUTH, or with a capability that the server lacks, is refused.
//
// A client that leaves before it has logged in counts against the max_connect_errors of this
// machine at the server, as with any proxy.
func MeetMySQL(ctx context.Context, c *levee.Conn, far net.Conn) error {
	return meet(ctx, c, far, func() error { return logIn(c, far) })
}

var (
	errNotMySQL       = errors.New("the server does not speak MySQL's protocol")
	errMySQLLogin     = errors.New("the client does not log in as MySQL's do")
	errMySQLNumber    = errors.New("a packet is out of order")
	errMySQLEndless   = errors.New("the login does not come to an end")
	errMySQLTooOld    = errors.New("the client does not know CLIENT_PLUGIN_AUTH")
	errMySQLLacks     = errors.New("the server lacks what the client counts on")
	errMySQLCannotLog = errors.New("the server does not let clients log in")
)

// logIn has the client log in. Its packets have numbers that are one higher than the
// server's.
func logIn(client, server io.ReadWriter) error {
	greeting, err := readMySQL(server, 0, mysqlLoginLimit)
	if err != nil {
		return err
	}
	login, err := readMySQL(client, 2, mysqlLoginLimit)
	if err != nil {
		return err
	}
	if len(greeting) > 0 && greeting[0] == mysqlErr { // too many connections, say
		_, _ = client.Write(mysqlPacket(3, greeting))
		return fmt.Errorf("%w: %q", errMySQLCannotLog, greeting[1:])
	}
	has, err := mysqlCapabilities(greeting)
	if err != nil {
		return err
	}
	anew, err := loginAnew(login, has)
	if err != nil {
		code, state := uint16(1043), "08S01"
		if errors.Is(err, errMySQLTooOld) {
			code, state = 1251, "08004"
		}
		_, _ = client.Write(mysqlError(3, code, state, err.Error()))
		return err
	}
	if _, err := server.Write(mysqlPacket(1, anew)); err != nil {
		return err
	}
	return relayAuth(client, server)
}

// relayAuth has the server ask and the client answer until the server has decided.
func relayAuth(client, server io.ReadWriter) error {
	number := byte(2)
	for range mysqlAuthRounds {
		packet, err := readMySQL(server, number, mysqlLoginLimit)
		if err != nil {
			return err
		}
		if _, err := client.Write(mysqlPacket(number+1, packet)); err != nil {
			return err
		}
		number++
		switch {
		case len(packet) == 0:
			return errNotMySQL
		case packet[0] == mysqlOK, packet[0] == mysqlErr:
			return nil
		case string(packet) == string([]byte{mysqlMoreData, 3}): // caching_sha2_password: all is well, and OK follows
			continue
		}
		if packet, err = readMySQL(client, number+1, mysqlLoginLimit); err != nil {
			return err
		}
		if _, err := server.Write(mysqlPacket(number, packet)); err != nil {
			return err
		}
		number++
	}
	return errMySQLEndless
}

// readMySQL reads the packet that has to have that number.
func readMySQL(r io.Reader, number byte, limit int) (payload []byte, err error) {
	var head [mysqlHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if head[3] != number || length > limit {
		return nil, errMySQLNumber
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(r, payload)
	return payload, err
}

// mysqlCapabilities returns those of a server, by its greeting: behind the version's NUL and
// 13 bytes there are two of them, and behind three more the others.
func mysqlCapabilities(greeting []byte) (uint32, error) {
	if len(greeting) == 0 || greeting[0] != mysqlV10 {
		return 0, errNotMySQL
	}
	_, rest, _ := bytes.Cut(greeting[1:], []byte{0})
	if len(rest) < 20 {
		return 0, errNotMySQL
	}
	return uint32(rest[13]) | uint32(rest[14])<<8 | uint32(rest[18])<<16 | uint32(rest[19])<<24, nil
}

// mysqlNoPlugin is a way to authenticate that no user has.
const mysqlNoPlugin = "levee_starttls"

// loginAnew returns the login for a server that has those capabilities and does not know
// of TLS: without an answer to the challenge, so that the server asks.
func loginAnew(login []byte, has uint32) ([]byte, error) {
	if len(login) < mysqlFixed {
		return nil, errMySQLLogin
	}
	flags := binary.LittleEndian.Uint32(login)
	switch {
	case flags&mysqlProtocol41 == 0:
		return nil, errMySQLLogin
	case flags&mysqlPluginAuth == 0:
		return nil, errMySQLTooOld
	case (flags&mysqlShaping|mysqlProtocol41|mysqlPluginAuth)&^has != 0:
		return nil, errMySQLLacks
	}
	user, rest, ok := bytes.Cut(login[mysqlFixed:], []byte{0})
	if !ok {
		return nil, errMySQLLogin
	}
	if rest, ok = skipAnswer(rest, flags); !ok {
		return nil, errMySQLLogin
	}
	anew := binary.LittleEndian.AppendUint32(nil, flags&^(mysqlTLS|mysqlLenencAuth)|mysqlSecure)
	anew = append(anew, login[4:mysqlFixed]...)
	anew = append(anew, user...)
	anew = append(anew, 0, 0) // the length of the answer is 0
	if flags&mysqlConnectWithDB != 0 {
		database, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, errMySQLLogin
		}
		anew, rest = append(append(anew, database...), 0), after
	}
	_, attributes, _ := bytes.Cut(rest, []byte{0}) // behind the plugin's name, which some do not end
	anew = append(anew, mysqlNoPlugin+"\x00"...)
	return append(anew, attributes...), nil
}

// mysqlSecure says that the answer has a byte of length before it.
const mysqlSecure = 1 << 15

// skipAnswer returns what is behind the answer to the challenge.
func skipAnswer(b []byte, flags uint32) (rest []byte, ok bool) {
	if flags&(mysqlLenencAuth|mysqlSecure) == 0 {
		_, rest, ok = bytes.Cut(b, []byte{0})
		return rest, ok
	}
	if len(b) == 0 {
		return nil, false
	}
	length, b := int(b[0]), b[1:]
	if flags&mysqlLenencAuth != 0 && length > 250 { // in so many bytes
		if length != 0xfc || len(b) < 2 { // 64 KiB are the most that there can be
			return nil, false
		}
		length, b = int(b[0])|int(b[1])<<8, b[2:]
	}
	if length > len(b) {
		return nil, false
	}
	return b[length:], true
}
