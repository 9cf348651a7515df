package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// A Protocol is what is sent, again and again, and what is an answer to it.
type Protocol struct {
	request []byte
	reply   func() reply // for a connection of its own
	blind   bool         // an answer is told by its length alone: nobody looks at its bytes
}

// A reply reads the answers on a connection, one after the other.
type reply interface {
	// take reads from p, which is not empty, at most to the end of the answer. It
	// returns how much it took and what came of it.
	take(p []byte) (n int, state replyState, err error)
}

type replyState int

const (
	partial replyState = iota // more has to come
	whole                     // an answer
	refused                   // an answer that says no
	last                      // an answer, after which the server closes the connection
)

// MaxSize is how large a message may be.
const MaxSize = 16 << 20

// Echo is the protocol of a server that sends back what it is sent, in messages of
// size bytes. Each byte is compared.
func Echo(size int) (Protocol, error) {
	if size < 1 || size > MaxSize {
		return Protocol{}, fmt.Errorf("messages of %d bytes: between 1 and %d", size, MaxSize)
	}
	message := make([]byte, size)
	random := rand.New(rand.NewPCG(1, 2)) // the same in every run, and nothing that compresses or repeats
	for i := range message {
		message[i] = byte(random.Uint32())
	}
	return Protocol{request: message, reply: func() reply { return &echoed{message: message} }}, nil
}

type echoed struct {
	message []byte
	at      int // of the next byte that is due
}

var errNoEcho = errors.New("what came back is not what was sent")

func (e *echoed) take(p []byte) (int, replyState, error) {
	n := min(len(p), len(e.message)-e.at)
	if !bytes.Equal(p[:n], e.message[e.at:e.at+n]) {
		return 0, partial, errNoEcho
	}
	if e.at += n; e.at < len(e.message) {
		return n, partial, nil
	}
	e.at = 0
	return n, whole, nil
}

// Transfer is the protocol of a server that takes and gives as many bytes as it is
// told: a message is up bytes, of which the first eight are two numbers, in network
// byte order: how many bytes follow these eight, and how many the answer has, which
// is down. So bulk goes one way when the other is short. Bytes are counted and, on
// Linux, dropped in the kernel, which spares the load a copy: they are not compared.
func Transfer(up, down int) (Protocol, error) {
	if up < transferHead || up > MaxSize || down < 1 || down > MaxSize {
		return Protocol{}, fmt.Errorf("%d bytes there and %d back: between %d and %d there, between 1 and %d back", up, down, transferHead, MaxSize, MaxSize)
	}
	message := make([]byte, up)
	binary.BigEndian.PutUint32(message, uint32(up-transferHead))
	binary.BigEndian.PutUint32(message[4:], uint32(down))
	return Protocol{request: message, reply: func() reply { return &counted{size: down} }, blind: true}, nil
}

const transferHead = 8 // bytes

type counted struct{ size, at int }

func (c *counted) take(p []byte) (int, replyState, error) {
	n := min(len(p), c.size-c.at)
	if c.at += n; c.at < c.size {
		return n, partial, nil
	}
	c.at = 0
	return n, whole, nil
}
