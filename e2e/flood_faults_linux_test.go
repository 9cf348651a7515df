package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each sends a part of a request, and closes, half-closes or resets.
func TestAllFaultyConnectionsAreAccountedForAndNothingIsLeft(t *testing.T) {
	churned := sized(t, "connections", 5000, 200_000) // what one in a hundred leaves behind is seen
	p := startOnCore(t, "serve", "-c", config(t, "overload: {mode: off}", ""))
	target := p.address()
	comeAndGo := func(n int) {
		for until := p.scrape().of("levee_connections_accepted_total") + float64(n); p.scrape().of("levee_connections_accepted_total") < until; {
			flood(t, target, "--attack", "faults", "--rate", "20000", "-c", "256", "-d", sized(t, "at a time", "2s", "20s"))
			if t.Failed() {
				return
			}
		}
	}
	comeAndGo(1000) // what a server that has been used keeps is not a leak
	before := p.footprint()
	counted := make(chan int)
	over := make(chan bool)
	go func() { // ends with the flood
		for looks := 0; ; looks++ {
			if !p.scrape().addsUp() {
				t.Error("accepted is not closed and active")
			}
			select {
			case <-over:
				counted <- looks
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	comeAndGo(churned)
	close(over)
	t.Logf("it added up %d times", <-counted)
	p.leavesNothing(t, before, sized(t, "more memory", 16<<20, before.resident/20)) // in seconds it may just have grown into what it keeps
	s := p.scrape()
	if !s.addsUp() || s.of("levee_connections_active") != 0 {
		t.Errorf("accepted are %v, active %v", s.of("levee_connections_accepted_total"), s.of("levee_connections_active"))
	}
}

// cpuOf is the processor time that a process has taken.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const tick = 10 * time.Millisecond
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick
}

func TestWithoutAFreeFileItLivesAndRecoversAtOnce(t *testing.T) {
	backend := startEcho(t, "127.0.0.1:0").address()
	for what, routes := range map[string]string{
		"echo":  "routes: [{handler: echo}]\n",
		"proxy": "routes: [{upstream: main}]\nupstreams: [{name: main, servers: [\"" + backend + "\"]}]\n",
		"tls":   "tls: {mode: terminate, development: true}\n    routes: [{handler: echo}]\n",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			// More connections than there are files for: a figure that is wrong does no harm.
			path := write(t, "levee.yaml", "version: 1\nadmin: {listen: \"127.0.0.1:0\"}\nlisteners:\n  - name: main\n    listen: [\"127.0.0.1:0\"]\n    limits: {max_connections: 5000}\n    "+routes)
			p := launch(t, exec.Command("sh", "-c", `ulimit -n 1024 && exec "$0" serve -c "$1"`, levee, path))
			outOfFiles(t, p, what != "tls")
		})
	}
}

// outOfFiles takes all files that the server has, for a while.
func outOfFiles(t *testing.T, p *process, plain bool) {
	address := p.address()
	if plain {
		defer keepTalking(t, address)()
	}
	crowd := crowdOf(address, 1500)
	before, began := cpuOf(t, p.pid()), time.Now()
	for time.Since(began) < 3*time.Second {
		asked := time.Now()
		if status, _ := get(t, p.admin("/metrics")); status != http.StatusOK || time.Since(asked) > time.Second {
			t.Errorf("the admin port answers %d after %v", status, time.Since(asked))
		}
		<-time.After(200 * time.Millisecond) // between two looks
	}
	share := float64(cpuOf(t, p.pid())-before) / float64(time.Since(began))
	open := files(t, p.pid())
	t.Logf("with %d files it took %.1f %% of a processor", open, 100*share)
	if share > 0.1 {
		t.Errorf("it took %.0f %% of a processor while it had no files", 100*share)
	}
	if open < 900 {
		t.Errorf("it has %d files: it never ran out of them", open)
	}
	for _, c := range crowd {
		reset(c)
	}
	if !plain {
		eventually(t, "the crowd has gone", func() bool { return files(t, p.pid()) < 100 })
		return
	}
	gone := time.Now()
	for {
		err := echoes(address)
		if err == nil {
			break
		}
		if time.Since(gone) > time.Second {
			t.Fatalf("a second after the crowd has gone: %v", err)
		}
	}
	if took := time.Since(gone); took > time.Second {
		t.Errorf("it served again after %v", took)
	}
}

// keepTalking has an echo ten times a second on a connection, until what it returns is called.
func keepTalking(t *testing.T, address string) (stop func()) {
	t.Helper()
	c := chatsOn(t, address, 1)[0]
	over, done := make(chan bool), make(chan bool)
	go func() { // ends when it is told to
		defer close(done)
		for {
			if err := c.round(); err != nil {
				t.Errorf("a connection that was there: %v", err)
				return
			}
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() { close(over); <-done }
}

// crowdOf are silent connections, of so many tried, that were not turned away at once.
func crowdOf(address string, n int) (crowd []net.Conn) {
	for range n {
		if c, err := net.DialTimeout("tcp", address, patience); err == nil {
			crowd = append(crowd, c)
		}
	}
	return crowd
}
