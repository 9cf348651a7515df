package app_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/app"
)

// limited is a configuration whose listener echoes, with limits of all listeners and of its own.
func limited(whole, own string) string {
	return `version: 1
admin: {listen: 127.0.0.1:0}
limits: {` + whole + `}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    limits: {` + own + `}
    routes: [{handler: echo}]
`
}

// from connects from an address of this machine's, all of which are loopback.
func from(t *testing.T, source, address string) (net.Conn, error) {
	t.Helper()
	dialer := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0))}
	c, err := dialer.Dial("tcp", address)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// served reports whether a connection from the source is echoed to; it is left open.
func served(t *testing.T, source, address string) (net.Conn, bool) {
	t.Helper()
	c, err := from(t, source, address)
	switch {
	case err == nil:
		return c, echoes(t, c)
	case !refusedAtDoor(err): // a reset may come before connect has returned
		t.Fatal(err)
	}
	return nil, false
}

func echoes(t *testing.T, c net.Conn) bool {
	t.Helper()
	_, err := io.WriteString(c, "hi")
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 2))
	}
	if err != nil && !refusedAtDoor(err) {
		t.Fatal(err)
	}
	return err == nil
}

// refusedAtDoor reports whether the other side has ended the connection.
func refusedAtDoor(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// ended waits for the other side to end the connection.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !refusedAtDoor(err) {
		t.Fatalf("the connection was not ended: %v", err)
	}
}

// adminAddress is what --admin takes.
func (r *run) adminAddress() string { return strings.TrimPrefix(r.admin(""), "http://") }

// decisions returns the limit's decisions, as the command shows them.
func (r *run) decisions(name string) admin.Limit {
	r.t.Helper()
	code, stdout, stderr := result(r.t, app.Env{}, "limits", "--json", "--admin", r.adminAddress())
	var all admin.Limits
	if err := json.Unmarshal([]byte(stdout), &all); code != 0 || err != nil {
		r.t.Fatalf("%d %v %s%s", code, err, stdout, stderr)
	}
	for _, l := range all.Limits {
		if l.Name == name {
			return l
		}
	}
	r.t.Fatalf("no limit %s in %s", name, stdout)
	return admin.Limit{}
}

