package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func inFull() bool { return os.Getenv(upgradeVariable) == "full" }

// upgrading has a configuration's upgrades be so. Overload is off: it turns newcomers away whoever they are.
func upgrading(settings string) string { return "overload: {mode: off}\nupgrade: {" + settings + "}" }

// quickly is an upgrade that is over in less than a second.
var quickly = upgrading("settle: 200ms, probation: 400ms")

const (
	isOnTrial    = 400 * time.Millisecond // from when the new process is ready until connections move
	longestReady = time.Minute            // with all that this machine has to do beside
)

// A lineage is a levee that is upgraded: processes that follow one another, of which only the first is ours to wait for.
type lineage struct {
	*process
	binary string // what the next one will run
}

// begin starts levee from a path of its own, with a configuration.
func begin(t *testing.T, config string) *lineage {
	t.Helper()
	binary := ownBinary(t)
	return beginAs(t, binary, exec.Command(binary, "serve", "-c", config))
}

// ownBinary is a levee that is to be replaced.
func ownBinary(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "levee")
	deploy(t, path, levee)
	return path
}

// deploy puts a file in the place of one that may be running.
func deploy(t *testing.T, path, file string) {
	t.Helper()
	_ = os.Remove(path + ".next")
	if err := errors.Join(os.Link(file, path+".next"), os.Rename(path+".next", path)); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path + ".next") // rename leaves it where both are the same file
}

