//go:build unix

package levee

import (
	"io"
	"os"
	"syscall"
)

const canReadDirectly = true

// readDirectly reads a non-blocking socket once.
func readDirectly(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, errWouldBlock
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
