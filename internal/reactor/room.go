//go:build linux

package reactor

import "golang.org/x/sys/unix"

// What the kernel holds for a pair grows by itself, to megabytes for either socket: so that
// bytes are always on their way to a client that is fast. For one that is slow they only wait,
// and a crowd of those would take all the memory there is. So a client has to show first that it
// takes what it gets. Until then there is room for a round trip or two. Who gets little is not
// asked: it would cost a new connection two system calls.

const (
	freshUntil    = 64 << 10  // bytes that the near one has been sent
	narrowUnsent  = 16 << 10  // bytes for the near one that the kernel has not sent; the near one's window comes on top
	narrowReceive = 64 << 10  // of the far one; the kernel takes twice that, which is what it begins with
	proofOfSpeed  = 512 << 10 // bytes that the near one has taken
)

// What Conn.quick says of one of a pair; a far one is wide.
const (
	fresh = iota
	narrow
	wide
)

// makeRoom looks at how much the kernel may hold for p, which has been sent something.
func (l *loop) makeRoom(p *Conn) {
	switch written := p.written.Load(); {
	case p.quick == fresh && written >= freshUntil:
		makeNarrow(p)
	case p.quick == narrow && written >= proofOfSpeed:
		l.makeWide(p)
	}
}

// makeNarrow has the kernel hold no more than it begins with. It fails for a Unix socket, whose
// buffers do not grow.
func makeNarrow(near *Conn) {
	near.quick = narrow
	_ = unix.SetsockoptInt(int(near.fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, narrowUnsent)
	if !near.limits.Uneven {
		_ = unix.SetsockoptInt(int(near.peer.fd), unix.SOL_SOCKET, unix.SO_RCVBUF, narrowReceive)
	}
}

// makeWide lets it hold more once p has taken enough.
func (l *loop) makeWide(p *Conn) {
	if l.hurry.Narrow || p.written.Load()-int64(sendQueue(int(p.fd))) < proofOfSpeed {
		return
	}
	p.quick = wide
	_ = unix.SetsockoptInt(int(p.fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 0) // the system's default
	if p.limits.Uneven {
		return
	}
	far := int(p.peer.fd)
	if unix.SetsockoptInt(far, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0) != nil { // before Linux 5.14
		_ = unix.SetsockoptInt(far, unix.SOL_SOCKET, unix.SO_RCVBUF, oldReceive)
	}
}

// oldReceive is what the far one gets where the kernel cannot go back to finding out by itself. It
// takes no more than net.core.rmem_max.
const oldReceive = 4 << 20
