package app_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/app"
)

// behind is a configuration with an upstream of one server, to which all go.
func behind(server string) string {
	return `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    routes: [{name: all, upstream: pool}]
upstreams:
  - {name: pool, servers: ["` + server + `"]}
`
}

// serving waits until so many connections are served.
func serving(t *testing.T, r *run, n int) {
	t.Helper()
	for late := time.Now().Add(patience); ; {
		code, stdout, stderr := result(t, app.Env{}, "conns", "--phase", "serving", "--json", "--admin", r.adminAddress())
		var page admin.Connections
		if err := json.Unmarshal([]byte(stdout), &page); code != 0 || err != nil || time.Now().After(late) {
			t.Fatalf("%d %v %s%s", code, err, stdout, stderr)
		}
		if page.Matching == n {
			return
		}
	}
}

func TestStatusSaysWhetherItIsReady(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	c := dial(t, r.address())
	send(t, c, "GET / HTTP/1.1\r\nHo") // a drain lets it finish
	serving(t, r, 1)
	code, stdout, stderr := result(t, app.Env{}, "status", "--admin", r.adminAddress())
	for _, want := range []string{"levee ", ", serving, up ", ", generation 1 for ", "\nconnections  1 open, 0 arriving, 1 accepted\n", "\nprocess      cpu "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" {
		t.Errorf("%d %q", code, stderr)
	}
	code, stdout, _ = result(t, app.Env{}, "status", "--json", "--admin", r.adminAddress())
	var status admin.Status
	if err := json.Unmarshal([]byte(stdout), &status); code != 0 || err != nil || !status.Ready || status.Totals.Active != 1 || status.PID != os.Getpid() {
		t.Errorf("%d %v %s", code, err, stdout)
	}

	code, stdout, stderr = result(t, app.Env{}, "drain", "--admin", r.adminAddress())
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "it drains: 1 connection left, cut in 2") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	c.Close()
	if code := r.wait(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
}

// answering answers like a levee of which the test says what it is like.
func answering(t *testing.T, answers map[string]any) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, known := answers[r.Method+" "+r.URL.RequestURI()]
		w.Header().Set("Content-Type", "application/json")
		switch {
		case !known:
			w.WriteHeader(http.StatusNotFound)
			answer = map[string]string{"error": "nobody expects " + r.Method + " " + r.URL.RequestURI()}
		default:
			if told, is := answer.(error); is {
				w.WriteHeader(http.StatusBadRequest)
				answer = map[string]string{"error": told.Error()}
			}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func TestStatusOfOneThatIsNotReadyIsNoSuccess(t *testing.T) {
	there := answering(t, map[string]any{"GET /api/v1/status": admin.Status{
		Version: "levee v9", State: "draining", Started: time.Now(),
		Drain:      &admin.Drain{Until: time.Now().Add(time.Hour), Left: 12},
		Generation: admin.Generation{Number: 2, Problem: "levee.yaml:3:1: \x1b[2Jbad", Failed: time.Now()},
	}})
	for _, args := range [][]string{{"status"}, {"status", "--json"}} {
		code, stdout, stderr := result(t, app.Env{}, append(args, "--admin", there)...)
		if code != 1 || stderr != "levee: it is not ready: it is draining\n" || !strings.Contains(stdout, "draining") || strings.Contains(stdout, "\x1b") {
			t.Errorf("%q: %d %q %q", args, code, stdout, stderr)
		}
	}
	_, stdout, _ := result(t, app.Env{}, "status", "--admin", there)
	for _, want := range []string{"draining: 12 left, cut in 59m", "was not taken: levee.yaml:3:1: ?[2Jbad\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in %s", want, stdout)
		}
	}
}

