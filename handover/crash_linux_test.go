//go:build failpoints

package handover

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A cell is what happens to whom and when.
type cell struct {
	role, step, action string
	pause              time.Duration // until who was stopped is continued
	levees             bool          // the connections are those of levee's servers, and not of the test's own
}

func (c cell) String() string {
	name := c.failpoint()
	if c.levees {
		name = "levee:" + name
	}
	if c.pause > 0 {
		name = fmt.Sprintf("%s for %v", name, c.pause)
	}
	return name
}

func (c cell) failpoint() string { return c.role + ":" + c.step + ":" + c.action }

// start starts the processes, and some streams, which fill two batches.
func (c cell) start(t *testing.T) (f *family, streams []*stream) {
	t.Helper()
	const stays = "CHILD_STAYS=1"
	if !c.levees {
		f = startFamily(t, stays, failpoint+"="+c.failpoint())
		for i := range 5 {
			streams = append(streams, startStream(t, f.address, uint64(i)))
		}
		return f, streams
	}
	f = startCommand(t, childCommand(), childRole+"=server", stays, failpoint+"="+c.failpoint(),
		"CHILD_FOLDER="+t.TempDir(), "CHILD_UPSTREAM="+startUpstream(t))
	first := f.await("serving", 0)
	f.address = first.Address
	for i := range 4 {
		streams = append(streams, newStream(t, first.Addresses["echo"], uint64(i)), newStream(t, first.Addresses["pair"], uint64(i)))
	}
	return f, streams
}

// cells are all of them: each step of either side, and each thing that can happen there.
func cells() (all []cell) {
	steps := map[string][]string{"old": {"started"}, "new": {"begin"}}
	for _, d := range []deedKind{stopAccepting, sendTake, startMoving, sendOffer, release, sendDone} {
		steps["old"] = append(steps["old"], d.String(), d.String()+"+")
	}
	for _, d := range []deedKind{sendReady, take, sendTook, adopt, sendTaken, begin} {
		steps["new"] = append(steps["new"], d.String(), d.String()+"+")
	}
	for _, role := range []string{"old", "new"} {
		for _, step := range steps[role] {
			for _, action := range []string{"sigkill", "hang", "slow", "garbage", "emfile", "full"} {
				all = append(all, cell{role: role, step: step, action: action})
			}
			for _, pause := range []time.Duration{300 * time.Millisecond, 2500 * time.Millisecond} {
				all = append(all, cell{role: role, step: step, action: "sigstop", pause: pause})
			}
		}
	}
	for _, c := range all {
		if c.action != "sigkill" && c.action != "sigstop" && c.action != "emfile" {
			continue // to which it makes no difference whose connections there are
		}
		switch strings.TrimSuffix(c.step, "+") {
		case sendOffer.String(), release.String(), adopt.String(), sendTaken.String(), begin.String():
			c.levees = true
			all = append(all, c)
		}
	}
	return all
}

// TestWhateverDiesExactlyOneServes goes through a part of the cells, and with LEVEE_CRASH=full through all.
func TestWhateverDiesExactlyOneServes(t *testing.T) {
	every := 9 // prime to the number of actions, so that each gets its turn
	if os.Getenv("LEVEE_CRASH") == "full" {
		every = 1
	}
	all := cells()
	if len(all) < 100 {
		t.Errorf("only %d cells", len(all))
	}
	atOnce := make(chan struct{}, 4)
	for i := 0; i < len(all); i += every {
		t.Run(all[i].String(), func(t *testing.T) {
			t.Parallel()
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			all[i].test(t)
		})
	}
}

