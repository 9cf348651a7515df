package leveetest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// fakeTest is a test that keeps its failures to itself.
type fakeTest struct {
	testing.TB
	cleanups []func()
	failures []string
}

func (f *fakeTest) Helper()                {}
func (f *fakeTest) Logf(string, ...any)    {}
func (f *fakeTest) Cleanup(cleanup func()) { f.cleanups = append(f.cleanups, cleanup) }
func (f *fakeTest) Errorf(format string, a ...any) {
	f.failures = append(f.failures, fmt.Sprintf(format, a...))
}

// leaksOf returns what CheckLeaks says of a test.
func leaksOf(patience time.Duration, test func()) string {
	fake := new(fakeTest)
	checkLeaks(fake, patience)
	test()
	for _, cleanup := range fake.cleanups {
		cleanup()
	}
	return strings.Join(fake.failures, "\n")
}

func stuckForTheTest(release chan struct{}) { <-release }

func TestLeakedGoroutineFailsTheTestByName(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	leaks := leaksOf(time.Millisecond, func() { go stuckForTheTest(release) })
	if !strings.Contains(leaks, "stuckForTheTest") {
		t.Errorf("the check said %q", leaks)
	}
}

func TestGoroutineThatLeavesInTimeIsNoLeak(t *testing.T) {
	leaks := leaksOf(leakPatience, func() {
		release := make(chan struct{})
		go stuckForTheTest(release)
		time.AfterFunc(50*time.Millisecond, func() { close(release) })
	})
	if leaks != "" {
		t.Error(leaks)
	}
}

func TestGoroutineFromBeforeIsNoLeak(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	go stuckForTheTest(release)
	if leaks := leaksOf(time.Millisecond, func() {}); leaks != "" {
		t.Error(leaks)
	}
}

func TestLeakedFileFailsTheTestByName(t *testing.T) {
	needOpenFiles(t)
	file, err := os.Create(t.TempDir() + "/forgotten")
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	leaks := leaksOf(time.Millisecond, func() { file, _ = os.Open(file.Name()) })
	defer file.Close()
	if want := fmt.Sprintf("open file %d: ", file.Fd()); !strings.Contains(leaks, want) {
		t.Errorf("the check said %q, want %q in it", leaks, want)
	}
	if runtime.GOOS == "linux" && !strings.Contains(leaks, "/forgotten\n") {
		t.Errorf("the check said %q, which does not name the file", leaks)
	}
}

func TestLeakedSocketFailsTheTestWithItsAddresses(t *testing.T) {
	needOpenFiles(t)
	client, server := tcpPair(t)
	client.Close()
	server.Close()
	leaks := leaksOf(time.Millisecond, func() { client, server = tcpPair(t) })
	defer client.Close()
	defer server.Close()
	for _, c := range []net.Conn{client, server} {
		want := fmt.Sprintf(" at %v connected to %v\n", c.LocalAddr(), c.RemoteAddr())
		if !strings.Contains(leaks, want) {
			t.Errorf("the check said %q, want %q in it", leaks, want)
		}
	}
}

func TestReusedDescriptorIsALeak(t *testing.T) {
	needOpenFiles(t)
	before, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var after *os.File
	leaks := leaksOf(time.Millisecond, func() {
		before.Close()
		after, _ = os.Open(dir)
	})
	defer after.Close()
	if leaks == "" {
		t.Error("the check saw nothing")
	}
}

func TestSparePipesOfCopyAreNoLeak(t *testing.T) {
	needOpenFiles(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // what helps is the check, not chance
	leaks := leaksOf(leakPatience, func() {
		from, in := tcpPair(t)
		out, to := tcpPair(t)
		in.Write([]byte("spliced"))
		in.Close()
		if _, err := io.Copy(out, from); err != nil {
			t.Error(err)
		}
		for _, c := range []net.Conn{from, out, to} {
			c.Close()
		}
	})
	if leaks != "" {
		t.Error(leaks)
	}
}

func TestLeakedPipeIsALeak(t *testing.T) {
	needOpenFiles(t)
	var r, w *os.File
	leaks := leaksOf(time.Millisecond, func() { r, w, _ = os.Pipe() })
	defer r.Close()
	defer w.Close()
	if !strings.Contains(leaks, fmt.Sprintf("open file %d: ", r.Fd())) {
		t.Errorf("the check said %q", leaks)
	}
}

func TestCleanTestPasses(t *testing.T) {
	CheckLeaks(t)
	client, server := tcpPair(t)
	go func() { _, _ = io.Copy(server, server) }()
	client.Write([]byte("x"))
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	client.Close()
	server.Close()
}

// The first sockets of a process make the runtime open files of its own.
func TestCleanTestPassesInAFreshProcess(t *testing.T) {
	output, err := exec.Command(os.Args[0], "-test.run=^TestCleanTestPasses$").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}

func needOpenFiles(t *testing.T) {
	t.Helper()
	if _, err := openFiles(); err != nil {
		t.Skip("open files cannot be listed here:", err)
	}
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if client, err = net.Dial("tcp4", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}
