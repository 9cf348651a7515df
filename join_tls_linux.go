package levee

import (
	"bytes"
	"crypto/tls"
	"errors"
	"runtime/debug"

	"github.com/levee-net/levee/internal/reactor"
)

// A sealedPair is a pair whose client speaks TLS, which ends here: the loop has the
// socket, and crypto/tls a veil.
type sealedPair struct {
	pair
	veil
	tls *tls.Conn
}

var _ reactor.Sealer = (*sealedPair)(nil)

// takeOver has crypto/tls read from the veil and write to it, and to the socket no more.
// What has come from there and not been decrypted waits in the veil.
func (p *sealedPair) takeOver(s *stream) (first []byte) {
	p.in = bytes.Clone(s.wire.held.bytes())
	s.wire.veil = &p.veil
	s.wire.ready, s.ctx = nil, nil // the stream lives on, as crypto/tls holds it
	s.conn.looped.by = &service{tls: s.tls, terms: s.terms}
	return bytes.Clone(s.plain.bytes())
}

// Open decrypts.
func (p *sealedPair) Open(in []byte, end bool, out []byte) (plain, reply []byte, err error) {
	defer wall(&err)
	if len(p.in) == 0 { // as always but at first
		p.in = in
	}
	p.end = end
	for err == nil {
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
		n := 0
		n, err = p.tls.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
	}
	if errors.Is(err, errWouldBlock) {
		err = nil
	}
	reply, p.in, p.veil.out = p.veil.out, nil, nil
	return out, reply, err
}

// Seal encrypts.
func (p *sealedPair) Seal(plain, out []byte) (sealed []byte, err error) {
	defer wall(&err)
	p.out = out
	_, err = p.tls.Write(plain)
	sealed, p.out = p.out, nil
	return sealed, err
}

// SealEnd makes the close_notify, once. Where it fails something has failed before.
func (p *sealedPair) SealEnd() (sealed []byte) {
	defer wall(new(error)) // what has no end is closed without one
	_ = p.tls.CloseWrite()
	sealed, p.out = p.out, nil
	return sealed
}

// wall keeps a panic in crypto/tls from the other connections of the loop: it ends this one.
func wall(err *error) {
	if value := recover(); value != nil {
		*err = &reactor.PanicError{Value: value, Stack: debug.Stack()}
	}
}
