package frame

import (
	"io"

	"github.com/levee-net/levee/internal/inbox"
)

// A Reader reads messages from a stream: for a client, for a test, for a handler
// that is written as sequential code. Make one with [NewReader]. It is for one
// goroutine at a time.
//
// It reads ahead. Its memory grows with the messages that come, as the package's
// doc says, and is kept as long as the Reader is.
type Reader struct {
	r       io.Reader
	decoder decoder
	in      inbox.Inbox
	decoded int // of the unread bytes: what the last message took up
}

// NewReader returns a Reader of the messages in r.
func NewReader(r io.Reader, codec Codec) *Reader {
	return &Reader{r: r, decoder: newDecoder(codec)}
}

// Read returns the next message, which is valid until the next Read. At the end of the
// stream it returns io.EOF, or io.ErrUnexpectedEOF if that is within a message;
// other errors are the stream's and the codec's. After a deadline it may be called
// again.
func (r *Reader) Read() (message []byte, err error) {
	r.in.Discard(r.decoded)
	r.decoded = 0
	seen := 0
	for {
		if b := r.in.Unread(); len(b) > 0 && (seen == 0 || r.decoder.ready(b, seen)) {
			message, n, err := r.decoder.decode(b)
			if err != nil || n > 0 {
				r.decoded = n
				return message, err
			}
		}
		seen = len(r.in.Unread())
		if err := r.in.Fill(r.r); err != nil {
			return nil, err
		}
	}
}

// Buffered returns how many bytes have been read and are not part of a message that
// Read has returned. A handler that has some need not ask [levee.Conn.Next].
func (r *Reader) Buffered() int { return len(r.in.Unread()) - r.decoded }

// Write encodes messages and writes them to w in one call of its Write. If one of
// them cannot be encoded, nothing is written.
func Write(w io.Writer, codec Codec, messages ...[]byte) error {
	out := inbox.Take(inbox.Small)
	defer inbox.Give(out)
	encoded := out.Bytes[:0]
	for _, message := range messages {
		var err error
		if encoded, err = codec.Append(encoded, message); err != nil {
			return err
		}
	}
	out.Bytes = encoded
	_, err := w.Write(encoded)
	return err
}
