package admin_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/leveetest"
)

// serve serves operators on a free port until the test ends.
func serve(t *testing.T) (s *admin.Server, url string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	registry.MustRegister(counter)
	counter.Add(3)
	s = &admin.Server{Metrics: registry, Log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, "http://" + l.Addr().String()
}

func ask(t *testing.T, method, url string, header map[string]string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func TestReadyzFollowsSetReadyAndLivezDoesNot(t *testing.T) {
	leveetest.CheckLeaks(t)
	s, url := serve(t)
	for _, want := range []int{503, 200, 503} {
		s.SetReady(want == 200)
		if answer, _ := ask(t, "GET", url+"/readyz", nil); answer.StatusCode != want {
			t.Errorf("/readyz: %d, want %d", answer.StatusCode, want)
		}
		if answer, body := ask(t, "GET", url+"/livez", nil); answer.StatusCode != 200 || body != "ok\n" || answer.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("/livez: %d %q", answer.StatusCode, body)
		}
	}
}

func TestZeroServerIsNotReady(t *testing.T) {
	_, url := serve(t)
	if answer, body := ask(t, "GET", url+"/readyz", nil); answer.StatusCode != 503 || body != "not ready\n" {
		t.Errorf("%d %q", answer.StatusCode, body)
	}
}

func TestMetricsAreTheRegistrys(t *testing.T) {
	_, url := serve(t)
	answer, body := ask(t, "GET", url+"/metrics", nil)
	if answer.StatusCode != 200 || !strings.Contains(body, "\nthings_total 3\n") || !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("%d %v\n%s", answer.StatusCode, answer.Header, body)
	}
}

func TestOnlyWhatIsThereIsServedAndOnlyByGET(t *testing.T) {
	_, url := serve(t)
	tests := []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 200},
		{"GET", "/nosuch", 404},
		{"GET", "/livez/", 404},
		{"GET", "/metrics/../livez", 404},
		{"HEAD", "/livez", 200},
		{"POST", "/livez", 405},
		{"DELETE", "/metrics", 405},
		{"PUT", "/readyz", 405},
		{"POST", "/debug/pprof/profile", 405},
		{"OPTIONS", "/metrics", 405},
	}
	for _, test := range tests {
		if answer, _ := ask(t, test.method, url+test.path, nil); answer.StatusCode != test.want {
			t.Errorf("%s %s: %d, want %d", test.method, test.path, answer.StatusCode, test.want)
		}
	}
}

func TestProfilesAreServed(t *testing.T) {
	_, url := serve(t)
	for path, want := range map[string]string{
		"/debug/pprof/":                    "goroutine",
		"/debug/pprof/goroutine?debug=1":   "goroutine profile: total ",
		"/debug/pprof/cmdline":             "admin.test",
		"/debug/pprof/symbol":              "num_symbols: 1",
		"/debug/pprof/heap?debug=1":        "heap profile: ",
		"/debug/pprof/trace?seconds=0.01":  "go 1.",
		"/debug/pprof/profile?seconds=1":   "", // compressed
		"/debug/pprof/threadcreate?debug=": "",
	} {
		answer, body := ask(t, "GET", url+path, nil)
		if answer.StatusCode != 200 || body == "" || !strings.Contains(body, want) {
			t.Errorf("%s: %d, %.200q", path, answer.StatusCode, body)
		}
	}
}

func TestNamesThatSomebodyElseOwnsAreRefused(t *testing.T) {
	_, url := serve(t)
	for host, want := range map[string]int{
		"127.0.0.1":              200,
		"127.0.0.1:9180":         200,
		"localhost":              200,
		"LocalHost:9180":         200,
		"[::1]":                  200,
		"[::1]:9180":             200,
		"192.0.2.7":              200, // an address: nobody can point it elsewhere
		"evil.example":           403,
		"evil.example:9180":      403,
		"localhost.evil.example": 403,
		"127.0.0.1.evil.example": 403,
		"127.0.0.1.nip.io:9180":  403,
		"localhost.":             403,
		"evil.example:127.0.0.1": 403,
		"[evil.example]":         403,
		"0x7f000001":             403,
		"2130706433":             403,
		"127.1":                  403,
	} {
		for _, path := range []string{"/metrics", "/readyz", "/debug/pprof/", "/nosuch"} {
			wanted := want
			switch {
			case want == 200 && path == "/readyz":
				wanted = 503
			case want == 200 && path == "/nosuch":
				wanted = 404
			}
			if answer, _ := ask(t, "GET", url+path, map[string]string{"Host": host}); answer.StatusCode != wanted && answer.StatusCode != 400 {
				t.Errorf("Host %s, %s: %d, want %d", host, path, answer.StatusCode, wanted)
			}
		}
	}
}

func TestPagesOfOtherSitesAreRefusedButLinksMayBeFollowed(t *testing.T) {
	_, url := serve(t)
	tests := []struct {
		site, mode, dest string
		want             int
	}{
		{"", "", "", 200}, // curl, Prometheus
		{"none", "navigate", "document", 200},
		{"same-origin", "cors", "empty", 200},
		{"cross-site", "navigate", "document", 200},
		{"cross-site", "navigate", "iframe", 403},
		{"cross-site", "no-cors", "image", 403},
		{"cross-site", "cors", "empty", 403},
		{"same-site", "no-cors", "script", 403}, // another port of this machine
	}
	for _, test := range tests {
		header := map[string]string{}
		if test.site != "" {
			header = map[string]string{"Sec-Fetch-Site": test.site, "Sec-Fetch-Mode": test.mode, "Sec-Fetch-Dest": test.dest}
		}
		if answer, _ := ask(t, "GET", url+"/metrics", header); answer.StatusCode != test.want {
			t.Errorf("%v: %d, want %d", header, answer.StatusCode, test.want)
		}
	}
}

func TestCloseBeforeServeEndsIt(t *testing.T) {
	leveetest.CheckLeaks(t)
	s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the listener is still open")
	}
}

func TestBrokenListenerIsAnError(t *testing.T) {
	s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(l); err == nil || !strings.HasPrefix(err.Error(), "admin: ") {
		t.Errorf("%v", err)
	}
}
