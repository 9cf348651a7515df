package bare

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Accept takes a connection from a listening socket, which must be non-blocking, as
// the new one is. It returns unix.EAGAIN as it is if there is none, and every other
// error as an *os.SyscallError. An IPv4 peer of an IPv6 listener has an IPv4 address;
// the peer of a socket that is neither has none.
func Accept(listener int) (fd int, peer netip.AddrPort, err error) {
	for {
		var name sockaddr
		size := uint32(len(name))
		fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0) //nolint:gosec // as unix.Accept4 does
		switch errno {
		case 0:
			return int(fd), name.addrPort(), nil
		case unix.EINTR, unix.ECONNABORTED: // the latter has left before it was accepted: the next may not have
			continue
		case unix.EAGAIN:
			return -1, netip.AddrPort{}, unix.EAGAIN
		}
		return -1, netip.AddrPort{}, os.NewSyscallError("accept4", errno)
	}
}

// Local returns the address that a socket is bound to, none if that is neither IPv4
// nor IPv6.
func Local(fd int) netip.AddrPort {
	var name sockaddr
	size := uint32(len(name))
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size))) //nolint:gosec // as unix.Getsockname does
	if errno != 0 {
		return netip.AddrPort{}
	}
	return name.addrPort()
}

// A sockaddr is a socket's address as the kernel writes it: struct sockaddr_in or
// sockaddr_in6 for those that are looked into.
type sockaddr [unix.SizeofSockaddrAny]byte

func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s[2:])
	switch binary.NativeEndian.Uint16(s[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s[4:8])), port)
	case unix.AF_INET6:
		addr := netip.AddrFrom16([16]byte(s[8:24])).Unmap()
		if scope := binary.NativeEndian.Uint32(s[24:]); scope != 0 {
			addr = addr.WithZone(zone(int(scope))) // which IPv4 has none of
		}
		return netip.AddrPortFrom(addr, port)
	}
	return netip.AddrPort{}
}

// zone returns what package net calls an interface: its name, or its number if it
// has gone.
func zone(index int) string {
	if ifi, err := net.InterfaceByIndex(index); err == nil {
		return ifi.Name
	}
	return strconv.Itoa(index)
}
