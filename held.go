package levee

import (
	"bufio"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

const (
	blockSize  = 4 << 10  // what one read takes while peeking: most first requests fit
	peekBudget = 80 << 10 // a ClientHello may have 64 KiB, and goes in records of up to 16; a common one has 1.7
	copySize   = 32 << 10 // a read this large that comes back full says that more is waiting
)

type block [blockSize]byte

// Blocks and copy buffers are shared by all servers of the process: memory,
// not state.
var (
	blocks      = sync.Pool{New: func() any { return new(block) }}
	copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}
)

// held are bytes that were read ahead of their reader: by Peek, by Next, by a
// PROXY header's parser. It has no memory while it is empty.
type held struct {
	some atomic.Bool // there are bytes; lets a Read pass without the lock

	mu    sync.Mutex
	block *block // pooled; nil when empty or when buf has outgrown it
	buf   []byte // the bytes, within block unless they outgrew it
	err   error  // what the read behind the last byte said: given once, after it
	lent  bool   // a read writes into the memory behind buf: the pool must not have it
}

// take moves bytes to p, and gives the memory back with the last of them. It
// reports false if it has nothing to say and the socket is to be asked.
func (h *held) take(p []byte) (n int, ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(h.buf) > 0:
		n = copy(p, h.buf)
		h.buf = h.buf[n:]
		if len(h.buf) == 0 {
			h.releaseLocked()
		}
		return n, true, nil
	case h.err != nil:
		err, h.err = h.err, nil
		h.some.Store(false)
		return 0, true, err
	}
	return 0, false, nil
}

// put adopts a block of which the first n bytes were just read. The caller has
// made sure that nothing is held.
func (h *held) put(b *block, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.block, h.buf = b, b[:n]
	h.some.Store(true)
}

// fill holds bytes that another process has read ahead. Nothing may be held before.
func (h *held) fill(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = b
	h.some.Store(len(b) > 0)
}

// peek returns the next n bytes without taking them; it reads as often as it
// must. On an error it returns what there is, and the error.
func (h *held) peek(n int, read func([]byte) (int, error)) ([]byte, error) {
	switch {
	case n < 0:
		return nil, bufio.ErrNegativeCount
	case n > peekBudget:
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.buf, bufio.ErrBufferFull
	}
	for {
		h.mu.Lock()
		if len(h.buf) >= n {
			defer h.mu.Unlock()
			return h.buf[:n:n], nil
		}
		if h.err != nil {
			defer h.mu.Unlock()
			return h.buf, h.err
		}
		free := h.roomLocked(n)
		h.lent = true
		h.mu.Unlock()

		m, err := read(free)

		h.mu.Lock()
		h.lent = false
		if h.buf == nil { // released meanwhile: the handler has returned and left this read behind
			defer h.mu.Unlock()
			return nil, net.ErrClosed
		}
		h.buf = h.buf[:len(h.buf)+m]
		if err == io.EOF {
			h.err = err // an EOF is remembered: asking the socket again would be asking what is known
		}
		if len(h.buf) == 0 {
			h.releaseLocked()
		}
		h.some.Store(len(h.buf) > 0 || h.err != nil)
		if err != nil && len(h.buf) < n {
			defer h.mu.Unlock()
			return h.buf, err
		}
		h.mu.Unlock()
	}
}

// roomLocked returns the free space behind the bytes, after making room for at
// least n of them in all. No more is read ahead than the space there is: what
// lies behind a PROXY header or a ClientHello stays in the kernel if it can.
func (h *held) roomLocked(n int) []byte {
	if h.block == nil && h.buf == nil {
		h.block = blocks.Get().(*block)
		h.buf = h.block[:0]
	}
	if cap(h.buf) < n && h.block != nil && n <= blockSize {
		h.buf = h.block[:copy(h.block[:], h.buf)]
	}
	if cap(h.buf) < n {
		grown := append(make([]byte, 0, max(n, min(2*cap(h.buf), peekBudget))), h.buf...)
		h.releaseLocked()
		h.buf = grown
	}
	return h.buf[len(h.buf):cap(h.buf)]
}

// fail has the next take say err. The caller has made sure that nothing is held.
func (h *held) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	h.some.Store(true)
}

// state tells what the next take would say: nil if there are bytes.
func (h *held) state() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.buf) > 0 {
		return nil
	}
	return h.err
}

// buffered returns how many bytes are held.
func (h *held) buffered() int {
	if !h.some.Load() {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.buf)
}

// bytes returns what is held.
func (h *held) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf
}

// discard takes n bytes that a peek has shown.
func (h *held) discard(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = h.buf[n:]
	if len(h.buf) == 0 {
		h.releaseLocked()
	}
}

// release gives the memory back, whatever it holds.
func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = nil
	h.releaseLocked()
}

func (h *held) releaseLocked() {
	if h.block != nil && !h.lent {
		blocks.Put(h.block)
	}
	h.block, h.buf = nil, nil
	h.some.Store(h.err != nil)
}
