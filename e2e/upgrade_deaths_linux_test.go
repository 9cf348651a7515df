package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"
)

// A death is of one of the two processes of an upgrade.
type death struct {
	old   bool
	after time.Duration // how long there were two
}

func (d death) String() string {
	who := "the new process"
	if d.old {
		who = "the old process"
	}
	return fmt.Sprintf("%s %v after there were two", who, d.after)
}

// Whoever dies, and whenever, the other one serves. Connections that only the dead one had end with it, but nobody gets a
// wrong byte.
func TestTheDeathOfEitherProcessLeavesOneThatServes(t *testing.T) {
	besideOthers(t)
	deaths := []death{{true, 20 * time.Millisecond}, {false, 250 * time.Millisecond}, {true, 400 * time.Millisecond}}
	for range upgradeSized(t, "more deaths, at random", 0, 40) {
		deaths = append(deaths, death{rand.IntN(2) == 0, rand.N(700 * time.Millisecond)})
	}
	for _, d := range deaths {
		t.Run(d.String(), func(t *testing.T) { d.test(t) })
	}
}

func (d death) test(t *testing.T) {
	const streams = 60
	fs := newFlows(t, streams, 2)
	echo := startEcho(t, "127.0.0.1:0")
	ports := freePorts(t, 3)
	address := "127.0.0.1:" + ports[1]
	l := begin(t, write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: "127.0.0.1:%s"}
overload: {mode: off}
upgrade: {settle: 200ms, probation: 400ms}
listeners:
  - {name: flows, listen: ["127.0.0.1:%s"], routes: [{upstream: flows}]}
  - {name: echo, listen: [%q], routes: [{upstream: echo}]}
upstreams:
  - {name: flows, servers: [%q], health: {interval: off}}
  - {name: echo, servers: [%q], health: {interval: off}}
`, ports[0], ports[2], address, fs.server, echo.address())))
	l.addressOf(1)
	old := l.pid()
	fs.start("127.0.0.1:" + ports[2])
	l.signal(syscall.SIGUSR2)
	var two []int
	for late := time.Now().Add(patience); len(two) < 2; two = l.processes() {
		if time.Now().After(late) {
			t.Fatal("there is no new process")
		}
	}
	<-time.After(d.after)
	victim := old
	if !d.old {
		two = slices.DeleteFunc(two, func(pid int) bool { return pid == old })
		victim = two[0]
	}
	if !l.has(old) {
		t.Skip("skipped: the upgrade was over")
	}
	_ = syscall.Kill(victim, syscall.SIGKILL)
	killed := time.Now()
	failures, answered := 0, time.Time{}
	var last error
	for answered.IsZero() && time.Since(killed) < patience {
		if last = comesAndGoes(address); last == nil {
			answered = time.Now()
		} else {
			failures++
			<-time.After(5 * time.Millisecond)
		}
	}
	if answered.IsZero() {
		t.Fatalf("nobody answers any more: %v", last)
	}
	t.Logf("a newcomer is answered %v after, at try %d", answered.Sub(killed), failures+1)
	if took := answered.Sub(killed); took > time.Second {
		t.Errorf("a newcomer is answered %v after", took)
	}
	later := 0
	for time.Since(killed) < time.Second {
		if err := comesAndGoes(address); err != nil {
			later++
			last = err
		}
		<-time.After(5 * time.Millisecond)
	}
	if later > 0 {
		t.Errorf("%d newcomers failed once there was an answer: %v", later, last)
	}
	eventually(t, "one process is left", func() bool { return len(l.processes()) == 1 })
	if s := l.mustTell(); s.PID == victim || s.PID != l.processes()[0] || s.State != "serving" {
		t.Errorf("%+v serves", s)
	}
	wrong, moved := fs.end()
	t.Logf("%d of %d streams ended with it; %d MiB moved", len(wrong), streams, moved>>20)
	for _, err := range wrong {
		if errors.Is(err, errDiffers) {
			t.Error(err)
		}
	}
	if !d.old && len(wrong) > 0 && d.after < isOnTrial {
		t.Errorf("the new one had no streams yet, and %d ended: %v", len(wrong), wrong[0])
	}
}
