package app

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const tcpListen = "0A" // TCP_LISTEN in /proc/net/tcp

// portOwner names the process whose listening socket is in the way of a new one
// for the address, as "name (process 42)", or nothing if it may not be known: only
// root sees the sockets of others.
func portOwner(wanted netip.AddrPort) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if inode := listenerInode(table, wanted); inode != "" {
			return socketOwner(inode)
		}
	}
	return ""
}

// listenerInode finds a listening socket in one of the kernel's tables, whose
// columns are: slot, local address, remote address, state, …, inode the tenth.
func listenerInode(table string, wanted netip.AddrPort) string {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) > 9 && columns[3] == tcpListen && inTheWay(kernelAddr(columns[1]), wanted) {
			return columns[9]
		}
	}
	return ""
}

func inTheWay(taken, wanted netip.AddrPort) bool {
	a, b := taken.Addr().Unmap(), wanted.Addr().Unmap()
	return taken.Port() == wanted.Port() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// kernelAddr reads an address as the kernel's tables write it: 32-bit words in
// the machine's byte order, and the port, all in hexadecimal.
func kernelAddr(text string) netip.AddrPort {
	host, port, _ := strings.Cut(text, ":")
	words, err := hex.DecodeString(host)
	if err != nil || len(words)%4 != 0 {
		return netip.AddrPort{}
	}
	for word := range slices.Chunk(words, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	ip, ok := netip.AddrFromSlice(words)
	number, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, uint16(number))
}

func socketOwner(inode string) string {
	target := "socket:[" + inode + "]"
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return ""
	}
	for _, process := range processes {
		files, err := os.ReadDir(process + "/fd")
		if err != nil {
			continue // gone, or somebody else's
		}
		for _, file := range files {
			if link, err := os.Readlink(filepath.Join(process, "fd", file.Name())); err == nil && link == target {
				return processName(process)
			}
		}
	}
	return ""
}

func processName(process string) string {
	name, err := os.ReadFile(process + "/comm")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s (process %s)", strconv.QuoteToGraphic(strings.TrimSpace(string(name))), filepath.Base(process))
}