func TestConnsShowsThoseThatAreAskedFor(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	var ours []net.Conn
	for i := range 3 {
		c := greeted(t, r.address(), "hi")
		for range i {
			send(t, c, "more")
			expect(t, c, "more")
		}
		ours = append(ours, c)
	}
	conns := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := result(t, app.Env{}, append([]string{"conns", "--admin", r.adminAddress()}, args...)...)
		if code != 0 || stderr != "" {
			t.Errorf("%q: %d %q", args, code, stderr)
		}
		return stdout
	}
	lines := strings.Split(conns(), "\n")
	if len(lines) != 5 || !strings.HasPrefix(strings.TrimSpace(lines[0]), "ID") || !strings.Contains(lines[1], ours[2].LocalAddr().String()) || !strings.Contains(lines[3], ours[0].LocalAddr().String()) {
		t.Errorf("not all, or not the most first:\n%s", strings.Join(lines, "\n"))
	}
	if got := conns("--sort", "id", "-n", "1"); !strings.Contains(got, ours[0].LocalAddr().String()) || !strings.HasSuffix(got, "\nand 2 more; --limit says how many\n") {
		t.Error(got)
	}
	if got := conns("--client", "192.0.2.0/24"); got != "no connection of 3 is like that\n" {
		t.Error(got)
	}
	var page admin.Connections
	if err := json.Unmarshal([]byte(conns("--json", "--limit", "2", "--client", "127.0.0.1")), &page); err != nil || page.Total != 3 || page.Matching != 3 || len(page.Connections) != 2 || page.Next == "" {
		t.Errorf("%v %+v", err, page)
	}
	code, _, stderr := result(t, app.Env{}, "conns", "--sort", "weight", "--admin", r.adminAddress())
	if code != 2 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("%d %q", code, stderr)
	}
}

func TestConnsGoesThroughAllPages(t *testing.T) {
	answers := make(map[string]any)
	page := func(from, n int, next string) admin.Connections {
		c := admin.Connections{Total: 2500, Matching: 2500, Next: next}
		for i := range n {
			c.Connections = append(c.Connections, admin.Connection{ID: uint64(from + i), Client: fmt.Sprint("client-", from+i)})
		}
		return c
	}
	answers["GET /api/v1/connections?limit=1000&sort=-out"] = page(0, 1000, "a")
	answers["GET /api/v1/connections?after=a&limit=1000&sort=-out"] = page(1000, 1000, "b")
	answers["GET /api/v1/connections?after=b&limit=1000&sort=-out"] = page(2000, 500, "")
	answers["GET /api/v1/connections?after=a&limit=200&sort=-out"] = page(1000, 200, "c")
	there := answering(t, answers)
	code, stdout, stderr := result(t, app.Env{}, "conns", "--limit", "0", "--admin", there)
	if lines := strings.Count(stdout, "\n"); code != 0 || stderr != "" || lines != 2501 || !strings.Contains(stdout, "client-2499") {
		t.Errorf("%d %q, %d lines", code, stderr, lines)
	}
	code, stdout, stderr = result(t, app.Env{}, "conns", "--limit", "1200", "--admin", there)
	if lines := strings.Count(stdout, "\n"); code != 0 || stderr != "" || lines != 1202 || !strings.HasSuffix(stdout, "and 1300 more; --limit says how many\n") {
		t.Errorf("%d %q, %d lines", code, stderr, lines)
	}
}

func TestKillEndsTheConnectionThatIsNamed(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	first, second := greeted(t, r.address(), "hi"), greeted(t, r.address(), "hi")
	_, stdout, _ := result(t, app.Env{}, "conns", "--json", "--sort", "id", "--admin", r.adminAddress())
	var page admin.Connections
	if err := json.Unmarshal([]byte(stdout), &page); err != nil || len(page.Connections) != 2 {
		t.Fatalf("%v %s", err, stdout)
	}
	id := fmt.Sprint(page.Connections[0].ID)
	code, stdout, stderr := result(t, app.Env{}, "kill", id, "--admin", r.adminAddress())
	if code != 0 || stdout != "connection "+id+" was killed\n" || stderr != "" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	ended(t, first)
	send(t, second, "still")
	expect(t, second, "still")
	code, stdout, stderr = result(t, app.Env{}, "kill", id, "--admin", r.adminAddress())
	if code != 2 || stdout != "" || stderr != "levee: there is no open connection "+id+"\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestKillAsksBeforeItEndsMany(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	var ours []net.Conn
	for range 3 {
		ours = append(ours, greeted(t, r.address(), "hi"))
	}
	for said, want := range map[string]string{
		"":        "\nlevee: kill: nobody answered, and nothing was done; say --yes\n",
		"n\n":     "levee: kill: nothing was done\n",
		"what?\n": "levee: kill: nothing was done\n",
	} {
		code, stdout, stderr := result(t, app.Env{Stdin: strings.NewReader(said)}, "kill", "--client", "127.0.0.0/8", "--admin", r.adminAddress())
		if code != 2 || stdout != "" || stderr != "kill 3 connections of 3? [y/N] "+want {
			t.Errorf("%q: %d %q %q", said, code, stdout, stderr)
		}
	}
	send(t, ours[0], "still")
	expect(t, ours[0], "still")
	code, stdout, stderr := result(t, app.Env{Stdin: strings.NewReader("y\n")}, "kill", "--listener", "main", "--admin", r.adminAddress())
	if code != 0 || stdout != "3 connections were killed\n" || stderr != "kill 3 connections of 3? [y/N] " {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	for _, c := range ours {
		ended(t, c)
	}
	c := greeted(t, r.address(), "hi")
	code, stdout, _ = result(t, app.Env{}, "kill", "--client", "127.0.0.1", "--yes", "--json", "--admin", r.adminAddress())
	var told admin.Ended
	if err := json.Unmarshal([]byte(stdout), &told); code != 0 || err != nil || told.Ended != 1 {
		t.Errorf("%d %q %v", code, stdout, err)
	}
	ended(t, c)
}

func TestServersAreShownDrainedAndUndrained(t *testing.T) {
	server := echoing(t)
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", behind(server)))
	greeted(t, r.address(), "hi")
	run := func(want string, args ...string) {
		t.Helper()
		code, stdout, stderr := result(t, app.Env{}, append(args, "--admin", r.adminAddress())...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%q: %d %q, and no %q in\n%s", args, code, stderr, want, stdout)
		}
	}
	run("healthy", "upstreams")
	run(server+" of pool gets no new connections\n", "upstreams", "drain", "pool", server)
	run("drained", "upstreams")
	run(`"drained": true`, "upstreams", "--json")
	run(server+" of pool gets new connections again\n", "upstreams", "undrain", "pool", server)
	run("healthy", "upstreams")
	code, _, stderr := result(t, app.Env{}, "upstreams", "drain", "pool", "10.0.0.1:1", "--admin", r.adminAddress())
	if code != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "10.0.0.1:1") {
		t.Errorf("%d %q", code, stderr)
	}
	none := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	if _, stdout, _ := result(t, app.Env{}, "upstreams", "--admin", none.adminAddress()); stdout != "there are no upstreams\n" {
		t.Error(stdout)
	}
}

