package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/telemetry"
)

// told is a configuration with an upstream, and more to be added to logs.
func told(t *testing.T, logs string) string {
	t.Helper()
	behind := upstreamThat(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	return write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: "127.0.0.1:0"}
telemetry: {logs: {%s}}
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{name: all, upstream: db}]}
upstreams:
  - {name: db, servers: [{address: %q, name: db-1}], health: {interval: off}}
`, logs, behind))
}

// echoOnce has one connection served.
func echoOnce(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestPromtoolFindsNothingWrongWithTheMetrics(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool (package prometheus) is not installed")
	}
	r := start(t, app.Env{}, "serve", "-c", told(t, "level: info"))
	echoOnce(t, r.address())
	_, body := get(t, r.admin("/metrics"))
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// guide is the page that explains all words.
func guide(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/guides/reading.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheGuideHasEveryWord(t *testing.T) {
	page := guide(t)
	// A word is explained in the first column of a table.
	explained := make(map[string]bool)
	for line := range strings.Lines(page) {
		if row, ok := strings.CutPrefix(line, "| "); ok {
			first, _, _ := strings.Cut(row, "|")
			for _, word := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(first, -1) {
				explained[word[1]] = true
			}
		}
	}
	known := make(map[string]bool)
	need := func(kind, word string) {
		known[word] = true
		if !explained[word] {
			t.Errorf("%s %s is not explained", kind, word)
		}
	}
	for _, reason := range levee.CloseReasons() {
		need("reason", reason.String())
		line := regexp.MustCompile("(?m)^\\| `" + reason.String() + "` \\|[^|]*\\|([^|]*)\\|").FindStringSubmatch(page)
		if line == nil || (strings.TrimSpace(line[1]) == "yes") != reason.IsAbnormal() {
			t.Errorf("whether %v is bad is told wrongly: %q", reason, line)
		}
	}
	for _, p := range levee.Phases() {
		need("phase", p.String())
	}
	for _, field := range telemetry.AccessFields() {
		need("field", field)
	}
	r := start(t, app.Env{}, "serve", "-c", told(t, "level: info"))
	echoOnce(t, r.address())
	_, body := get(t, r.admin("/metrics"))
	for _, name := range regexp.MustCompile(`(?m)^# HELP (levee_\w+)`).FindAllStringSubmatch(body, -1) {
		need("metric", name[1])
	}
	elsewhere := []string{ // of what this levee does not have: several machines, lists, certificates
		"levee_shared_limits_up", "levee_shared_limits_asked_total", "levee_limit_prefixes", "levee_certificate_problems_total", "levee_certificate_expiry_timestamp_seconds",
	}
	for word := range explained {
		if strings.HasPrefix(word, "levee_") && !known[word] && !slices.Contains(elsewhere, word) {
			t.Errorf("there is no metric %s", word)
		}
	}
}

func TestTheDashboardCallsUsualWhatIsNotAbnormal(t *testing.T) {
	page, err := os.ReadFile("../admin/dashboard/assets/panels.js")
	if err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile(`(?m)^const usual = /(\S+)/;$`).FindSubmatch(page)
	if listed == nil {
		t.Fatal("there is no list of what is usual")
	}
	usual := regexp.MustCompile(string(listed[1]))
	for _, reason := range levee.CloseReasons() {
		if usual.MatchString(reason.String()) == reason.IsAbnormal() {
			t.Errorf("%v: abnormal is %t, and the dashboard does not say so", reason, reason.IsAbnormal())
		}
	}
}

// accessLines returns a text's lines of an access log, once there are so many.
func accessLines(t *testing.T, text func() string, many int) (lines []map[string]any) {
	t.Helper()
	for late := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) { // nothing tells of a file's next line
		lines = nil
		for line := range strings.Lines(text()) {
			var entry map[string]any
			if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == "connection" {
				lines = append(lines, entry)
			}
		}
		if len(lines) >= many {
			return lines
		}
		if time.Now().After(late) {
			t.Fatalf("%d lines, want %d: %s", len(lines), many, text())
		}
	}
}

func TestTheAccessLogIsOffUnlessAskedFor(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", told(t, "format: json"))
	echoOnce(t, r.address())
	r.signals <- os.Interrupt
	r.wait()
	if text := r.stdout.String() + r.stderr.String(); strings.Contains(text, `"msg":"connection"`) {
		t.Error(text)
	}
}

