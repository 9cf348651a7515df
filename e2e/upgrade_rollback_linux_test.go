package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A rollback is of an upgrade that fails.
type rollback struct {
	what    string
	upgrade string                          // how the configuration has it
	spoil   func(l *lineage, config string) // before the upgrade
	hurt    func(l *lineage) (at time.Time) // while it is under way
	died    func(l *lineage) (at time.Time) // when the new process did, told afterwards
	within  time.Duration                   // from then until the upgrade has failed
	reasons []string                        // that the operator is told
	most    int64                           // newcomers that may fail: those whom the new process had accepted
}

const rolledBack = time.Second

// leavesWord is a script that notes the time, and goes on as it is told.
func leavesWord(l *lineage, then string) {
	l.t.Helper()
	deploy(l.t, l.binary, script(l.t, "date +%s.%N > "+filepath.Join(l.home, "word")+"\n"+then))
}

func readsWord(l *lineage) time.Time {
	text, err := os.ReadFile(filepath.Join(l.home, "word"))
	if err != nil {
		l.t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return time.UnixMicro(int64(seconds * 1e6))
}

// signals sends one to the new process some time after the upgrade has come so far.
func signals(s syscall.Signal, at stage, after time.Duration) func(*lineage) time.Time {
	return func(l *lineage) time.Time {
		pid := l.reaches(at, l.pid())
		<-time.After(after)
		if err := syscall.Kill(pid, s); err != nil {
			l.t.Error(err)
		}
		return time.Now()
	}
}

func TestAnUpgradeThatFailsIsFeltByNobody(t *testing.T) {
	slowly := upgrading("settle: 2s, probation: 4s")
	for _, r := range []rollback{
		{
			what: "not executable", upgrade: quickly,
			spoil: func(l *lineage, _ string) {
				deploy(l.t, l.binary, write(l.t, "text", "levee\n"))
			},
			reasons: []string{"permission denied"},
		},
		{
			what: "not there", upgrade: quickly,
			spoil:   func(l *lineage, _ string) { os.Remove(l.binary) },
			reasons: []string{"no such file or directory"},
		},
		{
			what: "exits at once", upgrade: quickly,
			spoil:   func(l *lineage, _ string) { leavesWord(l, "echo 'no license' >&2; exit 1") },
			died:    readsWord,
			within:  rolledBack,
			reasons: []string{"exit status 1", "no license"},
		},
		{
			what: "its configuration is wrong", upgrade: quickly,
			spoil:   func(l *lineage, config string) { replace(l.t, config, "version: 1\nlistener: 1\n") },
			reasons: []string{"exit status 2", "levee.yaml:2:1: ", `did you mean "listeners"`},
		},
		{
			what: "hangs before it is ready", upgrade: upgrading("timeout: 1s, settle: 100ms, probation: 200ms"),
			spoil:   func(l *lineage, _ string) { leavesWord(l, "exec sleep 600") },
			died:    readsWord,
			within:  time.Second + rolledBack,
			reasons: []string{"1s"},
		},
		{
			what: "dies a second after it was ready", upgrade: slowly,
			hurt:    signals(syscall.SIGABRT, settling, time.Second),
			within:  rolledBack,
			reasons: []string{"exit status 2"},
		},
		{
			what: "is killed when it accepts already", upgrade: slowly,
			hurt:    signals(syscall.SIGKILL, onTrial, 500*time.Millisecond),
			within:  rolledBack,
			reasons: []string{"killed"},
			most:    crowdSize,
		},
		{
			what: "hangs when it is ready", upgrade: slowly,
			hurt:    signals(syscall.SIGSTOP, settling, 300*time.Millisecond),
			within:  time.Second + rolledBack, // a second is how long it may be silent
			reasons: []string{"answer"},
		},
		{
			what: "hangs when it accepts already", upgrade: slowly,
			hurt:    signals(syscall.SIGSTOP, onTrial, 500*time.Millisecond),
			within:  time.Second + rolledBack,
			reasons: []string{"answer"},
			most:    crowdSize,
		},
	} {
		t.Run(r.what, func(t *testing.T) {
			if r.upgrade == slowly && r.within > rolledBack && !inFull() {
				t.Skipf("skipped: %s=full is not set", upgradeVariable)
			}
			t.Parallel()
			r.test(t)
		})
	}
}

func (r *rollback) test(t *testing.T) {
	fs := newFlows(t, 20, 1)
	echo := startEcho(t, "127.0.0.1:0")
	path := write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: "127.0.0.1:0"}
%s
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{upstream: flows}]}
  - {name: other, listen: ["127.0.0.1:0"], routes: [{upstream: echo}]}
