package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// behind is the server that pages put levee in front of.
func behind(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from behind") }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestGuideToGettingStarted(t *testing.T) {
	t.Parallel()
	need(t, "nc")
	g := newGuide(t, "../getting-started.md", "10.0.0.7:8080", behind(t), "no.example.com", "8080", "8443", "6432")
	g.here["$ levee &"] = "$ levee --listen 127.0.0.1:" + g.here["8080"] + " &" // where the built-in configuration has 8080
	g.has = map[string]int{"console": 5, "yaml": 1, "sh": 1}
	g.play()
}

func TestGuideToOperations(t *testing.T) {
	t.Parallel()
	g := newGuide(t, "../operations.md", "10.0.0.7:8080", behind(t), "www.example.com", "8080")
	g.here["10.0.0.8:8080"] = "127.0.0.1:" + freePorts(t, 1)[0]
	g.has = map[string]int{"console": 5, "yaml": 1, "sh": 1}
	g.play()
}

func TestWhatAPageLeavesOpenMayBeAnything(t *testing.T) {
	for _, c := range []struct {
		got, want string
		same      bool
	}{
		{"a b c\n", "a … c\n", true},
		{"a b d\n", "a … c\n", false},
		{"a\nb\nc\n", "a\n…\nc\n", true},
		{"a\nc\n", "a\n…\nc\n", true},
		{"a\nb\n", "…\n", true},
		{"", "…\n", true},
		{"a\nb\n", "a …\n", false},
		{"a.c\n", "a.c\n", true},
		{"abc\n", "a.c\n", false},
	} {
		if says(c.got, c.want) != c.same {
			t.Errorf("%q for %q: %v", c.got, c.want, !c.same)
		}
	}
}