func TestAnAccessLogTellsWhereAConnectionWentAndHowLongItTook(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", told(t, "format: json, access: all"))
	echoOnce(t, r.address())
	line := accessLines(t, r.stdout.String, 1)[0]
	for key, want := range map[string]any{
		"listener": "main", "reason": "client_closed", "route": "all", "upstream": "db", "server": "db-1", "in": 5.0, "out": 5.0, "local": r.address(),
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	phases, _ := line["phases"].(map[string]any)
	for _, phase := range []string{"route", "dial", "first_byte"} {
		if took, ok := phases[phase].(float64); !ok || took < 0 || took > patience.Seconds() {
			t.Errorf("%s took %v", phase, phases[phase])
		}
	}
	if rtt, _ := line["rtt"].(float64); rtt <= 0 && line["rtt"] != nil {
		t.Errorf("the round trip is %v", rtt)
	}
}

func TestAnAccessLogsFileIsOpenedAnewOnSIGHUP(t *testing.T) {
	config := told(t, "access: all, access_file: access.log")
	path := filepath.Join(filepath.Dir(config), "access.log")
	r := start(t, app.Env{}, "serve", "-c", config)
	read := func(path string) func() string {
		return func() string {
			text, _ := os.ReadFile(path)
			return string(text)
		}
	}
	echoOnce(t, r.address())
	accessLines(t, read(path), 1)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, "are read again")
	echoOnce(t, r.address())
	accessLines(t, read(path), 1)
	accessLines(t, read(path+".1"), 1)
}

func TestAnAccessLogThatCannotBeOpenedIsSaid(t *testing.T) {
	config := told(t, "access: all, access_file: nowhere/access.log")
	code, _, stderr := result(t, app.Env{}, "serve", "-c", config)
	if want := "levee: telemetry.logs.access_file: open " + filepath.Join(filepath.Dir(config), "nowhere/access.log") + ": no such file or directory\n"; code != 3 || stderr != want {
		t.Errorf("exit code %d, %q; want 3, %q", code, stderr, want)
	}
}

// Somebody has stopped the terminal, or the log shipper hangs.
func TestAFullPipeForLogsHoldsNoConnectionUp(t *testing.T) {
	read, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer pipe.Close()
	_ = pipe.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	for block := make([]byte, 4096); ; { // nobody reads
		if _, err := pipe.Write(block); err != nil {
			break
		}
	}
	_ = pipe.SetWriteDeadline(time.Time{})
	var out output
	signals, done := make(chan os.Signal, 1), make(chan int, 1)
	env := app.Env{
		Stdout: &out, Stderr: pipe, Signals: signals,
		ConfigDir: func() (string, error) { return t.TempDir(), nil },
	}
	go func() {
		done <- app.Run(context.Background(), []string{"levee", "serve", "-c", told(t, "level: debug")}, env)
	}()
	r := &run{t: t, done: make(chan struct{})}
	address := r.find(&out, `^Listening on (\S+)$`)
	for range 200 {
		echoOnce(t, address)
	}
	signals <- os.Interrupt
	select {
	case code := <-done:
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Error("levee does not end, as it cannot write its log")
	}
}

func TestWhatLogsHaveDroppedIsAMetric(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("there is no /dev/full here:", err)
	}
	full.Close()
	r := start(t, app.Env{}, "serve", "-c", told(t, "access: all, access_file: /dev/full"))
	for range 5 {
		echoOnce(t, r.address())
	}
	for late := time.Now().Add(patience); ; {
		_, body := get(t, r.admin("/metrics"))
		if strings.Contains(body, "\nlevee_log_dropped_total{log=\"access\"} 5\n") && strings.Contains(body, "\nlevee_log_dropped_total{log=\"main\"} 0\n") {
			return
		}
		if time.Now().After(late) {
			t.Fatal(body)
		}
	}
}

func TestTheAccessLogIsOpenedAnewWhileLeveeDrains(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", strings.Replace(plain, "listeners:", "telemetry: {logs: {access: all, access_file: "+log+"}}\nlisteners:", 1)))
	c := dial(t, r.address())
	send(t, c, "GET / HTTP/1.1\r\nHo")
	serving(t, r, 1)
	r.signals <- syscall.SIGTERM
	r.find(&r.stderr, `"msg":"draining"`)
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, `"msg":"not reloaded; the access log's file is opened anew","err":"levee is draining"`)
	c.Close()
	r.wait()
	if line, err := os.ReadFile(log); err != nil || !strings.Contains(string(line), `"listener":"main"`) {
		t.Errorf("%q %v", line, err)
	}
}
