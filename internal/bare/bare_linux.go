package bare

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Conn is a connected socket. Its methods may be called from several goroutines.
//
// It is small, as who has detached its socket may keep it for as long as that lives.
type Conn struct {
	mu  sync.Mutex
	fd  int  // -1 when it has been detached, closed, or become net's
	std *std // once somebody has needed it
}

// std is net's own connection, or why there is none.
type std struct {
	conn net.Conn
	err  error
}

// Dial connects to remote, from local unless that is the zero AddrPort; a port of 0 is
// chosen by the kernel when it knows the remote address. It ends when ctx does.
func Dial(ctx context.Context, local, remote netip.AddrPort) (*Conn, error) {
	fd, err := dialOnce(ctx, local, remote)
	for again := 2; again > 0 && local.Port() == 0 && isOdd(err); again-- { // as net does it
		fd, err = dialOnce(ctx, local, remote)
	}
	if err != nil {
		return nil, dialError(local, remote, err)
	}
	return &Conn{fd: fd}, nil
}

func dialOnce(ctx context.Context, local, remote netip.AddrPort) (fd int, err error) {
	if fd, err = open(local, remote); err != nil {
		return -1, err
	}
	if fd, err = connect(ctx, fd, unixAddr(remote)); err != nil {
		return -1, err
	}
	if local.Port() == 0 && isItsOwnPeer(fd, remote) {
		_ = unix.Close(fd)
		return -1, errOwnPeer
	}
	return fd, nil
}

// errOwnPeer is what there is to say of a port at which nobody listens, if the kernel has
// chosen that port for the socket, and connected it with itself.
var errOwnPeer = os.NewSyscallError("connect", unix.ECONNREFUSED)

// isOdd reports whether an error may not come again: EADDRNOTAVAIL does when the kernel
// has lost a race for a port.
func isOdd(err error) bool { return err == errOwnPeer || errors.Is(err, unix.EADDRNOTAVAIL) }

func isItsOwnPeer(fd int, remote netip.AddrPort) bool {
	own := Local(fd)
	return own.Port() == remote.Port() && own.Addr().WithZone("") == remote.Addr().Unmap().WithZone("")
}

// dialError is what net would have made of it.
func dialError(local, remote netip.AddrPort, err error) error {
	e := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(remote), Err: err}
	if local.IsValid() {
		e.Source = net.TCPAddrFromAddrPort(local)
	}
	return e
}

// open makes a socket like one of net's.
func open(local, remote netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET6
	if remote.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // no kernel refuses it
	if !local.IsValid() {
		return fd, nil
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // for IPv6 too; see ip(7)
	if err := unix.Bind(fd, unixAddr(local)); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

func unixAddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	to := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			to.ZoneId = uint32(i.Index) //nolint:gosec // the kernel's, which are small
		}
	}
	return to
}

// connect connects the socket, and closes it if that fails.
//
// A connection on the same machine is there when the kernel returns from connect, though
// it says that it is in progress: asked once more it says that it is done. Only one that
// takes its time has to be waited for, which is the netpoller's to do.
func connect(ctx context.Context, fd int, to unix.Sockaddr) (int, error) {
	err := unix.Connect(fd, to)
	if err == unix.EINPROGRESS || err == unix.EINTR {
		err = unix.Connect(fd, to)
	}
	switch err {
	case nil, unix.EISCONN:
		return fd, nil
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		return await(ctx, fd)
	}
	_ = unix.Close(fd)
	return -1, os.NewSyscallError("connect", err)
}

// await waits for a connection that is in progress. The descriptor that it returns is
// another one, in no poller.
func await(ctx context.Context, fd int) (int, error) {
	f := os.NewFile(uintptr(fd), "tcp") // it does not block, so this puts it into the netpoller
	defer f.Close()
	sock, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if until, ok := ctx.Deadline(); ok {
		_ = f.SetDeadline(until)
	}
	unhook := context.AfterFunc(ctx, func() { _ = f.SetDeadline(longAgo) })
	defer unhook()
	connected := -1
	waitErr := sock.Write(func(fd uintptr) bool {
		if connected, err = finish(int(fd)); err == unix.EINPROGRESS {
			err = nil
			return false
		}
		return true
	})
	switch {
	case waitErr != nil && ctx.Err() != nil:
		return -1, ctx.Err()
	case waitErr != nil: // its own timer has been ahead of ctx's
		return -1, context.DeadlineExceeded
	}
	return connected, err
}

var longAgo = time.Unix(1, 0)

// finish returns another descriptor of a socket that is connected, unix.EINPROGRESS if
// it is not yet.
func finish(fd int) (int, error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return -1, os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return -1, os.NewSyscallError("connect", syscall.Errno(code))
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return -1, unix.EINPROGRESS
	}
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return again, nil
}

// KeepAlive has the kernel probe a connection that nothing comes over, which tells the dead
// from the silent. For a socket that was detached it is up to its owner when it is worth
// four system calls: not as long as the connection is young.
func KeepAlive(fd int) {
	for _, option := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		_ = unix.SetsockoptInt(fd, option.level, option.name, option.value) // no kernel refuses them
	}
}

// Detach gives the socket, which is non-blocking and in no poller, to the caller, unless
// it has been used as a net.Conn. The Conn is closed then.
func (c *Conn) Detach() (fd int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, c.fd = c.fd, -1
	return fd, fd >= 0
}

// Attach takes back what Detach has given. The Conn is as it was then.
func (c *Conn) Attach(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fd = fd
}

// NetConn returns net's own connection, which c is from then on; nil if there is none.
func (c *Conn) NetConn() net.Conn {
	conn, _ := c.net()
	return conn
}

// net returns net's own connection, and makes it at first.
func (c *Conn) net() (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.std == nil {
		if c.fd < 0 {
			return nil, net.ErrClosed
		}
		f := os.NewFile(uintptr(c.fd), "tcp")
		c.fd, c.std = -1, new(std)
		c.std.conn, c.std.err = net.FileConn(f) // which makes a descriptor of its own, and switches on keep-alive
		_ = f.Close()
	}
	return c.std.conn, c.std.err
}

// Write writes b. What fits into the send buffer of a fresh connection is written without
// making c one of net's.
func (c *Conn) Write(b []byte) (int, error) {
	done := c.TryWrite(b)
	if done == len(b) {
		return done, nil
	}
	conn, err := c.net()
	if err != nil {
		return done, err
	}
	n, err := conn.Write(b[done:])
	return done + n, err
}

// TryWrite writes at once what the kernel takes of up to 4 KiB, if c has not become one of
// net's, and returns how many bytes that were. Why it was not all, a Write of the rest will
// see. It needs no deadline, which would make c one of net's.
func (c *Conn) TryWrite(b []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 || len(b) > bareWrite {
		return 0
	}
	n, _ := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL)
	return max(n, 0)
}

// bareWrite is what every fresh connection has room for: less than a page.
const bareWrite = 4 << 10

// Close closes the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.std != nil && c.std.err == nil:
		return c.std.conn.Close()
	case c.fd < 0:
		return net.ErrClosed
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return os.NewSyscallError("close", err)
}
