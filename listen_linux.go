package levee

import (
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Linux gives an accepted socket its listener's options: four system calls
// fewer for every connection.
const listenerOptionsInherited = true

func setListenerOptions(fd int) error {
	for _, option := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		if err := unix.SetsockoptInt(fd, option.level, option.name, option.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// kernelQueue returns how many connections wait in a TCP listener's accept
// queue, and how many may: on a listening socket TCP_INFO's unacked and sacked
// mean that (tcp_get_info in the kernel's net/ipv4/tcp.c).
func kernelQueue(l net.Listener) (length, limit int) {
	tcp, ok := l.(syscall.Conn)
	if !ok {
		return 0, 0
	}
	sock, err := tcp.SyscallConn()
	if err != nil {
		return 0, 0
	}
	var info *unix.TCPInfo
	if e := sock.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil || err != nil {
		return 0, 0
	}
	return int(info.Unacked), int(info.Sacked)
}
