//go:build unix

package levee_test

import (
	"crypto/tls"
	"syscall"
)

// tighten makes a socket's buffers, or those of the connections that a listener accepts,
// as small as they can be. It does nothing to what is no socket.
func tighten(socket any) { buffer(socket, 4<<10, 4<<10) }

// makeRoom has a lot wait for a socket's peer.
func makeRoom(socket any) { buffer(socket, 0, 128<<10) }

func buffer(socket any, receive, send int) {
	if t, ok := socket.(*tls.Conn); ok {
		socket = t.NetConn()
	}
	s, ok := socket.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if receive > 0 {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receive)
		}
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, send)
	})
}
