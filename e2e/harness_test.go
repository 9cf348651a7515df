package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what should come at once.
const patience = 15 * time.Second

// promptly is how late what is to happen at once, or at its time, may be seen on a machine that has other things to do.
const promptly = time.Second

// levee is levee, built once.
var levee string

func TestMain(m *testing.M) {
	soaking.flags(flag.CommandLine)
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "levee-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	levee = filepath.Join(dir, "levee")
	build := exec.Command("go", "build", "-C", "..", "-o", levee, "./cmd/levee")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building levee:", err)
		return 1
	}
	return m.Run()
}

// output is what a process has written so far.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // closed by the next write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.written != nil {
		close(o.written)
		o.written = nil
	}
	return o.text.Write(p)
}

func (o *output) String() string {
	text, _ := o.soFar()
	return text
}

func (o *output) soFar() (text string, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.written == nil {
		o.written = make(chan struct{})
	}
	return o.text.String(), o.written
}

// A process is a running levee.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	home           string
	stdout, stderr output
	done           chan struct{}
	ended          time.Time // once done is closed
}

// free listens on ports that nobody has, with the built-in configuration.
var free = []string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"}

// start starts levee. It is killed at the end of the test, if it still runs.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	return launch(t, exec.Command(levee, args...))
}

// launch starts a command that is levee, or becomes it.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, home: t.TempDir(), done: make(chan struct{})}
	if cmd.Env == nil {
		cmd.Env = append(os.Environ(), "HOME="+p.home, "XDG_CONFIG_HOME=")
	}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the exit code tells
		p.ended = time.Now()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s wrote\n%s%s", cmd, &p.stdout, &p.stderr)
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatal("levee does not end")
		return 0
	}
}

// find waits until the output has a match, and returns its last group.
func (p *process) find(o *output, pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	late := time.After(patience)
	for ended := false; ; {
		text, more := o.soFar()
		if found := re.FindStringSubmatch(text); found != nil {
			return found[len(found)-1]
		}
		if ended {
			p.t.Fatalf("it ended, and nothing matches %s", pattern)
		}
		select {
		case <-more:
		case <-p.done:
			ended = true // but look once more
		case <-late:
			p.t.Fatalf("nothing matches %s", pattern)
		}
	}
}

// address is where it listens.
func (p *process) address() string {
	p.t.Helper()
	return p.find(&p.stdout, `^Listening on (\S+)\r?\n`)
}

// admin returns an address on the admin port.
func (p *process) admin(path string) string {
	p.t.Helper()
	return p.find(&p.stdout, `^Metrics on (http://\S+)/metrics\r?\n`) + path
}

// ca is the development CA's file.
func (p *process) ca() string {
	p.t.Helper()
	return p.find(&p.stdout, ` -CAfile '(.*)' -connect`)
}

// logged waits for the first log line with the message, and returns it.
func (p *process) logged(message string) map[string]any {
	p.t.Helper()
	line := p.find(&p.stderr, `^(.*"msg":`+regexp.QuoteMeta(strconv.Quote(message))+`.*)\n`)
	var entry map[string]any
	if err := json.Unmarshal([]byte(line), &entry); err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
	return entry
}

// A scrape is what /metrics says: values by name and labels.
type scrape map[string]float64

func (p *process) scrape() scrape {
	p.t.Helper()
	status, body := get(p.t, p.admin("/metrics"))
	if status != http.StatusOK {
		p.t.Fatalf("metrics: %d %s", status, body)
	}
	return newScrape(body)
}

func newScrape(body string) scrape {
	values := make(scrape)
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && name != "#" {
			values[name] = v
		}
	}
	return values
}

func (s scrape) of(name string) float64 { return s[name+`{listener="main"}`] }

func (s scrape) closed(reason string) float64 {
	return s[`levee_connections_closed_total{listener="main",reason="`+reason+`"}`]
}

// addsUp reports whether every connection is accounted for.
func (s scrape) addsUp() bool {
	closed := 0.0
	for name, value := range s {
		if strings.HasPrefix(name, "levee_connections_closed_total{") {
			closed += value
		}
	}
	return s.of("levee_connections_accepted_total") == closed+s.of("levee_connections_active")
}

// eventually waits until it is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for late := time.Now().Add(patience); !is(); <-look.C {
		if time.Now().After(late) {
			t.Fatalf("it never comes true that %s", what)
		}
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// dialFrom connects from an address of this machine.
func dialFrom(source, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0)), Timeout: patience}
	c, err := d.Dial("tcp", address)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// echoes reports what is wrong with the echo on a new connection, and nil if
// nothing is.
func echoes(address string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	return echoesOn(c)
}

func echoesOn(c net.Conn) error {
	const text = "hi\n"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("echo of %q is %q", text, got)
	}
	return nil
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	status, body, err := fetch(t.Context(), http.MethodGet, url, patience)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

// fetch makes a request on a connection of its own.
func fetch(ctx context.Context, method, url string, within time.Duration) (status int, body string, err error) {
	client := &http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(content), err
}

// need skips the test if a program is not installed.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("skipped: %s is not installed", program)
	}
}

// client runs another program to its end, and returns all that it wrote.
func client(t *testing.T, input, program string, args ...string) (text string, err error) {
	t.Helper()
	need(t, program)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: %w", cmd, err), ctx.Err())
	}
	return string(out), err
}

// write writes a file into a folder of the test's own and returns its path.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config writes a configuration with one plaintext listener on a free port, and
// whatever else it is to have.
func config(t *testing.T, top, listener string) string {
	t.Helper()
	return write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
`+top+`
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    `+listener+`
    routes:
      - {match: {protocol: http}, handler: hello}
      - {handler: echo}
`)
}
