package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/app"
)

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// output is what a run has written so far; awaiting more of it needs no polling.
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
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) soFar() (text string, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.written == nil {
		o.written = make(chan struct{})
	}
	return o.text.String(), o.written
}

// A run is levee in this process.
type run struct {
	t              *testing.T
	stdout, stderr output
	signals        chan os.Signal
	done           chan struct{}
	code           int // once done is closed
}

// start runs levee. It is stopped at the end of the test, if it has not ended.
func start(t *testing.T, env app.Env, args ...string) *run {
	t.Helper()
	r := &run{t: t, signals: make(chan os.Signal, 4), done: make(chan struct{})}
	env.Stdout, env.Stderr, env.Signals = &r.stdout, &r.stderr, r.signals
	if env.ConfigDir == nil {
		dir := t.TempDir()
		env.ConfigDir = func() (string, error) { return dir, nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		r.code = app.Run(ctx, append([]string{"levee"}, args...), env)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-r.done:
		case <-time.After(patience):
			t.Errorf("levee %q does not end; it wrote\n%s%s", args, &r.stdout, &r.stderr)
		}
	})
	return r
}

// result runs levee to its end.
func result(t *testing.T, env app.Env, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	r := start(t, env, args...)
	code = r.wait()
	return code, r.stdout.String(), r.stderr.String()
}

func (r *run) wait() int {
	r.t.Helper()
	select {
	case <-r.done:
		return r.code
	case <-time.After(patience):
		r.t.Fatalf("levee does not end; it wrote\n%s%s", &r.stdout, &r.stderr)
		return 0
	}
}

// find waits until the output has a match, and returns its first group.
func (r *run) find(o *output, pattern string) string {
	r.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	late := time.After(patience)
	ended := r.done
	for {
		text, more := o.soFar()
		if found := re.FindStringSubmatch(text); found != nil {
			return found[len(found)-1]
		}
		select {
		case <-more:
		case <-ended:
			ended = nil // look once more: it may have written and ended
			continue
		case <-late:
			r.t.Fatalf("nothing matches %s in\n%s", pattern, text)
		}
		if ended == nil {
			r.t.Fatalf("nothing matches %s in\n%s%s", pattern, &r.stdout, &r.stderr)
		}
	}
}

// address is where it listens.
func (r *run) address() string {
	r.t.Helper()
	return r.find(&r.stdout, `^Listening on (\S+)\n`)
}

// admin returns an address on the admin port.
func (r *run) admin(path string) string {
	r.t.Helper()
	return r.find(&r.stdout, `^Metrics on (http://\S+)/metrics\n`) + path
}

// log returns the lines on standard error, which must all be JSON.
func (r *run) log() []map[string]any {
	r.t.Helper()
	var lines []map[string]any
	for line := range strings.Lines(r.stderr.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			r.t.Fatalf("%q is no log line: %v", line, err)
		}
		lines = append(lines, entry)
	}
	return lines
}

// says waits until it stands on standard error, and returns all that does.
func (r *run) says(text string) string {
	r.t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); <-time.After(time.Millisecond) {
		if all := r.stderr.String(); strings.Contains(all, text) {
			return all
		}
	}
	r.t.Fatalf("%q does not stand in\n%s", text, &r.stderr)
	return ""
}

// logged returns the first log line with the message.
func (r *run) logged(message string) map[string]any {
	r.t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); <-time.After(time.Millisecond) { // lines are written a moment later
		for _, line := range r.log() {
			if line["msg"] == message {
				return line
			}
		}
	}
	r.t.Fatalf("no line says %q in\n%s", message, &r.stderr)
	return nil
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly the text.
func expect(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); string(got) != text {
		t.Fatalf("read %q (%v), want %q", got[:n], err, text)
	}
}

// get returns status and body.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
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

// plain is a configuration with one listener on a free port.
const plain = `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    routes:
      - {match: {protocol: http}, handler: hello}
      - {handler: echo}
`
