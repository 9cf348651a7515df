package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// kicked reports whether the error is that levee has ended the connection.
func kicked(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// served reports whether a new connection from there is echoed to. It stays open.
func served(t *testing.T, source, address string) (net.Conn, bool) {
	t.Helper()
	c, err := dialFrom(source, address)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		err = echoesOn(c)
	}
	if err != nil && !kicked(err) {
		t.Fatalf("from %s: %v", source, err)
	}
	return c, err == nil
}

// operator runs a command against the process, and returns all that it wrote.
func (p *process) operator(args ...string) (text string, code int) {
	p.t.Helper()
	address := strings.TrimPrefix(p.admin(""), "http://")
	cmd := exec.CommandContext(p.t.Context(), levee, append(args, "--admin", address)...)
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		p.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// replace puts another file in the place of one.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".next", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

func TestADenyListIsTakenWhileServing(t *testing.T) {
	t.Parallel()
	deny := write(t, "deny.txt", "# nobody yet\n")
	p := start(t, "serve", "-c", config(t, "limits: {deny: 'file://"+deny+"'}", "limits: {}"))
	bad, _ := served(t, "127.0.0.66", p.address())
	good, _ := served(t, "127.0.0.2", p.address())

	replace(t, deny, "127.0.0.66\n127.0.0.0/33\n")
	if err := p.logged("not reloaded; what was in force before is kept")["err"].(string); !strings.Contains(err, deny+":2: ") {
		t.Errorf("the line is not named: %s", err)
	}
	if err := errors.Join(echoesOn(bad), echoesOn(good)); err != nil {
		t.Errorf("a list with a mistake in it was taken: %v", err)
	}

	replace(t, deny, "127.0.0.64/26\n")
	if _, err := bad.Read(make([]byte, 1)); !kicked(err) {
		t.Errorf("a live connection of who is denied: %v", err)
	}
	if _, ok := served(t, "127.0.0.66", p.address()); ok {
		t.Error("who is denied comes back")
	}
	if err := echoesOn(good); err != nil {
		t.Errorf("the connection of another: %v", err)
	}
	s := p.scrape()
	if s.closed("policy") != 1 || s[`levee_connections_refused_total{listener="main",reason="denied"}`] != 1 || !s.addsUp() {
		t.Errorf("%v", s)
	}
}

// A client that takes all that it can get must not be felt by another. Overload is off: it turns newcomers away whoever
// they are.
func TestAFloodFromOneClientLeavesRoomForAnother(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", config(t, "", "limits: {max_connections: 100, per_client: {mode: enforce, connections: 20, rate: 1000/s}}"))
	address := p.address()
	var flood sync.WaitGroup
	var attempts atomic.Int64
	stop := make(chan struct{})
	for range 8 {
		flood.Go(func() { // ends with stop
			for held := []net.Conn(nil); ; {
				select {
				case <-stop:
					for _, c := range held {
						c.Close()
					}
					return
				default:
				}
				c, err := (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}}).Dial("tcp", address)
				attempts.Add(1)
				if err != nil {
					continue
				}
				if held = append(held, c); len(held) == 64 {
					held[0].Close()
					held = append([]net.Conn(nil), held[1:]...)
				}
			}
		})
	}
	var worst time.Duration
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for range 50 {
		began := time.Now()
		c, ok := served(t, "127.0.0.2", address)
		if !ok {
			t.Fatal("another client is not served")
		}
		c.Close()
		worst = max(worst, time.Since(began))
		<-pace.C
	}
	close(stop)
	flood.Wait()
	t.Logf("%d attempts of the flood; the other client waited for %v at most", attempts.Load(), worst)
	if worst > 2*time.Second {
		t.Errorf("another client waited for %v", worst)
	}
	s := p.scrape()
	if refused := s[`levee_limit_decisions_total{decision="refused",limit="main.client.connections"}`]; refused == 0 {
		t.Error("nobody was refused: there was no flood")
	}
}

