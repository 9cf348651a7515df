package frame

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Fixed is the codec for messages of exactly size bytes with nothing between them.
// It panics unless size is from 1 byte to 1 GiB.
func Fixed(size int) Codec {
	if size == 0 {
		panic("frame: messages of 0 bytes")
	}
	return fixed(limit(size))
}

type fixed int

func (c fixed) Max() int { return int(c) }

func (c fixed) Decode(b []byte) (message []byte, n int, err error) {
	if len(b) < int(c) {
		return nil, 0, nil
	}
	return b[:c:c], int(c), nil
}

func (c fixed) Append(dst, message []byte) ([]byte, error) {
	if len(message) != int(c) {
		return dst, malformed(fmt.Sprintf("%d bytes where every message has %d", len(message), int(c)))
	}
	return append(dst, message...), nil
}

// Uint8 is the codec for messages that follow their length in one byte. The length
// does not count itself.
//
// A max of 0, or above 255, means 255 bytes. Uint8 panics if it is negative.
func Uint8(max int) Codec { return prefixed(1, nil, max) }

// Uint16 is [Uint8] with a length of two bytes in the given order; nil means
// binary.BigEndian, the network's. A max of 0, or above 65535, means 65535 bytes.
func Uint16(order binary.ByteOrder, max int) Codec { return prefixed(2, order, max) }

// Uint32 is the codec for messages that follow their length, four bytes in the
// given order; nil means binary.BigEndian, the network's. The length does not
// count itself.
//
// A max of 0 means 64 KiB. Uint32 panics if it is negative or above 1 GiB.
func Uint32(order binary.ByteOrder, max int) Codec { return prefixed(4, order, max) }

// Uint64 is [Uint32] with a length of eight bytes.
func Uint64(order binary.ByteOrder, max int) Codec { return prefixed(8, order, max) }

func prefixed(width int, order binary.ByteOrder, max int) Codec {
	if order == nil {
		order = binary.BigEndian
	}
	max = limit(max)
	switch width {
	case 1:
		max = min(max, math.MaxUint8)
	case 2:
		max = min(max, math.MaxUint16)
	}
	return prefix{width: width, order: order, max: max}
}

type prefix struct {
	width int // bytes
	order binary.ByteOrder
	max   int
}

func (c prefix) Max() int { return c.width + c.max }

func (c prefix) Decode(b []byte) (message []byte, n int, err error) {
	if len(b) < c.width {
		return nil, 0, nil
	}
	var length uint64
	switch c.width {
	case 1:
		length = uint64(b[0])
	case 2:
		length = uint64(c.order.Uint16(b))
	case 4:
		length = uint64(c.order.Uint32(b))
	case 8:
		length = c.order.Uint64(b)
	}
	return following(b, c.width, length, c.max)
}

// following returns the message of that length behind the first start bytes of b.
func following(b []byte, start int, length uint64, max int) (message []byte, n int, err error) {
	if length > uint64(max) {
		return nil, 0, tooLarge(length, false, max)
	}
	n = start + int(length) //nolint:gosec // not above max
	if len(b) < n {
		return nil, 0, nil
	}
	return b[start:n:n], n, nil
}

func (c prefix) Append(dst, message []byte) ([]byte, error) {
	if len(message) > c.max {
		return dst, tooLarge(uint64(len(message)), false, c.max)
	}
	var room [8]byte
	start := len(dst)
	dst = append(dst, room[:c.width]...)
	switch length, at := uint64(len(message)), dst[start:]; c.width {
	case 1:
		at[0] = uint8(length)
	case 2:
		c.order.PutUint16(at, uint16(length))
	case 4:
		c.order.PutUint32(at, uint32(length))
	case 8:
		c.order.PutUint64(at, length)
	}
	return append(dst, message...), nil
}

// Varint is the codec for messages that follow their length in base-128 digits,
// the lowest first, as protobuf's delimited streams have it. A length with leading
// zeros is refused: a message has one encoding. So is one with more digits than
// that of max, which is at most 5, without a look at those that follow.
//
// A max of 0 means 64 KiB. Varint panics if it is negative or above 1 GiB.
func Varint(max int) Codec {
	max = limit(max)
	return varint{max: max, digits: len(binary.AppendUvarint(nil, uint64(max)))}
}

type varint struct {
	max    int
	digits int // of max
}

func (c varint) Max() int { return c.digits + c.max }

func (c varint) Decode(b []byte) (message []byte, n int, err error) {
	var length uint64
	for i, digit := range b {
		length |= uint64(digit&0x7f) << (7 * i)
		switch {
		case digit == 0 && i > 0:
			return nil, 0, malformed("a length with leading zeros")
		case digit < 0x80:
			return following(b, i+1, length, c.max)
		case length > uint64(c.max):
			return nil, 0, tooLarge(length, true, c.max)
		case i+1 == c.digits:
			return nil, 0, fmt.Errorf("%w: a length of more than %d digits, at most %d bytes allowed", ErrTooLarge, c.digits, c.max)
		}
	}
	return nil, 0, nil
}

func (c varint) Append(dst, message []byte) ([]byte, error) {
	if len(message) > c.max {
		return dst, tooLarge(uint64(len(message)), false, c.max)
	}
	return append(binary.AppendUvarint(dst, uint64(len(message))), message...), nil
}
