package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A notice is what a service has told its supervisor.
type notice struct {
	from  int // the process
	lines []string
}

// A supervisor is what systemd is to a service of Type=notify.
type supervisor struct {
	socket  string
	mu      sync.Mutex
	notices []notice
}

func newSupervisor(t *testing.T) *supervisor {
	t.Helper()
	s := &supervisor{socket: filepath.Join(t.TempDir(), "notify")}
	if len(s.socket) > 100 {
		t.Skipf("skipped: %s is too long for a socket", s.socket)
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		t.Fatal(err)
	}
	go s.listen(c) // ends with c
	return s
}

func (s *supervisor) listen(c *net.UnixConn) {
	text, control := make([]byte, 64<<10), make([]byte, 4096)
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		told := notice{lines: strings.Split(strings.TrimSpace(string(text[:n])), "\n")}
		messages, _ := unix.ParseSocketControlMessage(control[:oobn])
		for _, m := range messages {
			if who, err := unix.ParseUnixCredentials(&m); err == nil {
				told.from = int(who.Pid)
			}
			if files, err := unix.ParseUnixRights(&m); err == nil { // for the fd store
				for _, fd := range files {
					_ = unix.Close(fd)
				}
			}
		}
		s.mu.Lock()
		s.notices = append(s.notices, told)
		s.mu.Unlock()
	}
}

// heard reports whether a process has said that.
func (s *supervisor) heard(from int, line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.notices, func(n notice) bool { return n.from == from && slices.Contains(n.lines, line) })
}

func (s *supervisor) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.notices)
}

func TestASupervisorLearnsWhichProcessServes(t *testing.T) {
	s := newSupervisor(t)
	t.Setenv("NOTIFY_SOCKET", s.socket)
	l := begin(t, config(t, quickly, ""))
	pid := l.pid()
	awaits := func(from int, line string) {
		t.Helper()
		for late := time.Now().Add(patience); !s.heard(from, line); <-time.After(5 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("process %d never says %s; what was said is %s", from, line, s.all())
			}
		}
	}
	awaits(pid, "READY=1")
	for range 2 {
		u := l.succeeds()
		// The process that was the main one has to say so: systemd believes no other.
		awaits(pid, fmt.Sprintf("MAINPID=%d", u.PID))
		if code := l.gone(pid); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if s.heard(pid, "STOPPING=1") {
			t.Errorf("process %d has said that the service stops: %s", pid, s.all())
		}
		pid = u.PID
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaits(pid, "STOPPING=1")
	if code := l.gone(pid); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestASocketOfSystemdsIsServedAlsoAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	need(t, "systemd-socket-activate")
	address := "127.0.0.1:" + freePorts(t, 1)[0]
	path := write(t, "levee.yaml", `version: 1
admin: {listen: "127.0.0.1:0"}
overload: {mode: off}
upgrade: {settle: 100ms, probation: 300ms}
listeners:
  - {name: main, listen: ["`+address+`"], routes: [{handler: echo}]}
`)
	binary := ownBinary(t)
	l := beginAs(t, binary, exec.Command("systemd-socket-activate", "--listen", address, binary, "serve", "-c", path))
	eventually(t, "systemd-socket-activate listens", func() bool { return strings.Contains(l.stderr.String(), "Listening on "+address) })
	queued := dial(t, address) // levee is started for it
	if err := echoesOn(queued); err != nil {
		t.Fatal(err)
	}
	if got := l.address(); got != address {
		t.Errorf("it listens on %s", got)
	}
	old := l.mustTell().PID
	if old != l.pid() {
		t.Errorf("process %d serves, and %d was started", old, l.pid())
	}
	newcomers := newCrowd(address)
	u := l.succeeds()
	if code := l.gone(old); code != 0 {
		t.Errorf("exit code %d", code)
	}
	newcomers.goes()
	if failed := newcomers.failed.Load(); failed > 0 || newcomers.served.Load() == 0 {
		t.Errorf("%d newcomers were served, %d not", newcomers.served.Load(), failed)
	}
	if err := echoesOn(queued); err != nil {
		t.Error(err)
	}
	if u.Moved < 1 {
		t.Errorf("%+v", u)
	}
}
