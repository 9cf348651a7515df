package levee

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// TCPInfo is what the kernel knows of a TCP connection: how far away the client is, and what got
// lost on the way.
type TCPInfo struct {
	RTT         time.Duration // round-trip time, smoothed
	RTTVariance time.Duration
	MinRTT      time.Duration // 0 if the kernel has not measured any
	Retransmits uint32        // segments that were sent again, in all its life
	Unacked     uint32        // segments that were sent and not acknowledged
}

// TCPInfo asks the kernel about a connection that is open. It works for TCP on Linux: for any
// other the error matches errors.ErrUnsupported, and net.ErrClosed once it has been closed.
func (c *Conn) TCPInfo() (TCPInfo, error) {
	if _, ok := c.local.(*net.TCPAddr); !ok {
		return TCPInfo{}, errNoTCP
	}
	sock, err := c.SyscallConn()
	if err != nil {
		return TCPInfo{}, err
	}
	return infoOf(sock)
}

var errNoTCP = errors.Join(errors.New("levee: no TCP connection"), errors.ErrUnsupported)

func infoOf(sock syscall.RawConn) (info TCPInfo, err error) {
	if e := sock.Control(func(fd uintptr) { info, err = askTCP(int(fd)) }); e != nil {
		return TCPInfo{}, e
	}
	return info, err
}

// look has the kernel asked about a socket that is about to be closed, if the Trace wants that.
func (c *Conn) look(fd int) {
	if c.wantsLook() {
		if info, err := askTCP(fd); err == nil {
			c.keepLook(&info)
		}
	}
}

// look is the same for a socket of a goroutine's.
func (w *wire) look() {
	raw, ok := w.raw.(syscall.Conn)
	if !ok || !w.conn.wantsLook() {
		return
	}
	sock, err := raw.SyscallConn()
	if err != nil {
		return
	}
	if info, err := infoOf(sock); err == nil {
		w.conn.keepLook(&info)
	}
}

// wantsLook asks the Trace, once.
func (c *Conn) wantsLook() (wanted bool) {
	sample := c.server.trace().Sample
	if sample == nil || c.life.more.Or(lookedAt)&lookedAt != 0 {
		return false
	}
	if _, ok := c.local.(*net.TCPAddr); !ok {
		return false
	}
	c.server.guard(c, func() { wanted = sample(c) })
	return wanted
}

func (c *Conn) keepLook(info *TCPInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extraLocked().tcp = info
}

func (c *Conn) lastLook() *TCPInfo {
	if c.life.more.Load()&lookedAt == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil {
		return nil
	}
	return c.extra.tcp
}
