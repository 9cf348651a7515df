package reactor

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the data path go to the kernel without a word to Go's
// scheduler: the sockets do not block, and telling it would cost a tenth of the
// call, twice. They are recvfrom and sendto, which come to the socket by a shorter
// way than read and write; and of what the peer has reset no SIGPIPE tells.

// readSocket returns how many bytes it read, io.EOF at the end of the stream,
// or unix.EAGAIN if there are none.
func readSocket(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0) //nolint:gosec // as unix.Recvfrom does
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		}
		return int(n), nil
	}
}

// writeSocket returns how many bytes it wrote, which may be fewer than there are,
// or unix.EAGAIN if the peer takes none.
func writeSocket(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0) //nolint:gosec // as unix.Sendto does
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		}
		return int(n), nil
	}
}

// sendQueue returns how many bytes the kernel holds that the peer has not taken.
func sendQueue(fd int) uint32 {
	n, _ := unix.IoctlGetUint32(fd, unix.SIOCOUTQ) // fails for no socket that is a stream
	return n
}

// unread returns how many bytes have come that have not been read.
func unread(fd int) int {
	n, _ := unix.IoctlGetInt(fd, unix.SIOCINQ)
	return n
}

func isUnix(fd int) bool {
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN) // fails for no socket
	return domain == unix.AF_UNIX
}

// unsent reports whether the kernel holds bytes that the peer's window has not yet
// let go. Only TCP has them.
func unsent(fd int) bool {
	n, err := unix.IoctlGetUint32(fd, unix.SIOCOUTQNSD)
	return err == nil && n > 0
}

// Edge-triggered, and for everything: a connection is registered once and never
// changed. As a socket is writable at first, registering it wakes the loop.
const (
	interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	incoming = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	unevenly = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLPRI // reads stop short at urgent data, too
)

// A poller is an epoll instance that a goroutine can wait for by parking, because
// it is itself in Go's netpoller.
type poller struct {
	fd   int
	wake int // an eventfd
	file *os.File
	park syscall.RawConn

	breath *Breath

	look   func(fd uintptr) bool // what park is given; made once, as it would be garbage after each wait
	events []unix.EpollEvent     // where to
	found  int
}

// wakeSlot is the slot of the poller's own eventfd, which no connection has.
const wakeSlot = -1

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// os.NewFile puts a descriptor into the netpoller if it is non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &poller{fd: fd, wake: -1, file: os.NewFile(uintptr(fd), "epoll")}
	p.look = func(uintptr) bool {
		p.found = p.poll(p.events)
		return p.found > 0
	}
	if p.park, err = p.file.SyscallConn(); err == nil {
		p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err == nil {
		err = p.add(p.wake, wakeSlot, 0)
	}
	if err == nil {
		p.breath, err = NewBreath()
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("event loop: %w", err)
	}
	return p, nil
}

func (p *poller) close() {
	_ = p.file.Close()
	if p.breath != nil {
		p.breath.Close()
	}
	if p.wake >= 0 {
		_ = unix.Close(p.wake)
	}
}

func (p *poller) add(fd int, slot int32, gen uint32) error { return p.watch(fd, slot, gen, interest) }

func (p *poller) watch(fd int, slot int32, gen, events uint32) error {
	event := unix.EpollEvent{Events: events, Fd: slot, Pad: int32(gen)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &event))
}

func (p *poller) remove(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil))
}

// poll returns the events that there are.
func (p *poller) poll(events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0) //nolint:gosec // as unix.EpollWait does
	if errno != 0 {
		return 0 // EINTR: there will be a next time
	}
	return int(n)
}

// moment is how long linger waits: longer than a client on the same machine takes to
// answer, shorter than anybody would notice.
var moment = unix.Timespec{Nsec: int64(100 * time.Microsecond)}

// linger waits a moment for events, and keeps the processor meanwhile. Where the
// kernel cannot wait for so short a time (before Linux 5.11) it returns at once.
func (p *poller) linger(events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(unsafe.Pointer(&moment)), 0, 0) //nolint:gosec // as unix.EpollWait does
	if errno != 0 {
		return 0
	}
	return int(n)
}

// wait parks the goroutine until there are events, or reports that the deadline
// set on the poller's file has passed.
func (p *poller) wait(events []unix.EpollEvent) (n int, late bool) {
	p.events, p.found = events, 0
	err := p.park.Read(p.look)
	return p.found, err != nil
}

// wakeAt has a wait end when the clock that began at epoch says at, never if that
// is 0.
func (p *poller) wakeAt(epoch time.Time, at int64) {
	deadline := time.Time{}
	if at != 0 {
		deadline = epoch.Add(time.Duration(at))
	}
	_ = p.file.SetReadDeadline(deadline) // fails only for a file without a poller
}

// ring wakes the loop.
func (p *poller) ring() { count(p.wake) }

// count adds one to an eventfd. Each time is a new edge, so nobody has to read the
// count; it would take 500 years to fill it.
func count(fd int) {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(fd, one[:])
}
