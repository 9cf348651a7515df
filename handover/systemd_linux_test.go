package handover

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A manager is told things as systemd is.
type manager struct {
	t       *testing.T
	conn    *net.UnixConn
	address string

	mu    sync.Mutex
	told  []string
	files []*os.File // that came along
	more  chan struct{}
}

func startManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, address: filepath.Join(t.TempDir(), "notify"), more: make(chan struct{}, 100)}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.address, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.listen()
	}()
	t.Cleanup(func() {
		_ = m.conn.Close()
		<-done
		for _, f := range m.files {
			_ = f.Close()
		}
	})
	return m
}

func (m *manager) listen() {
	message, rights := newBuffers()
	for {
		n, r, _, _, err := m.conn.ReadMsgUnix(message, rights)
		if err != nil {
			return
		}
		m.mu.Lock()
		m.told = append(m.told, string(message[:n]))
		for _, fd := range filesOf(rights[:r]) {
			m.files = append(m.files, os.NewFile(uintptr(fd), "stored"))
		}
		m.mu.Unlock()
		m.more <- struct{}{}
	}
}

// await waits until it has been told so many things.
func (m *manager) await(n int) []string {
	m.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		m.mu.Lock()
		told := m.told
		m.mu.Unlock()
		if len(told) >= n {
			return told
		}
		select {
		case <-m.more:
		case <-deadline:
			m.t.Fatalf("told only %q", told)
		}
	}
}

func TestSystemdIsToldOfReadinessAndOfTheNewMainProcess(t *testing.T) {
	m := startManager(t)
	f := startFamily(t, "NOTIFY_SOCKET="+m.address)
	f.signal(syscall.SIGUSR2)
	next := f.successor()
	told := m.await(3)
	if told[0] != "READY=1" {
		t.Errorf("told first of %q", told[0])
	}
	var since int64
	if n, err := fmt.Sscanf(told[1], "RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=Starting", &since); n != 1 || since <= 0 {
		t.Errorf("told of an upgrade by %q: %v", told[1], err)
	}
	if want := fmt.Sprintf("MAINPID=%d\nREADY=1\nSTATUS=Serving", next.PID); told[2] != want {
		t.Errorf("told at the end of %q, not of %q", told[2], want)
	}
}

func TestSystemdIsToldThatAFailedUpgradeIsOver(t *testing.T) {
	m := startManager(t)
	f := startFamily(t, "NOTIFY_SOCKET="+m.address, "CHILD_FAILS=no")
	f.signal(syscall.SIGUSR2)
	f.await("failed", f.pid())
	if told := m.await(3); !strings.HasPrefix(told[2], "READY=1\n") {
		t.Errorf("told at the end of %q", told[2])
	}
}

func TestSystemdIsToldOfTheMainProcessWhoseParentHasDied(t *testing.T) {
	m := startManager(t)
	f := startFamily(t, "NOTIFY_SOCKET="+m.address, "CHILD_SLOW=300ms")
	f.signal(syscall.SIGUSR2)
	f.awaitAny(5*time.Second, func(l said) bool { return l.What == "begun" && l.PID != f.pid() })
	f.signal(syscall.SIGKILL)
	next := f.successor()
	if told, want := m.await(3), fmt.Sprintf("MAINPID=%d\nREADY=1", next.PID); told[2] != want {
		t.Errorf("told of %q, not of %q", told[2], want)
	}
}

func TestClientsInTheQueueOutliveACrash(t *testing.T) {
	m := startManager(t)
	f := startFamily(t, "NOTIFY_SOCKET="+m.address, "CHILD_STORES=1")
	if told := m.await(2); told[1] != "FDSTORE=1\nFDNAME=127.0.0.1|0" {
		t.Errorf("the store was told %q", told[1])
	}
	f.signal(syscall.SIGSTOP)
	if !waitUntil(time.Second, func() bool { return stateOf(f.pid()) == "T" }) {
		t.Fatal("it does not stop")
	}
	parked, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer parked.Close()
	f.signal(syscall.SIGKILL)
	<-f.gone

	again := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	again.ExtraFiles = m.files
	g := startCommand(t, again, "LISTEN_FDS=1", "LISTEN_FDNAMES=127.0.0.1|0")
	next := g.await("serving", 0)
	if next.From != "systemd" || next.Address != f.address {
		t.Errorf("it came from %s and listens on %s, not on %s", next.From, next.Address, f.address)
	}
	_ = parked.SetDeadline(time.Now().Add(5 * time.Second))
	var pid int
	if _, err := fmt.Fscanln(parked, &pid); err != nil || pid != next.PID {
		t.Errorf("who waited in the queue was served by %d (%v), not by %d", pid, err, next.PID)
	}
}

