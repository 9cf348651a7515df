package redislimit_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// A client of rueidis that has lost its server looks for it once more, a little later, and one that gave up an
// answer waits for that still.
func TestMain(m *testing.M) {
	if socket := os.Getenv("REDISLIMIT_MACHINE"); socket != "" {
		beMachine(socket)
		return
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*pipe).backgroundPing.func1"))
}

const (
	patience = 20 * time.Second
	timeout  = 50 * time.Millisecond
	// slack is what two cores that do many other things, and the race detector, may add to a time.
	slack = 400 * time.Millisecond
)

// A server is a Redis server of a test.
type server struct {
	t      testing.TB
	dir    string
	args   []string
	cmd    *exec.Cmd
	out    bytes.Buffer
	client rueidis.Client // of the test itself
}

func startRedis(t testing.TB, args ...string) *server {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("skipped: redis-server is not installed")
	}
	dir, err := os.MkdirTemp("", "redis") // t.TempDir's names can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &server{t: t, dir: dir, args: append([]string{
		program, "--port", "0", "--unixsocket", filepath.Join(dir, "s"),
		"--save", "", "--appendonly", "no", "--dir", dir,
	}, args...)}
	s.start()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Log(s.out.String())
		}
	})
	s.client = connect(t, s.socket())
	return s
}

func (s *server) socket() string { return filepath.Join(s.dir, "s") }

// start also starts it again, with nothing left in it.
func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "Redis answers", func() bool {
		client, err := rueidis.NewClient(options(s.socket()))
		if client != nil {
			client.Close()
		}
		return err == nil
	})
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// do runs a command of the test's own.
func (s *server) do(words ...string) rueidis.RedisResult {
	s.t.Helper()
	result := s.client.Do(s.t.Context(), s.client.B().Arbitrary(words...).Build())
	if err := result.Error(); err != nil && !rueidis.IsRedisNil(err) {
		s.t.Fatalf("%s: %v", words, err)
	}
	return result
}

func options(socket string) rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress: []string{socket}, DisableCache: true, ForceSingleClient: true,
		DialCtxFn: func(ctx context.Context, socket string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}
}

// connect returns a client until the test ends.
func connect(t testing.TB, socket string) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(options(socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// run has a machine share limits until the test ends, or stop is called.
func run(t testing.TB, l *redislimit.Limits) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }() // until stop
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// machine returns limits with a client of their own, which are shared.
func machine(t *testing.T, socket string) *redislimit.Limits {
	t.Helper()
	l := &redislimit.Limits{Client: connect(t, socket), Timeout: patience} // what is measured here is not the machine
	run(t, l)
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
	return l
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for late := time.Now().Add(patience); !is(); <-look.C {
		if time.Now().After(late) {
			t.Fatalf("it never comes true that %s", what)
		}
	}
}

// open is a claim of at most n open connections.
func open(n int, key string) limit.Claim { return limit.Claim{Limit: "open", Key: key, Most: n} }

// rate is a claim of that many connections at once, and practically none later.
func rate(burst int, key string) limit.Claim {
	return limit.Claim{Limit: "rate", Key: key, Rate: 0.001, Burst: burst}
}

// claimed claims n times at once and returns how many were granted. None must end in an error.
func claimed(t *testing.T, l *redislimit.Limits, n int, claims ...limit.Claim) int {
	t.Helper()
	granted, failed := claimAll(l, n, claims...)
	if failed > 0 {
		t.Fatalf("%d of %d claims ended in an error: %+v", failed, n, l.State())
	}
	return granted
}

func claimAll(l *redislimit.Limits, n int, claims ...limit.Claim) (granted, failed int) {
	var yes, errs atomic.Int64
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			switch refused, err := l.Claim(context.Background(), claims); {
			case err != nil:
				errs.Add(1)
			case refused < 0:
				yes.Add(1)
			}
		})
	}
	all.Wait()
	return int(yes.Load()), int(errs.Load())
}

// beMachine is a machine in a process of its own. It reads what to do line by line.
func beMachine(socket string) {
	client, err := rueidis.NewClient(options(socket))
	if err != nil {
		fmt.Println(err)
		return
	}
	l := &redislimit.Limits{Client: client, Timeout: patience, Lease: lease}
	go func() { _ = l.Run(context.Background()) }() // until the process ends
	for l.State().Err != nil {
		time.Sleep(time.Millisecond) //nolint:forbidigo // another process
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var n int
		var c limit.Claim
		if _, err := fmt.Sscan(in.Text(), &n, &c.Limit, &c.Key, &c.Most, &c.Rate, &c.Burst); err != nil {
			fmt.Println(err)
			continue
		}
		granted, failed := claimAll(l, n, c)
		fmt.Println(granted, failed)
	}
}

const lease = time.Second // of machines that die

// A process is a machine in a process of its own.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func startMachine(t *testing.T, socket string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "REDISLIMIT_MACHINE="+socket)
	p.cmd.Stderr = os.Stderr
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.in = theirs, in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(p.kill)
	if got := p.line(); got != "ready" {
		t.Fatalf("the machine says %q", got)
	}
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.in.Close()
}

func (p *process) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// ask has it claim n times at once. claimed returns how many were granted.
func (p *process) ask(n int, c limit.Claim) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, n, c.Limit, c.Key, c.Most, c.Rate, c.Burst); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) claimed() int {
	p.t.Helper()
	var granted, failed int
	if line := p.line(); func() bool { n, _ := fmt.Sscan(line, &granted, &failed); return n != 2 || failed > 0 }() {
		p.t.Fatalf("the machine says %q", line)
	}
	return granted
}
