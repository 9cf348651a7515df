//go:build !linux

package levee_test

import "github.com/levee-net/levee"

// askSocket reaches for the connection's socket.
func askSocket(_ engine, c *levee.Conn) error {
	sock, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return sock.Control(func(uintptr) {})
}
