//go:build linux

package reactor

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Breath has Go's netpoller looked into, for those who wait for it. Go does that
// when it has no goroutine to run, and so never while there is one that works on and on, or
// several that wake each other, but for once in 10 ms.
type Breath struct {
	mu    sync.Mutex // of whoever takes it
	file  *os.File   // an eventfd
	conn  syscall.RawConn
	blow  func(fd uintptr) bool // what conn is given; made once, as it would be garbage each time
	blown bool
}

// NewBreath makes one, which takes an open file. It has to be closed.
func NewBreath() (*Breath, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	b := &Breath{file: os.NewFile(uintptr(fd), "breath")}
	b.blow = func(fd uintptr) bool {
		if b.blown {
			return true
		}
		b.blown = true
		count(int(fd))
		return false
	}
	b.conn, err = b.file.SyscallConn()
	return b, err
}

// Take parks the goroutine for something that has happened already, of which only the
// netpoller knows: it comes back with all the others. It may be called from several
// goroutines.
func (b *Breath) Take() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blown = false
	_ = b.conn.Read(b.blow) // fails when it is closed, and then does not wait
}

// Close lets go of the file.
func (b *Breath) Close() { _ = b.file.Close() }
