// Package inbox holds the bytes of a stream that have come and have not been taken.
// Its secret is how much memory that takes: none while there are none, and never
// more than what has come makes it, however much was announced.
package inbox

import (
	"io"
	"sync"
)

// Small is the size, in bytes, of the smallest buffer: what levee's Conn.Next brings
// at most.
const Small = 4 << 10

const (
	medium = 64 << 10 // bytes; the step up from it, as most messages beyond a small buffer fit
	large  = 1 << 20  // bytes; above that, buffers are not worth keeping
)

// A Buffer is memory that is used again. It is behind a pointer so that a pool can
// have it without an allocation.
type Buffer struct{ Bytes []byte }

// The buffers of connections that have bytes in hand. They are shared by all of the
// process: memory, not state. Each has its pool's size as its length, and room for
// less than the next pool's: replies grow.
var pools = [...]struct {
	size int
	sync.Pool
}{
	{size: Small},
	{size: medium},
	{size: 2 * medium},
	{size: 4 * medium},
	{size: 8 * medium},
	{size: large},
}

// Take returns a buffer that is at least size bytes long. Its bytes are anybody's.
func Take(size int) *Buffer {
	for i := range pools {
		if p := &pools[i]; p.size >= size {
			if b, ok := p.Get().(*Buffer); ok {
				return b
			}
			return &Buffer{make([]byte, p.size)}
		}
	}
	return &Buffer{make([]byte, size)}
}

// Give takes a buffer back, which may have grown.
func Give(b *Buffer) {
	room := cap(b.Bytes)
	if room >= 2*large {
		return
	}
	for i := len(pools) - 1; i >= 0; i-- {
		if p := &pools[i]; p.size <= room {
			b.Bytes = b.Bytes[:p.size]
			p.Put(b)
			return
		}
	}
}

// An Inbox holds bytes between Fill and Discard. The zero Inbox is empty and has no
// memory. It is for one goroutine at a time.
type Inbox struct {
	buf   *Buffer
	start int // of the bytes that are unread
	end   int
}

// Unread returns the bytes, which are valid until the next Fill.
func (in *Inbox) Unread() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.Bytes[in.start:in.end]
}

// Discard takes the first n.
func (in *Inbox) Discard(n int) { in.start += n }

// Release gives the memory back, whatever it holds.
func (in *Inbox) Release() {
	if in.buf != nil {
		Give(in.buf)
	}
	*in = Inbox{}
}

// Fill reads what has come, at least one byte. The end of the stream is io.EOF if
// nothing is unread, and io.ErrUnexpectedEOF if something is.
func (in *Inbox) Fill(r io.Reader) error {
	room := in.room()
	for range mostEmptyReads {
		n, err := r.Read(room)
		in.end += n
		switch {
		case n > 0:
			return nil // an error beside it will come again
		case err == io.EOF && in.start < in.end:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

const mostEmptyReads = 100 // as in bufio: a Reader may return nothing now and then, but not forever

// room returns free space behind the bytes, after making some: a buffer that they
// fill doubles, and one that they do not half fill halves. So it is never larger
// than what has come makes it; see the package's doc.
func (in *Inbox) room() []byte {
	if in.buf == nil {
		in.buf = Take(Small)
	}
	unread := in.Unread()
	switch size := fitting(len(in.buf.Bytes), len(unread), in.end); {
	case size != len(in.buf.Bytes):
		fit := Take(size)
		copy(fit.Bytes, unread)
		Give(in.buf)
		in.buf = fit
	case in.start > 0:
		copy(in.buf.Bytes, unread)
	}
	in.start, in.end = 0, len(unread)
	return in.buf.Bytes[in.end:]
}

// fitting returns the size that a buffer should have with so many bytes unread, of
// which the last ends there.
func fitting(size, unread, end int) int {
	switch {
	case size < medium && end == size:
		return medium // a read has filled it: there is more where that came from
	case unread == size:
		return 2 * size
	}
	for size > medium && unread < size/2 {
		size /= 2 // what it was so large for has gone
	}
	return size
}
