package app_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/levee-net/levee/internal/app"
)

// echoing is the address of levee's own echo.
func echoing(t *testing.T) string {
	t.Helper()
	return start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off").address()
}

func TestBenchSaysWhatItsClientsFelt(t *testing.T) {
	target := echoing(t)
	code, stdout, stderr := result(t, app.Env{}, "bench", "--target", target, "--connections", "4", "--warmup", "10ms", "--duration", "100ms")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	for _, want := range []string{"echo to " + target + ", 4 connections", "messages/s", "p50 ", "p99.9 ", "max "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in %q", want, stdout)
		}
	}
}

func TestBenchAtARateSendsWhatIsDue(t *testing.T) {
	code, stdout, stderr := result(t, app.Env{}, "bench", "--target", echoing(t), "--rate", "1000", "--warmup", "10ms", "--duration", "100ms", "--json")
	if code != 0 {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	var report struct {
		TargetRate float64 `json:"target_rate"`
		Messages   int     `json:"messages"`
		Unanswered int     `json:"unanswered"`
		Latency    struct {
			P50 float64 `json:"p50"`
			P99 float64 `json:"p99"`
		} `json:"latency_us"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%q: %v", stdout, err)
	}
	if report.TargetRate != 1000 || report.Messages+report.Unanswered != 100 || report.Latency.P50 <= 0 || report.Latency.P99 < report.Latency.P50 {
		t.Errorf("%+v", report)
	}
}

func TestBenchSpeaksHTTPAndCountsRefusals(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	code, stdout, stderr := result(t, app.Env{}, "bench", "--http", "--target", server.URL+"/x", "--warmup", "0s", "--duration", "50ms")
	if code != 0 || !strings.Contains(stdout, "http to "+server.URL) || !strings.Contains(stdout, "status of 400 or above") {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, stdout, stderr)
	}
}

func TestBenchWritesItsPlot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plot.html")
	code, _, stderr := result(t, app.Env{}, "bench", "--target", echoing(t), "--warmup", "0s", "--duration", "50ms", "--plot", file)
	if code != 0 {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	page, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(page), "</html>") {
		t.Errorf("%v: %q", err, page)
	}
}

func TestBenchShowsHowItGoesOnATerminal(t *testing.T) {
	code, _, stderr := result(t, app.Env{Terminal: true}, "bench", "--target", echoing(t), "--warmup", "0s", "--duration", "50ms")
	if code != 0 || !strings.Contains(stderr, "messages/s  p50 ") || !strings.HasSuffix(stderr, "\r\x1b[K") {
		t.Errorf("exit code %d, standard error %q", code, stderr)
	}
}

func TestBenchEndsWithASignal(t *testing.T) {
	accepted := make(chan struct{})
	r := start(t, app.Env{}, "bench", "--target", oneSilentConnection(t, accepted), "--duration", "1h")
	<-accepted
	r.signals <- syscall.SIGINT
	if code := r.wait(); code != 1 || r.stderr.String() != "levee: bench: interrupted\n" {
		t.Errorf("exit code %d, standard error %q", code, &r.stderr)
	}
}

// oneSilentConnection is the address of a server that closes accepted when there is
// a connection, and is silent.
func oneSilentConnection(t *testing.T, accepted chan<- struct{}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		close(accepted)
		_, _ = io.Copy(io.Discard, c)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestBenchRefusesOnOneLine(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	for want, test := range map[string]struct {
		code int
		args []string
	}{
		"which server? name it with --target ADDR":        {2, nil},
		"192.0.2.1 is not on this machine; if you own it": {2, []string{"--target", "192.0.2.1:7"}},
		"want host:port":                        {2, []string{"--target", "localhost"}},
		"want a port from 1 to 65535":           {2, []string{"--target", "localhost:0"}},
		"--echo and --http: choose one":         {2, []string{"--target", "localhost:7", "--echo", "--http"}},
		"only http:// is spoken here":           {2, []string{"--target", "https://localhost:7", "--http"}},
		"--size: what a server answers":         {2, []string{"--target", "localhost:7", "--http", "--size", "7"}},
		"messages of 0 bytes: between":          {2, []string{"--target", "localhost:7", "--size", "0"}},
		"--rate: above 0":                       {2, []string{"--target", "localhost:7", "--rate", "0"}},
		"--connections and --depth: at least 1": {2, []string{"--target", "localhost:7", "--connections", "0"}},
		"duration of 25h0m0s":                   {2, []string{"--target", "localhost:7", "--duration", "25h"}},
		"unexpected argument \"localhost:7\"":   {2, []string{"localhost:7"}},
		"connection 1 of 1 to " + nobody.Addr().String() + ": connection refused": {3, []string{"--target", nobody.Addr().String(), "-c", "1"}},
		"no such file or directory": {3, []string{"--target", "localhost:7", "--plot", filepath.Join(t.TempDir(), "no", "plot.html")}},
	} {
		code, stdout, stderr := result(t, app.Env{}, append([]string{"bench"}, test.args...)...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, standard output %q, standard error %q; want %d and %q", test.args, code, stdout, stderr, test.code, want)
		}
	}
}
