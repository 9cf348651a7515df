package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A leaving is a crowd that is there when levee is told to end.
type leaving struct {
	active, idle, queued int
	slowest              time.Duration // answer
	drain                string
}

// patientServer answers each line once it is released, and after as long as that says.
func patientServer(t *testing.T, release <-chan struct{}) (address string) {
	t.Helper()
	return serve(t, listen(t), func(c net.Conn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			var wait time.Duration
			if _, err := fmt.Sscan(lines.Text(), (*int64)(&wait)); err != nil {
				return
			}
			if wait > 0 {
				select {
				case <-release:
				case <-t.Context().Done():
					return
				}
				select {
				case <-time.After(wait):
				case <-t.Context().Done():
					return
				}
			}
			if _, err := io.WriteString(c, "answer\n"); err != nil {
				return
			}
		}
	})
}

func askAfter(t *testing.T, c net.Conn, wait time.Duration) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(4 * patience))
	if _, err := fmt.Fprintf(c, "%d\n", int64(wait)); err != nil {
		t.Fatal(err)
	}
}

func answered(c net.Conn) error {
	got := make([]byte, 7)
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("after %q: %w", got[:n], err)
	}
	return nil
}

// freeze stops the process. That takes a moment, in which it may still accept somebody.
func (p *process) freeze() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	eventually(p.t, "the process is stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid()))
		if err != nil || len(threads) == 0 {
			p.t.Fatal("it has no threads", err)
		}
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if _, state, found := strings.Cut(string(text), ") "); err != nil || !found || state[0] != 'T' {
				return false
			}
		}
		return true
	})
}

// come has the crowd there, and levee told to end.
func (lv *leaving) come(t *testing.T) (p *process, active, idle []net.Conn, told time.Time) {
	t.Helper()
	release := make(chan struct{})
	p = start(t, "serve", "-c", proxying(t, patientServer(t, release), "drain: {timeout: "+lv.drain+"}", "", "health: {interval: off}"))
	address := p.address()
	active, idle = dialMany(t, address, lv.active), dialMany(t, address, lv.idle)
	for _, c := range idle {
		askAfter(t, c, 0)
		if err := answered(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range active {
		askAfter(t, c, 1+rand.N(lv.slowest))
	}
	eventually(t, "all are in", func() bool { return p.scrape().of("levee_connections_active") == float64(lv.active+lv.idle) })
	p.freeze()
	queued := dialMany(t, address, lv.queued)
	for _, c := range queued {
		askAfter(t, c, 1+rand.N(lv.slowest))
	}
	p.signal(syscall.SIGTERM)
	told = time.Now()
	p.signal(syscall.SIGCONT)
	close(release)
	return p, append(active, queued...), idle, told
}

func TestACrowdLeavesUncutAndLeveeEndsWithTheLast(t *testing.T) {
	lv := leaving{active: 1000, idle: 200, queued: 50, drain: "25s", slowest: upgradeSized(t, "slowest answer", 1500*time.Millisecond, 10*time.Second)}
	p, active, idle, _ := lv.come(t)
	var (
		clients sync.WaitGroup
		mu      sync.Mutex
		last    time.Time
		cut     int
		first   error
	)
	ends := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.After(last) {
			last = now
		}
		if err != nil {
			cut++
			if first == nil {
				first = err
			}
		}
	}
	for _, c := range active {
		clients.Go(func() {
			err := answered(c)
			c.Close()
			ends(err)
		})
	}
	for _, c := range idle {
		clients.Go(func() {
			_, err := c.Read(make([]byte, 1))
			if err == io.EOF {
				err = nil
			}
			c.Close()
			ends(err)
		})
	}
	clients.Wait()
	code := p.wait()
	t.Logf("%d of %d were cut; it ended %v after the last", cut, len(active)+len(idle), p.ended.Sub(last))
	if cut > 0 {
		t.Errorf("%d of %d were cut: %v", cut, len(active)+len(idle), first)
	}
	if took := p.ended.Sub(last); code != 0 || took > upgradeSized(t, "how late it may end", promptly, 200*time.Millisecond) {
		t.Errorf("exit code %d, %v after the last", code, took)
	}
}

func TestACrowdThatDoesNotLeaveIsCutInTime(t *testing.T) {
	const limit = 3 * time.Second
	lv := leaving{active: 1000, idle: 200, queued: 50, drain: "3s", slowest: time.Hour}
	p, _, _, told := lv.come(t)
	code := p.wait()
	took := p.ended.Sub(told)
	t.Logf("it ended after %v", took)
	if code != 1 || took < limit || took > limit+upgradeSized(t, "how late it may end", promptly, 200*time.Millisecond) {
		t.Errorf("exit code %d after %v, want %v", code, took, limit)
	}
	if line := p.logged(cutLine); line["cut"].(float64) < float64(lv.active) {
		t.Errorf("%v", line)
	}
}