func TestSocketActivatedProcessCanBeReplaced(t *testing.T) {
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("Debian's package systemd has systemd-socket-activate: ", err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	command := exec.Command(activate, "--listen="+path, "--setenv="+childRole, "--setenv=CHILD_LISTEN",
		"--setenv=CHILD_SETTLE", "--setenv=CHILD_PROBATION", os.Args[0])
	f := startCommand(t, command, "CHILD_LISTEN=unix:"+path)
	f.address = path
	var first int
	waitUntil(5*time.Second, func() bool { // systemd-socket-activate listens
		first, err = f.whoAnswers(10 * time.Second)
		return err == nil
	})
	if err != nil || first != f.pid() {
		t.Fatalf("%d answers (%v), not %d", first, err, f.pid())
	}
	if from := f.await("serving", first).From; from != "systemd" {
		t.Errorf("it came from %s", from)
	}
	f.signal(syscall.SIGUSR2)
	next := f.successor()
	<-f.gone
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != next.PID {
		t.Errorf("%d answers (%v), not %d", pid, err, next.PID)
	}
}

func TestStoredSocketIsTakenOutByItsAddress(t *testing.T) {
	m := startManager(t)
	t.Setenv("NOTIFY_SOCKET", m.address)
	if err := new(Process).Unstore("unix:/run/levee.sock"); err != nil {
		t.Fatal(err)
	}
	if told := m.await(1); told[0] != "FDSTOREREMOVE=1\nFDNAME=unix|/run/levee.sock" {
		t.Errorf("the store was told %q", told[0])
	}
}

func TestSocketsForAnotherProcessAreNotTaken(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	p, err := Begin()
	if err != nil {
		t.Fatal(err)
	}
	if p.From() != Nobody || os.Getenv("LISTEN_FDS") != "" {
		t.Errorf("from %v, and LISTEN_FDS is %q", p.From(), os.Getenv("LISTEN_FDS"))
	}
}

func TestListenFindsASocketByNameAndByWhatItIsBoundTo(t *testing.T) {
	folder := t.TempDir()
	for _, c := range []struct {
		bound, named string // how the socket was made and given
		asked        func(port string) string
		found        bool
	}{
		{"127.0.0.1:0", "127.0.0.1:0", func(string) string { return "127.0.0.1:0" }, true},
		{"127.0.0.1:0", "unknown", func(port string) string { return "127.0.0.1:" + port }, true},
		{"127.0.0.1:0", "unknown", func(port string) string { return "localhost:" + port }, true},
		{"127.0.0.1:0", "unknown", func(port string) string { return ":" + port }, false},
		{"127.0.0.1:0", "unknown", func(string) string { return "127.0.0.1:0" }, false},
		{":0", "unknown", func(port string) string { return ":" + port }, true},
		{":0", "unknown", func(port string) string { return "[::]:" + port }, true},
		{":0", "unknown", func(port string) string { return "0.0.0.0:" + port }, true},
		{":0", "web.socket", func(string) string { return "web.socket" }, true},
		{"[::1]:0", "unknown", func(port string) string { return "[::1]:" + port }, true},
		{"[::1]:0", "unknown", func(port string) string { return "127.0.0.1:" + port }, false},
		{"unix:" + folder + "/a", "unknown", func(string) string { return "unix:" + folder + "/a" }, true},
		{"unix:" + folder + "/a", "unknown", func(string) string { return "unix:" + folder + "/b" }, false},
	} {
		own, f := socketAt(t, c.bound)
		p := new(Process)
		p.inherit(c.named, f, false)
		_, port, _ := net.SplitHostPort(own.Addr().String())
		address := c.asked(port)
		if found := p.claim(t.Context(), address); (found != nil) != c.found {
			t.Errorf("%s, given as %s, and asked for as %s: found %v", c.bound, c.named, address, found != nil)
		} else if found != nil {
			_ = found.file.Close()
		}
		if again := p.claim(t.Context(), address); again != nil {
			t.Errorf("%s is given out twice", c.bound)
		}
		_ = own.Close()
	}
}

// socketAt listens, and returns a copy of the socket too.
func socketAt(t *testing.T, address string) (net.Listener, *os.File) {
	t.Helper()
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return l, f
}

func TestUnaskedSocketsAreClosedWhenTheProcessIsReady(t *testing.T) {
	own, f := socketAt(t, "127.0.0.1:0")
	p := new(Process)
	p.inherit("unknown", f, false)
	_ = own.Close()
	if _, err := net.Dial("tcp", own.Addr().String()); err != nil {
		t.Errorf("it is closed too early: %v", err)
	}
	if err := p.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", own.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the socket is still there")
	}
}

func TestUnixSocketStaysWhereItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	f := startFamily(t, "CHILD_LISTEN=unix:"+path)
	f.signal(syscall.SIGUSR2)
	next := f.successor()
	<-f.gone
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != next.PID {
		t.Errorf("%d answers (%v), not %d", pid, err, next.PID)
	}
}

func TestUnixSocketIsRemovedByItsLastOwner(t *testing.T) {
	end := func(t *testing.T, path string) (next said) {
		f := startFamily(t, "CHILD_LISTEN=unix:"+path)
		f.signal(syscall.SIGUSR2)
		next = f.successor()
		<-f.gone
		if _, err := os.Stat(path); err != nil {
			t.Errorf("it has gone with the first process: %v", err)
		}
		return next
	}
	terminate := func(t *testing.T, next said) {
		if err := syscall.Kill(next.PID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if !waitUntil(5*time.Second, func() bool { return !alive(next.PID) }) {
			t.Fatal("the successor does not end")
		}
	}
	t.Run("who is not the first", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "socket")
		terminate(t, end(t, path))
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("it is left behind: %v", err)
		}
	})
	t.Run("unless it is somebody else's by now", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "socket")
		next := end(t, path)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		other, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		terminate(t, next)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("another's is removed: %v", err)
		}
	})
}

func TestPIDFileIsOfWhoServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	f := startFamily(t, "CHILD_PIDFILE="+path)
	holds := func(pid int) {
		t.Helper()
		content, err := os.ReadFile(path)
		if want := fmt.Sprintln(pid); err != nil || string(content) != want {
			t.Errorf("it holds %q (%v), not %q", content, err, want)
		}
	}
	holds(f.pid())
	f.signal(syscall.SIGUSR2)
	next := f.successor()
	holds(next.PID)
	<-f.gone
	holds(next.PID)
	if err := syscall.Kill(next.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitUntil(5*time.Second, func() bool { return !alive(next.PID) })
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is left behind: %v", err)
	}
}
