//go:build linux || darwin

package leveetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

func openFilesDir() string {
	if runtime.GOOS == "linux" {
		return "/proc/self/fd" // containers may lack /dev/fd
	}
	return "/dev/fd"
}

// openFiles lists this process's file descriptors.
func openFiles() ([]openFile, error) {
	entries, err := os.ReadDir(openFilesDir())
	if err != nil {
		return nil, err
	}
	files := make([]openFile, 0, len(entries))
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		var stat syscall.Stat_t
		if syscall.Fstat(fd, &stat) != nil {
			continue // closed since, such as the one that ReadDir itself had
		}
		files = append(files, openFile{
			fd:     fd,
			device: uint64(stat.Dev), //nolint:unconvert // int32 on macOS
			inode:  stat.Ino,
			pipe:   stat.Mode&syscall.S_IFMT == syscall.S_IFIFO,
		})
	}
	return files, nil
}

// describe names what the descriptor refers to, as far as the system tells.
func (f openFile) describe() string {
	name, err := os.Readlink(filepath.Join(openFilesDir(), strconv.Itoa(f.fd)))
	if err != nil { // macOS has no links there
		name = fmt.Sprintf("device %d, inode %d", f.device, f.inode)
	}
	local, err := syscall.Getsockname(f.fd)
	if err != nil {
		return name // no socket
	}
	name += " at " + sockaddrString(local)
	if remote, err := syscall.Getpeername(f.fd); err == nil {
		name += " connected to " + sockaddrString(remote)
	}
	return name
}

func sockaddrString(addr syscall.Sockaddr) string {
	switch addr := addr.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(addr.Addr), uint16(addr.Port)).String()
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(addr.Addr), uint16(addr.Port)).String()
	case *syscall.SockaddrUnix:
		return (&net.UnixAddr{Name: addr.Name, Net: "unix"}).String()
	}
	return "an address of another family"
}
