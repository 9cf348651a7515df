package app_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

// asking asks the admin port for something.
func (r *run) asking(method, path string, into any) (status int) {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, r.admin(path), http.NoBody)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			r.t.Fatalf("%s %s: %d %s: %v", method, path, answer.StatusCode, text, err)
		}
	}
	return answer.StatusCode
}

func (r *run) connections(query string) (page admin.Connections) {
	r.t.Helper()
	if status := r.asking("GET", "/api/v1/connections?"+query, &page); status != 200 {
		r.t.Fatalf("%s: %d", query, status)
	}
	return page
}

// greeted connects, and returns when it is served.
func greeted(t *testing.T, address, text string) net.Conn {
	t.Helper()
	c := dial(t, address)
	send(t, c, text)
	expect(t, c, text)
	return c
}

// twoListeners is a configuration with an upstream.
func twoListeners(t *testing.T) string {
	t.Helper()
	behind := upstreamThat(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	return write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
redis: {address: 127.0.0.1:1, password: of-the-redis}
listeners:
  - name: one
    listen: ["127.0.0.1:0"]
    routes: [{name: all, handler: echo}]
  - name: two
    listen: ["127.0.0.1:0"]
    routes: [{upstream: db}]
upstreams:
  - {name: db, servers: [{address: "`+behind+`", name: db1}], health: {interval: off}}
`)
}

// addresses are those of all listeners, in order.
func (r *run) addresses(n int) (all []string) {
	r.t.Helper()
	r.admin("") // is told after them
	for line := range strings.Lines(r.stdout.String()) {
		if address, ok := strings.CutPrefix(line, "Listening on "); ok {
			all = append(all, strings.TrimSpace(address))
		}
	}
	if len(all) != n {
		r.t.Fatalf("%d listeners", len(all))
	}
	return all
}

func TestOpenConnectionsAreToldWithWhereTheyGo(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	at := r.addresses(2)
	one, two := greeted(t, at[0], "hello"), greeted(t, at[1], "hello again")
	page := r.connections("sort=-in")
	if page.Total != 2 || page.Matching != 2 || len(page.Connections) != 2 || page.Next != "" {
		t.Fatalf("%+v", page)
	}
	a, b := page.Connections[1], page.Connections[0]
	if a.Listener != "one" || a.Route != "all" || a.Upstream != "" || a.Client != one.LocalAddr().String() || a.Peer != "" || a.Local != at[0] || a.In != 5 || a.Out != 5 || a.Phase != "serving" {
		t.Errorf("%+v", a)
	}
	if b.Listener != "two" || b.Route != "routes[0]" || b.Upstream != "db" || b.Server != "db1" || b.Client != two.LocalAddr().String() || b.In != 11 || b.Out != 11 {
		t.Errorf("%+v", b)
	}
	if runtime.GOOS == "linux" && (a.Engine != "loop" || b.Engine != "loop") {
		t.Errorf("%s and %s", a.Engine, b.Engine)
	}
	if a.Idle < 0 || a.Idle > patience.Seconds() || time.Since(a.Accepted) > patience {
		t.Errorf("idle for %v s, accepted at %v", a.Idle, a.Accepted)
	}
	var alone admin.Connection
	if status := r.asking("GET", fmt.Sprint("/api/v1/connections/", a.ID), &alone); status != 200 || alone.ID != a.ID || alone.Client != a.Client {
		t.Errorf("%d %+v", status, alone)
	}
	for query, want := range map[string]int{
		"listener=one": 1, "listener=none": 0, "route=all": 1, "upstream=db": 1, "server=db1": 1, "server=db2": 0, "phase=serving": 2, "phase=draining": 0,
		"client=127.0.0.1": 2, "client=127.0.0.0%2F8": 2, "client=10.0.0.0/8": 0, "listener=one&upstream=db": 0, "listener=two&upstream=db&client=127.0.0.1": 1,
	} {
		if got := r.connections(query); got.Matching != want || len(got.Connections) != want || got.Total != 2 {
			t.Errorf("%s: %+v", query, got)
		}
	}
	for _, query := range []string{"sort=age", "phase=asleep", "client=localhost", "limit=0", "limit=1001", "after=x", "after=id,0,,x", "sort=in&after=out,0,,1", "colour=red"} {
		var told struct{ Error string }
		if status := r.asking("GET", "/api/v1/connections?"+query, &told); status != 400 || told.Error == "" {
			t.Errorf("%s: %d %q", query, status, told.Error)
		}
	}
}

// statusOnce returns the status once it is so, or as it is when patience ends.
func (r *run) statusOnce(isSo func(*admin.Status) bool) (s admin.Status) {
	r.t.Helper()
	for late := time.Now().Add(patience); ; {
		s = admin.Status{}
		if r.asking("GET", "/api/v1/status", &s); isSo(&s) || time.Now().After(late) {
			return s
		}
	}
}

func TestOperatorsEndConnections(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	at := r.addresses(2)
	a, b, c := greeted(t, at[0], "a"), greeted(t, at[0], "b"), greeted(t, at[1], "c")
	first := r.connections("limit=1").Connections[0].ID
	var done admin.Ended
	if status := r.asking("DELETE", fmt.Sprint("/api/v1/connections/", first), &done); status != 200 || done.Ended != 1 {
		t.Errorf("%d %+v", status, done)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("it goes on")
	}
	if status := r.asking("DELETE", "/api/v1/connections/987654321", nil); status != 404 {
		t.Errorf("one that is not there: %d", status)
	}
	if status := r.asking("DELETE", "/api/v1/connections", nil); status != 400 {
		t.Errorf("all of them: %d", status)
	}
	if status := r.asking("DELETE", "/api/v1/connections?upstream=db", &done); status != 200 || done.Ended != 1 {
		t.Errorf("%d %+v", status, done)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it goes on")
	}
	send(t, b, "x")
	expect(t, b, "x")
	status := r.statusOnce(func(s *admin.Status) bool { return s.Totals.Active <= 1 }) // the client may know sooner
	if status.Totals.Closed["killed"] != 2 || status.Totals.Active != 1 || status.Totals.Accepted != 3 {
		t.Errorf("%+v", status.Totals)
	}
}

// Those who stay are on one page each, in whatever order, while others come and go.
func TestPagesOfConnectionsAreStableWhileOthersComeAndGo(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	at := r.addresses(2)
	stay := make(map[string]bool)
	for i := range 50 {
		c := greeted(t, at[i%2], strings.Repeat("x", 1+i%7))
		stay[c.LocalAddr().String()+" "+c.RemoteAddr().String()] = true // the system may use a port twice, to two listeners
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if c, err := net.Dial("tcp", at[0]); err == nil {
				_, _ = io.WriteString(c, "y")
				_, _ = c.Read(make([]byte, 1))
				c.Close()
			}
		}
	})
	defer others.Wait()
	defer close(stop)
	for _, order := range []string{"id", "-id", "accepted", "-accepted", "in", "-in", "out", "-out", "idle", "-idle", "client", "-client"} {
		seen := make(map[string]int)
		last, after, pages := admin.Connection{}, "", 0
		for {
			page := r.connections("limit=7&sort=" + order + "&after=" + url.QueryEscape(after))
			if pages++; pages > 1000 {
				t.Fatalf("%s: no end", order)
			}
			for _, c := range page.Connections {
				if stay[c.Client+" "+c.Local] {
					seen[c.Client+" "+c.Local]++
				}
				if last.ID != 0 && !inOrder(order, last, c) {
					t.Errorf("%s: %+v comes after %+v", order, c, last)
				}
				if stay[c.Client+" "+c.Local] {
					last = c
				}
			}
			if after = page.Next; after == "" {
				break
			}
		}
		for client := range stay {
			if seen[client] != 1 {
				t.Errorf("%s: %s was there %d times", order, client, seen[client])
			}
		}
	}
}

// inOrder is about those that do not change meanwhile.
func inOrder(order string, a, b admin.Connection) bool {
	word, descending := strings.CutPrefix(order, "-")
	by := 0
	switch word {
	case "id":
		by = cmp.Compare(a.ID, b.ID)
	case "accepted":
		by = a.Accepted.Compare(b.Accepted)
	case "in":
		by = cmp.Compare(a.In, b.In)
	case "out":
		by = cmp.Compare(a.Out, b.Out)
	}
	if descending {
		by = -by
	}
	return by <= 0
}

func TestAServerIsDrainedAndGetsConnectionsAgain(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	at := r.addresses(2)
	old := greeted(t, at[1], "old")
	drained := func() bool {
		var all admin.Upstreams
		r.asking("GET", "/api/v1/upstreams", &all)
		return all.Upstreams[0].Servers[0].Drained
	}
	if status := r.asking("POST", "/api/v1/upstreams/db/servers/db1/drain", nil); status != 204 || !drained() {
		t.Errorf("%d, drained: %t", status, drained())
	}
	c := dial(t, at[1])
	send(t, c, "x")
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a newcomer got %d bytes of the only server, which is drained", n)
	}
	send(t, old, "x")
	expect(t, old, "x")
	if status := r.asking("POST", "/api/v1/upstreams/db/servers/db1/undrain", nil); status != 204 || drained() {
		t.Errorf("%d, drained: %t", status, drained())
	}
	greeted(t, at[1], "new")
	for _, path := range []string{"db/servers/db2/drain", "cache/servers/db1/drain", "db/servers/db1/remove"} {
		if status := r.asking("POST", "/api/v1/upstreams/"+path, nil); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func TestAServerStaysDrainedWhenItsUpstreamChanges(t *testing.T) {
	const before = "upstreams:\n  - {name: db, servers: [{address: 127.0.0.1:1, name: db-1}, {address: 127.0.0.1:2, name: db-2}], health: {interval: off}}\n"
	routes := one(loopback, "    routes: [{upstream: db}]\n")
	h := openHouse(t, routes+before)
	h.address()
	if status := h.asking("POST", "/api/v1/upstreams/db/servers/db-2/drain", nil); status != 204 {
		t.Fatal(status)
	}
	h.becomes(routes + strings.Replace(before, "db-1}", "db-1}, {address: 127.0.0.1:3, name: db-3}", 1))
	var all admin.Upstreams
	h.asking("GET", "/api/v1/upstreams", &all)
	for _, s := range all.Upstreams[0].Servers {
		if s.Drained != (s.Name == "db-2") {
			t.Errorf("%s is drained: %t", s.Name, s.Drained)
		}
	}
	if n := len(all.Upstreams[0].Servers); n != 3 {
		t.Errorf("%d servers", n)
	}
}

func TestAnOperatorBeginsTheEndAsSIGTERMDoes(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	at := r.addresses(2)
	c := greeted(t, at[1], "busy")
	var status admin.Status
	for range 2 { // the second one changes nothing
		if got := r.asking("POST", "/api/v1/drain", &status); got != 202 || status.State != "draining" || status.Drain == nil || !status.Drain.Until.After(status.Drain.Since) {
			t.Errorf("%d %+v", got, status)
		}
	}
	r.find(&r.stderr, `"msg":"draining","by":"an operator"`)
	status = r.statusOnce(func(s *admin.Status) bool { return !s.Ready })
	if status.Ready || status.Drain.Left != 1 {
		t.Errorf("%+v", status)
	}
	c.Close()
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestReloadByTheAPIReadsFilesAgainAndSaysWhatIsWrong(t *testing.T) {
	list := write(t, "deny.txt", "192.0.2.1\n")
	path := write(t, "levee.yaml", strings.Replace(plain, "listeners:", "limits: {deny: [\"file:"+list+"\"]}\nlisteners:", 1))
	r := start(t, app.Env{}, "serve", "-c", path)
	var g admin.Generation
	if status := r.asking("POST", "/api/v1/reload", &g); status != 200 || g.Number != 1 || g.Reloads != 1 || g.Problem != "" {
		t.Errorf("%d %+v", status, g)
	}
	if err := os.WriteFile(list, []byte("nobody in particular\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var told struct{ Error string }
	if status := r.asking("POST", "/api/v1/reload", &told); status != 422 || !strings.Contains(told.Error, "deny.txt") {
		t.Errorf("%d %q", status, told.Error)
	}
	var all admin.Status
	if r.asking("GET", "/api/v1/status", &all); !strings.Contains(all.Generation.Problem, "deny.txt") || all.Generation.Failing != 1 || all.Generation.Failed.IsZero() {
		t.Errorf("%+v", all.Generation)
	}
}

func TestTheConfigurationIsToldWithoutItsSecrets(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", twoListeners(t))
	var c admin.Config
	if status := r.asking("GET", "/api/v1/config", &c); status != 200 || c.Generation.Number != 1 {
		t.Errorf("%d %+v", status, c)
	}
	status, text := get(t, r.admin("/api/v1/config?format=yaml"))
	if status != 200 || text != c.YAML || !strings.HasPrefix(text, "version: 1\n") {
		t.Errorf("%d %s", status, text)
	}
	if strings.Contains(text, "of-the-redis") || !strings.Contains(text, "password: redacted") || !strings.Contains(text, "half_closed: 1m") {
		t.Errorf("%s", text)
	}
}

const operatorsToken = "correct-horse-battery-staple"

// guarded is plain, with what admin says.
func guarded(t *testing.T, says string) string {
	t.Helper()
	return write(t, "levee.yaml", strings.Replace(plain, "{listen: 127.0.0.1:0}", says, 1))
}

func TestCommandsComeInWithAToken(t *testing.T) {
	token := write(t, "token", operatorsToken+"\n")
	r := start(t, app.Env{}, "serve", "-c", guarded(t, "{listen: 127.0.0.1:0, token_file: "+token+"}"))
	address := strings.TrimPrefix(r.admin(""), "http://")
	if code, _, stderr := result(t, app.Env{}, "bans", "--admin", address); code != 2 || !strings.Contains(stderr, "this needs the token") || !strings.Contains(stderr, "--token-file") {
		t.Errorf("%d %q", code, stderr)
	}
	if code, stdout, stderr := result(t, app.Env{}, "bans", "--admin", address, "--token-file", token); code != 0 || stdout != "nobody is banned\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, "bans", "--admin", address, "--token-file", write(t, "wrong", operatorsToken+"r")); code != 2 || !strings.Contains(stderr, "that is not the token") {
		t.Errorf("%d %q", code, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, "bans", "--admin", address, "--token-file", "/nowhere"); code != 2 ||
		stderr != "levee: --token-file: /nowhere: there is no such file; it is the one that the running levee has as admin.token_file\n" {
		t.Errorf("a file that is not there: exit code %d, %q", code, stderr)
	}
	if code, stdout, stderr := result(t, app.Env{}, gently("--target", r.address(), "--admin", address, "--token-file", token, "--attack", "hold")...); code != 0 || !strings.Contains(stdout, " MiB") {
		t.Errorf("flood: exit code %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, gently("--target", r.address(), "--admin", address, "--attack", "hold")...); code != 2 || !strings.Contains(stderr, "name the file that has it with --token-file") {
		t.Errorf("flood without a token: exit code %d, %q", code, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, gently("--target", r.address(), "--admin", address, "--token-file", "/nowhere", "--attack", "hold")...); code != 2 || !strings.HasPrefix(stderr, "levee: --token-file: /nowhere: ") {
		t.Errorf("flood without a token's file: exit code %d, %q", code, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, "bans", "--admin", "192.0.2.1:9180", "--token-file", token); code != 2 || !strings.Contains(stderr, "in plaintext") {
		t.Errorf("%d %q", code, stderr)
	}
	t.Setenv("LEVEE_TOKEN_FILE", token)
	t.Setenv("LEVEE_ADMIN", address)
	if code, stdout, stderr := result(t, app.Env{}, "ban", "192.0.2.1"); code != 0 || stdout != "192.0.2.1/32 is banned for 10m\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	// SIGHUP reads it again.
	if err := os.WriteFile(token, []byte("another-horse-battery-staple"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, `"msg":"admin: another token is in force"`)
	if code, _, stderr := result(t, app.Env{}, "bans"); code != 0 {
		t.Errorf("%d %q", code, stderr)
	}
}

func TestCommandsComeInOverTLSWithACertificate(t *testing.T) {
	ca, strange := leveetest.NewCA(t), leveetest.NewCA(t)
	dir := t.TempDir()
	cert, key := ca.WriteFiles(dir, "127.0.0.1")
	authority := write(t, "ca.pem", string(ca.PEM()))
	mine, myKey := ca.WriteFilesOf(t.TempDir(), ca.ClientCertificate("operator"))
	theirs, theirKey := strange.WriteFilesOf(t.TempDir(), strange.ClientCertificate("operator"))
	says := fmt.Sprintf("{listen: %q, tls: {cert: %s, key: %s, client_ca: %s}}", "0.0.0.0:0", cert, key, authority)
	r := start(t, app.Env{}, "serve", "-c", guarded(t, says))
	_, port, err := net.SplitHostPort(r.find(&r.stdout, `^Metrics on https://(\S+)/metrics\n`))
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", port)
	cli := func(args ...string) (int, string, string) {
		return result(t, app.Env{}, append([]string{"bans", "--admin", address}, args...)...)
	}
	if code, stdout, stderr := cli("--ca", authority, "--cert", mine, "--key", myKey); code != 0 || stdout != "nobody is banned\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	for name, args := range map[string][]string{
		"needs a client certificate": {"--ca", authority},
		"no levee answers":           {"--ca", authority, "--cert", theirs, "--key", theirKey},
		"certificate signed by":      {"--ca", write(t, "strange.pem", string(strange.PEM()))},
		"speaks TLS; say whose":      {},
		"--cert and --key":           {"--ca", authority, "--cert", mine},
		"--ca":                       {"--cert", mine, "--key", myKey},
	} {
		if code, stdout, stderr := cli(args...); code == 0 || stdout != "" || !strings.Contains(stderr, name) {
			t.Errorf("%s: %d %q %q", name, code, stdout, stderr)
		}
	}
}

