package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// floodVariable has floods come in full size; without it each is a small one, of seconds.
const floodVariable = "LEVEE_E2E_FLOOD"

// upgradeVariable does the same for upgrades, and for leaving.
const upgradeVariable = "LEVEE_E2E_UPGRADE"

// sized picks what a flood has, of a small and of a full one.
func sized[T any](t *testing.T, what string, small, full T) T {
	t.Helper()
	return sizedBy(t, floodVariable, what, small, full)
}

// upgradeSized picks what a test of upgrades has, of a small and of a full one.
func upgradeSized[T any](t *testing.T, what string, small, full T) T {
	t.Helper()
	return sizedBy(t, upgradeVariable, what, small, full)
}

func sizedBy[T any](t *testing.T, variable, what string, small, full T) T {
	t.Helper()
	if os.Getenv(variable) == "full" {
		return full
	}
	t.Logf("%s: %v, not %v, for which %s=full is needed", what, small, full, variable)
	return small
}

// besideOthers has a test run beside others, unless it has its full size: then the machine is its own.
func besideOthers(t *testing.T) {
	t.Helper()
	if os.Getenv(floodVariable) != "full" && !inFull() {
		t.Parallel()
	}
}

// Server and load have a processor each, so that neither takes from the other. Where there
// is only one they have to share it.
const (
	serverCore = "0"
	loadCore   = "1"
)

func onCore(core, program string, args ...string) *exec.Cmd {
	if runtime.NumCPU() < 2 {
		return exec.Command(program, args...)
	}
	return exec.Command("taskset", append([]string{"-c", core, program}, args...)...)
}

// startOnCore starts levee on the server's processor.
func startOnCore(t *testing.T, args ...string) *process {
	t.Helper()
	need(t, "taskset")
	return launch(t, onCore(serverCore, levee, args...))
}

// A floodReport is what `levee flood --json` prints, of which only what is looked at here.
type floodReport struct {
	Remarks []string      `json:"remarks"`
	Idle    felt          `json:"idle"`
	Attacks []attackTally `json:"attacks"`
}

type attackTally struct {
	Attack     string   `json:"attack"`
	Skipped    string   `json:"skipped"`
	Attempts   int      `json:"attempts"`
	Failed     int      `json:"failed"`
	Refused    int      `json:"refused"`
	Left       int      `json:"left"`
	Held       int      `json:"held"`
	During     felt     `json:"during"`
	After      felt     `json:"after"`
	Complaints []string `json:"complaints"`
	Ended      struct {
		Count int    `json:"count"`
		Min   micros `json:"min_us"`
		Max   micros `json:"max_us"`
	} `json:"ended"`
	Server struct {
		CPU       float64 `json:"cpu_seconds"`
		Recovered float64 `json:"recovered_seconds"`
	} `json:"server"`
}

// felt is what the well-behaved client felt.
type felt struct {
	OK          float64 `json:"ok"`
	RoundTrips  figures `json:"round_trips"`
	Connections figures `json:"connections"`
	Lag         figures `json:"lag"`
}

type figures struct {
	Tried  int    `json:"tried"`
	Failed int    `json:"failed"`
	P99    micros `json:"p99_us"`
	Error  string `json:"first_error"`
}

type micros float64

func (m micros) duration() time.Duration {
	return time.Duration(float64(m) * float64(time.Microsecond))
}

// flood has `levee flood` attack, and fails the test if the well-behaved client has anything to complain of.
func flood(t *testing.T, target string, args ...string) floodReport {
	t.Helper()
	return floodBy(t, onCore(loadCore, levee, append([]string{"flood", "--json", "--target", target}, args...)...))
}

func floodBy(t *testing.T, cmd *exec.Cmd) (r floodReport) {
	t.Helper()
	out, err := cmd.Output()
	exit, _ := errors.AsType[*exec.ExitError](err)
	if err != nil && (exit == nil || exit.ExitCode() != 1) {
		t.Fatalf("%s: %v: %s", cmd, err, exit.Stderr)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
	for _, a := range r.Attacks {
		t.Logf("%s: %d attempts, %d refused, %d done, %d ended after %v to %v, %d held; p99 %v idle, %v on the kept connection, %v on new ones, %v late; back after %.1f s, CPU %.1f s",
			a.Attack, a.Attempts, a.Refused, a.Left, a.Ended.Count, a.Ended.Min.duration(), a.Ended.Max.duration(), a.Held,
			r.Idle.RoundTrips.P99.duration(), a.During.RoundTrips.P99.duration(), a.During.Connections.P99.duration(), a.During.Lag.P99.duration(), a.Server.Recovered, a.Server.CPU)
		a.judge(t, r.Idle)
	}
	return r
}

// judge takes the verdict's place in what is about time: this machine may have other things to do, which build and
// test. By how much the well-behaved client's own timers are late is not the server's doing.
func (a *attackTally) judge(t *testing.T, idle felt) {
	t.Helper()
	if a.Skipped != "" {
		t.Errorf("%s was skipped: %s", a.Attack, a.Skipped)
		return
	}
	for _, complaint := range a.Complaints {
		if !strings.HasPrefix(complaint, "p99 ") {
			t.Errorf("%s: %s", a.Attack, complaint)
		}
	}
	if os.Getenv(floodVariable) != "full" {
		return // in a few seconds, beside other tests, a percentile says little
	}
	const floor = 10 * time.Millisecond
	for what, f := range map[string][2]figures{"round trips": {idle.RoundTrips, a.During.RoundTrips}, "connections": {idle.Connections, a.During.Connections}} {
		if most := 3*max(f[0].P99.duration(), floor) + a.During.Lag.P99.duration(); f[1].P99.duration() > most {
			t.Errorf("%s: the p99 of %s is %v, above %v", a.Attack, what, f[1].P99.duration(), most)
		}
	}
}

// A footprint is what a server takes of the machine.
type footprint struct{ goroutines, files, resident int }

func (p *process) footprint() footprint {
	p.t.Helper()
	s := p.scrape()
	return footprint{int(s["go_goroutines"]), files(p.t, p.pid()), int(s["process_resident_memory_bytes"])}
}

// leavesNothing waits for up to five seconds until the server takes no more than it did before, but for so much memory.
func (p *process) leavesNothing(t *testing.T, before footprint, memory int) {
	t.Helper()
	most := footprint{before.goroutines + 10, before.files + 5, before.resident + memory}
	began, now := time.Now(), p.footprint()
	for ; now.goroutines > most.goroutines || now.files > most.files || now.resident > most.resident; now = p.footprint() {
		if time.Since(began) > 5*time.Second {
			t.Errorf("5 s after the flood the server has %+v, want no more than %+v", now, most)
			return
		}
		<-time.After(100 * time.Millisecond) // until the next look
	}
	t.Logf("%v after the flood the server has %+v, before %+v", time.Since(began).Round(time.Millisecond), now, before)
}