// script is a program to deploy that is not levee.
func script(t *testing.T, text string) (path string) {
	t.Helper()
	path = write(t, "script", "#!/bin/sh\n"+text+"\n")
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// beginAs starts a command that becomes the binary. What the processes write goes through pipes of the test's own: those
// of package exec would have the first process seem to run as long as any of them.
func beginAs(t *testing.T, binary string, cmd *exec.Cmd) *lineage {
	t.Helper()
	// Orphans come to this process, so that it learns how they end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	fromStdout, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromStderr, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	l := &lineage{launch(t, cmd), binary}
	stdout.Close()
	stderr.Close()
	var copying sync.WaitGroup
	copying.Go(func() { _, _ = io.Copy(&l.stdout, fromStdout) })
	copying.Go(func() { _, _ = io.Copy(&l.stderr, fromStderr) })
	t.Cleanup(func() {
		l.end()
		copying.Wait()
		fromStdout.Close()
		fromStderr.Close()
	})
	return l
}

// logged waits for a log line with the message, of whichever process, and returns it.
func (l *lineage) logged(message string) map[string]any {
	l.t.Helper()
	eventually(l.t, "the log says "+message, func() bool { return strings.Contains(l.stderr.String(), strconv.Quote(message)) })
	return l.process.logged(message)
}

// processes are those of the lineage that are alive, by their numbers.
func (l *lineage) processes() (pids []int) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		l.t.Error(err)
	}
	for _, entry := range all {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && l.has(pid) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// has reports whether a process is alive, and of the lineage. It knows it by its home.
func (l *lineage) has(pid int) bool {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty when it has ended, and nobody has waited for it
	return err == nil && bytes.Contains(append([]byte{0}, environment...), []byte("\x00HOME="+l.home+"\x00"))
}

// end kills all processes of the lineage.
func (l *lineage) end() {
	for late := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		pids := l.processes()
		if len(pids) == 0 {
			return
		}
		if time.Now().After(late) {
			l.t.Errorf("processes %v do not end", pids)
			return
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// gone waits for the end of a process that is not the first, and whose parent has ended, and returns its exit code.
func (l *lineage) gone(pid int) (code int) {
	l.t.Helper()
	if pid == l.pid() {
		return l.wait()
	}
	var status syscall.WaitStatus
	eventually(l.t, fmt.Sprintf("process %d has ended", pid), func() bool {
		ended, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		return err == nil && ended == pid
	})
	return status.ExitStatus()
}

// An upgrade is what levee tells of one.
type upgrade struct {
	State   string    `json:"state"`
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`
	PID     int       `json:"pid"`
	Moved   int       `json:"moved"`
	Left    int       `json:"left"`
	Problem string    `json:"problem"`
	Error   string    `json:"error"` // of one that has failed
}

// A standing is what levee tells of itself.
type standing struct {
	PID         int      `json:"pid"`
	State       string   `json:"state"`
	Upgrade     *upgrade `json:"upgrade"`
	Predecessor *struct {
		PID     int       `json:"pid"`
		Since   time.Time `json:"since"`
		Adopted int       `json:"adopted"`
		Gone    bool      `json:"gone"`
		Left    int       `json:"left"`
	} `json:"predecessor"`
	Totals struct {
		Active int `json:"active"`
	} `json:"totals"`
	Process struct {
		Goroutines int     `json:"goroutines"`
		Files      int     `json:"files"`
		CPU        float64 `json:"cpu"` // seconds
	} `json:"process"`
}

// asks asks for an upgrade, and returns what came of it.
func (l *lineage) asks(ctx context.Context) (status int, u upgrade, err error) {
	status, body, err := fetch(ctx, http.MethodPost, l.admin("/api/v1/upgrade"), longestReady)
	if err != nil {
		return 0, u, err
	}
	if err := json.Unmarshal([]byte(body), &u); err != nil {
		return status, u, fmt.Errorf("%d %q: %w", status, body, err)
	}
	return status, u, nil
}

// succeeds upgrades it, which must not fail.
func (l *lineage) succeeds() upgrade {
	l.t.Helper()
	status, u, err := l.asks(l.t.Context())
	if err != nil || status != http.StatusOK || u.State != "done" || u.PID == 0 {
		l.t.Fatalf("the upgrade: status %d, %+v, %v", status, u, err)
	}
	return u
}

// tells is what it says of itself, whichever process answers.
func (l *lineage) tells() (standing, error) {
	var s standing
	status, body, err := fetch(l.t.Context(), http.MethodGet, l.admin("/api/v1/status"), patience)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	return s, err
}

func (l *lineage) mustTell() standing {
	l.t.Helper()
	s, err := l.tells()
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// A stage is how far an upgrade has come.
type stage string

const (
	settling stage = "the new process is ready, and the old one accepts"
	onTrial  stage = "the new process accepts, and the old one has the connections"
)

// reaches waits until an upgrade has come so far, and returns the number of the new process. That has the admin port as well
// once it accepts.
func (l *lineage) reaches(s stage, old int) (pid int) {
	l.t.Helper()
	eventually(l.t, string(s), func() bool {
		now, err := l.tells()
		if s == onTrial {
			pid = now.PID
			return err == nil && pid != old
		}
		return err == nil && now.Upgrade != nil && now.Upgrade.State == "settling"
	})
	if s == settling {
		others := slices.DeleteFunc(l.processes(), func(pid int) bool { return pid == old })
		if len(others) != 1 {
			l.t.Fatalf("beside the old process there are %v", others)
		}
		pid = others[0]
	}
	return pid
}

// A census counts the processes of a lineage again and again.
type census struct {
	most  int
	leave chan struct{}
	left  chan struct{}
}

func (l *lineage) count(every time.Duration) *census {
	c := &census{leave: make(chan struct{}), left: make(chan struct{})}
	go func() { // ends with leave
		defer close(c.left)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-c.leave:
				return
			case <-tick.C:
				c.most = max(c.most, len(l.processes()))
			}
		}
	}()
	return c
}

// ends returns how many there were at most.
func (c *census) ends() int {
	close(c.leave)
	<-c.left
	return c.most
}

// proxied is a configuration with upgrades, and one listener before a server.
func proxied(t *testing.T, upgrades, server string) (path string) {
	t.Helper()
	return proxying(t, server, upgrades, "", "health: {interval: off}")
}
