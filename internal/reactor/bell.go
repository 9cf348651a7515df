//go:build linux

package reactor

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// A Bell rings when connections have come to a listening socket. Whoever accepts
// them is then woken by the loops, which are up when there is work, and not by Go's
// netpoller, which nobody asks while there is.
type Bell struct {
	// C has an element when it has rung since the last was taken out. A ring is for
	// connections that have come, however many: accept until unix.EAGAIN.
	C chan struct{}

	reactor *Reactor
	fd      int
	number  uint32
}

// bells are a reactor's.
type bells struct {
	mu    sync.Mutex
	last  uint32
	known map[uint32]*Bell
}

// bellSlot is the slot of listeners, which no connection has.
const bellSlot = -2

// Hang hangs a bell at a listening socket. The socket must be open until Take.
func (r *Reactor) Hang(fd int) (*Bell, error) {
	s := &r.bells
	s.mu.Lock()
	s.last++
	b := &Bell{C: make(chan struct{}, 1), reactor: r, fd: fd, number: s.last}
	if s.known == nil {
		s.known = make(map[uint32]*Bell)
	}
	s.known[b.number] = b
	s.mu.Unlock()
	for i, l := range r.loops {
		if err := l.hang(b); err != nil {
			b.takeFrom(r.loops[:i])
			return nil, err
		}
	}
	return b, nil
}

// Take takes the bell away: it rings no more.
func (b *Bell) Take() { b.takeFrom(b.reactor.loops) }

func (b *Bell) takeFrom(loops []*loop) {
	s := &b.reactor.bells
	s.mu.Lock()
	delete(s.known, b.number)
	s.mu.Unlock()
	for _, l := range loops {
		l.mailbox.mu.Lock()
		if !l.mailbox.closed {
			_ = l.poller.remove(b.fd)
		}
		l.mailbox.mu.Unlock()
	}
}

func (l *loop) hang(b *Bell) error {
	l.mailbox.mu.Lock()
	defer l.mailbox.mu.Unlock()
	if l.mailbox.closed {
		return net.ErrClosed
	}
	return l.poller.watch(b.fd, bellSlot, b.number, unix.EPOLLIN|unix.EPOLLET|unix.EPOLLEXCLUSIVE)
}

// ring rings a bell, unless it was taken away.
func (r *Reactor) ring(number uint32) {
	r.bells.mu.Lock()
	b := r.bells.known[number]
	r.bells.mu.Unlock()
	if b != nil {
		b.Ring()
	}
}

// Ring rings the bell by hand.
func (b *Bell) Ring() {
	select {
	case b.C <- struct{}{}:
	default:
	}
}
