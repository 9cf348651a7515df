package frame

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/levee-net/levee"
)

// ErrClose is what a message's function returns to end the connection in good
// order: once the replies so far have been written, and without another message.
var ErrClose = errors.New("close the connection")

// Handler returns a handler that calls serve for each message of a connection, in
// order, one at a time. The message is serve's, to change too, until it returns;
// then neither the message nor the Writer may be used.
//
// Replies are written together, in one write for all messages that had come
// together, before the connection waits for more. When it is asked to leave it
// first answers what has arrived, and a message of which only a part has arrived
// when that is complete.
//
// A connection ends when the client has ended its stream, and with an error,
// after the replies so far, when serve returns one, when the codec refuses what
// has come, and with io.ErrUnexpectedEOF when the stream ends within a message.
// serve ends it in good order by [ErrClose].
//
// serve is called for several connections at once. It may block, for as long as
// it takes; but it keeps its client from being read meanwhile.
//
// The handler is a [levee.Stepper]: on Linux a connection in plaintext is served by
// an event loop. Its Step stops early when replies of 64 KiB have come together.
func Handler(codec Codec, serve func(w *Writer, message []byte) error) levee.Stepper {
	if codec == nil || serve == nil {
		panic("frame: Handler needs a codec and a function")
	}
	return &handler{decoder: newDecoder(codec), serve: serve}
}

// Stateless says of a handler, such as Handler returns, that it remembers nothing of a connection from one message to the
// next, be it by [Writer.Conn]: so its connections can move to another process, as [levee.Movable] has it. A message of
// which a part has come goes along.
func Stateless(h levee.Stepper) levee.Movable { return &stateless{Stepper: h} }

type stateless struct {
	levee.Stepper
	levee.Stateless
}

type handler struct {
	decoder
	serve func(*Writer, []byte) error
}

// replyBound is how many bytes of replies are collected before they are written: a
// large write's worth, and what a client that does not read can make a server hold.
const replyBound = 64 << 10

// ServeTCP steps through what the connection brings.
func (h *handler) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, h) }

// Step answers the messages in in.
func (h *handler) Step(c *levee.Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	if seen > 0 && !h.ready(in, seen) {
		return 0, out, nil
	}
	w := writers.Get().(*Writer)
	w.conn, w.codec, w.replies = c, h.codec, out
	n, err = h.step(w, in)
	reply = w.replies
	*w = Writer{} // nobody's now: whoever kept it panics
	writers.Put(w)
	return n, reply, err
}

// writers spare an allocation per Step.
var writers = sync.Pool{New: func() any { return new(Writer) }}

func (h *handler) step(w *Writer, in []byte) (n int, err error) {
	for n < len(in) {
		message, size, err := h.decode(in[n:])
		if err != nil {
			return n, asEnd(err)
		}
		if size == 0 {
			return n, nil
		}
		n += size
		if err := h.serve(w, message); err != nil {
			return n, asEnd(err)
		}
		if len(w.replies) >= replyBound {
			break
		}
	}
	return n, nil
}

// asEnd returns what Step returns for an error of serve, or of the codec. An io.EOF
// from there, which some parser has met, is no end in good order.
func asEnd(err error) error {
	switch {
	case errors.Is(err, ErrClose):
		return io.EOF
	case err == io.EOF: // a wrapped one is not mistaken for it
		return io.ErrUnexpectedEOF
	}
	return err
}

// A Writer takes the replies to a message. It is for the function that was given
// it, and only until that returns.
//
// What it is given is held in memory until then: replies that have no bound are
// for a handler that writes to the connection itself.
type Writer struct {
	conn    *levee.Conn
	codec   Codec
	replies []byte // to all messages since the last write
}

// Write encodes a message as a reply and copies it. It fails, and adds nothing, if
// the codec has no encoding for it; see [ErrTooLarge] and [ErrMalformed].
func (w *Writer) Write(message []byte) error {
	replies, err := w.codec.Append(w.replies, message)
	if err != nil {
		return err
	}
	w.replies = replies
	return nil
}

// WriteRaw copies bytes among the replies as they are, for protocols that answer
// in another form than they ask.
func (w *Writer) WriteRaw(b []byte) { w.replies = append(w.replies, b...) }

// Conn returns the connection, to ask who the client is or to end it. Its bytes
// are not to be read or written.
func (w *Writer) Conn() *levee.Conn { return w.conn }