func TestCheckSaysWhatIsWrongWithATokenAndWhoMayDoWhat(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("who may read a file is not a matter of mode bits here")
	}
	open := write(t, "open", operatorsToken)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	secret := write(t, "secret", operatorsToken)
	for says, want := range map[string]string{
		"{listen: 127.0.0.1:0, token_file: " + open + "}":              "levee.yaml:2:42: admin.token_file: " + open + ": can be read by every user (mode 0644)",
		"{listen: 127.0.0.1:0, token_file: /nowhere}":                  "levee.yaml:2:42: admin.token_file: /nowhere: there is no such file; make one with: (umask 077; openssl rand -hex 32 > /nowhere)",
		"{listen: 127.0.0.1:0, tls: {cert: /nowhere, key: /nowhere}}":  "levee.yaml:2:35: admin.tls: ",
		"{listen: 127.0.0.1:0, token_file: " + secret + "}":            "admin: whoever has the token may look on, end connections, ban clients and drain levee\n",
		"{listen: \":0\", insecure: true, token_file: " + secret + "}": "warning: admin: other machines reach it in plaintext (admin.insecure): who listens on the way has the token\n",
		"{listen: \"unix:/tmp/no.sock\"}":                              "admin: the user that levee runs as may look on",
		"{listen: 127.0.0.1:0}":                                        "admin: every user and program of this machine may look on",
	} {
		_, stdout, stderr := result(t, app.Env{}, "check", "-c", guarded(t, says))
		if !strings.Contains(stdout+stderr, want) {
			t.Errorf("%s: %s%s\nwant %s", says, stdout, stderr, want)
		}
	}
}

