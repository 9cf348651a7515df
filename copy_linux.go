package levee

import (
	"io"
	"io/fs"
	"math"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/reactor"
)

// spliceLeast is the least that is worth two pipe operations.
const spliceLeast = 16 << 10

// splice moves what the source has already received. It asks for that much and no
// more, so net's splice never waits for the source with a pipe in its hands: an
// idle pair of connections keeps no pipe, and no deadline of the source's can
// strike while bytes are in one. If from is a connection's, source is that.
func splice(to io.Writer, from io.Reader, source *wire) (total int64, err error) {
	var sink func(*io.LimitedReader) (n int64, ok bool, err error)
	switch to := to.(type) {
	case *Conn:
		s, err := to.bytes()
		if err != nil || s.tls != nil {
			return 0, err
		}
		sink = s.wire.kernelCopy
	case *net.TCPConn:
		sink = func(r *io.LimitedReader) (int64, bool, error) {
			n, err := to.ReadFrom(r)
			return n, true, err
		}
	default:
		return 0, nil
	}
	target := wireOf(to)
	for {
		in, out := source.meterIn(), target.meterOut()
		source.abide(in)
		target.abide(out)
		ready := out.chunk(in.chunk(unread(from)))
		if ready < spliceLeast {
			return total, nil
		}
		n, ok, err := sink(&io.LimitedReader{R: from, N: int64(ready)})
		total += n
		source.hasSent(n)
		if !ok || err != nil || n == 0 {
			return total, err
		}
	}
}

