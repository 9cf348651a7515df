package levee

import (
	"errors"
	"io"
)

// WriteTo copies what the peer sends to w, until its end of stream. It is what
// io.Copy calls.
//
// It holds no memory while the peer is silent. In plaintext on Linux, bulk goes
// from socket to socket inside the kernel (splice(2)); small messages do not,
// because for them two pipe operations cost more than a copy.
func (c *Conn) WriteTo(w io.Writer) (total int64, err error) {
	s, err := c.bytes()
	if err != nil {
		return 0, err
	}
	for {
		sink := wireOf(w)
		sink.abide(sink.meterOut()) // and read only then
		if err := s.awaitBytes(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
		n, full, err := s.copyOnce(w, sink.meterOut().chunk(copySize))
		total += n
		if err == nil && full {
			n, err = burst(w, c)
			total += n
		}
		if err != nil {
			return total, err
		}
	}
}

// awaitBytes waits for bytes as Next does, but not for leave.
func (s *stream) awaitBytes() error {
	if s.tls == nil {
		return s.wire.awaitBytes()
	}
	return s.nextTLS(s.wire.awaitBytes)
}

// copyOnce writes what is there to w, but no more than most, and reports whether there may
// be a good deal more.
func (s *stream) copyOnce(w io.Writer, most int) (total int64, full bool, err error) {
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	n, err := s.Read(buffer[:most])
	if err != nil {
		return 0, false, skipEOF(err)
	}
	var broken error // behind the bytes that were read
	if n == blockSize && s.tls != nil {
		var m int
		m, broken = s.readMore(buffer[n:most])
		n += m
	}
	m, err := w.Write(buffer[:n])
	switch {
	case err != nil:
	case m < n:
		err = io.ErrShortWrite
	default:
		err = broken
	}
	full = n == most || n >= blockSize && s.wire.meterIn() != nil
	return int64(m), full, err
}

// readMore reads the rest of a TLS record, of which a block was full. An end of
// stream shows again at the next read.
func (s *stream) readMore(p []byte) (int, error) {
	n, err := s.readRecord(p)
	if err = s.afterTLS(err); err == io.EOF || errors.Is(err, errWouldBlock) {
		err = nil
	}
	return n, err
}

func skipEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// ReadFrom copies r to the peer, until r's end. It is what io.Copy calls. From
// another Conn, a TCP or Unix socket or a file, bulk stays inside the kernel as
// with [Conn.WriteTo].
func (c *Conn) ReadFrom(r io.Reader) (total int64, err error) {
	if source, ok := r.(*Conn); ok {
		return source.WriteTo(c)
	}
	s, err := c.bytes()
	if err != nil {
		return 0, err
	}
	if n, ok, err := s.sendFile(r); ok {
		return n, err
	}
	for {
		n, full, err := s.copyFrom(r)
		total += n
		if err == nil && full {
			n, err = burst(c, r)
			total += n
		}
		if err != nil {
			return total, skipEOF(err)
		}
	}
}

// copyFrom writes what one read of r gives, and reports whether it was as much as it asked for.
func (s *stream) copyFrom(r io.Reader) (total int64, full bool, err error) {
	pace := s.wire.meterOut()
	s.wire.abide(pace) // and read only then
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	most := pace.chunk(copySize)
	n, err := r.Read(buffer[:most])
	if n > 0 {
		m, failed := s.write(buffer[:n])
		total = int64(m)
		if failed != nil {
			err = failed
		}
	}
	return total, n == most, err
}

// burst moves what waits in the source's receive queue to the sink without
// copying it, where both are sockets of a kind that the kernel can join. It
// moves nothing where they are not.
func burst(to io.Writer, from io.Reader) (int64, error) {
	c, ok := from.(*Conn)
	if !ok {
		return splice(to, from, nil)
	}
	source, err := c.bytes()
	if err != nil || source.tls != nil {
		return 0, err
	}
	source.wire.lendToKernel(true)
	defer source.wire.lendToKernel(false)
	return splice(to, source.wire.raw, &source.wire)
}

// hasSent notes that n bytes were moved from it by the kernel. The wire may be nil.
func (w *wire) hasSent(n int64) {
	if w != nil {
		w.read.Add(n)
		w.spend(w.meterIn(), int(n))
	}
}

// lendToKernel leaves only the handler's own read deadline in force: what the
// kernel is asked for is there, and a sink that takes its time is no silence of
// the peer's.
func (w *wire) lendToKernel(lent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kernelReads = lent
	_ = w.armReadLocked()
	w.readArmed.Store(lent) // the next read arms its own
}
