package handover

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstSystemdFile = 3 // SD_LISTEN_FDS_START
	notifyLimit      = time.Second
	maxSystemdFiles  = 4096 // systemd itself stops at its FileDescriptorStoreMax and its sockets' number
)

// Notify tells systemd of the process's state: lines such as "STATUS=Draining", see sd_notify(3). It does nothing
// if systemd has not asked to be told (NOTIFY_SOCKET).
func Notify(lines ...string) error { return notify(lines, nil) }

func notify(lines []string, rights []byte) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	// Not by net, which sends no descriptors by a datagram socket that is connected.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify systemd: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(notifyLimit.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)
	err = unix.Sendmsg(fd, []byte(strings.Join(lines, "\n")), rights, &unix.SockaddrUnix{Name: address}, 0) // it knows @ for abstract ones
	if err != nil {
		return fmt.Errorf("notify systemd: %w", os.NewSyscallError("sendmsg", err))
	}
	return nil
}

// monotonicTime is what systemd wants to know of a reload's beginning, so that it takes no earlier end for its.
func monotonicTime() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // Linux has that clock
	return fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)
}

// NotifyReloading tells systemd that the service reads its configuration anew (Type=notify-reload). It is over when systemd is told
// READY=1, by Notify.
func NotifyReloading() error { return Notify("RELOADING=1", monotonicTime()) }

// Store puts a listener's socket into systemd's file descriptor store, under the address by which [Process.Listen] finds it if
// the process dies and is started again: those who wait in its queue are served then. The unit needs a
// FileDescriptorStoreMax of at least as many. It does nothing if systemd has not asked to be told anything.
//
// Sockets that systemd has made need no storing, and those that a predecessor has stored are there already.
func (p *Process) Store(s Socket) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	f, err := socketOf(s)
	if err != nil {
		return err
	}
	defer f.Close()
	return notify([]string{"FDSTORE=1", "FDNAME=" + storedName(s.Address)}, unix.UnixRights(descriptor(f)))
}

// Unstore takes the sockets that were stored under an address out of the store.
func (p *Process) Unstore(address string) error {
	return notify([]string{"FDSTOREREMOVE=1", "FDNAME=" + storedName(address)}, nil)
}

// A name in the store has no colon (sd_pid_notify_with_fds(3)), of which an address is full.
func storedName(address string) string { return strings.ReplaceAll(address, ":", "|") }
func givenName(name string) string     { return strings.ReplaceAll(name, "|", ":") }

// beginFromSystemd takes the sockets that systemd has given, as sd_listen_fds(3) describes.
func (p *Process) beginFromSystemd() {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		_ = os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if pid != strconv.Itoa(os.Getpid()) || err != nil || n <= 0 || n > maxSystemdFiles {
		return
	}
	p.origin = Systemd
	named := strings.Split(names, ":")
	for i := range n {
		name := "unknown" // systemd's own word for it
		if i < len(named) {
			name = givenName(named[i])
		}
		unix.CloseOnExec(firstSystemdFile + i)
		p.inherit(name, os.NewFile(uintptr(firstSystemdFile+i), name), false) //nolint:gosec // small
	}
}
