//go:build unix

package levee_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

const (
	fewFiles       = 64
	fewFilesEnv    = "LEVEE_TEST_FEW_FILES" // set in the child, to its MaxConns
	fewFilesWindow = time.Second            // the longest pause between two accepts
)

// report is what the server with few files says of itself.
type report struct {
	Addr                              string
	CPU                               time.Duration
	Active, Accepted, AcceptErrors    int64
	MaxConns, QueueLength, QueueLimit int
}

func TestServerOutOfFilesStaysAliveAndServesAllOnceTheyAreFree(t *testing.T) {
	if maxConns, isChild := os.LookupEnv(fewFilesEnv); isChild {
		serveWithFewFiles(t, maxConns)
		return
	}
	for _, test := range []struct {
		name     string
		maxConns int
		want     int // the effective cap
	}{
		{"capped by default", 0, fewFiles / 2},
		{"without a cap", -1, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			child := startWithFewFiles(t, test.maxConns)
			if child.start.MaxConns != test.want {
				t.Errorf("MaxConns is %d with %d open files, want %d", child.start.MaxConns, fewFiles, test.want)
			}
			flood(t, child, test.maxConns < 0)
		})
	}
}

// flood has 500 clients connect, each of which stays until all have been let go.
func flood(t *testing.T, child *fewFilesChild, uncapped bool) {
	const clients = 500
	answered := make(chan struct{}, clients)
	letGo := make(chan struct{})
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c, err := net.Dial("tcp", child.start.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if err := exchange(c, fmt.Sprintln("client", i)); err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			answered <- struct{}{}
			<-letGo
		})
	}
	for range 30 { // fewer than the server can hold in either case
		<-answered
	}
	before := child.ask(t)
	<-time.After(fewFilesWindow) // CPU time can only be measured over real time
	after := child.ask(t)
	if share := float64(after.CPU-before.CPU) / float64(fewFilesWindow); share > 0.1 {
		t.Errorf("out of files, the server burns %.0f %% of a CPU", 100*share)
	}
	if after.Active >= clients || after.Active > fewFiles {
		t.Errorf("%d of %d clients are served with %d files: the test tests nothing", after.Active, clients, fewFiles)
	}
	if failed := after.AcceptErrors > 0; failed != uncapped {
		t.Errorf("%d accepts failed", after.AcceptErrors)
	}
	close(letGo)
	all.Wait()
	if end := child.ask(t); end.Accepted != clients {
		t.Errorf("%d accepted, want %d", end.Accepted, clients)
	}
}

// fewFilesChild is this test binary, run again as a server.
type fewFilesChild struct {
	start report
	in    io.WriteCloser
	out   *bufio.Scanner
}

func startWithFewFiles(t *testing.T, maxConns int) *fewFilesChild {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context: it ends before Cleanup, and the child is to end in peace.
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, fewFiles),
		self, "-test.run=^TestServerOutOfFilesStaysAliveAndServesAllOnceTheyAreFree$")
	cmd.Env = append(os.Environ(), fewFilesEnv+"="+strconv.Itoa(maxConns))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server died: %v\n%s", err, complaints.Bytes())
		}
	})
	child := &fewFilesChild{in: in, out: bufio.NewScanner(out)}
	child.start = child.ask(t)
	return child
}

// ask has the server report; that it answers shows that it is alive.
func (c *fewFilesChild) ask(t *testing.T) (r report) {
	t.Helper()
	if _, err := fmt.Fprintln(c.in); err != nil {
		t.Fatal(err)
	}
	if !c.out.Scan() {
		t.Fatal("the server has nothing to say any more")
	}
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, c.out.Bytes())
	}
	return r
}

// serveWithFewFiles is the child. It reports once for every line it is sent.
func serveWithFewFiles(t *testing.T, maxConns string) {
	limit, err := strconv.Atoi(maxConns)
	if err != nil {
		t.Fatal(err)
	}
	l := listenTCP(t)
	s := serve(t, &levee.Server{Handler: answering, MaxConns: limit}, l)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		stats := s.Stats()
		line, err := json.Marshal(report{
			Addr: l.Addr().String(), CPU: cpuTime(t),
			Active: stats.Active, Accepted: stats.Accepted, AcceptErrors: stats.AcceptErrors,
			MaxConns: stats.MaxConns, QueueLength: stats.QueueLength, QueueLimit: stats.QueueLimit,
		})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(string(line))
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
