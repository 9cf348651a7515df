package bare

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// What follows is net.Conn by way of net's own.

// Read reads from the connection.
func (c *Conn) Read(b []byte) (int, error) {
	conn, err := c.net()
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

// CloseWrite ends the stream to the server.
func (c *Conn) CloseWrite() error {
	conn, err := c.net()
	if err != nil {
		return err
	}
	half, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	conn, err := c.net()
	if err != nil {
		return err
	}
	return conn.SetDeadline(t)
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	conn, err := c.net()
	if err != nil {
		return err
	}
	return conn.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	conn, err := c.net()
	if err != nil {
		return err
	}
	return conn.SetWriteDeadline(t)
}

// RemoteAddr returns the address that was dialled, nil once the connection is detached.
func (c *Conn) RemoteAddr() net.Addr {
	return c.addr(net.Conn.RemoteAddr, unix.Getpeername)
}

// LocalAddr returns the address that the kernel has chosen, nil once the connection is
// detached.
func (c *Conn) LocalAddr() net.Addr {
	return c.addr(net.Conn.LocalAddr, unix.Getsockname)
}

func (c *Conn) addr(ofNet func(net.Conn) net.Addr, ofSocket func(fd int) (unix.Sockaddr, error)) net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.std != nil && c.std.err == nil {
		return ofNet(c.std.conn)
	}
	switch name, _ := ofSocket(c.fd); name := name.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: name.Addr[:], Port: name.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: name.Addr[:], Port: name.Port}
	}
	return nil
}
