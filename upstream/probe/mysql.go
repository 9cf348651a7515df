package probe

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// MySQL logs in as the user, without a password, to MySQL or MariaDB. A server that
// lets the user in or refuses this user is well. One that answers with another error,
// such as 1040 (too many connections), 1053 (shutting down) or 1129 (the host is
// blocked), is not, and the error has the server's own words.
//
// An empty user is "levee". The user does not have to exist; what it costs if it does
// not is a line in the log of a MariaDB with its default log_warnings of 2, and one
// in Aborted_connects. A user without rights is all that the probe needs:
//
//	CREATE USER 'levee'@'10.0.0.%';
//
// The probe answers the server's greeting, though that alone would prove it well,
// because a connection that ends without an answer counts against the host's
// max_connect_errors: after 100 of them in a row the server refuses everything that
// comes from it. A refused login does not count, and one that succeeds sets the
// count to zero.
func MySQL(user string) Probe {
	if user == "" {
		user = "levee"
	}
	return converse(maxAnswer, func(w io.Writer, r *bufio.Reader) error {
		greeting, n, err := readMySQL(r)
		switch {
		case err != nil:
			return err
		case greeting[0] == mysqlErr:
			return mysqlError(greeting)
		case greeting[0] != mysqlVersion:
			return errNotMySQL
		}
		answer := mysqlLogin(user, mysqlPlugin(greeting))
		for range 4 { // a server asks once for another plugin; nothing in the protocol keeps it from asking again
			if err := writeMySQL(w, n+1, answer); err != nil {
				return err
			}
			var verdict []byte
			verdict, n, err = readMySQL(r)
			if err != nil {
				return err
			}
			switch verdict[0] {
			case mysqlOK:
				_ = writeMySQL(w, 0, []byte{1}) // COM_QUIT
				return nil
			case mysqlErr:
				return mysqlError(verdict)
			case mysqlSwitch:
				answer = nil // no password, whatever the plugin
			default: // something that only those who have a password are asked
				return nil
			}
		}
		return errNotMySQL
	})
}

// The first bytes of packets.
const (
	mysqlOK      = 0x00
	mysqlVersion = 10 // of the protocol, since MySQL 3.21
	mysqlSwitch  = 0xfe
	mysqlErr     = 0xff
)

var errNotMySQL = errors.New("the answer is not MySQL's")

// readMySQL reads a packet: three bytes of length, its number, and what is never empty
// in a server's packets here.
func readMySQL(r *bufio.Reader) (packet []byte, n byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n = head[3]
	head[3] = 0
	length := binary.LittleEndian.Uint32(head[:])
	if length == 0 || length > maxAnswer {
		return nil, 0, errNotMySQL
	}
	packet = make([]byte, length)
	_, err = io.ReadFull(r, packet)
	return packet, n, err
}

func writeMySQL(w io.Writer, n byte, packet []byte) error {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(packet)))
	b[3] = n
	return write(w, append(b, packet...))
}

// mysqlPlugin is the authentication that the server proposes; agreeing saves a round
// trip. It is the last thing in the greeting: after the version's zero byte come a
// thread's number (4 bytes), the first part of a challenge (9), capabilities (2),
// character set, status and capabilities (5), the challenge's length (1), nothing (10)
// and the rest of the challenge, of at least 13 bytes.
func mysqlPlugin(greeting []byte) string {
	_, rest, _ := bytes.Cut(greeting[1:], []byte{0})
	const before = 4 + 9 + 2 + 5
	const fixed = before + 1 + 10
	if len(rest) < fixed {
		return ""
	}
	challenge := max(13, int(rest[before])-8)
	if len(rest) < fixed+challenge {
		return ""
	}
	plugin, _, _ := bytes.Cut(rest[fixed+challenge:], []byte{0})
	return string(plugin)
}

func mysqlLogin(user, plugin string) []byte {
	const (
		capabilities = 1<<0 | 1<<9 | 1<<15 | 1<<19 // long password, protocol 4.1, its authentication, plugins
		largest      = 1 << 24                     // packet
		utf8mb4      = 45
		unused       = 23
	)
	b := binary.LittleEndian.AppendUint32(nil, capabilities)
	b = binary.LittleEndian.AppendUint32(b, largest)
	b = append(b, utf8mb4)
	b = append(b, make([]byte, unused)...)
	b = append(b, user+"\x00"...)
	b = append(b, 0) // the length of the answer to the challenge
	return append(b, plugin+"\x00"...)
}

// loginErrors are those of a server that is well and will not have this user.
var loginErrors = []uint16{
	1044, // no access to the database
	1045, // no such user, or a wrong password
	1251, // the client is too old for the user's authentication
	1698, // no such user, or a wrong password, where passwords are not what decides
	1862, // the password has expired
	3118, // the account is locked (MySQL)
	3159, // only over TLS (MySQL)
	4151, // the account is locked (MariaDB)
	4166, // the account is blocked after wrong passwords (MariaDB)
}

// mysqlError is nil if only the login was wrong.
func mysqlError(packet []byte) error {
	if len(packet) < 3 {
		return errNotMySQL
	}
	code, message := binary.LittleEndian.Uint16(packet[1:]), packet[3:]
	if slices.Contains(loginErrors, code) {
		return nil
	}
	if len(message) >= 6 && message[0] == '#' { // an SQLSTATE, which errors before the login may lack
		message = message[6:]
	}
	return fmt.Errorf("%d: %s", code, words(message))
}
