package leveetest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of an in-memory TCP connection, as [Listener.Dial],
// [Listener.Accept] and [Pipe] return it. Like [net.TCPConn] it is safe
// for use by several goroutines at once, its addresses are *net.TCPAddr and its
// errors are *net.OpError, except for a bare [io.EOF].
//
// It behaves as Linux's TCP does on a network without latency:
//
//   - Bytes go into the peer's receive buffer. Write blocks while that is full;
//     interrupted, it returns how many bytes went in.
//   - After the peer's Close or CloseWrite, Read returns what is left and then io.EOF.
//   - Close resets the connection if received bytes are unread, or after
//     SetLinger(0). The peer first reads what it already has.
//   - A reset is reported once, as [syscall.ECONNRESET], by the Read or the Write
//     that comes first. From then on Read returns io.EOF and Write [syscall.EPIPE].
//   - The first Write after the peer's Close succeeds, and its bytes are lost:
//     the peer answers with a reset. As its FIN had come before, the reset reads
//     as EPIPE in Write and as io.EOF in Read.
//   - A deadline that has passed fails Read even if there are bytes to read.
//
// On Windows the errors are the Unix ones that package syscall defines there.
type Conn struct {
	local, remote *net.TCPAddr
	in, out       *stream
	peer          *Conn

	mu       *sync.Mutex // both ends share it, because what one does changes the other
	closed   bool
	abortive bool // SetLinger(0): Close resets

	// reset says that a reset has come in; pending, that no Read or Write has
	// reported it yet (the kernel's sk_err).
	reset   bool
	pending syscall.Errno
}

// Read waits for at least one byte and reads up to len(p) of them. It returns
// 0, nil at once if p is empty. Errors: io.EOF, and within *net.OpError
// os.ErrDeadlineExceeded, net.ErrClosed or syscall.ECONNRESET.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if n, ready, err := c.tryReadLocked(p); ready {
			return n, c.opError("read", err)
		}
		c.in.changed.Wait()
	}
}

// tryReadLocked is Read without the waiting. The order of its cases is that of
// Go's poller and then of the kernel's tcp_recvmsg.
func (c *Conn) tryReadLocked(p []byte) (n int, ready bool, err error) {
	switch {
	case c.closed:
		return 0, true, net.ErrClosed
	case len(p) == 0:
		return 0, true, nil
	case c.in.readDeadline.passed:
		return 0, true, os.ErrDeadlineExceeded
	case c.in.unread.Len() > 0:
		return c.in.takeLocked(p), true, nil
	case c.in.finished:
		return 0, true, io.EOF
	case c.pending != 0:
		return 0, true, c.takePendingLocked("read")
	case c.reset, c.in.deaf:
		return 0, true, io.EOF
	}
	return 0, false, nil
}

// Write writes all of p or returns how much of it went into the peer's buffer
// and why no more did. Writes from several goroutines do not mix. Errors: within
// *net.OpError os.ErrDeadlineExceeded, net.ErrClosed, syscall.ECONNRESET or
// syscall.EPIPE.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out.writing {
		c.out.changed.Wait()
	}
	c.out.writing = true
	n, err := c.writeAllLocked(p)
	c.out.writing = false
	c.out.changed.Broadcast()
	return n, c.opError("write", err)
}

func (c *Conn) writeAllLocked(p []byte) (n int, err error) {
	for {
		if err := c.writableLocked(); err != nil {
			return n, err
		}
		sent := c.sendLocked(p[n:])
		n += sent
		if n == len(p) {
			return n, nil
		}
		if sent == 0 {
			c.out.changed.Wait()
		}
	}
}

func (c *Conn) writableLocked() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.out.writeDeadline.passed:
		return os.ErrDeadlineExceeded
	case c.pending != 0:
		return c.takePendingLocked("write")
	case c.out.finished, c.reset:
		return os.NewSyscallError("write", syscall.EPIPE)
	}
	return nil
}

// sendLocked hands the peer as much of p as it has room for. A peer that is
// gone takes the bytes, loses them and answers with a reset.
func (c *Conn) sendLocked(p []byte) int {
	if !c.peer.unreachableLocked() {
		return c.out.putLocked(p)
	}
	n := min(len(p), c.out.roomLocked())
	if n > 0 {
		c.peer.receiveResetLocked()
		c.receiveResetLocked()
	}
	return n
}

