package frame

import (
	"io"
	"sync"
)

const (
	smallBuffer  = 4 << 10  // bytes; what Conn.Next brings at most
	mediumBuffer = 64 << 10 // bytes; the step up from it, as most messages beyond a small buffer fit
	largeBuffer  = 1 << 20  // bytes; above that, buffers are not worth keeping
)

// A buffer is memory that is used again. It is behind a pointer so that the pool
// can have it without an allocation.
type buffer struct{ bytes []byte }

// The buffers of connections that have bytes in hand. They are shared by all of the
// process: memory, not state. Each has its pool's size as its length, and room for
// less than the next pool's: replies grow.
var bufferPools = [...]struct {
	size int
	sync.Pool
}{
	{size: smallBuffer},
	{size: mediumBuffer},
	{size: 2 * mediumBuffer},
	{size: 4 * mediumBuffer},
	{size: 8 * mediumBuffer},
	{size: largeBuffer},
}

// takeBuffer returns a buffer with room for size bytes.
func takeBuffer(size int) *buffer {
	for i := range bufferPools {
		if p := &bufferPools[i]; p.size >= size {
			if b, ok := p.Get().(*buffer); ok {
				return b
			}
			return &buffer{make([]byte, p.size)}
		}
	}
	return &buffer{make([]byte, size)}
}

func giveBuffer(b *buffer) {
	room := cap(b.bytes)
	if room >= 2*largeBuffer {
		return
	}
	for i := len(bufferPools) - 1; i >= 0; i-- {
		if p := &bufferPools[i]; p.size <= room {
			b.bytes = b.bytes[:p.size]
			p.Put(b)
			return
		}
	}
}

// An inbox holds the bytes that have come and have not been taken. The zero inbox
// is empty and has no memory.
type inbox struct {
	buf   *buffer
	start int // of the bytes that are unread
	end   int
}

func (in *inbox) unread() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.bytes[in.start:in.end]
}

func (in *inbox) discard(n int) { in.start += n }

// release gives the memory back, whatever it holds.
func (in *inbox) release() {
	if in.buf != nil {
		giveBuffer(in.buf)
	}
	*in = inbox{}
}

// fill reads what has come, at least one byte. The end of the stream is io.EOF if
// nothing is unread, and io.ErrUnexpectedEOF if something is.
func (in *inbox) fill(r io.Reader) error {
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
func (in *inbox) room() []byte {
	if in.buf == nil {
		in.buf = takeBuffer(smallBuffer)
	}
	unread := in.unread()
	switch size := fitting(len(in.buf.bytes), len(unread), in.end); {
	case size != len(in.buf.bytes):
		fit := takeBuffer(size)
		copy(fit.bytes, unread)
		giveBuffer(in.buf)
		in.buf = fit
	case in.start > 0:
		copy(in.buf.bytes, unread)
	}
	in.start, in.end = 0, len(unread)
	return in.buf.bytes[in.end:]
}

// fitting returns the size that a buffer should have with so many bytes unread, of
// which the last ends there.
func fitting(size, unread, end int) int {
	switch {
	case size < mediumBuffer && end == size:
		return mediumBuffer // a read has filled it: there is more where that came from
	case unread == size:
		return 2 * size
	}
	for size > mediumBuffer && unread < size/2 {
		size /= 2 // what it was so large for has gone
	}
	return size
}
