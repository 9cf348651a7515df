package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// canSupervise reports whether there are supervisors on this system.
const canSupervise = true

// A supervisor is a process that lives for as long as any levee does that it has started or that has taken
// that one's place. It is for those who follow one process, as a container does: an upgrade would end that
// otherwise. It serves nothing, and has nothing that can break.
type supervisor struct {
	env Env

	mu   sync.Mutex
	main int          // the process that serves
	all  map[int]bool // those that are not known to have ended
}

// supervise starts levee with the arguments, and returns its exit code when the last of its line has ended.
func supervise(ctx context.Context, env Env, args []string) error {
	// Who takes a levee's place is its child, and becomes ours when that has ended.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return exit(exitNotStart, fmt.Errorf("supervise: %w", err))
	}
	notes, tidy, err := listenForNotes()
	if err != nil {
		return exit(exitNotStart, fmt.Errorf("supervise: %w", err))
	}
	defer tidy()
	defer notes.Close()
	s := &supervisor{env: env, all: make(map[int]bool)}
	attr := &os.ProcAttr{
		Env:   append(ownEnviron(), supervised+"=1", "NOTIFY_SOCKET="+notes.LocalAddr().String()),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true}, // or a Ctrl-C would come twice: from the terminal, and from here
	}
	child, err := os.StartProcess(env.Executable, args, attr)
	if err != nil {
		return exit(exitNotStart, fmt.Errorf("supervise: %w", err))
	}
	s.becomes(child.Pid)
	go s.hear(notes) // ends when notes is closed
	ended := make(chan struct{})
	go s.passOn(ctx, ended) // ends with them
	code := s.await()
	close(ended)
	if code != exitClean {
		return &exitError{code: code}
	}
	return nil
}

// listenForNotes listens where no other user can fill the queue: in a folder of its own. Where there can be none, as in a container
// whose files cannot be written, it listens where nobody can guess, but everybody can look. tidy is to be called at the end.
func listenForNotes() (notes *net.UnixConn, tidy func(), err error) {
	if folder, err := os.MkdirTemp("", "levee-supervisor-"); err == nil {
		tidy = func() { _ = os.RemoveAll(folder) }
		if notes, err := listenForNotesAt(filepath.Join(folder, "notes")); err == nil {
			return notes, tidy, nil
		}
		tidy()
	}
	notes, err = listenForNotesAt("@levee-supervisor-" + rand.Text())
	return notes, func() {}, err
}

func listenForNotesAt(name string) (*net.UnixConn, error) {
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		return nil, err
	}
	sock, err := notes.SyscallConn()
	if err == nil {
		e := sock.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) //nolint:gosec // descriptors are small
		})
		err = errors.Join(err, e)
	}
	if err != nil {
		_ = notes.Close()
		return nil, err
	}
	return notes, nil
}

// ownEnviron is the environment without what is for this process alone.
func ownEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "NOTIFY_SOCKET=") || strings.HasPrefix(s, supervised+"=")
	})
}

// isFromOurs reports whether a note is from a process that serves, or has: any other would have this one signal whom it likes.
func (s *supervisor) isFromOurs(control []byte) bool {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		if from, err := unix.ParseUnixCredentials(&m); err == nil {
			return s.all[int(from.Pid)]
		}
	}
	return false
}

// becomes has a process be the one that serves.
func (s *supervisor) becomes(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main, s.all[pid] = pid, true
}

// hear listens for who serves: what systemd is told (sd_notify) is told to us.
func (s *supervisor) hear(notes *net.UnixConn) {
	note, control := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, m, _, _, err := notes.ReadMsgUnix(note, control)
		if err != nil {
			return
		}
		if !s.isFromOurs(control[:m]) {
			continue
		}
		for line := range bytes.Lines(note[:n]) {
			pid, is := bytes.CutPrefix(bytes.TrimSpace(line), []byte("MAINPID="))
			if number, err := strconv.Atoi(string(pid)); is && err == nil && number > 1 {
				s.becomes(number)
			}
		}
	}
}

// passOn passes signals on: to whoever serves, and those that end to all.
func (s *supervisor) passOn(ctx context.Context, ended <-chan struct{}) {
	done := ctx.Done()
	for {
		var sig os.Signal
		select {
		case <-ended:
			return
		case <-done:
			done, sig = nil, syscall.SIGTERM
		case sig = <-s.env.Signals:
		}
		s.mu.Lock()
		for pid := range s.all {
			if pid == s.main || sig == os.Interrupt || sig == syscall.SIGTERM {
				_ = unix.Kill(pid, sig.(syscall.Signal)) // fails for one that has ended
			}
		}
		s.mu.Unlock()
	}
}

// await waits for all children, those of others that have become ours too, and returns the exit code of
// the last that served.
func (s *supervisor) await() (code int) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil: // there are none
			return s.lastCode(code)
		}
		s.mu.Lock()
		delete(s.all, pid)
		if pid == s.main {
			code = exitCodeOf(status)
			s.main = 0
		}
		lost := s.main == 0
		s.mu.Unlock()
		if lost && !s.findHeir() { // it could not say who serves now, and has left nobody
			return code
		}
	}
}

// lastCode is what the last has ended with that served, if that is known: if it died while the process before it still drained, that
// one alone has heard of it.
func (s *supervisor) lastCode(code int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != 0 {
		return exitCut
	}
	return code
}

func exitCodeOf(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal()) // as a shell has it
	}
	return status.ExitStatus()
}

// findHeir has a child be the one that serves, and reports whether there is one. Other children are orphans of whoever else
// works in the container.
func (s *supervisor) findHeir() (found bool) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for field := range bytes.FieldsSeq(text) {
			if pid, err := strconv.Atoi(string(field)); err == nil && isSupervised(pid) {
				s.becomes(pid)
				found = true
			}
		}
	}
	return found
}

// isSupervised reports whether a process is a levee that has a supervisor.
func isSupervised(pid int) bool {
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(s []byte) bool { return string(s) == supervised+"=1" })
}
