package frame

import (
	"errors"
	"fmt"
)

// A Codec knows how messages lie in a stream. It keeps nothing between two calls,
// so that one Codec serves any number of connections at once.
type Codec interface {
	// Decode finds the first message in b. It returns the message, which is a part
	// of b, and how many bytes of b it takes up, with what surrounds it: more
	// than 0. That n is 0 and err nil means that b holds only the beginning of a
	// message. An error means that b is not the beginning of any: that cannot be
	// mended, and ends the connection.
	//
	// A length is to be checked against the maximum as soon as it has come. Decode
	// must not keep b.
	Decode(b []byte) (message []byte, n int, err error)

	// Append appends the encoded message to dst. An error means that there is no
	// such message in this protocol; dst is then what it was.
	Append(dst, message []byte) ([]byte, error)

	// Max returns how many bytes the largest message takes up, with what surrounds
	// it. When so many have come and Decode still calls them the beginning of a
	// message, it is too large.
	Max() int
}

// A Searcher is a [Codec] that has to search for the end of a message, as one for
// lines does, and can say where it has searched before. Without that, a message
// that comes in many small pieces is searched from its start at each.
type Searcher interface {
	Codec

	// Ready reports whether Decode may have more to say about b than about its
	// first seen bytes, which it has called the beginning of a message. False must
	// be certain, true need not be.
	Ready(b []byte, seen int) bool
}

var (
	// ErrTooLarge is wrapped by the error for a message above its codec's maximum.
	ErrTooLarge = errors.New("message too large")

	// ErrMalformed is wrapped by the error for bytes that are not a message, and for
	// a message that the codec has no bytes for.
	ErrMalformed = errors.New("malformed message")
)

const (
	defaultMax = 64 << 10 // bytes; the longest line or small record anybody sends, and what a buffer has anyway
	largestMax = 1 << 30  // bytes; beyond that a message is not something to hold in memory, nor on 32 bits to count
)

// limit returns the maximum that a constructor was asked for.
func limit(max int) int {
	switch {
	case max == 0:
		return defaultMax
	case max < 0 || max > largestMax:
		panic(fmt.Sprintf("frame: a maximum of %d bytes, must be from 1 byte to 1 GiB", max))
	}
	return max
}

// tooLarge says that a message of so many bytes, or of more, is above the maximum.
func tooLarge(size uint64, orMore bool, max int) error {
	if orMore {
		return fmt.Errorf("%w: %d bytes or more, at most %d allowed", ErrTooLarge, size, max)
	}
	return fmt.Errorf("%w: %d bytes, at most %d allowed", ErrTooLarge, size, max)
}

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// A decoder is a codec held to its word.
type decoder struct {
	codec    Codec
	searcher Searcher // the codec, if it is one
	max      int      // bytes; the codec's
}

func newDecoder(codec Codec) decoder {
	searcher, _ := codec.(Searcher)
	return decoder{codec: codec, searcher: searcher, max: codec.Max()}
}

// decode is the codec's Decode, but it takes no more than its Max for a beginning.
func (d *decoder) decode(b []byte) (message []byte, n int, err error) {
	message, n, err = d.codec.Decode(b)
	if n == 0 && err == nil && len(b) >= d.max {
		err = tooLarge(uint64(len(b)), true, d.max)
	}
	return message, n, err
}

// ready is the codec's Ready, where it has one.
func (d *decoder) ready(b []byte, seen int) bool {
	return d.searcher == nil || len(b) >= d.max || d.searcher.Ready(b, seen)
}
