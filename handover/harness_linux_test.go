package handover

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A said line is what a child has told.
type said struct {
	PID       int               `json:"pid"`
	What      string            `json:"what"`
	Address   string            `json:"address"`
	Addresses map[string]string `json:"addresses"`
	Stayed    int               `json:"stayed"`
	State     string            `json:"state"`
	From      string            `json:"from"`
	Error     string            `json:"error"`
	Upgrading bool              `json:"upgrading"`
	By        int               `json:"by"`
	Moved     int               `json:"moved"`
	Adopted   int               `json:"adopted"`
	MS        int               `json:"ms"`
}

// A family is a process, and those that replace it.
type family struct {
	t       *testing.T
	first   *exec.Cmd
	address string
	stderr  *lockedBuffer

	mu    sync.Mutex
	lines []said
	more  chan struct{} // closed, and made anew, with each line
	gone  chan struct{} // closed when the first has ended
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var quickly = []string{"CHILD_SETTLE=50ms", "CHILD_PROBATION=150ms", "CHILD_READY=5s", "CHILD_LISTEN=127.0.0.1:0"}

// startFamily starts a process that serves. All that it leaves behind is killed at the test's end.
func startFamily(t *testing.T, env ...string) *family {
	t.Helper()
	f := startCommand(t, childCommand(), env...)
	f.address = f.await("serving", 0).Address
	return f
}

func childCommand() *exec.Cmd { return exec.Command(os.Args[0]) }

// startCommand starts a command that becomes such a process.
func startCommand(t *testing.T, command *exec.Cmd, env ...string) *family {
	t.Helper()
	f := &family{t: t, first: command, more: make(chan struct{}), gone: make(chan struct{}), stderr: new(lockedBuffer)}
	f.first.Env = slices.Concat(os.Environ(), []string{childRole + "=echo"}, quickly, env)
	f.first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, in, err := os.Pipe() // not exec's: Wait would wait for the successors
	if err != nil {
		t.Fatal(err)
	}
	errOut, errIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f.first.Stdout, f.first.Stderr = in, errIn
	if err := f.first.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Close(), errIn.Close()
	var reading sync.WaitGroup
	reading.Go(func() { f.read(out) })
	reading.Go(func() { _, _ = io.Copy(f.stderr, errOut) })
	go func() {
		_ = f.first.Wait()
		close(f.gone)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-f.first.Process.Pid, syscall.SIGKILL)
		<-f.gone
		reading.Wait()
		_, _ = out.Close(), errOut.Close()
		if t.Failed() {
			t.Logf("told:\n%s", f.told())
			t.Logf("errors:\n%s", f.stderr)
		}
	})
	return f
}

func (f *family) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var line said
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			line.What = "?" + lines.Text()
		}
		f.mu.Lock()
		f.lines = append(f.lines, line)
		close(f.more)
		f.more = make(chan struct{})
		f.mu.Unlock()
	}
}

func (f *family) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all strings.Builder
	for _, l := range f.lines {
		fmt.Fprintf(&all, "%+v\n", l)
	}
	return all.String()
}

// await waits for a line, of those of the processes if pid is 0, or else of one.
func (f *family) await(what string, pid int) said {
	f.t.Helper()
	line, ok := f.awaitAny(15*time.Second, func(l said) bool { return l.What == what && (pid == 0 || l.PID == pid) })
	if !ok {
		f.t.Fatalf("nobody has said %q; told so far:\n%serrors:\n%s", what, f.told(), f.stderr)
	}
	return line
}

func (f *family) awaitAny(limit time.Duration, wanted func(said) bool) (said, bool) {
	deadline := time.After(limit)
	for {
		f.mu.Lock()
		more := f.more
		for _, l := range f.lines {
			if wanted(l) {
				f.mu.Unlock()
				return l, true
			}
		}
		f.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			return said{}, false
		}
	}
}

func (f *family) pid() int { return f.first.Process.Pid }

// successor waits for the process that replaces the first to serve.
func (f *family) successor() said {
	f.t.Helper()
	line, ok := f.awaitAny(15*time.Second, func(l said) bool { return l.What == "serving" && l.PID != f.pid() })
	if !ok {
		f.t.Fatalf("no successor serves; told so far:\n%serrors:\n%s", f.told(), f.stderr)
	}
	return line
}

func (f *family) signal(sig syscall.Signal) {
	f.t.Helper()
	if err := syscall.Kill(f.pid(), sig); err != nil {
		f.t.Fatal(err)
	}
}

// whoAnswers connects, and returns the number of the process that greets.
func (f *family) whoAnswers(limit time.Duration) (pid int, err error) {
	network := "tcp"
	if strings.HasPrefix(f.address, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, f.address, limit)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(line))
}

const streamChunk = 1504 // bytes, in words

// A stream is a connection whose bytes are checked, without a pause.
type stream struct {
	c    net.Conn
	born int // the process that greeted it
	n    atomic.Int64
	lost atomic.Bool  // it was cut
	bad  atomic.Value // what was wrong with its bytes
	done chan struct{}
}

// startStream connects to who greets with the number of the process.
func startStream(t *testing.T, address string, seed uint64) *stream {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s := flow(t, c, in, seed)
	s.born, _ = strconv.Atoi(strings.TrimSpace(line))
	return s
}

// newStream connects to who does not.
func newStream(t *testing.T, path string, seed uint64) *stream {
	t.Helper()
	c := dialUnix(t, path)
	return flow(t, c, c, seed)
}

// flow begins. The bytes come from the seed, and what comes back is compared with them.
func flow(t *testing.T, c net.Conn, in io.Reader, seed uint64) *stream {
	s := &stream{c: c, done: make(chan struct{})}
	go s.write(rand.NewPCG(seed, 1))
	go s.check(in, rand.NewPCG(seed, 1))
	t.Cleanup(s.stop)
	return s
}

// fill fills whole words of 8 bytes.
func fill(b []byte, from *rand.PCG) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, from.Uint64())
	}
}

func (s *stream) write(from *rand.PCG) {
	chunk := make([]byte, streamChunk)
	for {
		fill(chunk, from)
		if _, err := s.c.Write(chunk); err != nil {
			return
		}
		<-time.After(4 * time.Millisecond) // so that several fit onto a machine
	}
}

func (s *stream) check(in io.Reader, from *rand.PCG) {
	defer close(s.done)
	got, want := make([]byte, streamChunk), make([]byte, streamChunk)
	for {
		n, err := io.ReadFull(in, got)
		fill(want, from)
		if !bytes.Equal(got[:n], want[:n]) {
			s.bad.Store(fmt.Sprintf("bytes from %d on are not what was sent", s.n.Load()))
		}
		s.n.Add(int64(n))
		if err != nil {
			s.lost.Store(!errors.Is(err, net.ErrClosed))
			return
		}
	}
}

// flows waits until some more has come back, and reports whether it has.
func (s *stream) flows(limit time.Duration) bool {
	before := s.n.Load()
	waitUntil(limit, func() bool { return s.n.Load() > before || s.lost.Load() })
	return s.n.Load() > before
}

// waitUntil looks again and again, as what it waits for happens in another process, and reports whether it has.
func waitUntil(limit time.Duration, happened func() bool) bool {
	deadline := time.After(limit)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !happened() {
		select {
		case <-deadline:
			return false
		case <-again.C:
		}
	}
	return true
}

func (s *stream) stop() {
	_ = s.c.Close()
	<-s.done
}

func alive(pid int) bool {
	state := stateOf(pid)
	return state != "" && state != "Z" && state != "X"
}

// stateOf returns the kernel's letter for what a process does, or nothing if there is none.
func stateOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}