func TestReloadSaysWhatCameOfIt(t *testing.T) {
	there := answering(t, map[string]any{"POST /api/v1/reload": admin.Generation{Number: 7}})
	code, stdout, stderr := result(t, app.Env{}, "reload", "--admin", there)
	if code != 0 || stdout != "generation 7 is in force\n" || stderr != "" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	there = answering(t, map[string]any{"POST /api/v1/reload": errors.New("levee.yaml:3:1: routes: \x07 is missing\nlevee.yaml:4:1: more")})
	code, stdout, stderr = result(t, app.Env{}, "reload", "--json", "--admin", there)
	if code != 2 || stdout != "" || stderr != "levee: levee.yaml:3:1: routes: ? is missing\nlevee: levee.yaml:4:1: more\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestDrainWaitsForTheEnd(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	c := dial(t, r.address())
	send(t, c, "GET / HTTP/1.1\r\nHo")
	serving(t, r, 1)
	draining := start(t, app.Env{}, "drain", "--wait", "--admin", r.adminAddress())
	draining.find(&draining.stdout, "^it drains")
	<-time.After(300 * time.Millisecond) // it has asked how it goes
	c.Close()
	// It may have asked once more after the last one had gone.
	if code := draining.wait(); code != 0 || !regexp.MustCompile(`0 were cut, and (1 was|0 were) still there when it was asked last\nit has ended\n$`).MatchString(draining.stdout.String()) {
		t.Errorf("%d %q %q", code, &draining.stdout, &draining.stderr)
	}
	r.wait()
}

func TestTopForScripts(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain))
	c := greeted(t, r.address(), "hi")
	code, stdout, stderr := result(t, app.Env{}, "top", "--once", "--admin", r.adminAddress())
	for _, want := range []string{", serving, up ", "\noverload     none", "\nLISTENER ", "\nmain ", c.LocalAddr().String()} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" || strings.Contains(stdout, "\x1b") {
		t.Errorf("%d %q\n%q", code, stderr, stdout)
	}
	code, stdout, _ = result(t, app.Env{}, "top", "--once", "--json", "--admin", r.adminAddress())
	var seen struct {
		Status      admin.Status
		Overload    admin.Overload
		Listeners   []admin.Listener
		Upstreams   []admin.Upstream
		Connections admin.Connections
	}
	if err := json.Unmarshal([]byte(stdout), &seen); code != 0 || err != nil || seen.Status.Totals.Active != 1 || seen.Overload.Mode != "on" ||
		len(seen.Listeners) != 1 || seen.Upstreams == nil || len(seen.Connections.Connections) != 1 {
		t.Errorf("%d %v %s", code, err, stdout)
	}
}
