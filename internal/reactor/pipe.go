//go:build linux

package reactor

import (
	"golang.org/x/sys/unix"
)

// A pipe carries bytes from socket to socket inside the kernel. It is never given back
// with bytes in it.
type pipe struct {
	r, w int
	held int // bytes
}

const (
	pipeSize  = 512 << 10 // twice as much takes no less CPU, half of it a tenth more
	pipesKept = 16        // empty ones
	pipesMost = 64        // of a loop; beyond it bytes are copied
)

// PipeFilesPerLoop is how many files a loop has open for pipes, at most.
const PipeFilesPerLoop = 2 * pipesMost

// pipes are a loop's.
type pipes struct {
	empty []*pipe
	count int
}

// take returns an empty pipe, nil if there is none to be had.
func (s *pipes) take() *pipe {
	if n := len(s.empty); n > 0 {
		p := s.empty[n-1]
		s.empty = s.empty[:n-1]
		return p
	}
	if s.count == pipesMost {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize) // beyond the user's share it stays as it is
	s.count++
	return &pipe{r: fds[0], w: fds[1]}
}

// give takes a pipe back, or closes it.
func (s *pipes) give(p *pipe) {
	if p.held == 0 && len(s.empty) < pipesKept {
		s.empty = append(s.empty, p)
		return
	}
	s.count--
	p.close()
}

func (s *pipes) close() {
	for _, p := range s.empty {
		p.close()
	}
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

const spliceFlags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE

// fill moves what the socket has into the pipe, which must be empty, but no more than most:
// unix.EAGAIN then says that the socket is.
func (p *pipe) fill(fd, most int) (int, error) {
	for {
		n, err := unix.Splice(fd, nil, p.w, nil, most, spliceFlags)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		p.held += int(n)
		return int(n), nil
	}
}

// drain moves what is in the pipe to the socket. It returns what it moved and, if that
// is not all, why.
func (p *pipe) drain(fd int) (moved int, err error) {
	for p.held > 0 {
		n, err := unix.Splice(p.r, nil, fd, nil, p.held, spliceFlags)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return moved, err
		}
		if n == 0 {
			return moved, unix.EIO // there are bytes, and room: it cannot be
		}
		p.held -= int(n)
		moved += int(n)
	}
	return moved, nil
}
