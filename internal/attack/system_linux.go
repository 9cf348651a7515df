package attack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// prepareSocket sets what has to be set before a socket is bound and connected.
func prepareSocket(source netip.Addr, receive int) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) {
			if source.IsValid() { // a port is chosen when it connects, so that all 28,000 are there for each pair of addresses
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
			}
			if err == nil && source.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			}
			if err == nil && receive > 0 { // before it connects, or a larger window is promised
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receive)
			}
		})
		return errors.Join(failed, err)
	}
}

// standBack lets whoever else wants a processor have it before this process. The attackers of a flood are
// other machines in truth, and keep nobody from the server's processors.
func standBack() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads { // later ones are as those that start them
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, 10); err != nil && err != unix.ESRCH {
			return os.NewSyscallError("setpriority", err)
		}
	}
	return nil
}

// The states of a TCP socket in which the server has ended it (include/net/tcp_states.h).
const (
	tcpClose     = 7
	tcpCloseWait = 8
)

// ended looks at the socket without reading from it, and returns how the server has
// ended it, if it has.
func ended(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	case info.State == tcpClose:
		return syscall.ECONNRESET
	case info.State == tcpCloseWait:
		return io.EOF
	}
	return nil
}

// filesLeft is how many connections there are files for.
func filesLeft() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return maxConnections
	}
	open, _ := os.ReadDir("/proc/self/fd")
	return max(1, min(maxConnections, int(min(limit.Cur, 1<<30))-len(open)-spareFiles))
}

// processesOf measures the processes that have the listening socket: a server's
// workers share it with who started them.
func processesOf(target netip.AddrPort) Meter {
	pids, err := listenersOf(target)
	return func(context.Context) (Vitals, error) {
		total := Vitals{Connections: -1, Goroutines: -1}
		if err != nil {
			return total, err
		}
		for _, pid := range pids {
			if err := total.add(pid); err != nil {
				return total, err
			}
		}
		return total, nil
	}
}

// clockTick is the unit of times in /proc/PID/stat on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func (v *Vitals) add(pid string) error {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return err
	}
	// After the name, which may hold anything, follow the third field and the rest: utime is the 14th, stime the
	// 15th, rss the 24th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 22 {
		return fmt.Errorf("/proc/%s/stat: not understood", pid)
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(fields[i-3], 10, 64)
		return n
	}
	v.CPU += time.Duration(number(14)+number(15)) * clockTick
	v.Memory += number(24) * int64(os.Getpagesize())
	files, err := os.ReadDir(filepath.Join("/proc", pid, "fd"))
	for _, f := range files { // servers keep pipes to splice through, and Go's package net until it collects garbage
		if link, _ := os.Readlink(filepath.Join("/proc", pid, "fd", f.Name())); !strings.HasPrefix(link, "pipe:") {
			v.Files++
		}
	}
	return err
}

// listenersOf finds the processes that listen on an address.
func listenersOf(target netip.AddrPort) (pids []string, err error) {
	sockets := listeningSockets(target)
	if len(sockets) == 0 {
		return nil, errors.New("nobody listens there on this machine")
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, process := range processes {
		files, _ := os.ReadDir(filepath.Join(process, "fd")) // others' are not to be seen
		if slices.ContainsFunc(files, func(f os.DirEntry) bool {
			link, _ := os.Readlink(filepath.Join(process, "fd", f.Name()))
			return slices.Contains(sockets, link)
		}) {
			pids = append(pids, filepath.Base(process))
		}
	}
	if len(pids) == 0 {
		return nil, errors.New("its process is not ours to look at")
	}
	return pids, nil
}

// listeningSockets returns those of the address and of any address, as they are
// called in /proc/PID/fd.
func listeningSockets(target netip.AddrPort) (names []string) {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			columns := strings.Fields(lines.Text()) // slot, local address, remote address, state, …, inode the tenth
			if len(columns) > 9 && columns[3] == "0A" && isAt(columns[1], target) {
				names = append(names, "socket:["+columns[9]+"]")
			}
		}
	}
	return names
}

// isAt reads an address as the kernel's tables write it: words of 32 bits in the
// machine's byte order, and the port, in hexadecimal.
func isAt(text string, target netip.AddrPort) bool {
	host, port, _ := strings.Cut(text, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	words, err2 := hex.DecodeString(host)
	if err != nil || err2 != nil || uint16(number) != target.Port() {
		return false
	}
	for word := range slices.Chunk(words, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	ip, ok := netip.AddrFromSlice(words)
	ip = ip.Unmap()
	return ok && (ip == target.Addr() || ip.IsUnspecified())
}
