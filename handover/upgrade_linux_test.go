package handover

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUpgradeMovesSocketsStateAndLiveConnections(t *testing.T) {
	f := startFamily(t)
	var streams []*stream
	for i := range 10 {
		streams = append(streams, startStream(t, f.address, uint64(i)))
	}
	f.signal(syscall.SIGUSR2)
	next := f.successor()
	if next.State != "late" {
		t.Errorf("state %q, not that of when the predecessor stopped accepting", next.State)
	}
	replaced := f.await("replaced", f.pid())
	if replaced.By != next.PID || replaced.Moved != len(streams) {
		t.Errorf("replaced by %d with %d connections; %d serves, of %d", replaced.By, replaced.Moved, next.PID, len(streams))
	}
	select {
	case <-f.gone:
	case <-time.After(5 * time.Second):
		t.Error("the predecessor is still there")
	}
	if alone := f.await("alone", next.PID); alone.Adopted != len(streams) {
		t.Errorf("%d connections adopted, of %d", alone.Adopted, len(streams))
	}
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != next.PID {
		t.Errorf("%d answers (%v), not %d", pid, err, next.PID)
	}
	for i, s := range streams {
		if s.born != f.pid() {
			t.Errorf("stream %d began in %d", i, s.born)
		}
		if !s.flows(2 * time.Second) {
			t.Errorf("stream %d stands still, lost: %v", i, s.lost.Load())
		}
		if bad := s.bad.Load(); bad != nil {
			t.Errorf("stream %d: %v", i, bad)
		}
	}
}

func TestSuccessorCanBeReplacedToo(t *testing.T) {
	f := startFamily(t)
	s := startStream(t, f.address, 1)
	f.signal(syscall.SIGUSR2)
	second := f.successor().PID
	f.await("alone", second)
	if err := syscall.Kill(second, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	third := f.await("replaced", second).By
	f.await("alone", third)
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != third {
		t.Errorf("%d answers (%v), not %d", pid, err, third)
	}
	if !s.flows(time.Second) || s.bad.Load() != nil {
		t.Errorf("the stream: lost %v, %v", s.lost.Load(), s.bad.Load())
	}
}

func TestFailureBeforeReadinessIsToldWithExitStatusAndLastLines(t *testing.T) {
	f := startFamily(t, "CHILD_FAILS=levee: levee.yaml:3: unknown key")
	s := startStream(t, f.address, 1)
	f.signal(syscall.SIGUSR2)
	const want = "new process ended before it was ready: exit status 2: levee: levee.yaml:3: unknown key"
	if got := f.await("failed", f.pid()).Error; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != f.pid() {
		t.Errorf("%d answers (%v), not %d", pid, err, f.pid())
	}
	if !s.flows(time.Second) {
		t.Error("the stream stands still")
	}
	if !strings.Contains(f.stderr.String(), "levee.yaml:3") {
		t.Error("what the new process wrote is not in the log")
	}
}

func TestAPIDFileThatCannotBeWrittenIsFoundBeforeTheProcessIsReady(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := startFamily(t, "CHILD_PIDFILE="+filepath.Join(dir, "pid"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	f.signal(syscall.SIGUSR2)
	failed := f.await("failed", f.pid()).Error
	if want := "new process ended before it was ready: exit status 4: ready: write the PID file: open " + dir; !strings.HasPrefix(failed, want) {
		t.Errorf("got  %s\nwant %s...", failed, want)
	}
}

func TestProcessThatAcceptsNobodyIsNoticed(t *testing.T) {
	f := startCommand(t, childCommand(), childRole+"=stuck", "CHILD_PROBATION=8s")
	f.address = f.await("serving", 0).Address
	f.signal(syscall.SIGUSR2)
	f.await("stuck", 0)
	waitUntil(5*time.Second, func() bool { // until one is in the queue: the old process may be about to accept its last
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	})
	if pid, err := f.whoAnswers(7 * time.Second); err != nil || pid != f.pid() { // it has waited in the queue
		t.Errorf("%d answers (%v), not %d", pid, err, f.pid())
	}
	const want = "new process was ended in its probation: it has not answered for 700ms"
	if got := f.await("failed", f.pid()).Error; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestProcessThatDoesNotGetReadyIsEnded(t *testing.T) {
	f := startFamily(t, "CHILD_SLOW=1m", "CHILD_READY=300ms")
	f.signal(syscall.SIGUSR2)
	failed := f.await("failed", f.pid())
	if want := "new process was ended before it was ready: it was not ready within 300ms"; failed.Error != want {
		t.Errorf("got  %s\nwant %s", failed.Error, want)
	}
	if failed.MS > 1300 {
		t.Errorf("it took %d ms", failed.MS)
	}
	if pid, err := f.whoAnswers(time.Second); err != nil || pid != f.pid() {
		t.Errorf("%d answers (%v), not %d", pid, err, f.pid())
	}
}
