package e2e

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const cutLine = "drained, but connections that had not finished were cut"

// half has sent half of a request, after others that were answered.
type half struct {
	net.Conn
	answers *bufio.Reader
}

func newHalf(t *testing.T, address string, others int) half {
	t.Helper()
	c := dial(t, address)
	h := half{c, bufio.NewReader(c)}
	for range others {
		send(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := h.answered(); err != nil {
			t.Fatal(err)
		}
	}
	send(t, c, "GET / HTTP/1.1\r\nHo")
	return h
}

func (h half) answered() error {
	answer, err := http.ReadResponse(h.answers, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "Hello from levee, in plaintext.\n" || answer.StatusCode != http.StatusOK {
		return &net.AddrError{Err: answer.Status + " " + string(body), Addr: h.LocalAddr().String()}
	}
	return nil
}

func TestEveryRequestInFlightAtSIGINTIsAnswered(t *testing.T) {
	const clients = 200
	p := start(t, free...)
	address := p.address()
	var halves []half
	for i := range clients {
		halves = append(halves, newHalf(t, address, i%3))
	}
	p.signal(os.Interrupt)
	p.logged("draining")
	var (
		all  sync.WaitGroup
		errs = make(chan error, clients)
	)
	for _, h := range halves {
		all.Go(func() {
			if _, err := io.WriteString(h, "st: x\r\n\r\n"); err != nil {
				errs <- err
			} else {
				errs <- h.answered()
			}
		})
	}
	all.Wait()
	last := time.Now()
	for range clients {
		if err := <-errs; err != nil {
			t.Errorf("not answered: %v", err)
		}
	}
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := p.ended.Sub(last); took > promptly {
		t.Errorf("it ended %v after the last answer", took)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

func TestIdleConnectionsDoNotHoldItUp(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	echo, silent := dial(t, p.address()), dial(t, p.address())
	if err := echoesOn(echo); err != nil {
		t.Fatal(err)
	}
	h := newHalf(t, p.address(), 1)
	send(t, h, "st: x\r\n\r\n")
	if err := h.answered(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all three are in", func() bool { return p.scrape().of("levee_connections_active") == 3 })
	began := time.Now()
	p.signal(syscall.SIGTERM)
	const most = 2 * time.Second // who has said nothing at all has one of them, from when it was accepted
	if code := p.wait(); code != 0 || p.ended.Sub(began) > most {
		t.Errorf("exit code %d after %v", code, p.ended.Sub(began))
	}
	for _, c := range []net.Conn{echo, silent, h} {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d, %v, want EOF", n, err)
		}
	}
}

func TestConnectionThatDoesNotEndIsCutAtTheDeadline(t *testing.T) {
	t.Parallel()
	const deadline = 700 * time.Millisecond
	p := start(t, "serve", "-c", config(t, "drain: {timeout: 700ms}", ""))
	newHalf(t, p.address(), 1)
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(), p.ended.Sub(began); code != 1 || took < deadline || took > deadline+promptly {
		t.Errorf("exit code %d after %v", code, took)
	}
	if line := p.logged(cutLine); line["cut"] != 1.0 {
		t.Errorf("%v", line)
	}
}

func TestSecondSIGINTIsImmediate(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	newHalf(t, p.address(), 1)
	p.signal(os.Interrupt)
	p.logged("draining")
	began := time.Now()
	p.signal(os.Interrupt)
	if code, took := p.wait(), p.ended.Sub(began); code != 1 || took > promptly {
		t.Errorf("exit code %d after %v", code, took)
	}
	if line := p.logged(cutLine); line["cut"] != 1.0 {
		t.Errorf("%v", line)
	}
}

func TestSIGHUPDoesNotEndIt(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	p.address()
	p.signal(syscall.SIGHUP)
	p.logged("certificates, client policies, tickets and lists are read again; the configuration is not from a file")
	if err := echoes(p.address()); err != nil {
		t.Error(err)
	}
}

func TestWhileItWaitsToDrainItIsNotReadyAndServes(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", config(t, "drain: {pre_stop: 1s}", ""))
	address := p.address()
	if status, _ := get(t, p.admin("/readyz")); status != http.StatusOK {
		t.Errorf("readyz: %d", status)
	}
	began := time.Now()
	p.signal(syscall.SIGTERM)
	eventually(t, "it is not ready", func() bool {
		status, _ := get(t, p.admin("/readyz"))
		return status == http.StatusServiceUnavailable
	})
	if err := echoes(address); err != nil {
		t.Error(err)
	}
	if code, took := p.wait(), p.ended.Sub(began); code != 0 || took < time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
}

func TestAfterSIGKILLItStartsAgain(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	if len(socket) > 100 {
		t.Skipf("skipped: %s is too long for a socket", socket)
	}
	first := start(t, "--listen", "127.0.0.1:0", "--admin", "unix:"+socket)
	address := first.address()
	c := dial(t, address) // its end lingers in the kernel
	if err := echoesOn(c); err != nil {
		t.Fatal(err)
	}
	first.find(&first.stdout, `^Metrics on unix socket `)
	first.signal(os.Kill)
	first.wait()
	if _, err := os.Stat(socket); err != nil {
		t.Fatalf("nothing stale was left: %v", err)
	}

	second := start(t, "--listen", address, "--admin", "unix:"+socket)
	if got := second.address(); got != address {
		t.Errorf("listens on %s", got)
	}
	if err := echoes(address); err != nil {
		t.Error(err)
	}
	out, err := client(t, "", "curl", "-sS", "--unix-socket", socket, "http://localhost/readyz")
	if out != "ok\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestReaderOfTheLogThatGoesAwayDoesNotTakeItAlong(t *testing.T) {
	t.Parallel()
	if _, err := client(t, "", "env", "--default-signal=PIPE", "true"); err != nil {
		t.Skipf("skipped: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// As from a shell: a test runner may ignore the signal, and that is inherited.
	cmd := exec.Command("env", append([]string{"--default-signal=PIPE", levee}, free...)...)
	cmd.Stderr = w
	p := launch(t, cmd)
	w.Close()
	address := p.address()
	r.Close()
	for range 3 {
		p.signal(syscall.SIGHUP) // is logged
	}
	h := newHalf(t, address, 1)
	send(t, h, "st: x\r\n\r\n")
	if err := h.answered(); err != nil {
		t.Error(err)
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d, %s", code, p.cmd.ProcessState)
	}
}

func TestOnATerminalItSpeaksToPeopleAndCtrlCEndsIt(t *testing.T) {
	t.Parallel()
	need(t, "script")
	script := exec.Command("script", "-qefc", "echo pid $$; exec "+levee+" "+strings.Join(free, " "), "/dev/null")
	keyboard, err := script.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, script)
	pid, err := strconv.Atoi(p.find(&p.stdout, `^pid (\d+)\r\n`))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // script's own end is a hangup, which does not end levee
		select {
		case <-p.done:
		default:
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	if err := echoes(p.address()); err != nil {
		t.Error(err)
	}
	p.find(&p.stdout, `^Try   printf 'hi\\n' \| nc -N 127\.0\.0\.1 \d+\r\n      curl http://\S+/\r\n      openssl s_client -brief -CAfile '.*' -connect \S+\r\n`)
	p.find(&p.stdout, `\x1b\[92mINF\x1b\[0m bans: `)

	if _, err := io.WriteString(keyboard, "\x03"); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.find(&p.stdout, `\x1b\[92mINF\x1b\[0m drained .*\r\n`)
}