// TestHoldConnections is no test: it is another process, which holds connections for the one below.
func TestHoldConnections(t *testing.T) {
	address, n := os.Getenv("HOLD_ADDRESS"), os.Getenv("HOLD_CONNECTIONS")
	if address == "" {
		t.Skip("nobody asks for connections to be held")
	}
	most, err := strconv.Atoi(n)
	if err != nil {
		t.Fatal(err)
	}
	for i := range most {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(bytes.Repeat([]byte("x"), 1+i%100)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// 9,000 connections are looked through, in whatever order, within 20 milliseconds, and without a copy of all of them.
func TestAPageOf9000ConnectionsCostsNoMoreThanAPage(t *testing.T) {
	const open = 9000
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", plain+"overload: {mode: off}\n")) // or a busy machine turns some away
	hold := exec.Command(os.Args[0], "-test.run=^TestHoldConnections$")
	hold.Env = append(os.Environ(), "HOLD_ADDRESS="+r.address(), fmt.Sprint("HOLD_CONNECTIONS=", open), "GOCOVERDIR="+t.TempDir())
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = hold.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Skipf("this machine does not let a process hold %d connections: %q, %v", open, line, err)
	}
	for late := time.Now().Add(patience); r.connections("limit=1&phase=serving").Matching < open; {
		if time.Now().After(late) {
			t.Fatalf("%+v", r.connections("limit=1"))
		}
	}
	for _, order := range []string{"id", "-in", "out", "-idle", "client"} {
		var took []time.Duration
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 5 { // what is allocated is about the same each time
			began := time.Now()
			page := r.connections("sort=" + order)
			took = append(took, time.Since(began))
			if page.Matching != open || len(page.Connections) != 100 {
				t.Fatalf("%s: %d of %d", order, len(page.Connections), page.Matching)
			}
		}
		runtime.ReadMemStats(&after)
		slices.Sort(took)
		bytes := (after.TotalAlloc - before.TotalAlloc) / uint64(len(took))
		t.Logf("%s: median of %d: %v, best %v, worst %v; %d KiB allocated by both sides", order, len(took), took[len(took)/2], took[0], took[len(took)-1], bytes>>10)
		if bytes > 2<<20 {
			t.Errorf("%s: %d KiB allocated", order, bytes>>10)
		}
	}
}
