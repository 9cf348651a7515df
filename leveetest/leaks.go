package leveetest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	leakPatience = 5 * time.Second       // for goroutines that are on their way out, on a busy machine
	leakInterval = 10 * time.Millisecond // a leak that goes away sends no signal, so the check must poll
)

// CheckLeaks fails the test if it ends with goroutines or open files that were
// not there when CheckLeaks was called. Call it first thing in the test: what is
// registered with t.Cleanup later is then cleaned up before the check. The check
// waits up to five seconds for the last ones to leave. Open files are checked on
// Linux and macOS; the failure names each, a socket with its addresses.
//
// A test that calls it must not run in parallel with others, whose goroutines
// and files would be taken for its own. Call it outside of a synctest bubble;
// inside, synctest itself waits for goroutines. A file that is only garbage is
// no leak once the collector has closed it; pipes are given that chance, because
// io.Copy between sockets leaves spare ones behind.
func CheckLeaks(t testing.TB) {
	t.Helper()
	checkLeaks(t, leakPatience)
}

func checkLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	openPoller()
	atStart, err := openFiles()
	if err != nil {
		t.Logf("open files are not checked: %v", err)
	}
	goroutines := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		t.Helper()
		if leaks := awaitNoLeaks(atStart, goroutines, patience); leaks != "" {
			t.Errorf("left behind, still there after %v:\n%s", patience, leaks)
		}
	})
}

// openPoller makes the runtime open the files of its network poller, which stay
// open for ever, before the first count.
func openPoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// awaitNoLeaks returns what is left when patience has run out, or "" as soon as
// nothing is.
func awaitNoLeaks(atStart []openFile, goroutines goleak.Option, patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(leakInterval) {
		files := filesSince(atStart)
		err := goleak.Find(goroutines)
		if len(files) == 0 && err == nil {
			return ""
		}
		if time.Now().After(end) {
			return describeLeaks(files, err)
		}
		if allPipes(files) {
			runtime.GC() // empties internal/poll's pool of pipes for splice, in two rounds
		}
	}
}

func describeLeaks(files []openFile, goroutines error) string {
	var b strings.Builder
	for _, file := range files {
		fmt.Fprintf(&b, "open file %d: %s\n", file.fd, file.describe())
	}
	if goroutines != nil {
		fmt.Fprintf(&b, "goroutines: %v\n", goroutines)
	}
	return b.String()
}

// filesSince returns the files that are open now and were not at the start. A
// descriptor that was closed and opened again as something else is such a file.
func filesSince(atStart []openFile) []openFile {
	if atStart == nil {
		return nil
	}
	now, err := openFiles()
	if err != nil {
		return nil // it worked at the start: too many open files, which the test will notice itself
	}
	return slices.DeleteFunc(now, func(file openFile) bool { return slices.Contains(atStart, file) })
}

func allPipes(files []openFile) bool {
	return len(files) > 0 && !slices.ContainsFunc(files, func(file openFile) bool { return !file.pipe })
}

// openFile is a file descriptor and the identity of what it refers to.
type openFile struct {
	fd            int
	device, inode uint64
	pipe          bool
}