func (c cell) test(t *testing.T) {
	f, streams := c.start(t)
	old := f.pid()
	clients := startClients(f)
	f.signal(syscall.SIGUSR2)
	if c.pause > 0 {
		go f.continueAfter(c.pause)
	}
	f.awaitOutcome(t)
	owner := f.awaitOneOwner(t)
	if slowest := clients.stop(); slowest > time.Second {
		t.Errorf("a client waited for %v", slowest)
	}

	if _, ok := f.awaitAny(0, func(l said) bool { return l.What == "harm" && (l.PID == old) == (c.role == "old") }); !ok {
		t.Error("nobody has come to harm")
	}
	failed, hasFailed := f.awaitAny(0, func(l said) bool { return l.What == "failed" })
	_, hasSucceeded := f.awaitAny(0, func(l said) bool { return l.What == "replaced" })
	switch {
	case alive(old) && hasFailed == hasSucceeded:
		t.Errorf("the old process says that it has failed (%v) and succeeded (%v)", hasFailed, hasSucceeded)
	case hasFailed && owner != old, hasSucceeded && owner == old, !alive(old) && owner == old:
		t.Errorf("%d serves, of an old process %d; failed %v, succeeded %v: %s", owner, old, hasFailed, hasSucceeded, failed.Error)
	}
	if hasFailed && c.isPatient() {
		t.Errorf("who was only slow was not borne with: %s", failed.Error)
	}
	for i, s := range streams {
		flows := s.flows(time.Second)
		if bad := s.bad.Load(); bad != nil {
			t.Errorf("stream %d: %v", i, bad)
		}
		if !flows && !s.lost.Load() {
			t.Errorf("stream %d belongs to nobody", i)
		}
		if !flows && !c.mayLose(hasFailed) {
			t.Errorf("stream %d is lost", i)
		}
	}
	t.Logf("alive %v, failed %q, succeeded %v", alive(old), failed.Error, hasSucceeded)
}

// isPatient reports whether the upgrade has to succeed all the same. A new process that is stopped is not waited for.
func (c cell) isPatient() bool {
	switch c.action {
	case "slow", "full":
		return true
	case "hang", "sigstop":
		return c.role == "old"
	}
	return false
}

// mayLose reports whether a stream may be cut: those of a process that is dead are, and if the new one is ended once it has taken some.
func (c cell) mayLose(hasFailed bool) bool {
	if c.role == "old" && c.action == "sigkill" {
		return true
	}
	if !hasFailed {
		return false
	}
	if c.role == "old" {
		return c.step != "started" && c.step != "stop" && c.step != "stop+" && c.step != "take" && c.step != "take+"
	}
	return c.step == "taken+" || c.step == "go_on" || c.step == "go_on+" || c.action == "garbage"
}

// continueAfter continues whoever is stopped, some time after somebody is.
func (f *family) continueAfter(pause time.Duration) {
	<-time.After(pause + 500*time.Millisecond) // the step comes about half a second after the signal
	_ = syscall.Kill(-f.pid(), syscall.SIGCONT)
}

// awaitOutcome waits until the old process is dead or has said what has become of the upgrade.
func (f *family) awaitOutcome(t *testing.T) {
	t.Helper()
	if !waitUntil(15*time.Second, func() bool {
		_, told := f.awaitAny(0, func(l said) bool { return l.What == "failed" || l.What == "replaced" })
		return told || !alive(f.pid())
	}) {
		t.Fatalf("nothing has come of the upgrade; told:\n%s", f.told())
	}
}

// awaitOneOwner waits until a good many newcomers in a row are served by the same process.
func (f *family) awaitOneOwner(t *testing.T) (pid int) {
	t.Helper()
	same := 0
	var last error
	if !waitUntil(5*time.Second, func() bool {
		who, err := f.whoAnswers(time.Second)
		if err != nil || who != pid {
			same = 0
		}
		pid, last = who, err
		same++
		return same == 30
	}) {
		t.Fatalf("there is no one owner: last %d (%v)", pid, last)
	}
	return pid
}

// clients come all the time, one after the other, and come again if they are turned away.
type clients struct {
	done    chan struct{}
	running sync.WaitGroup
	mu      sync.Mutex
	slowest time.Duration
}

func startClients(f *family) *clients {
	c := &clients{done: make(chan struct{})}
	for range 4 {
		c.running.Go(func() { c.come(f) })
	}
	return c
}

func (c *clients) come(f *family) {
	for {
		began := time.Now()
		waitUntil(5*time.Second, func() bool {
			_, err := f.whoAnswers(5 * time.Second)
			return err == nil
		})
		c.mu.Lock()
		c.slowest = max(c.slowest, time.Since(began))
		c.mu.Unlock()
		select {
		case <-c.done:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *clients) stop() time.Duration {
	close(c.done)
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slowest
}