func TestBansByTheCommandLine(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", config(t, "", "limits: {}"))
	c, _ := served(t, "127.0.0.66", p.address())
	if text, code := p.operator("ban", "127.0.0.64/26", "--for", "1h", "--why", "it floods"); code != 0 || text != "127.0.0.64/26 is banned for 1h\n" {
		t.Errorf("%d %s", code, text)
	}
	if _, err := c.Read(make([]byte, 1)); !kicked(err) {
		t.Errorf("a live connection of who is banned: %v", err)
	}
	if _, ok := served(t, "127.0.0.66", p.address()); ok {
		t.Error("who is banned comes back")
	}
	if _, ok := served(t, "127.0.0.2", p.address()); !ok {
		t.Error("another is not served")
	}
	if text, code := p.operator("bans"); code != 0 || !strings.Contains(text, "\n127.0.0.64/26  enforce  ") || !strings.HasSuffix(text, "  it floods\n") {
		t.Errorf("%d %s", code, text)
	}
	if text, code := p.operator("unban", "127.0.0.64/26"); code != 0 || text != "127.0.0.64/26 is not banned any more\n" {
		t.Errorf("%d %s", code, text)
	}
	if _, ok := served(t, "127.0.0.66", p.address()); !ok {
		t.Error("who is not banned any more is not served")
	}
	if text, code := p.operator("unban", "127.0.0.64/26"); code != 2 || text != "levee: \"127.0.0.64/26\" is not banned\n" {
		t.Errorf("%d %q", code, text)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	if text, code := p.operator("bans"); code != 3 || !strings.HasPrefix(text, "levee: no levee answers at ") || strings.Count(text, "\n") != 1 {
		t.Errorf("%d %q", code, text)
	}
}

func TestLimitsByTheCommandLine(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", config(t, "", "limits: {per_client: {connections: 2}}"))
	for range 5 {
		if _, ok := served(t, "127.0.0.66", p.address()); !ok {
			t.Fatal("refused in shadow")
		}
	}
	text, code := p.operator("limits")
	line := ""
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "main.client.connections ") {
			line = strings.Join(strings.Fields(l), " ")
		}
	}
	if want := "main.client.connections shadow 2 for each address 2 0 3"; code != 0 || line != want {
		t.Errorf("%d %q, want %q in\n%s", code, line, want, text)
	}
	text, code = p.operator("limits", "--json")
	var all struct {
		Limits []struct {
			Limit       string
			WouldRefuse int `json:"would_refuse"`
		}
	}
	if err := json.Unmarshal([]byte(text), &all); code != 0 || err != nil || len(all.Limits) == 0 {
		t.Errorf("%d %v %s", code, err, text)
	}
}