// unread returns how many received bytes wait in one of net's sockets, 0 if it is
// none. io.Copy shows a *net.TCPConn as a type of net's that hides its WriteTo.
func unread(source io.Reader) (n int) {
	s, ok := source.(syscall.Conn)
	if !ok {
		return 0
	}
	kind := reflect.TypeOf(source)
	if kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if kind.PkgPath() != "net" {
		return 0 // what embeds a socket may have a Read of its own
	}
	sock, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	_ = sock.Control(func(fd uintptr) {
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	if err != nil {
		return 0
	}
	return n
}

// sendFile copies a file by sendfile(2). Like net it takes whatever has the methods
// of an *os.File, as io.Copy shows that as a type that hides its WriteTo.
func (s *stream) sendFile(r io.Reader) (n int64, ok bool, err error) {
	from := &io.LimitedReader{R: r, N: math.MaxInt64}
	if limited, ok := r.(*io.LimitedReader); ok { // io.CopyN's, net/http's
		from, r = limited, limited.R
	}
	f, isFile := r.(interface {
		fs.File
		io.Seeker
		syscall.Conn
	})
	if !isFile || s.tls != nil {
		return 0, false, nil
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, false, nil //nolint:nilerr // it will show when it is read
	}
	s.conn.serves()
	return s.wire.sendPieces(from)
}

// sendPieces is kernelCopy, in as many pieces as a Pacer wants.
func (w *wire) sendPieces(from *io.LimitedReader) (total int64, ok bool, err error) {
	pace := w.meterOut()
	if pace == nil {
		return w.kernelCopy(from)
	}
	for {
		w.abide(pace)
		asked := int64(pace.chunk(int(min(from.N, math.MaxInt32))))
		n, ok, err := w.kernelCopy(&io.LimitedReader{R: from.R, N: asked})
		from.N -= n
		total += n
		if !ok || err != nil || n < asked || from.N <= 0 {
			return total, ok, err
		}
	}
}

// kernelCopy has net copy inside the kernel, to a TCP socket. A write deadline
// that struck meanwhile would lose what sits in the pipe, and cannot be told
// progress anyhow: so only the handler's own is in force, and a guard that asks
// the kernel for progress stands in for the stall deadline.
func (w *wire) kernelCopy(from *io.LimitedReader) (n int64, ok bool, err error) {
	sink, isTCP := w.raw.(*net.TCPConn)
	if !isTCP {
		return 0, false, nil
	}
	w.turn.take()
	defer w.turn.give()
	guard := w.guardAgainstStall(sink)
	n, err = sink.ReadFrom(from)
	guard.stop()
	w.written.Add(n)
	w.spend(w.meterOut(), int(n))
	w.wroteAt.Store(int64(w.clock()))
	return n, true, w.ended(err)
}

// A stallGuard ends a connection whose peer has taken nothing for
// WriteStallTimeout though bytes were waiting, by the kernel's own account.
type stallGuard struct {
	wire     *wire
	sock     *net.TCPConn
	interval time.Duration
	stopped  atomic.Bool

	mu    sync.Mutex
	timer *time.Timer
	acked uint64
	since time.Time
}

func (w *wire) guardAgainstStall(sock *net.TCPConn) *stallGuard {
	w.mu.Lock()
	w.kernelWrites = true
	_ = w.raw.SetWriteDeadline(w.userWrite)
	w.mu.Unlock()
	g := &stallGuard{wire: w, sock: sock, since: time.Now()}
	if limit := w.conn.set.limits.writeStall; limit > 0 {
		g.interval = limit / reactor.StallLooks
		g.mu.Lock()
		g.timer = time.AfterFunc(g.interval, g.look) // ended by stop
		g.mu.Unlock()
	}
	return g
}

func (g *stallGuard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped.Load() {
		return
	}
	now := time.Now()
	pending, acked := sendQueue(g.sock)
	if !pending || acked != g.acked {
		g.acked, g.since = acked, now
	}
	if now.Sub(g.since) >= g.wire.conn.set.limits.writeStall {
		_ = g.wire.conn.cut(WriteStalled, nil)
		return
	}
	g.timer.Reset(g.interval)
}

func (g *stallGuard) stop() {
	g.stopped.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
	g.wire.mu.Lock()
	defer g.wire.mu.Unlock()
	g.wire.kernelWrites = false
	g.wire.writeArmed.Store(false) // the next write arms its deadline again
}

// sendQueue reports whether bytes wait for the peer, and how many it has taken
// since the connection's start.
func sendQueue(sock *net.TCPConn) (pending bool, acked uint64) {
	if info := tcpInfo(sock); info != nil {
		return info.Unacked > 0 || info.Notsent_bytes > 0, info.Bytes_acked
	}
	return false, 0
}

// taken returns a figure that another one follows when a socket's peer has taken bytes.
// It is not ok if the kernel does not tell.
func taken(raw net.Conn) (figure uint64, ok bool) {
	switch sock := raw.(type) {
	case *net.TCPConn:
		_, figure = sendQueue(sock)
		return figure, true
	case *net.UnixConn:
		return unixQueue(sock), true
	}
	return 0, false
}

// unixQueue returns how many bytes, with what the kernel needs around them, wait for a
// Unix socket's peer.
func unixQueue(sock *net.UnixConn) (n uint64) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		queue, _ := unix.IoctlGetUint32(int(fd), unix.SIOCOUTQ) // fails for no socket that is a stream
		n = uint64(queue)
	})
	return n
}

// awaitRoom waits until a socket has room for a few bytes.
func awaitRoom(raw net.Conn) {
	sock, ok := rawSocket(raw)
	if !ok {
		return
	}
	_ = raw.SetWriteDeadline(time.Time{})
	_ = sock.Write(func(fd uintptr) bool { // fails when it is closed
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0) //nolint:gosec // descriptors are small
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// pending reports whether a TCP socket has bytes that the peer has not taken.
func pending(raw net.Conn) bool {
	if sock, ok := raw.(*net.TCPConn); ok {
		waiting, _ := sendQueue(sock)
		return waiting && !wasReset(sock) // which leaves the count of what was not sent as it is
	}
	return false
}

// wasReset reports whether a TCP socket is closed by a reset, unless both ends have
// closed it in good order.
func wasReset(raw net.Conn) bool {
	if sock, ok := raw.(*net.TCPConn); ok {
		info := tcpInfo(sock)
		return info != nil && info.State == unix.BPF_TCP_CLOSE
	}
	return false
}

// unsent reports whether a TCP socket has bytes to send that the peer's window has
// not yet let go.
func unsent(raw net.Conn) bool {
	if sock, ok := raw.(*net.TCPConn); ok {
		info := tcpInfo(sock)
		return info != nil && info.Notsent_bytes > 0
	}
	return false
}

func tcpInfo(sock *net.TCPConn) (info *unix.TCPInfo) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil {
		return nil
	}
	return info
}