upstreams:
  - {name: flows, servers: [%q], health: {interval: off}}
  - {name: echo, servers: [%q], health: {interval: off}}
`, r.upgrade, fs.server, echo.address()))
	l := begin(t, path)
	fs.start(l.addressOf(0))
	newcomers := newCrowd(l.addressOf(1))
	if r.spoil != nil {
		r.spoil(l, path)
	}
	type said struct {
		text string
		code int
		at   time.Time
	}
	outcome := make(chan said, 1)
	admin := strings.TrimPrefix(l.admin(""), "http://")
	go func() { // ends with the upgrade
		cmd := exec.CommandContext(t.Context(), levee, "upgrade", "--admin", admin)
		out, _ := cmd.CombinedOutput() // the exit code tells
		outcome <- said{string(out), cmd.ProcessState.ExitCode(), time.Now()}
	}()
	var died time.Time
	if r.hurt != nil {
		died = r.hurt(l)
	}
	s := <-outcome
	if r.died != nil {
		died = r.died(l)
	}
	if took := s.at.Sub(died); r.within > 0 {
		t.Logf("the upgrade has failed %v after the new process had", took)
		if took > r.within {
			t.Errorf("the upgrade has failed %v after the new process had, want %v", took, r.within)
		}
	}
	now := l.mustTell()
	if now.PID != l.pid() || now.Upgrade == nil || now.Upgrade.State != "failed" {
		t.Fatalf("%+v, upgrade %+v", now, now.Upgrade)
	}
	for _, reason := range r.reasons {
		if !strings.Contains(s.text, reason) || !strings.Contains(now.Upgrade.Problem, reason) {
			t.Errorf("%q is not among the reasons: the operator is told\n%s\nand the status\n%s", reason, s.text, now.Upgrade.Problem)
		}
	}
	if s.code != 2 || !strings.HasPrefix(s.text, "levee: ") {
		t.Errorf("exit code %d, and the operator is told %q", s.code, s.text)
	}
	eventually(t, "the new process is gone", func() bool { return len(l.processes()) == 1 })
	if n := l.scrape()[`levee_upgrades_total{result="failed"}`]; n != 1 {
		t.Errorf("%v upgrades are counted as failed", n)
	}
	<-time.After(300 * time.Millisecond) // of more newcomers
	newcomers.goes()
	t.Logf("%d newcomers were served, %d not, the slowest within %v", newcomers.served.Load(), newcomers.failed.Load(), time.Duration(newcomers.slowest.Load()))
	if n := newcomers.failed.Load(); n > r.most {
		t.Errorf("%d newcomers were not served, %d were", n, newcomers.served.Load())
	}
	fs.areWhole()
}

func TestAfterAnUpgradeThatFailedTheNextOneSucceeds(t *testing.T) {
	t.Parallel()
	l := begin(t, config(t, quickly, ""))
	c := dial(t, l.address())
	if err := echoesOn(c); err != nil {
		t.Fatal(err)
	}
	deploy(t, l.binary, script(t, "exit 7"))
	status, u, err := l.asks(t.Context())
	if err != nil || status != http.StatusUnprocessableEntity || !strings.Contains(u.Error, "exit status 7") {
		t.Errorf("%d, %+v, %v", status, u, err)
	}
	deploy(t, l.binary, levee)
	if u := l.succeeds(); u.Moved != 1 {
		t.Errorf("%+v", u)
	}
	if err := echoesOn(c); err != nil {
		t.Error(err)
	}
}
