package balance

import "github.com/cespare/xxhash/v2"

// Hash returns a key for the bytes, such as a client's address. It is XXH64 with seed 0,
// and so the same in every process and on every machine. It is not for secrets: a client
// that chooses what is hashed chooses its server.
func Hash(b []byte) uint64 { return xxhash.Sum64(b) }

// HashString is Hash for a string.
func HashString(s string) uint64 { return xxhash.Sum64String(s) }

// mix is a bijection in which every bit of x changes every bit of the result with a
// probability of about a half (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
