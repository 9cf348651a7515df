package limit

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
)

// A hashKey is the secret key of SipHash-2-4 (https://www.aumasson.jp/siphash/siphash.pdf). Who does not know it cannot
// find keys that have a hash in common. That is what hash/maphash has too, but no seed of its can be told to another
// process.
type hashKey [2]uint64

func newHashKey() (k hashKey) {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hashKey{binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])}
}

// sipState is what SipHash calls v0 to v3.
type sipState struct{ a, b, c, d uint64 }

func (s *sipState) round() {
	s.a += s.b
	s.c += s.d
	s.b = bits.RotateLeft64(s.b, 13) ^ s.a
	s.d = bits.RotateLeft64(s.d, 16) ^ s.c
	s.a = bits.RotateLeft64(s.a, 32) + s.d
	s.c += s.b
	s.d = bits.RotateLeft64(s.d, 21) ^ s.a
	s.b = bits.RotateLeft64(s.b, 17) ^ s.c
	s.c = bits.RotateLeft64(s.c, 32)
}

func (s *sipState) take(word uint64) {
	s.d ^= word
	s.round()
	s.round()
	s.a ^= word
}

func hash[T ~string | ~[]byte](k hashKey, key T) uint64 {
	s := sipState{k[0] ^ 0x736f6d6570736575, k[1] ^ 0x646f72616e646f6d, k[0] ^ 0x6c7967656e657261, k[1] ^ 0x7465646279746573}
	length := uint64(len(key))
	for ; len(key) >= 8; key = key[8:] {
		s.take(uint64(key[0]) | uint64(key[1])<<8 | uint64(key[2])<<16 | uint64(key[3])<<24 |
			uint64(key[4])<<32 | uint64(key[5])<<40 | uint64(key[6])<<48 | uint64(key[7])<<56)
	}
	last := length << 56
	for i := range len(key) {
		last |= uint64(key[i]) << (8 * i)
	}
	s.take(last)
	s.c ^= 0xff
	for range 4 {
		s.round()
	}
	return s.a ^ s.b ^ s.c ^ s.d
}
