package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// A frame is what one process says to the other: one message of the socket between them, whose bounds the
// kernel keeps. It is a header of 8 bytes and a body in JSON:
//
//	0  the major version of the protocol
//	1  the kind
//	2  flags, of which 1 says that who does not know the kind may ignore the frame
//	3  how many descriptors come with it
//	4  the body's length, big-endian
type frame struct {
	kind     frameKind
	optional bool
	files    int
	body     []byte
}

type frameKind uint8

// What the old process says, and then what the new one does. The numbers are for good: another version's
// process reads them.
const (
	frameHello     frameKind = 1 // the first frame of either side: see hello
	frameListeners frameKind = 2 // listening sockets
	frameState     frameKind = 3 // what the services know, in a file in memory
	frameStart     frameKind = 4 // there is no more to begin with
	framePing      frameKind = 5
	frameTake      frameKind = 6 // accept from now on
	frameOffer     frameKind = 7 // a batch of connections
	frameDone      frameKind = 8 // nothing else comes: the rest is the new process's alone

	// What the old process says while it drains. Who does not know of it loses no more than that.
	frameLeft    frameKind = 9  // how many have yet to leave
	frameBequest frameKind = 10 // what the services have come to know, at the end

	frameReady  frameKind = 16 // it could accept
	framePong   frameKind = 17 // it is well, and has come as far as the ping
	frameTook   frameKind = 18 // it accepts
	frameTaken  frameKind = 19 // a batch is its own, but for those it lists
	frameFailed frameKind = 20 // it cannot go on with this hand-over
)

const (
	majorVersion = 1
	headerSize   = 8
	maxFrame     = 64 << 10 // what is longer goes into a file; the kernel has room for a few of these in a socket by default
	maxFiles     = 250      // a message carries 253 at most (SCM_MAX_FD in the kernel's include/net/scm.h)

	flagOptional = 1
)

// hello tells of who speaks. Features are what it knows beyond the protocol's first form; what both know may be used.
type hello struct {
	PID      int      `json:"pid"`
	Features []string `json:"features,omitempty"`
}

// A listenersBody names the sockets that come with it, in order. Owned are those, by their place, whose files who has
// them last is to remove.
type listenersBody struct {
	Names []string `json:"names"`
	Owned []int    `json:"owned,omitempty"`
}

// A stateBody tells how the file that comes with it is divided, and which id the last connection had.
type stateBody struct {
	Parts  []part `json:"parts"`
	LastID uint64 `json:"last_id,omitempty"`
}

// A part is a piece of a file.
type part struct {
	Name string `json:"name"`
	Size int    `json:"size"`
}

// An offerBody tells of a batch's connections: their records lie one after the other in the file that is the first to come
// with it, and their sockets are the others.
type offerBody struct {
	Batch  uint64  `json:"batch"`
	Server string  `json:"server"`
	Conns  []offer `json:"conns"`
}

type offer struct {
	Size    int `json:"size"`
	Sockets int `json:"sockets"`
}

// A takenBody answers an offer. Refused are the connections that go on where they were, by their place in the offer.
type takenBody struct {
	Batch   uint64 `json:"batch"`
	Refused []int  `json:"refused,omitempty"`
	Why     string `json:"why,omitempty"` // of the first that was refused
}

// A leftBody tells how many connections have yet to leave.
type leftBody struct {
	Conns int `json:"conns"`
}

// A failedBody says why a hand-over cannot go on.
type failedBody struct {
	Reason string `json:"reason"`
}

var errFrame = errors.New("not a frame of the hand-over protocol")

// parseFrame reads a frame from a message. What it returns shares memory with the message.
func parseFrame(message []byte) (frame, error) {
	if len(message) < headerSize {
		return frame{}, fmt.Errorf("%w: %d bytes are no header", errFrame, len(message))
	}
	if message[0] != majorVersion {
		return frame{}, fmt.Errorf("%w: version %d, and this process knows %d", errFrame, message[0], majorVersion)
	}
	f := frame{
		kind:     frameKind(message[1]),
		optional: message[2]&flagOptional != 0,
		files:    int(message[3]),
		body:     message[headerSize:],
	}
	if length := binary.BigEndian.Uint32(message[4:]); int64(length) != int64(len(f.body)) {
		return frame{}, fmt.Errorf("%w: a body of %d bytes that says %d", errFrame, len(f.body), length)
	}
	if len(message) > maxFrame || f.files > maxFiles {
		return frame{}, fmt.Errorf("%w: too large", errFrame)
	}
	return f, nil
}

// appendTo appends the frame as a message.
func (f frame) appendTo(message []byte) []byte {
	flags := byte(0)
	if f.optional {
		flags |= flagOptional
	}
	message = append(message, majorVersion, byte(f.kind), flags, byte(f.files)) //nolint:gosec // at most maxFiles
	message = binary.BigEndian.AppendUint32(message, uint32(len(f.body)))       //nolint:gosec // at most maxFrame
	return append(message, f.body...)
}

// newFrame makes a frame of a body.
func newFrame(kind frameKind, body any) frame {
	f := frame{kind: kind}
	if body != nil {
		f.body, _ = json.Marshal(body) // of the types above, which have nothing that could fail
	}
	return f
}

// read reads the frame's body into one of the types above.
func (f frame) read(body any) error {
	if err := json.Unmarshal(f.body, body); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// check says what is wrong with an offer that came with that many files, whose first is that large.
func (o *offerBody) check(files int, size int64) error {
	sockets, bytes := 1, int64(0)
	for _, c := range o.Conns {
		if c.Size < 0 || int64(c.Size) > size || c.Sockets < 0 || c.Sockets > files {
			return fmt.Errorf("%w: an offer with %d bytes and %d sockets", errFrame, c.Size, c.Sockets)
		}
		sockets += c.Sockets
		bytes += int64(c.Size)
	}
	if sockets != files || bytes != size {
		return fmt.Errorf("%w: an offer of %d files and %d bytes that brings %d and %d", errFrame, sockets, bytes, files, size)
	}
	return nil
}

// check says what is wrong with parts of a file that is that large.
func (s *stateBody) check(size int64) error {
	bytes := int64(0)
	for _, p := range s.Parts {
		if p.Size < 0 || int64(p.Size) > size {
			return fmt.Errorf("%w: a part of %d bytes in a file of %d", errFrame, p.Size, size)
		}
		bytes += int64(p.Size)
	}
	if bytes != size {
		return fmt.Errorf("%w: parts of %d bytes in a file of %d", errFrame, bytes, size)
	}
	return nil
}