func TestAClientThatHasItsConnectionsGetsNoMoreWhileAnotherIsServed(t *testing.T) {
	path := write(t, "levee.yaml", limited("", "per_client: {mode: enforce, connections: 2}"))
	r := start(t, app.Env{}, "serve", "-c", path)
	first, _ := served(t, "127.0.0.2", r.address())
	if _, ok := served(t, "127.0.0.2", r.address()); !ok {
		t.Fatal("the second is not served")
	}
	for i := range 3 {
		if _, ok := served(t, "127.0.0.2", r.address()); ok {
			t.Error("a third is served")
		}
		if _, ok := served(t, fmt.Sprintf("127.0.0.%d", 3+i), r.address()); !ok {
			t.Error("another client is not served")
		}
	}
	if got, want := r.decisions("main.client.connections"), (admin.Limit{Name: "main.client.connections", Mode: "enforce", Setting: "2 for each address", Allowed: 5, Refused: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	first.Close()
	for until := time.Now().Add(patience); ; { // its place is free once its end has been seen
		if _, ok := served(t, "127.0.0.2", r.address()); ok {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the place of one that has left is not free")
		}
	}
}

func TestALimitInShadowCountsAndLetsIn(t *testing.T) {
	path := write(t, "levee.yaml", limited("", "per_client: {connections: 1, rate: 1/h, burst: 2}"))
	r := start(t, app.Env{}, "serve", "-c", path)
	for range 4 {
		if _, ok := served(t, "127.0.0.2", r.address()); !ok {
			t.Fatal("refused, in shadow")
		}
	}
	connections := r.decisions("main.client.connections")
	if connections.Refused != 0 || connections.WouldRefuse != 3 || connections.Mode != "shadow" {
		t.Errorf("%+v", connections)
	}
	_, metrics := get(t, r.admin("/metrics"))
	if want := `levee_limit_decisions_total{decision="would_refuse",limit="main.client.connections"} 3`; !strings.Contains(metrics, want+"\n") {
		t.Errorf("no %s in\n%s", want, metrics)
	}
}

func TestListenersShareTheLimitOfAll(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
limits: {max_connections: 2}
listeners:
  - {name: a, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
  - {name: b, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
`)
	r := start(t, app.Env{}, "serve", "-c", path)
	a := r.find(&r.stdout, `^Listening on (\S+)\nListening`)
	b := r.find(&r.stdout, `^Listening on \S+\nListening on (\S+)\n`)
	for _, address := range []string{a, b} {
		if _, ok := served(t, "127.0.0.1", address); !ok {
			t.Fatalf("%s does not serve", address)
		}
	}
	for _, address := range []string{a, b} {
		if _, ok := served(t, "127.0.0.1", address); ok {
			t.Errorf("%s serves a third", address)
		}
	}
	if got := r.decisions("*.connections"); got.Allowed != 2 || got.Refused != 2 || got.Setting != "2" {
		t.Errorf("%+v", got)
	}
}

func TestARouteHasLimitsOfItsOwn(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    routes:
      - {match: {prefix: x}, name: few, handler: echo, limits: {max_connections: 1, per_client: {rate: 1/h, burst: 5}}}
      - {handler: echo}
`)
	r := start(t, app.Env{}, "serve", "-c", path)
	asks := func(first string) bool {
		c := dial(t, r.address())
		send(t, c, first)
		_, err := io.ReadFull(c, make([]byte, 1))
		return err == nil
	}
	if !asks("x") || asks("x") || !asks("y") || !asks("y") {
		t.Error("the route's limit does not hold, or holds for others")
	}
	if got := r.decisions("main/few.connections"); got.Allowed != 1 || got.Refused != 1 {
		t.Errorf("%+v", got)
	}
	if got := r.decisions("main/few.client.rate"); got.Setting != "1/h, 5 at once for each address" || got.Mode != "shadow" {
		t.Errorf("%+v", got)
	}
}

// rewrite replaces a file as one should: by another.
func rewrite(t *testing.T, path, content string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func TestADenyListThatChangesEndsLiveConnectionsAndABadOneIsNotTaken(t *testing.T) {
	deny := write(t, "deny.txt", "127.0.0.9\n")
	path := filepath.Join(filepath.Dir(deny), "levee.yaml")
	if err := os.WriteFile(path, []byte(limited("deny: 'file:deny.txt'", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, app.Env{}, "serve", "-c", path)
	if _, ok := served(t, "127.0.0.9", r.address()); ok {
		t.Error("who is on the list is served")
	}
	two, _ := served(t, "127.0.0.2", r.address())
	three, _ := served(t, "127.0.0.3", r.address())

	rewrite(t, deny, "127.0.0.9\n127.0.0.2/31x\n")
	if line := r.find(&r.stderr, `"msg":"not reloaded; what was in force before is kept".*"err":"(.*)"\}`); !strings.Contains(line, deny+":2: ") {
		t.Errorf("the line is not named: %s", line)
	}
	if !echoes(t, two) || !echoes(t, three) {
		t.Error("a list that cannot be read ends connections")
	}
	if _, ok := served(t, "127.0.0.9", r.address()); ok {
		t.Error("the list of before is not in force any more")
	}

	rewrite(t, deny, "127.0.0.2 # was a nuisance\n")
	ended(t, two)
	r.find(&r.stderr, `"msg":"ended connections of clients that are not let in any more","listener":"main","count":1`)
	if !echoes(t, three) {
		t.Error("the connection of another client has ended")
	}
	if _, ok := served(t, "127.0.0.2", r.address()); ok {
		t.Error("who has come onto the list is served")
	}
	if _, ok := served(t, "127.0.0.9", r.address()); !ok {
		t.Error("who is off the list is not served")
	}
	_, metrics := get(t, r.admin("/metrics"))
	for _, want := range []string{
		`levee_reloads_total{result="failed"} 1`, `levee_reloads_total{result="ok"} 1`, `levee_limit_prefixes{kind="deny",list="lists"} 1`,
		`levee_connections_closed_total{listener="main",reason="policy"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
}

func TestSIGHUPReadsListsAgain(t *testing.T) {
	deny := write(t, "deny.txt", "127.0.0.9\n")
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", limited("deny: 'file://"+deny+"'", "")))
	c, _ := served(t, "127.0.0.2", r.address())
	if err := os.WriteFile(deny, []byte("oops\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, `"msg":"not reloaded; what was in force before is kept","err":"`+deny+`:1: `)
	if err := os.WriteFile(deny, []byte("127.0.0.0/29\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	ended(t, c)
}

func TestAListenersAllowGoesBeforeThatOfAll(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
limits: {allow: 127.0.0.2, deny: 127.0.0.4}
listeners:
  - {name: a, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
  - {name: b, listen: ["127.0.0.1:0"], limits: {allow: 127.0.0.0/29, deny: 127.0.0.5}, routes: [{handler: echo}]}
`)
	r := start(t, app.Env{}, "serve", "-c", path)
	addresses := map[string]string{
		"a": r.find(&r.stdout, `^Listening on (\S+)\nListening`), "b": r.find(&r.stdout, `^Listening on \S+\nListening on (\S+)\n`),
	}
	for listener, clients := range map[string]map[string]bool{
		"a": {"127.0.0.2": true, "127.0.0.3": false, "127.0.0.4": false, "127.0.0.5": false},
		"b": {"127.0.0.2": true, "127.0.0.3": true, "127.0.0.4": false, "127.0.0.5": false},
	} {
		for client, want := range clients {
			if _, ok := served(t, client, addresses[listener]); ok != want {
				t.Errorf("%s: %s served: %t, want %t", listener, client, ok, want)
			}
		}
	}
}

func TestCheckNamesTheLineOfABrokenList(t *testing.T) {
	deny := write(t, "deny.txt", "127.0.0.9\nx\n")
	path := write(t, "levee.yaml", limited("deny: [10.0.0.0/8, 'file://"+deny+"', 'file:///nosuch']", ""))
	code, _, stderr := result(t, app.Env{}, "check", "-c", path)
	if want := "levee: " + path + ":3:29: " + deny + `:2: "x": `; code != 2 || !strings.HasPrefix(stderr, want) {
		t.Errorf("%d %s, want %s", code, stderr, want)
	}
}

func TestBansByHandAreListedAndLifted(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", limited("bans: {mode: off}", "")))
	c, _ := served(t, "127.0.0.2", r.address())
	at := []string{"--admin", r.adminAddress()}
	cli := func(args ...string) (int, string, string) {
		return result(t, app.Env{}, append(args, at...)...)
	}
	if code, stdout, stderr := cli("bans"); code != 0 || stdout != "nobody is banned\n" || stderr != "" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	if code, stdout, stderr := cli("ban", "127.0.0.2", "--for", "1h", "--why", "floods at night"); code != 0 || stdout != "127.0.0.2/32 is banned for 1h\n" || stderr != "" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	ended(t, c)
	if _, ok := served(t, "127.0.0.2", r.address()); ok {
		t.Error("who is banned is served")
	}
	if _, ok := served(t, "127.0.0.3", r.address()); !ok {
		t.Error("another client is not served")
	}
	if code, stdout, _ := cli("bans"); code != 0 || !strings.HasPrefix(stdout, "PREFIX        MODE     FOR ANOTHER  WHY\n127.0.0.2/32  enforce  ") || !strings.HasSuffix(stdout, "  floods at night\n") {
		t.Errorf("%d %q", code, stdout)
	}
	_, stdout, _ := cli("bans", "--json")
	var bans admin.Bans
	if err := json.Unmarshal([]byte(stdout), &bans); err != nil || bans.Active != 1 || bans.Bans[0].Prefix != "127.0.0.2/32" || time.Until(bans.Bans[0].Until) < 59*time.Minute {
		t.Errorf("%v %s", err, stdout)
	}
	if code, stdout, _ := cli("unban", "127.0.0.2"); code != 0 || stdout != "127.0.0.2/32 is not banned any more\n" {
		t.Errorf("%d %q", code, stdout)
	}
	if _, ok := served(t, "127.0.0.2", r.address()); !ok {
		t.Error("whose ban was lifted is not served")
	}
	for args, want := range map[string]string{
		"unban 127.0.0.2":           `levee: "127.0.0.2/32" is not banned`,
		"ban 127.0.0.2 --for never": `levee: for: "never" is not a duration; write one such as 10m`,
		"ban 127.0.0.2 --for -1m":   "levee: for: -1m is not from 1s to 720h",
		"ban 127.0.0.2 --for 721h":  "levee: for: 721h is not from 1s to 720h",
		"ban 127.0.0.2 --for 1ms":   "levee: for: 1ms is not from 1s to 720h",
		"ban 0.0.0.0/0":             "levee: ban 0.0.0.0/0: it would keep everybody out",
		"ban 127.0.0.2 --why=a\tb":  "levee: why: must be a line of at most 200 bytes",
	} {
		if code, stdout, stderr := cli(strings.Split(args, " ")...); code != 2 || stdout != "" || stderr != want+"\n" {
			t.Errorf("%s: %d %q %q, want %q", args, code, stdout, stderr, want)
		}
	}
}

func TestWhoIsBannedWithOthersIsNotUnbannedAlone(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", limited("bans: {mode: off}", "")))
	for _, step := range []struct {
		args, stdout, stderr string
		code                 int
	}{
		{"ban 127.0.0.0/24", "127.0.0.0/24 is banned for 10m\n", "", 0},
		{"unban 127.0.0.2", "", "levee: 127.0.0.2/32 is kept out by the ban of 127.0.0.0/24; lift that\n", 2},
		{"ban 127.0.0.2", "127.0.0.2/32 is banned for 10m\n", "", 0},
		{"unban 127.0.0.2", "", "levee: the ban of 127.0.0.2/32 is lifted, yet it is kept out by that of 127.0.0.0/24; lift that too\n", 2},
		{"unban 127.0.0.0/25", "", "levee: 127.0.0.0/25 is kept out by the ban of 127.0.0.0/24; lift that\n", 2},
		{"unban 127.0.0.0/23", "", "levee: \"127.0.0.0/23\" is not banned\n", 2},
		{"unban 127.0.0.0/24", "127.0.0.0/24 is not banned any more\n", "", 0},
		{"ban 2001:db8::5", "2001:db8::5/128 is banned for 10m; whoever has it has other addresses of 2001:db8::/64, which are not\n", "", 0},
		{"unban 2001:db8::5", "2001:db8::5/128 is not banned any more\n", "", 0},
	} {
		code, stdout, stderr := result(t, app.Env{}, append(strings.Split(step.args, " "), "--admin", r.adminAddress())...)
		if code != step.code || stdout != step.stdout || stderr != step.stderr {
			t.Errorf("%s: %d %q %q; want %d %q %q", step.args, code, stdout, stderr, step.code, step.stdout, step.stderr)
		}
	}
}

func TestClientsThatAreRefusedAgainAndAgainAreBanned(t *testing.T) {
	path := write(t, "levee.yaml", limited("bans: {mode: enforce, refusals: 5, for: 1m}", "per_client: {mode: enforce, connections: 1}"))
	r := start(t, app.Env{}, "serve", "-c", path)
	c, _ := served(t, "127.0.0.2", r.address())
	for range 5 {
		if _, ok := served(t, "127.0.0.2", r.address()); ok {
			t.Fatal("a second is served")
		}
	}
	ended(t, c) // it had one place, and has none now
	r.find(&r.stderr, `"msg":"banned clients that were refused again and again","count":1,"mode":"enforce","active":1`)
	_, metrics := get(t, r.admin("/metrics"))
	if !strings.Contains(metrics, "\nlevee_bans_active 1\n") || !strings.Contains(metrics, "\nlevee_bans_made_total 1\n") {
		t.Error(metrics)
	}
}

func TestWhoWouldBeBannedIsShown(t *testing.T) {
	path := write(t, "levee.yaml", limited("bans: {refusals: 5}", "per_client: {mode: enforce, connections: 1}"))
	r := start(t, app.Env{}, "serve", "-c", path)
	c, _ := served(t, "127.0.0.2", r.address())
	for range 5 {
		served(t, "127.0.0.2", r.address())
	}
	if !echoes(t, c) {
		t.Error("a ban in shadow ends connections")
	}
	_, stdout, _ := result(t, app.Env{}, "bans", "--admin", r.adminAddress())
	if !strings.Contains(stdout, "\n127.0.0.2/32  shadow  ") || !strings.HasSuffix(stdout, "  5 refusals\n") {
		t.Error(stdout)
	}
}

func TestRefusalsAreLoggedOnceASecond(t *testing.T) {
	const attempts = 300
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", limited("deny: 127.0.0.2", "")))
	began := time.Now()
	for range attempts {
		served(t, "127.0.0.2", r.address())
	}
	if _, ok := served(t, "127.0.0.3", r.address()); !ok {
		t.Error("another client is not served")
	}
	total := 0.0
	for total < attempts {
		_, more := r.stderr.soFar()
		total = 0
		lines := 0
		for _, line := range r.log() {
			if line["msg"] != "turned connections away" {
				continue
			}
			lines++
			total += line["denied"].(float64)
			if line["listener"] != "main" || line["why"] != "on the deny list" || !strings.HasPrefix(fmt.Sprint(line["one_was"]), "127.0.0.2:") {
				t.Fatalf("%v", line)
			}
		}
		if most := int(time.Since(began).Seconds()) + 2; lines > most {
			t.Fatalf("%d lines in %v", lines, time.Since(began))
		}
		if total == attempts {
			break
		}
		select {
		case <-more:
		case <-time.After(patience):
			t.Fatalf("%.0f of %d are told", total, attempts)
		}
	}
	_, metrics := get(t, r.admin("/metrics"))
	if want := fmt.Sprintf(`levee_connections_refused_total{listener="main",reason="denied"} %d`, attempts); !strings.Contains(metrics, want+"\n") {
		t.Errorf("no %s in\n%s", want, metrics)
	}
}

func TestBandwidthIsKeptTo(t *testing.T) {
	path := write(t, "levee.yaml", limited("", "connection_bandwidth: {up: 1MB/s}"))
	r := start(t, app.Env{}, "serve", "-c", path)
	c := dial(t, r.address())
	const size = 1_000_000
	began := time.Now()
	go func() { _, _ = c.Write(make([]byte, size)) }() // ends with the connection
	if n, err := io.ReadFull(c, make([]byte, size)); err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if took := time.Since(began); took < 700*time.Millisecond || took > 5*time.Second {
		t.Errorf("%d bytes took %v", size, took)
	}
}

func TestLimitsAreShownAsATable(t *testing.T) {
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", limited("deny: 192.0.2.0/24", "rate: 100/s")))
	served(t, "127.0.0.2", r.address())
	code, stdout, stderr := result(t, app.Env{}, "limits", "--admin", r.adminAddress())
	want := `LIMIT                    MODE     SETTING                                   ALLOWED  REFUSED  WOULD REFUSE
main.rate                enforce  100/s, 200 at once                        1        0        0
main.client.connections  shadow   256 for each address                      1        0        0
main.client.rate         shadow   50/s, 100 at once for each address        1        0        0
bans                     shadow   after 100 refusals in 1m, for 10m and up to 24h  0  0  0
`
	squeezed := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if code != 0 || stderr != "" || !strings.HasPrefix(squeezed(stdout), squeezed(want)) || !strings.Contains(stdout, "\nlists ") || !strings.Contains(stdout, "\nmain.client  1 ") {
		t.Errorf("%d %s\n%s\nwant\n%s", code, stderr, stdout, want)
	}
}

func TestCommandsSayThatNoLeveeAnswers(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := gone.Addr().String()
	gone.Close()
	for _, args := range [][]string{
		{"limits"},
		{"bans"},
		{"ban", "192.0.2.1"},
		{"unban", "192.0.2.1"},
		{"status"},
		{"conns"},
		{"kill", "1"},
		{"kill", "--listener", "main"},
		{"upstreams"},
		{"upstreams", "drain", "a", "b:1"},
		{"drain"},
		{"reload"},
		{"top", "--once"},
	} {
		code, stdout, stderr := result(t, app.Env{}, append(args, "--admin", address)...)
		want := "levee: no levee answers at " + address + ": connect: connection refused; is it running? its admin address is said with --admin\n"
		if code != 3 || stdout != "" || stderr != want {
			t.Errorf("%q: %d %q %q", args, code, stdout, stderr)
		}
	}
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off")
	code, _, stderr := result(t, app.Env{}, "limits", "--admin", r.address()) // which answers requests, but not as levee's admin
	if want := "levee: " + r.address() + " does not answer as levee does"; code != 3 || !strings.HasPrefix(stderr, want) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("%d %q, want %q", code, stderr, want)
	}
}

// TestCommandsAskForLocalhost: the admin port refuses names that somebody else could have lead there, as that of its
// machine, by which it is reached from another container.
func TestCommandsAskForLocalhost(t *testing.T) {
	asked := make(chan string, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Host
		fmt.Fprint(w, "{}")
	}))
	defer server.Close()
	address := server.Listener.Addr().String()
	if code, _, stderr := result(t, app.Env{}, "bans", "--admin", address); code != 0 {
		t.Errorf("%d %q", code, stderr)
	}
	if code, _, stderr := result(t, app.Env{}, "flood", "--target", "127.0.0.1:1", "--admin", address, "--probe-source", "nowhere"); code != 2 {
		t.Errorf("%d %q", code, stderr) // which is found when the metrics have been asked for
	}
	for range 2 {
		if host := <-asked; host != "localhost" {
			t.Errorf("it was asked for %q", host)
		}
	}
}

func TestCommandsReachAUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "unix:"+socket)
	r.find(&r.stdout, "^Metrics on (unix socket .*)\n")
	if code, stdout, stderr := result(t, app.Env{}, "ban", "192.0.2.1", "--admin", "unix:"+socket); code != 0 || stdout != "192.0.2.1/32 is banned for 10m\n" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestExplainSaysWhoIsDenied(t *testing.T) {
	deny := write(t, "deny.txt", "192.0.2.7\n")
	path := write(t, "levee.yaml", limited("allow: [192.0.2.0/24, 198.51.100.0/24], deny: [198.51.100.9, 'file://"+deny+"']", "max_connections: 5, rate: 7/s, per_client: {mode: enforce, connections: 2}"))
	for source, want := range map[string]string{
		"192.0.2.7":    "refused   denied: on the deny list (FILE:3)\n",
		"198.51.100.9": "refused   denied: on the deny list (FILE:3)\n",
		"203.0.113.1":  "refused   denied: not on the allow list (FILE:3)\n",
		"192.0.2.8":    "limits    up to 5 connections (FILE:7)\nlimits    new connections 7/s, 14 at once (FILE:7)\nlimits    each address: 2 connections, new ones 7/s, 14 at once (FILE:7)\n",
	} {
		code, stdout, stderr := result(t, app.Env{}, "explain", "-c", path, "--src", source)
		if code != 0 || stderr != "" || !strings.Contains(strings.ReplaceAll(stdout, path, "FILE"), want) {
			t.Errorf("%s: %d %s%s\nwant %s", source, code, stdout, stderr, want)
		}
	}
}

func TestWhatIsShortIsTold(t *testing.T) {
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	status, body := get(t, r.admin("/api/v1/overload"))
	var told admin.Overload
	if err := json.Unmarshal([]byte(body), &told); status != 200 || err != nil || told.Mode != "on" || told.Pressure != "none" {
		t.Errorf("%d %v %s", status, err, body)
	}
	for _, input := range []string{"memory", "files", "accept_queue", "arriving", "handshakes", "scheduler"} {
		if _, ok := told.Load[input]; !ok {
			t.Errorf("nothing is told of %s: %s", input, body)
		}
	}
	_, metrics := get(t, r.admin("/metrics"))
	for _, want := range []string{"\nlevee_overload_level 0\n", "\nlevee_overload_turned_away_ratio 0\n", "\nlevee_overload_load{input=\"files\"} "} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q in\n%s", want, metrics)
		}
	}
	off := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", "overload: {mode: off}\n"+plain))
	if _, body := get(t, off.admin("/api/v1/overload")); !strings.Contains(body, `"mode": "off"`) || !strings.Contains(body, `"load": {}`) {
		t.Error(body)
	}
	off.find(&off.stderr, `"level":"WARN","msg":"overload is off: `)
}

func TestMoreThanMayArriveAreTurnedAway(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    limits: {arriving: 2}
    tls: {development: true}
    routes: [{handler: echo}]
`)
	r := start(t, app.Env{}, "serve", "-c", path)
	for range 2 { // which say nothing
		dial(t, r.address())
	}
	if c, err := from(t, "127.0.0.1", r.address()); err == nil { // else it was reset at once
		ended(t, c)
	}
	_, metrics := get(t, r.admin("/metrics"))
	if want := `levee_connections_refused_total{listener="main",reason="overloaded"} 1`; !strings.Contains(metrics, want+"\n") {
		t.Errorf("no %s in\n%s", want, metrics)
	}
}

func TestCheckSaysWhichLimitsAreInForce(t *testing.T) {
	deny := write(t, "deny.txt", "192.0.2.0/24\n198.51.100.7\n")
	path := write(t, "levee.yaml", `version: 1
redis: {address: 10.0.0.5:6379}
limits: {max_connections: 500, rate: 600/m, mode: shadow, deny: "file://`+deny+`", bans: {mode: enforce, refusals: 7}}
listeners:
  - name: main
    listen: ["127.0.0.1:1"]
    tls: {development: true}
    limits:
      handshake_rate: 20/s
      bandwidth: {up: 10MB/s}
      connection_bandwidth: {down: 512KiB/s}
      per_client: {mode: enforce, by: sni, connections: 5, rate: off, bandwidth: {up: 1MB/s, down: 2MB/s}}
      allow: 203.0.113.0/24
    routes:
      - {match: {protocol: http}, handler: hello, name: web, limits: {max_connections: 7, per_client: {rate: 1/m}}}
      - {handler: echo}
  - {name: open, listen: [":2"], insecure: true, limits: {per_client: {mode: off}}, routes: [{handler: echo}]}
`)
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", path)
	for _, want := range []string{
		"main: TLS required; up to 500 connections; ",
		"all listeners together: up to 500 connections, new connections 600/m, 600 at once; shadow: only counted\n",
		"main: handshakes 20/s, 40 at once, 10MB/s up in all\n",
		"main: each connection: 512KiB/s down\n",
		"main: each server name: 5 connections, 1MB/s up, 2MB/s down\n",
		"main/web: up to 7 connections\n",
		"main/web: each address: new ones 1/m, 1 at once; shadow: only counted\n",
		"main: only clients of 1 prefixes are let in, without those of 2\n",
		"warning: open: limits.per_client is off: one client can take all connections\n",
		"open: clients of 2 prefixes are turned away\n",
		"bans: after 7 refusals in 1m, for 10m and up to 24h\n",
		"limits per client and bans are shared with all machines that have redis 10.0.0.5:6379; while it does not answer, each decides alone\n",
	} {
		if !strings.Contains("\n"+stdout, "\n"+want) {
			t.Errorf("there is no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" {
		t.Errorf("%d %s", code, stderr)
	}
}

func TestClientsMayBeWhoTheyAreOrWhomTheyAskFor(t *testing.T) {
	s := newSite(t)
	const pair = "certificates: [{cert: a.pem, key: a-key.pem}, {cert: b.pem, key: b-key.pem}, {cert: w.pem, key: w-key.pem}]"
	alice, bob := s.client.ClientCertificate("alice"), s.client.ClientCertificate("bob")
	for by, c := range map[string]struct {
		tls    string
		first  *tls.Config
		second *tls.Config // another client
	}{
		"sni":      {pair, s.as("a.example"), s.as("b.example")},
		"identity": {pair + ", client_ca: clients.pem", s.as("a.example", alice), s.as("a.example", bob)},
	} {
		path := s.config(c.tls, "{handler: echo}")
		doc, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		limits := "    limits: {per_client: {mode: enforce, by: " + by + ", connections: 1}}\n    routes:\n"
		s.put("levee.yaml", []byte(strings.Replace(string(doc), "    routes:\n", limits, 1)))
		r := start(t, app.Env{}, "serve", "-c", path)
		echoed := func(config *tls.Config) bool {
			secure := tls.Client(dial(t, r.address()), config)
			_, err := io.WriteString(secure, "hi")
			if err == nil {
				_, err = io.ReadFull(secure, make([]byte, 2))
			}
			return err == nil
		}
		if !echoed(c.first) || echoed(c.first) || !echoed(c.second) || echoed(c.second) {
			t.Errorf("by %s: it is not one connection for each", by)
		}
		if got := r.decisions("main.client.connections"); got.Allowed != 2 || got.Refused != 2 {
			t.Errorf("by %s: %+v", by, got)
		}
	}
}
