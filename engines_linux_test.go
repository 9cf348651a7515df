package levee_test

import (
	"errors"
	"fmt"
	"net"

	"github.com/levee-net/levee"
	"golang.org/x/sys/unix"
)

// askSocket asks the connection's socket who it is, and whether it sends at once.
func askSocket(e engine, c *levee.Conn) error {
	sock, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var asked error
	if err := sock.Control(func(fd uintptr) { asked = checkSocket(e, c, int(fd)) }); err != nil {
		return err
	}
	return asked
}

var errSocket = errors.New("not the connection's socket")

func checkSocket(e engine, c *levee.Conn, fd int) error {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return fmt.Errorf("descriptor %d: %w: %w", fd, errSocket, err)
	}
	if e.network != "tcp" {
		return nil
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if v4, ok := name.(*unix.SockaddrInet4); !ok || v4.Port != c.LocalAddr().(*net.TCPAddr).Port {
		return errSocket
	}
	if noDelay, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || noDelay != 1 {
		return fmt.Errorf("TCP_NODELAY is %d, %w", noDelay, orNone(err))
	}
	return nil
}