// unreachableLocked says that nobody can read any more what comes in: the
// connection is closed, or shut down both ways (RFC 1122, 4.2.2.13).
func (c *Conn) unreachableLocked() bool {
	return c.closed || c.in.deaf && c.out.finished
}

// Close ends the connection and every call blocked on it. The peer reads what
// was written and then io.EOF; but if bytes from the peer are unread, or after
// SetLinger(0), the connection is reset. Every further call, Close included,
// returns net.ErrClosed.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closeLocked()
	return nil
}

// Reset closes the connection with a reset, as SetLinger(0) and Close do: the
// peer reads what it already has and then syscall.ECONNRESET.
func (c *Conn) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.abortive = true
		c.closeLocked()
	}
}

func (c *Conn) closeLocked() {
	c.closed = true
	c.in.readDeadline.stopLocked()
	c.out.writeDeadline.stopLocked()
	if c.abortive || c.in.unread.Len() > 0 {
		c.peer.receiveResetLocked()
	} else if !c.reset {
		c.out.finished = true
	}
	c.in.unread.Reset()
	c.in.changed.Broadcast()
	c.out.changed.Broadcast()
}

// receiveResetLocked is what a RST from the peer does, as in the kernel's
// tcp_reset. Bytes received before stay readable.
func (c *Conn) receiveResetLocked() {
	if c.overLocked() {
		return
	}
	c.reset = true
	c.pending = syscall.ECONNRESET
	if c.in.finished { // CLOSE_WAIT
		c.pending = syscall.EPIPE
	}
	c.in.changed.Broadcast()
	c.out.changed.Broadcast()
}

// overLocked says that the connection is in the kernel's state CLOSE: reset, or
// finished in both directions.
func (c *Conn) overLocked() bool {
	return c.reset || c.in.finished && c.out.finished
}

func (c *Conn) takePendingLocked(syscallName string) error {
	err := os.NewSyscallError(syscallName, c.pending)
	c.pending = 0
	return err
}

// CloseWrite tells the peer that no more bytes follow: it reads what was written
// and then io.EOF. Reading goes on. Errors: within *net.OpError net.ErrClosed,
// or syscall.ENOTCONN if the connection is over.
func (c *Conn) CloseWrite() error {
	return c.shutdown(func() {
		c.out.finished = true
		c.out.changed.Broadcast()
	})
}

// CloseRead ends reading without a word to the peer: Read returns what is in the
// buffer and then io.EOF instead of waiting. As on Linux the peer may go on
// writing, and what it writes can be read. Errors are those of CloseWrite.
func (c *Conn) CloseRead() error {
	return c.shutdown(func() {
		c.in.deaf = true
		c.in.changed.Broadcast()
	})
}

func (c *Conn) shutdown(directionLocked func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	if c.overLocked() {
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	directionLocked()
	return nil
}

// SetLinger with sec 0 makes Close reset the connection, as on *net.TCPConn.
// Any other value restores the ordinary Close; there is nothing to linger for,
// because what was written has arrived.
func (c *Conn) SetLinger(sec int) error {
	return c.set(func() { c.abortive = sec == 0 })
}

// LocalAddr returns this end's address, a *net.TCPAddr that the caller must not
// change.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the other end's address, a *net.TCPAddr that the caller
// must not change.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines. The zero time means none; a call that is
// blocked follows the change. The only error is net.ErrClosed within *net.OpError.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.set(func() {
		c.in.readDeadline.setLocked(t, &c.in.changed)
		c.out.writeDeadline.setLocked(t, &c.out.changed)
	})
}

// SetReadDeadline is SetDeadline for Read alone.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.set(func() { c.in.readDeadline.setLocked(t, &c.in.changed) })
}

// SetWriteDeadline is SetDeadline for Write alone.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.set(func() { c.out.writeDeadline.setLocked(t, &c.out.changed) })
}

func (c *Conn) set(changeLocked func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	changeLocked()
	return nil
}

// opError dresses err as package net would.
func (c *Conn) opError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}
