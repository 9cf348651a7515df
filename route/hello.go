package route

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/levee-net/levee/internal/servername"
)

// A Hello is what a TLS client has asked for in its ClientHello (RFC 8446 section 4.1.2).
type Hello struct {
	// ServerName is the name of the server (RFC 6066 section 3) in lower case and
	// without a trailing dot; empty if the client has sent none.
	ServerName string

	// ALPN lists the application protocols that the client offers (RFC 7301), its
	// favourite first.
	ALPN []string

	// Versions lists the versions of TLS that the client offers, as crypto/tls
	// numbers them.
	Versions []uint16
}

const (
	recordHandshake = 22 // RFC 8446 section 5.1
	recordAlert     = 21
	recordHeader    = 5
	recordLimit     = 16 << 10 // what one carries in plaintext

	alertAccessDenied     = 49 // section 6
	alertDecodeError      = 50
	alertUnrecognizedName = 112

	messageHello  = 1 // section 4
	messageHeader = 4

	helloLimit = 64 << 10 // crypto/tls takes no longer ones
	wireLimit  = 80 << 10 // with the records around it: what a Conn lets one peek at
)

// A walk goes over the records of a hello as they come in, to find its end. It goes on
// where it stopped, so a hello that comes byte by byte costs no more than any other.
type walk struct {
	next int                 // the bytes up to here it has been over
	left int                 // of which so many of the present record's are still to come
	got  int                 // of the message, its header included
	head [messageHeader]byte // the message's type, and its length in three bytes
}

var (
	errNotHandshake = errors.New("it is not a handshake's records")
	errNotHello     = errors.New("it is not a ClientHello")
	errTooLong      = fmt.Errorf("it is longer than %d bytes", helloLimit)
	errTooScattered = fmt.Errorf("it has not ended after %d bytes of records", wireLimit)
)

// on goes on over b, which begins as it did at the last call. It returns how many bytes
// the records are that hold the hello, or 0 if they are not all there.
func (w *walk) on(b []byte) (size int, err error) {
	for {
		if w.left == 0 {
			if w.got >= w.size() {
				return w.next, nil
			}
			if err := w.enterRecord(b[w.next:]); err != nil {
				return 0, err
			}
		}
		n := min(w.left, len(b)-w.next)
		if n == 0 {
			break
		}
		if w.got < messageHeader {
			copy(w.head[w.got:], b[w.next:w.next+n])
		}
		w.next, w.left, w.got = w.next+n, w.left-n, w.got+n
		if err := w.checkMessage(); err != nil {
			return 0, err
		}
	}
	if len(b) >= wireLimit {
		return 0, errTooScattered
	}
	return 0, nil
}

// enterRecord reads a record's header, if all of it is there. The limits are those of
// crypto/tls, which is lenient with versions.
func (w *walk) enterRecord(b []byte) error {
	if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] >= 0x10 {
		return errNotHandshake
	}
	if len(b) < recordHeader {
		return nil
	}
	w.left = int(b[3])<<8 | int(b[4])
	if w.left == 0 || w.left > recordLimit {
		return errNotHandshake
	}
	w.next += recordHeader
	return nil
}

// checkMessage checks what there is of the message's header.
func (w *walk) checkMessage() error {
	switch {
	case w.head[0] != messageHello:
		return errNotHello
	case w.size() > messageHeader+helloLimit:
		return errTooLong
	}
	return nil
}

// size is the message's, its header included, or less while that is not all there.
func (w *walk) size() int {
	return messageHeader + int(w.head[1])<<16 + int(w.head[2])<<8 + int(w.head[3])
}

// parseHello has crypto/tls read the records, which are whole: what it would not take in
// a handshake is not taken here either.
func parseHello(records []byte) (*Hello, error) {
	r := recorded{records: records}
	if err := tls.Server(&r, &parser).Handshake(); r.hello == nil { // it always fails, at the latest by errParsed
		return nil, err
	}
	name, err := servername.Normalize(r.hello.ServerName)
	if err != nil {
		return nil, err
	}
	return &Hello{ServerName: name, ALPN: r.hello.SupportedProtos, Versions: r.hello.SupportedVersions}, nil
}

// parser stops a handshake when its hello has been read.
var parser = tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) { //nolint:gosec // it agrees on no version
	hello.Conn.(*recorded).hello = hello
	return nil, errParsed
}}

var errParsed = errors.New("parsed")

// recorded is a connection on which a client has sent the records, and reads nothing.
type recorded struct {
	records []byte
	hello   *tls.ClientHelloInfo
}

func (r *recorded) Read(p []byte) (int, error) {
	if len(r.records) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.records)
	r.records = r.records[n:]
	return n, nil
}

func (*recorded) Write(p []byte) (int, error)      { return len(p), nil }
func (*recorded) Close() error                     { return nil }
func (*recorded) LocalAddr() net.Addr              { return nil }
func (*recorded) RemoteAddr() net.Addr             { return nil }
func (*recorded) SetDeadline(time.Time) error      { return nil }
func (*recorded) SetReadDeadline(time.Time) error  { return nil }
func (*recorded) SetWriteDeadline(time.Time) error { return nil }
