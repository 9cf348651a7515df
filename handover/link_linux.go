package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A link is one end of the socket between the two processes. One goroutine reads from it; any may write.
type link struct {
	conn *net.UnixConn

	mu  sync.Mutex
	out []byte // the message that is written
}

// newLinks makes both ends; the second is for another process.
func newLinks() (own *link, other *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	other = os.NewFile(uintptr(fds[1]), "hand-over")
	f := os.NewFile(uintptr(fds[0]), "hand-over")
	defer f.Close()
	if own, err = newLink(f); err != nil {
		_ = other.Close()
		return nil, nil, err
	}
	return own, other, nil
}

// newLink makes a link of a socket, of which it takes a copy.
func newLink(f *os.File) (*link, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok || conn.LocalAddr().Network() != "unixpacket" {
		_ = c.Close()
		return nil, errors.New("descriptor is no socket of a predecessor's")
	}
	return &link{conn: conn}, nil
}

// sendLimit is how long a full socket is waited for. Nobody who is well leaves it full.
const sendLimit = 500 * time.Millisecond

// errTooManyInFlight is of descriptors that are on their way: the kernel allows a process only so many.
var errTooManyInFlight = unix.ETOOMANYREFS

// send sends a frame whole or not at all, and copies of the files with it.
func (l *link) send(f frame, files ...int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.files = len(files)
	l.out = f.appendTo(l.out[:0])
	if len(l.out) > maxFrame || len(files) > maxFiles {
		return fmt.Errorf("frame of %d bytes and %d files is too large", len(l.out), len(files))
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(sendLimit))
	_, _, err := l.conn.WriteMsgUnix(l.out, rights, nil)
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err // without the socket's addresses, which it has none of
	}
	return err
}

// isGone reports whether an error of send says that there is nobody at the other end.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// A received frame comes with files, which are the receiver's.
type received struct {
	frame
	fds []int

	err error // what is wrong with it; io.EOF: it is none, and no other comes
}

// errFilesLost is of a message some of whose descriptors have not arrived: this process has as many open as it may.
var errFilesLost = errors.New("descriptors were lost on the way, as too many files are open here")

// receive waits for a frame. One that makes no sense is told by its err, and after it others may come.
func (l *link) receive(message, rights []byte) received {
	n, m, flags, _, err := l.conn.ReadMsgUnix(message, rights)
	for errors.Is(err, syscall.ECONNRESET) { // it comes once, before what is in the queue, if the other end was closed with something unread
		n, m, flags, _, err = l.conn.ReadMsgUnix(message, rights)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return received{err: err}
	}
	if err != nil || n == 0 && m == 0 {
		return received{err: io.EOF}
	}
	r := received{fds: filesOf(rights[:m])}
	if flags&unix.MSG_TRUNC != 0 {
		r.err = fmt.Errorf("%w: too large", errFrame)
		return r
	}
	r.frame, r.err = parseFrame(append([]byte(nil), message[:n]...))
	switch {
	case r.err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		r.err = errFilesLost
	case len(r.fds) != r.files:
		r.err = fmt.Errorf("%w: %d files that says %d", errFrame, len(r.fds), r.files)
	}
	return r
}

// filesOf returns the descriptors in control messages. They are closed on exec already: net asks for that.
func filesOf(rights []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil // the kernel makes none like that
	}
	for _, m := range messages {
		if more, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, more...)
		}
	}
	return fds
}

func closeFiles(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// drop closes the files that came with a frame.
func (r *received) drop() {
	closeFiles(r.fds)
	r.fds = nil
}

// receiveAll passes frames on until the other end is closed, and then one whose err is io.EOF, or until stop is
// closed and so is the link.
func (l *link) receiveAll(to chan<- received, stop <-chan struct{}) {
	message, rights := newBuffers()
	for {
		r := l.receive(message, rights)
		select {
		case to <- r:
		case <-stop:
			r.drop()
		}
		if r.err == io.EOF {
			return
		}
	}
}

func newBuffers() (message, rights []byte) {
	return make([]byte, maxFrame+1), make([]byte, unix.CmsgSpace(4*(maxFiles+3)))
}

// memory makes a file in memory of pieces, that nobody can change any more.
func memory(name string, pieces [][]byte) (fd int, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for _, piece := range pieces {
		for len(piece) > 0 {
			n, err := unix.Write(fd, piece)
			if err != nil {
				_ = unix.Close(fd)
				return -1, os.NewSyscallError("write", err)
			}
			piece = piece[n:]
		}
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// maxMemory is how much one file in memory may hold that another process has made.
const maxMemory = 256 << 20

// readMemory reads all of a file in memory.
func readMemory(fd int) ([]byte, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if stat.Size > maxMemory {
		return nil, fmt.Errorf("%w: a file of %d bytes", errFrame, stat.Size)
	}
	content := make([]byte, stat.Size)
	for done := 0; done < len(content); {
		n, err := unix.Pread(fd, content[done:], int64(done))
		if err != nil {
			return nil, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		done += n
	}
	return content, nil
}
