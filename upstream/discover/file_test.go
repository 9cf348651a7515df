package discover_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/upstream/discover"
)

const never = -time.Second // to look without being told

func TestFileMayBeChangedInAnyWay(t *testing.T) {
	path := write(t, "servers", "10.0.0.1:1")
	r := newRun(t)
	r.start(&discover.File{Path: path, Interval: never, Problem: r.problem})
	r.await("10.0.0.1:1")

	rewrite(t, path, "10.0.0.2:1")
	r.await("10.0.0.2:1")

	if err := os.WriteFile(path, []byte("10.0.0.3:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.await("10.0.0.3:1")

	rewrite(t, path, "10.0.0.4:1\n10.0.0.5:1 tier=x\n")
	r.await(path + `:2: tier "x" is no number from 0 to 255`)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.await("open " + path + ": no such file or directory")

	rewrite(t, path, "10.0.0.3:1 # as before\n")
	rewrite(t, path, "10.0.0.6:1")
	r.await("10.0.0.6:1")
	if got := strings.Join(r.updates, " "); got != "10.0.0.1:1 10.0.0.2:1 10.0.0.3:1 10.0.0.6:1" {
		t.Errorf("told %s", got)
	}
}

// The names are those that the kubelet uses.
func TestSwapOfLinksIsNoticed(t *testing.T) {
	folder := t.TempDir()
	publish := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(folder, version), 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, filepath.Join(folder, version, "servers"), text)
		if err := os.Symlink(version, filepath.Join(folder, "..data_tmp")); err != nil {
			t.Skip(err)
		}
		if err := os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("..2026_01", "10.0.0.1:1")
	path := filepath.Join(folder, "servers")
	if err := os.Symlink(filepath.Join("..data", "servers"), path); err != nil {
		t.Fatal(err)
	}
	r := newRun(t)
	r.start(&discover.File{Path: path, Interval: never, Problem: r.problem})
	r.await("10.0.0.1:1")
	publish("..2026_02", "10.0.0.2:1")
	r.await("10.0.0.2:1")
}

func TestFolderMayComeLateAndBeReplaced(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "etc")
	path := filepath.Join(folder, "servers")
	r := newRun(t)
	r.start(&discover.File{Path: path, Interval: 10 * time.Millisecond, Problem: r.problem})
	r.await("open " + path + ": no such file or directory")
	for i := range 3 {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, fmt.Sprintf("10.0.0.%d:1", i+1))
		r.await(fmt.Sprintf("10.0.0.%d:1", i+1))
		if err := os.Rename(folder, fmt.Sprintf("%s.%d", folder, i)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileThatIsNoneIsNotWaitedFor(t *testing.T) {
	folder := t.TempDir()
	r := newRun(t)
	r.start(&discover.File{Path: folder, Interval: never, Problem: r.problem})
	r.await(folder + ": not a file")

	large := write(t, "servers", strings.Repeat("# servers\n", 1<<20/10+1))
	r.start(&discover.File{Path: large, Interval: never, Problem: r.problem})
	r.await(large + ": larger than 1048576 bytes")
}
