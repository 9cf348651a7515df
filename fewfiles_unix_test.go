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
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

const (
	fewFiles       = 64
	fewFilesEnv    = "LEVEE_TEST_FEW_FILES" // set in the child, to what it is to be
	fewFilesWindow = time.Second            // the longest pause between two accepts
)

// report is what the server with few files says of itself.
type report struct {
	Addr                              string
	CPU                               time.Duration
	Active, Accepted, AcceptErrors    int64
	MaxConns, QueueLength, QueueLimit int
	Spare                             int // files that it can still open, up to 100
}

func TestServerOutOfFilesStaysAliveAndServesAllOnceTheyAreFree(t *testing.T) {
	if limit, isChild := os.LookupEnv(fewFilesEnv); isChild {
		maxConns, err := strconv.Atoi(limit)
		if err != nil {
			t.Fatal(err)
		}
		serveWithFewFiles(t, &levee.Server{Handler: answering, MaxConns: maxConns}, listenTCP(t))
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
			child := startWithFewFiles(t, fewFiles, fmt.Sprint(test.maxConns))
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

// startWithFewFiles runs this test in a child, which is told what it is to be.
func startWithFewFiles(t *testing.T, files int, what string) *fewFilesChild {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context: it ends before Cleanup, and the child is to end in peace.
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files),
		self, "-test.run=^"+regexp.QuoteMeta(strings.Split(t.Name(), "/")[0])+"$")
	cmd.Env = append(os.Environ(), fewFilesEnv+"="+what)
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
func serveWithFewFiles(t *testing.T, srv *levee.Server, l net.Listener) {
	s := serve(t, srv, l)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		stats := s.Stats()
		line, err := json.Marshal(report{
			Addr: l.Addr().String(), CPU: cpuTime(t),
			Active: stats.Active, Accepted: stats.Accepted, AcceptErrors: stats.AcceptErrors,
			Spare:    spareFiles(),
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

// spareFiles returns how many files the process can still open, up to 100.
func spareFiles() int {
	var files []*os.File
	for range 100 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		files = append(files, f)
	}
	for _, f := range files {
		_ = f.Close()
	}
	return len(files)
}

const (
	someFiles   = 1024
	keptFiles   = 64                     // of these
	recovery    = 400 * time.Millisecond // at most, when the back-off has reached its second
	bareSockets = "bare sockets"
)

func TestLastFilesAreKeptForOthersAndFreedOnesUsedAtOnce(t *testing.T) {
	if kind, isChild := os.LookupEnv(fewFilesEnv); isChild {
		l := listenPlain(t)
		if kind == bareSockets {
			l = listenTCP(t)
		}
		serveWithFewFiles(t, &levee.Server{Handler: &lines{}, MaxConns: -1, GoroutinePerConn: kind != bareSockets}, l)
		return
	}
	for _, kind := range []string{bareSockets, "net's connections"} {
		t.Run(kind, func(t *testing.T) {
			child := startWithFewFiles(t, someFiles, kind)
			clients := dialUntilFull(t, child.start.Addr)
			served := make(chan time.Time)
			go knock(child.start.Addr, served)    // ends when it is served
			<-time.After(1500 * time.Millisecond) // for the back-off to get long, and to measure
			before := child.ask(t)
			<-time.After(fewFilesWindow)
			full := child.ask(t)
			if share := float64(full.CPU-before.CPU) / float64(fewFilesWindow); share > 0.1 {
				t.Errorf("out of files, the server burns %.0f %% of a CPU", 100*share)
			}
			if tries := full.AcceptErrors - before.AcceptErrors; tries < 1 || tries > 3 {
				t.Errorf("%d accepts failed within %v: the test tests nothing", tries, fewFilesWindow)
			}
			if full.AcceptErrors == 0 || full.Active > someFiles-keptFiles || full.Active < someFiles/2 {
				t.Errorf("%d connections with %d files, %d accepts failed", full.Active, someFiles, full.AcceptErrors)
			}
			if full.Spare < keptFiles-8 || full.Spare > keptFiles { // event loops, pipes and the like have opened some since
				t.Errorf("%d files are left to others, want nearly %d", full.Spare, keptFiles)
			}
			if full.Accepted != full.Active {
				t.Errorf("%d accepted, %d active: those turned away are counted", full.Accepted, full.Active)
			}

			began := time.Now()
			for _, c := range clients[:100] {
				c.Close()
			}
			if took := receive(t, served).Sub(began); took > recovery {
				t.Errorf("it took %v until somebody was served again", took)
			}
		})
	}
}

// dialUntilFull connects clients, who stay, until the server turns them away.
func dialUntilFull(t *testing.T, addr string) (inside []net.Conn) {
	t.Helper()
	for range 2 * someFiles {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return inside
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(longest))
		if exchangeOn(c) != nil {
			return inside
		}
		inside = append(inside, c)
	}
	t.Fatal("nobody is turned away")
	return nil
}

func exchangeOn(c net.Conn) error {
	if _, err := io.WriteString(c, "echo hello\n"); err != nil {
		return err
	}
	return expect(c, "hello\n")
}

// knock has one client after the other come until one is served, and says when that was.
func knock(addr string, served chan<- time.Time) {
	for exchangeLine(addr) != nil {
	}
	served <- time.Now()
}

// exchangeLine has a new client be served.
func exchangeLine(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longest))
	return exchangeOn(c)
}