// A listener's bandwidth is shared by its connections, in each direction, also where they are joined to an upstream.
func TestBandwidthIsSharedByConnectionsThatAreJoined(t *testing.T) {
	t.Parallel()
	const each, conns, perSecond = 1_000_000, 4, 2_000_000
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { behind.Close() })
	go func() { // ends with the listener
		for {
			c, err := behind.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	p := start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    limits: {bandwidth: {down: 2MB/s}}
    routes: [{upstream: behind}]
upstreams:
  - {name: behind, servers: ["`+behind.Addr().String()+`"]}
`))
	var all sync.WaitGroup
	began := time.Now()
	for range conns {
		c := dial(t, p.address())
		_ = c.SetDeadline(time.Now().Add(4 * patience))
		all.Go(func() { _, _ = c.Write(make([]byte, each)) })
		all.Go(func() {
			if n, err := io.ReadFull(c, make([]byte, each)); err != nil {
				t.Errorf("%d bytes came back: %v", n, err)
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	rate := conns * each / took.Seconds()
	t.Logf("%d bytes in %v: %.0f%% of the bandwidth", conns*each, took, 100*rate/perSecond)
	if rate > 1.2*perSecond || rate < 0.6*perSecond {
		t.Errorf("%.0f bytes a second, of %d", rate, perSecond)
	}
	if waits := p.scrape()[`levee_limit_decisions_total{decision="refused",limit="main.down"}`]; waits == 0 {
		t.Error("no wait was counted")
	}
}

func TestMachinesWithOneRedisShareLimitsAndBans(t *testing.T) {
	t.Parallel()
	need(t, "redis-server")
	store := redis(t)
	top := "redis: {address: \"" + store + "\"}"
	var machines []*process
	for range 2 {
		machines = append(machines, start(t, "serve", "-c", config(t, top, "limits: {per_client: {mode: enforce, connections: 4}}")))
	}
	for _, p := range machines {
		eventually(t, "it shares", func() bool {
			s := p.scrape()
			return s[`levee_shared_limits_up{what="limits"}`] == 1 && s[`levee_shared_limits_up{what="bans"}`] == 1
		})
	}
	one, other := machines[0], machines[1]
	for range 3 {
		if _, ok := served(t, "127.0.0.66", one.address()); !ok {
			t.Fatal("not served")
		}
	}
	if _, ok := served(t, "127.0.0.66", other.address()); !ok {
		t.Fatal("the fourth is not served")
	}
	if _, ok := served(t, "127.0.0.66", other.address()); ok {
		t.Error("a fifth is served by the other machine")
	}
	if _, ok := served(t, "127.0.0.2", other.address()); !ok {
		t.Error("another client is not served")
	}

	c, _ := served(t, "127.0.0.77", other.address())
	if text, code := one.operator("ban", "127.0.0.77"); code != 0 {
		t.Fatalf("%d %s", code, text)
	}
	if _, err := c.Read(make([]byte, 1)); !kicked(err) {
		t.Errorf("a live connection at the other machine: %v", err)
	}
	if text, _ := other.operator("bans"); !strings.Contains(text, "127.0.0.77/32") {
		t.Errorf("the other machine does not tell of it: %s", text)
	}
	if text, code := one.operator("unban", "127.0.0.77"); code != 0 {
		t.Fatalf("%d %s", code, text)
	}
	eventually(t, "it is lifted everywhere", func() bool {
		c, ok := served(t, "127.0.0.77", other.address())
		if c != nil {
			c.Close()
		}
		return ok
	})
}

// Without Redis, each machine decides alone: nobody is kept waiting, and its own limits hold.
func TestAMachineWhoseRedisIsGoneDecidesAlone(t *testing.T) {
	t.Parallel()
	gone := freePorts(t, 1)[0]
	p := start(t, "serve", "-c", config(t, "redis: {address: \"127.0.0.1:"+gone+"\"}", "limits: {per_client: {mode: enforce, connections: 2}}"))
	for range 2 {
		began := time.Now()
		if _, ok := served(t, "127.0.0.66", p.address()); !ok || time.Since(began) > 2*time.Second {
			t.Errorf("served %t, after %v", ok, time.Since(began))
		}
	}
	if _, ok := served(t, "127.0.0.66", p.address()); ok {
		t.Error("a third is served")
	}
	if s := p.scrape(); s[`levee_shared_limits_up{what="limits"}`] != 0 {
		t.Error("it says that it shares")
	}
	if line := p.logged("not shared with other machines: each decides alone"); fmt.Sprint(line["err"]) == "" {
		t.Errorf("%v", line)
	}
}

// When strangers have taken all the files that they can get, operators must still see that, and do something.
func TestOperatorsAreAnsweredWhenFilesHaveRunOut(t *testing.T) {
	t.Parallel()
	const files = 300 // of so few, the front keeps none back for others
	path := config(t, "overload: {mode: off}", "limits: {max_connections: 10000, per_client: {mode: off}}")
	p := launch(t, exec.Command("sh", "-c", fmt.Sprintf("ulimit -n %d; exec %s serve -c %s", files, levee, path)))
	address := p.address()
	for range files + 100 { // those that are not accepted wait in the kernel
		c, err := dialFrom("127.0.0.66", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		send(t, c, "x") // so that it is a connection to the end
	}
	eventually(t, "there are no files left for strangers", func() bool { return p.scrape().of("levee_accept_errors_total") > 0 })
	for range 20 {
		began := time.Now()
		if text, code := p.operator("limits"); code != 0 || time.Since(began) > 3*time.Second {
			t.Fatalf("%d, after %v: %s", code, time.Since(began), text)
		}
	}
	if text, code := p.operator("ban", "127.0.0.66"); code != 0 {
		t.Fatalf("%d %s", code, text)
	}
	eventually(t, "others are served again", func() bool {
		c, ok := served(t, "127.0.0.2", address)
		if c != nil {
			c.Close()
		}
		return ok
	})
}

func TestGuideToLimits(t *testing.T) {
	t.Parallel()
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from behind") }))
	t.Cleanup(behind.Close)
	g := newGuide(t, "limits.md", "10.0.0.7:8080", behind.Listener.Addr().String(), "www.example.com", "8443")
	g.has = map[string]int{"console": 6, "yaml": 5}
	g.here[`":8443"`] = `"127.0.0.1:` + g.here["8443"] + `"` // by both families curl would be two clients
	g.here["10.0.0.5:6379"] = "127.0.0.1:" + freePorts(t, 1)[0]
	if err := os.WriteFile(filepath.Join(g.dir, "deny.txt"), []byte("# nobody yet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.play()
}
