package app_test

import (
	"encoding/json"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/app"
)

// gently is a flood that takes a moment.
func gently(args ...string) []string {
	return append([]string{"flood", "--connections", "10", "--duration", "200ms", "--floor", "1s"}, args...)
}

func TestFloodSaysThatLeveeHolds(t *testing.T) {
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	target, admin := r.address(), strings.TrimPrefix(r.admin(""), "http://")
	code, stdout, stderr := result(t, app.Env{}, gently("--target", target, "--admin", admin, "--attack", "hold,slow-hello")...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, standard error %q, standard output\n%s", code, stderr, stdout)
	}
	for _, want := range []string{target + ", which speaks echo; up to 10 connections at once", "attack ", "(idle)", "hold ", "slow-hello ", " held\n", " MiB"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

func TestFloodSaysItForMachines(t *testing.T) {
	code, stdout, stderr := result(t, app.Env{}, gently("--target", echoing(t), "--attack", "hold", "--attack", "churn", "--json")...)
	var report struct {
		Protocol    string
		Connections int
		Idle        struct{ OK float64 }
		Attacks     []struct {
			Attack   string
			Attempts int
			During   struct {
				OK         float64
				RoundTrips struct {
					Tried int
					P99   float64 `json:"p99_us"`
				} `json:"round_trips"`
			}
		}
		Held bool
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 {
		t.Fatalf("exit code %d, %q, %q: %v", code, stdout, stderr, err)
	}
	if !report.Held || report.Protocol != "echo" || report.Connections != 10 || report.Idle.OK != 1 || len(report.Attacks) != 2 {
		t.Errorf("%+v", report)
	}
	for i, name := range []string{"hold", "churn"} {
		if a := report.Attacks[i]; a.Attack != name || a.Attempts < 10 || a.During.OK != 1 || a.During.RoundTrips.Tried < 2 || a.During.RoundTrips.P99 <= 0 {
			t.Errorf("%+v", a)
		}
	}
}

// TestFloodSaysThatASingleThreadedServerDoesNotHold: one that serves a client after the other.
func TestFloodSaysThatASingleThreadedServerDoesNotHold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	code, stdout, stderr := result(t, app.Env{}, gently("--target", l.Addr().String(), "--attack", "hold")...)
	if code != 1 || !strings.Contains(stdout, "did not hold") || stderr != "levee: flood: the server did not hold\n" {
		t.Errorf("exit code %d, standard error %q, standard output\n%s", code, stderr, stdout)
	}
}

func TestFloodSpeaksTLS(t *testing.T) {
	target := echoing(t)
	code, stdout, stderr := result(t, app.Env{}, gently("--target", target, "--tls", "--sni", "localhost", "--insecure-skip-verify", "--attack", "handshakes")...)
	if code != 0 || !strings.Contains(stdout, "handshakes ") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	code, _, stderr = result(t, app.Env{}, gently("--target", target, "--tls", "--sni", "localhost", "--attack", "handshakes")...)
	if code != 3 || !strings.Contains(stderr, "certificate") {
		t.Errorf("an unknown certificate: exit code %d, %q", code, stderr)
	}
}

func TestFloodShowsHowItGoesOnATerminal(t *testing.T) {
	code, _, stderr := result(t, app.Env{Terminal: true}, gently("--target", echoing(t), "--attack", "hold", "--duration", "500ms")...)
	if code != 0 || !strings.Contains(stderr, "1 of 1  hold  0 s  10 attempts, 10 open") || !strings.HasSuffix(stderr, "\r\x1b[K") {
		t.Errorf("exit code %d, standard error %q", code, stderr)
	}
}

func TestFloodEndsWithASignalAndSaysWhatThereIs(t *testing.T) {
	r := start(t, app.Env{Terminal: true}, "flood", "--target", echoing(t), "--attack", "hold,churn", "-c", "10", "--duration", "1m")
	r.find(&r.stderr, "(10) open")
	r.signals <- syscall.SIGINT
	if code := r.wait(); code != 1 || !strings.HasSuffix(r.stderr.String(), "levee: flood: interrupted\n") || !strings.Contains(r.stdout.String(), " cut short\n") {
		t.Errorf("exit code %d, standard error %q, standard output\n%s", code, &r.stderr, &r.stdout)
	}
}

func TestFloodListsItsAttacks(t *testing.T) {
	code, stdout, _ := result(t, app.Env{}, "flood", "--list")
	if code != 0 || !regexp.MustCompile(`(?m)^slow-hello +handshake +sends a ClientHello a byte a second +\(TLS\)$`).MatchString(stdout) {
		t.Errorf("exit code %d:\n%s", code, stdout)
	}
	code, stdout, _ = result(t, app.Env{}, "flood", "--list", "--json")
	var list []struct{ Name, Phase, Does string }
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 0 || len(list) < 6 || list[0].Name != "hold" || list[0].Phase != "connect" {
		t.Errorf("exit code %d: %q: %v", code, stdout, err)
	}
}

func TestAttackersNeedOrders(t *testing.T) {
	code, stdout, stderr := result(t, app.Env{Stdin: strings.NewReader("attack!")}, "attackers")
	if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "levee: orders for attackers: invalid character") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestFloodRefusesOnOneLine(t *testing.T) {
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
		"want host:port":                            {2, []string{"--target", "localhost"}},
		"--attack and --all: choose one":            {2, []string{"--target", "localhost:7", "--all", "--attack", "hold"}},
		"--attack tickle: there is none":            {2, []string{"--target", "localhost:7", "--attack", "tickle"}},
		"--protocol gopher: echo or http":           {2, []string{"--target", "localhost:7", "--protocol", "gopher"}},
		"or --send and --expect: choose one":        {2, []string{"--target", "localhost:7", "--protocol", "echo", "--send", "x", "--expect", "x"}},
		"--expect: want some text":                  {2, []string{"--target", "localhost:7", "--send", "x"}},
		"--send: want some text, with Go's escapes": {2, []string{"--target", "localhost:7", "--send", `\q`, "--expect", "x"}},
		"only with --tls":                           {2, []string{"--target", "localhost:7", "--insecure-skip-verify"}},
		"15001 connections: at most 15000":          {2, []string{"--target", "localhost:7", "-c", "15001"}},
		"duration of 11m0s: at most 10m0s":          {2, []string{"--target", "localhost:7", "-d", "11m"}},
		"above 0":                                   {2, []string{"--target", "localhost:7", "--rate", "0"}},
		"--probe-source: ":                          {2, []string{"--target", "localhost:7", "--probe-source", "me"}},
		"--prefix: ":                                {2, []string{"--target", "localhost:7", "--prefix", "here"}},
		"--ca: open ":                               {2, []string{"--target", "localhost:7", "--tls", "--ca", "none.pem"}},
		"connection refused":                        {3, []string{"--target", nobody.Addr().String()}},
	} {
		code, stdout, stderr := result(t, app.Env{}, append([]string{"flood"}, test.args...)...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, standard output %q, standard error %q; want %d and %q", test.args, code, stdout, stderr, test.code, want)
		}
	}
}
