package leveetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestConnAnswersAsTheKernelDoes runs random scripts of calls on an in-memory
// connection and on a TCP connection over loopback, and compares every result.
func TestConnAnswersAsTheKernelDoes(t *testing.T) {
	listener := listenTCP(t)
	rapid.Check(t, func(t *rapid.T) {
		script := rapid.SliceOfN(rapid.SampledFrom(stepNames), 1, 14)
		for _, steps := range rapid.SliceOfN(script, 1, 10).Draw(t, "scripts") {
			compareScript(t, listener, steps)
		}
	})
}

// The scripts that the random ones have found to differ.
func TestConnAnswersAsTheKernelDoesAfter(t *testing.T) {
	listener := listenTCP(t)
	for _, script := range []string{
		"a.Write b.CloseWrite b.CloseRead a.Write b.Read", // the reset that the second write provokes keeps what the first brought
		"a.CloseWrite a.CloseRead b.Write b.Close a.Read", // a Close after that reset sends no FIN
	} {
		t.Run(script, func(t *testing.T) { compareScript(t, listener, strings.Fields(script)) })
	}
}

func compareScript(t fataler, listener net.Listener, steps []string) {
	t.Helper()
	twins := newTwins(t, listener)
	defer twins.close()
	for i, step := range steps {
		end, call, _ := strings.Cut(step, ".")
		inMemory, kernel := twins[end].call(call)
		if diff := cmp.Diff(kernel, inMemory); diff != "" {
			t.Fatalf("step %d, %s, of %v: in memory instead of the kernel's answer:\n%s", i, step, steps, diff)
		}
	}
}

// fataler is what testing and rapid have in common here.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

var stepNames = []string{
	"a.Write", "a.Read", "a.ReadAll", "a.CloseWrite", "a.CloseRead", "a.SetLinger0", "a.Close", "a.WriteNothing",
	"b.Write", "b.Read", "b.ReadAll", "b.CloseWrite", "b.CloseRead", "b.SetLinger0", "b.Close", "b.WriteNothing",
}

// twin is one end of a connection, in memory and in the kernel.
type twin struct {
	memory *Conn
	kernel *net.TCPConn
}

type twins map[string]twin

func newTwins(t fataler, listener net.Listener) twins {
	memoryA, memoryB := Pipe()
	kernelA, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	kernelB, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return twins{
		"a": {memoryA, kernelA.(*net.TCPConn)},
		"b": {memoryB, kernelB.(*net.TCPConn)},
	}
}

func (ts twins) close() {
	for _, t := range ts {
		t.kernel.SetLinger(0) // no TIME_WAIT after thousands of scripts
		t.kernel.Close()
		t.memory.Close()
	}
}

type answer struct {
	N   int
	Err string
}

// call makes the same call on both. The kernel's end first waits until
// everything has arrived that has arrived in memory.
func (t twin) call(name string) (inMemory, kernel answer) {
	t.awaitArrivals()
	switch name {
	case "Write":
		return written(t.memory, "hello"), written(t.kernel, "hello")
	case "WriteNothing":
		return written(t.memory, ""), written(t.kernel, "")
	case "Read":
		return t.read(2)
	case "ReadAll":
		return t.read(1 << 10)
	case "CloseWrite":
		return answerOf(0, t.memory.CloseWrite()), answerOf(0, t.kernel.CloseWrite())
	case "CloseRead":
		return answerOf(0, t.memory.CloseRead()), answerOf(0, t.kernel.CloseRead())
	case "SetLinger0":
		return answerOf(0, t.memory.SetLinger(0)), answerOf(0, t.kernel.SetLinger(0))
	case "Close":
		return answerOf(0, t.memory.Close()), answerOf(0, t.kernel.Close())
	}
	panic(name)
}

// read waits long for what the end in memory has to read, and hardly at all
// where that would block.
func (t twin) read(size int) (inMemory, kernel answer) {
	wait := 5 * time.Second
	t.memory.mu.Lock()
	n, ready, err := t.memory.tryReadLocked(make([]byte, size))
	t.memory.mu.Unlock()
	if !ready {
		wait = time.Millisecond
		err = os.ErrDeadlineExceeded
	}
	inMemory = answerOf(n, t.memory.opError("read", err))

	t.kernel.SetReadDeadline(time.Now().Add(wait))
	if n > 0 { // which may have come in two segments
		n, err = io.ReadFull(t.kernel, make([]byte, n))
	} else {
		n, err = t.kernel.Read(make([]byte, size))
	}
	return inMemory, answerOf(n, err)
}

func (t twin) awaitArrivals() {
	t.memory.mu.Lock()
	finished, over := t.memory.in.finished, t.memory.overLocked()
	t.memory.mu.Unlock()
	if over {
		t.awaitEvent(unix.POLLHUP)
	} else if finished {
		t.awaitEvent(unix.POLLRDHUP)
	}
}

func (t twin) awaitEvent(event int16) {
	raw, err := t.kernel.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = raw.Control(func(fd uintptr) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, 1000) // at worst the answers will differ
	})
}

func written(c net.Conn, s string) answer {
	return answerOf(c.Write([]byte(s)))
}

// answerOf keeps of an error what a program can branch on.
func answerOf(n int, err error) answer {
	var op *net.OpError
	var errno syscall.Errno
	switch {
	case err == nil:
		return answer{N: n}
	case errors.As(err, &errno):
		return answer{n, errno.Error()}
	case errors.As(err, &op):
		return answer{n, fmt.Sprint(op.Op, " ", op.Net, ": ", op.Err)}
	}
	return answer{n, err.Error()}
}
