package handover

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
)

// That this package's own goroutine answers says little of the program around it. So a ping is answered only if that is well, too,
// as far as it can be told from here without being anybody's client: its servers can be asked, and those who wait
// in the queues of its sockets come in.

// stuckAfter is how long somebody may wait while nobody comes in.
const stuckAfter = 5 * beat

// An exam tells whether a program is well. It belongs to one goroutine at a time.
type exam struct {
	servers []*levee.Server
	sockets []syscall.Conn

	accepted int64     // by all servers, at the last look
	since    time.Time // when somebody waited first since it has changed; zero if nobody does
}

// passes may be stuck itself, in a server's lock.
func (e *exam) passes(now time.Time) bool {
	accepted, full := int64(0), false
	for _, s := range e.servers {
		load := s.Load()
		accepted += load.Accepted
		full = full || load.MaxConns >= 0 && load.Active >= load.MaxConns
	}
	if accepted != e.accepted || full || !e.someoneWaits() {
		e.accepted, e.since = accepted, time.Time{}
		return true
	}
	if e.since.IsZero() {
		e.since = now
	}
	return now.Sub(e.since) < stuckAfter
}

// someoneWaits reports whether a queue has somebody in it.
func (e *exam) someoneWaits() bool {
	for _, l := range e.sockets {
		sock, err := l.SyscallConn()
		if err != nil {
			continue
		}
		waiting := uint32(0)
		_ = sock.Control(func(fd uintptr) { // not of one that is closed
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil { //nolint:gosec // descriptors are small
				waiting = info.Unacked // as the kernel has it of a socket that listens
			}
		})
		if waiting > 0 {
			return true
		}
	}
	return false
}

// answerPing says that this process is well, unless it is not, or the last look has not come back yet.
func (p *Process) answerPing() {
	e := p.exam // which is forgotten when nobody pings any more, and the look may take longer
	if len(e.servers) == 0 || !p.heir.serving {
		_ = p.link.send(newFrame(framePong, nil)) // who does not get it has ended, or is full of others
		return
	}
	if p.examining.Swap(true) {
		return
	}
	go func() { // ends with the look; one that does not is the last
		if e.passes(time.Now()) {
			_ = p.link.send(newFrame(framePong, nil))
		}
		p.examining.Store(false)
	}()
}

// watch has the socket be looked at.
func (p *Process) watch(l net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sock, ok := l.(syscall.Conn); ok && p.exam != nil {
		p.exam.sockets = append(p.exam.sockets, sock)
	}
}

// examine has the servers be looked at.
func (p *Process) examine(servers []*levee.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exam != nil {
		p.exam.servers = servers
	}
}
