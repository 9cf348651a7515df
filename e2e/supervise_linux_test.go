package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"
)

// startSupervised starts a levee that stays as one process, and returns with it that which serves.
func startSupervised(t *testing.T) (p *process, serving int) {
	t.Helper()
	p = start(t, "serve", "--supervise", "-c", config(t, "upgrade: {settle: 50ms, probation: 100ms}", ""))
	p.address()
	serving = p.serves()
	if serving == p.pid() {
		t.Fatalf("process %d serves itself", serving)
	}
	t.Cleanup(func() { // what would be left if the supervisor failed
		for _, pid := range childrenOf(t, p.home) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return p, serving
}

// serves returns which process answers.
func (p *process) serves() int {
	p.t.Helper()
	status, body := get(p.t, p.admin("/api/v1/status"))
	var s struct{ PID int }
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != http.StatusOK {
		p.t.Fatalf("status %d %v: %s", status, err, body)
	}
	return s.PID
}

// childrenOf returns the processes of levee that have the home folder.
func childrenOf(t *testing.T, home string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		binary, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if binary == levee && containsLine(environ, "HOME="+home) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func containsLine(environ []byte, line string) bool {
	for len(environ) > 0 {
		end := 0
		for end < len(environ) && environ[end] != 0 {
			end++
		}
		if string(environ[:end]) == line {
			return true
		}
		environ = environ[min(end+1, len(environ)):]
	}
	return false
}

func TestASupervisorOutlivesUpgradesAndEndsWithTheLastLevee(t *testing.T) {
	p, first := startSupervised(t)
	address := p.address()
	c := dial(t, address)
	if err := echoesOn(c); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGUSR2)
	eventually(t, "another process serves", func() bool { return p.serves() != first })
	eventually(t, "the first is gone", func() bool { return syscall.Kill(first, 0) == syscall.ESRCH })
	if err := echoesOn(c); err != nil {
		t.Errorf("the connection does not go on: %v", err)
	}
	if err := echoes(address); err != nil {
		t.Error(err)
	}
	second := p.serves()
	p.signal(syscall.SIGUSR2)
	eventually(t, "a third serves", func() bool { return p.serves() != second })
	c.Close()
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := childrenOf(t, p.home); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

func TestASupervisorTellsHowItsLeveeEnded(t *testing.T) {
	p, serving := startSupervised(t)
	if err := syscall.Kill(serving, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d", code)
	}
}

// Nobody serves then: whoever watches has to start another, and not when the last stream has ended.
func TestASupervisorEndsIfTheNewLeveeDiesWhileTheOldOneDrains(t *testing.T) {
	p := start(t, "serve", "--supervise", "-c", config(t, "upgrade: {settle: 50ms, probation: 100ms}\ndrain: {timeout: 1h}", "tls: {mode: terminate, development: true}"))
	first := p.serves()
	t.Cleanup(func() {
		for _, pid := range childrenOf(t, p.home) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	c, err := tls.Dial("tcp", p.address(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := echoesOn(c); err != nil {
		t.Fatal(err)
	}
	busy := make(chan struct{})
	go func() { // ends with the connection: one that is quiet would leave
		defer close(busy)
		for echoesOn(c) == nil {
		}
	}()
	p.signal(syscall.SIGUSR2)
	eventually(t, "another process serves", func() bool { return p.serves() != first })
	p.logged("draining what has not moved")
	if err := syscall.Kill(p.serves(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code == 0 {
		t.Error("exit code 0")
	}
	<-busy
}
