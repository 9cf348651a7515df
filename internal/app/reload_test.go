package app_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

// A house is a levee whose configuration changes.
type house struct {
	*run
	path       string
	generation int
	failures   int
}

const top = "version: 1\nadmin: {listen: 127.0.0.1:0}\n"

func openHouse(t *testing.T, config string, args ...string) *house {
	t.Helper()
	leveetest.CheckLeaks(t)
	path := write(t, "levee.yaml", top+config)
	return &house{run: start(t, app.Env{}, append([]string{"serve", "-c", path}, args...)...), path: path, generation: 1}
}

// put writes another configuration.
func (h *house) put(config string) {
	h.t.Helper()
	if err := os.WriteFile(h.path, []byte(config), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// becomes has levee take over another configuration.
func (h *house) becomes(config string) {
	h.t.Helper()
	h.put(top + config)
	h.signals <- syscall.SIGHUP
	h.generation++
	h.find(&h.stderr, fmt.Sprintf(`"msg":"reloaded","what":"configuration","generation":%d`, h.generation))
}

// refuses has levee refuse a configuration, and returns why.
func (h *house) refuses(config string) string {
	h.t.Helper()
	h.put(config)
	h.signals <- syscall.SIGHUP
	h.failures++
	pattern := `"msg":"not reloaded; what was in force before is kept","err":"([^\n]*)"`
	return h.find(&h.stderr, "(?s)"+strings.Repeat(pattern+".*?", h.failures-1)+pattern)
}

// freePort returns a port that is free for now, below those that the system gives to clients.
func freePort(t *testing.T) string {
	t.Helper()
	for port := 21000 + os.Getpid()%5000; port < 32000; port++ {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return strconv.Itoa(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

func one(listen, rest string) string {
	return fmt.Sprintf("listeners:\n  - name: main\n    listen: [%q]\n%s", listen, rest)
}

const (
	loopback = "127.0.0.1:0"
	toEcho   = "    routes: [{handler: echo}]\n"
	toSink   = "    routes: [{handler: discard}]\n"
)

func TestAChangedRouteIsForTheConnectionsToCome(t *testing.T) {
	h := openHouse(t, one(loopback, toEcho))
	before := dial(t, h.address())
	send(t, before, "hi")
	expect(t, before, "hi")
	h.becomes(one(loopback, toSink))
	after := dial(t, h.address())
	send(t, after, "hi")
	send(t, before, "still here")
	expect(t, before, "still here")
	after.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := after.Read(make([]byte, 1)); n > 0 || !os.IsTimeout(err) {
		t.Errorf("the new route answers: %d bytes, %v", n, err)
	}
	h.counts("levee_config_generation 2")
	h.counts(`levee_reloads_total{result="ok"} 1`)
	h.counts(`levee_reloads_total{result="failed"} 0`)
	h.counts(`levee_connections_accepted_total{listener="main"} 2`)
}

func TestWhatCannotBeTakenOverChangesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	h := openHouse(t, one(loopback, toEcho))
	before := dial(t, h.address())
	address := taken.Addr().String()
	for _, c := range []struct{ config, want string }{
		{"version: 1\nlisteners: [", `levee\.yaml:`},
		{top + one(loopback, "    routes: [{handler: ecko}]\n"), `levee\.yaml:6:.*did you mean \\"echo\\"`},
		{top + one(loopback, "    tls: {certificates: [{cert: no.pem, key: no.pem}]}\n"+toEcho), `levee\.yaml:6:.*no\.pem`},
		{top + one(loopback, toSink) + "  - name: more\n    listen: [\"127.0.0.1:0\", \"" + address + "\"]\n" + toEcho, `levee\.yaml:8:.*listener more: listen on ` + address + `: bind: address already in use`},
	} {
		if why := h.refuses(c.config); !regexp.MustCompile(c.want).MatchString(why) {
			t.Errorf("it says %s", why)
		}
	}
	for _, c := range []net.Conn{before, dial(t, h.address())} {
		send(t, c, "as before")
		expect(t, c, "as before")
	}
	h.counts("levee_config_generation 1")
	h.counts(`levee_reloads_total{result="failed"} 4`)
	if _, body := get(t, h.admin("/metrics")); strings.Contains(body, `listener="more"`) {
		t.Error("what was refused has left a listener behind")
	}
	h.becomes(one(loopback, toSink))
}

func TestTheSameConfigurationIsNoOtherGeneration(t *testing.T) {
	h := openHouse(t, one(loopback, toEcho))
	h.address()
	h.put("# a comment\n" + top + one(loopback, toEcho))
	h.signals <- syscall.SIGHUP
	h.find(&h.stderr, "the configuration says the same")
	h.counts("levee_config_generation 1")
	h.counts(`levee_reloads_total{result="ok"} 1`)
}

func TestListenersComeAndGo(t *testing.T) {
	h := openHouse(t, one(loopback, toEcho))
	first := h.address()
	two := one(loopback, toEcho) + "  - name: more\n    listen: [\"127.0.0.1:0\"]\n" + toEcho
	h.becomes(two)
	more := h.find(&h.stderr, `"msg":"listening","listener":"more","address":"([^"]*)"`)
	stays, goes := dial(t, first), dial(t, more)
	for _, c := range []net.Conn{stays, goes} {
		send(t, c, "hi")
		expect(t, c, "hi")
	}
	h.counts(`levee_connections_active{listener="more"} 1`)

	h.becomes(one(loopback, toEcho))
	h.find(&h.stderr, `"msg":"draining a listener that is no longer configured","listener":"more","connections":1`)
	wantEnd(t, goes)
	h.find(&h.stderr, `"msg":"removed a listener","listener":"more"`)
	for late := time.Now().Add(patience); ; {
		if _, body := get(t, h.admin("/metrics")); !strings.Contains(body, `"more"`) {
			break
		} else if time.Now().After(late) {
			t.Fatal("its counts stay")
		}
	}
	if c, err := net.Dial("tcp", more); err == nil {
		c.Close()
		t.Error("it still listens")
	}
	send(t, stays, "hi")
	expect(t, stays, "hi")
}

func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

func TestARemovedListenersStreamsFinish(t *testing.T) {
	server := upstreamThat(t, func(c net.Conn) { _, _ = io.Copy(c, c); c.Close() })
	behind := "upstreams:\n  - {name: behind, servers: [\"" + server + "\"], health: {interval: off}}\n"
	keep := "  - {name: other, listen: [\"127.0.0.1:0\"], routes: [{handler: echo}]}\n"
	h := openHouse(t, one(loopback, "    routes: [{upstream: behind}]\n")+keep+behind)
	address := h.address()
	c := dial(t, address)
	send(t, c, "before")
	expect(t, c, "before")
	h.becomes("listeners:\n" + keep)
	for range 5 {
		send(t, c, "it goes on")
		expect(t, c, "it goes on")
	}
	h.counts(`levee_connections_active{listener="main"} 1`)
	h.counts(`levee_upstream_connections_active{server="` + server + `",upstream="behind"} 1`)
	c.Close()
	h.find(&h.stderr, `"msg":"removed a listener","listener":"main"`)
	h.lacks(`upstream="behind"`)
}

// lacks waits until nothing of the kind is among the metrics.
func (h *house) lacks(text string) {
	h.t.Helper()
	for late := time.Now().Add(patience); ; {
		_, body := get(h.t, h.admin("/metrics"))
		if !strings.Contains(body, text) {
			return
		}
		if time.Now().After(late) {
			h.t.Fatalf("there is still %s in\n%s", text, body)
		}
	}
}

// upstreamThat returns where a server is.
func upstreamThat(t *testing.T, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); serve(c) })
		}
	})
	return l.Addr().String()
}

func TestAddressesOfAListenerComeAndGo(t *testing.T) {
	port := freePort(t)
	h := openHouse(t, one(loopback, toEcho))
	first := h.address()
	c := dial(t, first)
	send(t, c, "hi")
	expect(t, c, "hi")
	both := fmt.Sprintf("listeners:\n  - name: main\n    listen: [%q, \"127.0.0.1:%s\"]\n", loopback, port) + toEcho
	only := one("127.0.0.1:"+port, toEcho)
	for range 3 {
		h.becomes(both)
		d := dial(t, "127.0.0.1:"+port)
		send(t, d, "hi")
		expect(t, d, "hi")
		h.becomes(one(loopback, toEcho))
	}
	h.becomes(only)
	d := dial(t, "127.0.0.1:"+port)
	send(t, d, "hi")
	expect(t, d, "hi")
	send(t, c, "hi") // though nobody listens any more where it came in
	expect(t, c, "hi")
	h.counts(`levee_connections_accepted_total{listener="main"} 5`)
}

func TestAListenerThatIsRenamedKeepsItsSocket(t *testing.T) {
	port := freePort(t)
	address := "127.0.0.1:" + port
	h := openHouse(t, one(address, toEcho))
	h.address()
	meet := func() net.Conn {
		t.Helper()
		c := dial(t, address)
		send(t, c, "hi")
		expect(t, c, "hi")
		return c
	}
	meet()
	stop := make(chan struct{})
	var dialling sync.WaitGroup
	dialling.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := meets(address); err != nil {
				t.Error(err)
			}
		}
	})
	for _, to := range []string{"other", "main", "another"} {
		h.becomes(strings.Replace(one(address, toEcho), "main", to, 1))
		<-time.After(20 * time.Millisecond) // for some to come by that name
	}
	close(stop)
	dialling.Wait()
	h.find(&h.stderr, `"msg":"removed a listener","listener":"other"`)
	meet()
}

// meets makes a connection and has a byte echoed.
func meets(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

func TestAChangedLimitCountsThoseWhoAreThere(t *testing.T) {
	with := func(most int, rest string) string {
		return one(loopback, fmt.Sprintf("    limits: {per_client: {connections: %d, mode: enforce}%s}\n", most, rest)+toEcho)
	}
	h := openHouse(t, with(2, ""))
	there := []net.Conn{dial(t, h.address()), dial(t, h.address())}
	for _, c := range there {
		send(t, c, "hi")
		expect(t, c, "hi")
	}
	refused := func() {
		t.Helper()
		c, err := net.Dial("tcp", h.address())
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			wantEnd(t, c)
			c.Close()
		}
	}
	refused()
	h.becomes(with(1, ""))
	refused()
	for _, c := range there {
		send(t, c, "still")
		expect(t, c, "still")
	}
	h.becomes(with(3, ", connection_bandwidth: {down: 1GB/s}"))
	third := dial(t, h.address())
	send(t, third, "hi")
	expect(t, third, "hi")
	refused()
	h.counts(`levee_limit_decisions_total{decision="refused",limit="main.client.connections"} 3`)
}

func TestACapOnConnectionsBitesNewcomersAlone(t *testing.T) {
	with := func(most int) string {
		return one(loopback, fmt.Sprintf("    limits: {max_connections: %d}\n", most)+toEcho)
	}
	h := openHouse(t, with(3))
	var there []net.Conn
	for range 3 {
		c := dial(t, h.address())
		send(t, c, "hi")
		expect(t, c, "hi")
		there = append(there, c)
	}
	h.becomes(with(1))
	waits := dial(t, h.address())
	send(t, waits, "let me in")
	for _, c := range there {
		send(t, c, "still")
		expect(t, c, "still")
	}
	h.counts(`levee_connections_max{listener="main"} 1`)
	h.counts(`levee_connections_active{listener="main"} 3`)
	for _, c := range there {
		c.Close()
	}
	expect(t, waits, "let me in")
}

func TestAChangedUpstreamKeepsTheOldOneForItsConnections(t *testing.T) {
	named := func(name string) string {
		return upstreamThat(t, func(c net.Conn) {
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := io.WriteString(c, name); err != nil {
					return
				}
			}
		})
	}
	old, next, same := named("old"), named("new"), named("one")
	config := func(server, more string) string {
		return one(loopback, "    routes: [{match: {source: [192.0.2.0/24]}, upstream: same}, {upstream: behind}]\n") +
			"  - {name: second, listen: [\"127.0.0.1:0\"], routes: [{upstream: same}]}\n" +
			"upstreams:\n  - {name: behind, servers: [\"" + server + "\"], health: {interval: 20ms, timeout: 10ms}" + more + "}\n" +
			"  - {name: same, servers: [\"" + same + "\"], health: {interval: off}}\n"
	}
	h := openHouse(t, config(old, ""))
	addresses := regexp.MustCompile(`Listening on (\S+)\n`)
	h.find(&h.stdout, `Metrics on`)
	all := addresses.FindAllStringSubmatch(h.stdout.String(), -1)
	asks := func(c net.Conn, want string) {
		t.Helper()
		send(t, c, "?")
		expect(t, c, want)
	}
	before, kept := dial(t, all[0][1]), dial(t, all[1][1])
	asks(before, "old")
	asks(kept, "one")
	h.becomes(config(next, ""))
	after := dial(t, all[0][1])
	asks(after, "new")
	asks(before, "old")
	asks(kept, "one")
	h.counts(`levee_upstream_connections_active{server="` + same + `",upstream="same"} 1`)
	h.counts(`levee_upstream_connections_active{server="` + old + `",upstream="behind"} 1`)
	h.counts(`levee_upstream_connections_active{server="` + next + `",upstream="behind"} 1`)
	h.becomes(config(next, ", max_connections: 1")) // a third pool, with the servers of the second
	asks(after, "new")
	h.counts(`levee_upstream_dials_total{result="ok",server="` + next + `",upstream="behind"} 1`)
	before.Close()
	h.lacks(`server="` + old + `"`)
	asks(after, "new")
	after.Close()
	last := dial(t, all[0][1])
	asks(last, "new")
	h.counts(`levee_upstream_dials_total{result="ok",server="` + next + `",upstream="behind"} 2`)
	h.counts(`levee_upstream_connections_active{server="` + next + `",upstream="behind"} 1`)
}

func TestADenyThatIsAddedEndsLiveConnectionsOfTheDeniedAlone(t *testing.T) {
	config := func(deny string) string {
		return "limits: {deny: [" + deny + "]}\n" + one("0.0.0.0:0", "    insecure: true\n"+toEcho)
	}
	h := openHouse(t, config("192.0.2.1"))
	_, port, _ := net.SplitHostPort(h.address())
	meet := func(source string) net.Conn {
		t.Helper()
		c, ok := served(t, source, "127.0.0.1:"+port)
		if !ok {
			t.Fatalf("%s is not served", source)
		}
		return c
	}
	good, bad := meet("127.0.0.1"), meet("127.0.0.2")
	h.becomes(config("192.0.2.1, 127.0.0.2"))
	ended(t, bad)
	if !echoes(t, good) {
		t.Error("the other was ended, too")
	}
	h.counts(`levee_connections_closed_total{listener="main",reason="policy"} 1`)
	if _, ok := served(t, "127.0.0.2", "127.0.0.1:"+port); ok {
		t.Error("the denied is served")
	}
	h.becomes(config("192.0.2.1"))
	meet("127.0.0.2")
}

func TestAClientPolicyThatIsNarrowedEndsLiveConnections(t *testing.T) {
	leveetest.CheckLeaks(t)
	s := newSite(t)
	routes := []string{"{match: {sni: a.example}, tls: {client_ca: clients.pem}, handler: echo}", "{handler: echo}"}
	path := s.config(three+", client_ca: clients.pem", routes...)
	h := &house{run: start(t, app.Env{}, "serve", "-c", path), path: path, generation: 1}
	address := h.address()
	alice, bob := s.client.ClientCertificate("alice"), s.client.ClientCertificate("bob")
	good, bad := held(t, address, s.as("b.example", alice)), held(t, address, s.as("b.example", bob))
	elsewhere := held(t, address, s.as("a.example", bob))
	text := func(tls string, routes ...string) string {
		content, err := os.ReadFile(s.config(tls, routes...))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(string(content), top)
	}
	h.raw(text(three+", client_ca: clients.pem, client_allow: {dns: [alice]}", "{match: {sni: other.w.example}, handler: discard}", routes[0], routes[1]))
	wantEnd(t, bad)
	for _, c := range []net.Conn{good, elsewhere} {
		send(t, c, "still here")
		expect(t, c, "still here")
	}
	if _, err := says(address, s.as("b.example", bob), "hi"); err == nil {
		t.Error("whom the new policy does not allow is served")
	}
	held(t, address, s.as("a.example", bob))
	h.counts(`levee_connections_closed_total{listener="main",reason="policy"} 1`)
}

// raw is becomes for a whole file.
func (h *house) raw(config string) {
	h.t.Helper()
	h.put(config)
	h.signals <- syscall.SIGHUP
	h.generation++
	h.find(&h.stderr, fmt.Sprintf(`"msg":"reloaded","what":"configuration","generation":%d`, h.generation))
}

func TestTLSComesAndGoesAndSessionsAreResumed(t *testing.T) {
	leveetest.CheckLeaks(t)
	s := newSite(t)
	path := s.config(three, "{handler: echo}")
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := regexp.MustCompile(`(?m)^    tls: .*\n`).ReplaceAllString(string(sealed), "")
	h := &house{run: start(t, app.Env{}, "serve", "-c", path), path: path, generation: 1}
	client := s.as("b.example")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	first := held(t, h.address(), client)
	h.raw(strings.Replace(string(sealed), "routes:", "timeouts: {idle: 4m}\n    routes:", 1))
	if again := held(t, h.address(), client); !again.ConnectionState().DidResume {
		t.Error("the session is forgotten, though tls says the same")
	}
	h.raw(plain)
	c := dial(t, h.address())
	send(t, c, "plain")
	expect(t, c, "plain")
	h.raw(string(sealed))
	held(t, h.address(), s.as("b.example"))
	for _, c := range []net.Conn{first, c} {
		send(t, c, "still here")
		expect(t, c, "still here")
	}
}

func TestWhatNeedsARestartIsSaid(t *testing.T) {
	h := openHouse(t, one(loopback, toEcho))
	admin := h.admin("/livez")
	h.raw("version: 1\nadmin: {listen: 127.0.0.1:1, token_file: t, hosts: [a.example], tls: {cert: c.pem, key: k.pem}}\ntelemetry: {logs: {level: debug, format: text}}\noverload: {memory_limit: off}\n" + one(loopback, toSink))
	for setting, where := range map[string]string{
		"admin.listen": `levee\.yaml:2:`, "admin.token_file": `levee\.yaml:2:`, "admin.hosts": `levee\.yaml`, "admin.tls": `levee\.yaml:2:`,
		"telemetry.logs.format": `levee\.yaml`, "overload.memory_limit": `levee\.yaml:4:`,
	} {
		h.find(&h.stderr, `"level":"WARN","msg":"needs a restart to come into force","setting":"`+setting+`","where":"[^"]*`+where)
	}
	if status, _ := get(t, admin); status != 200 {
		t.Errorf("the admin port answers %d", status)
	}
	dial(t, h.address()).Close()
	h.find(&h.stderr, `"level":"DEBUG"`)
}

func TestAWatchedFileIsTakenOverWhenItIsWhole(t *testing.T) {
	h := openHouse(t, one(loopback, toEcho), "--watch")
	h.address()
	whole := top + one(loopback, toSink) + "  - {name: more, listen: [\"127.0.0.1:0\"], routes: [{handler: echo}]}\n"
	f, err := os.OpenFile(h.path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for part := range len(whole)/20 + 1 { // slowly, as a large file over a slow line
		if _, err := f.WriteString(whole[min(20*part, len(whole)):min(20*part+20, len(whole))]); err != nil {
			t.Fatal(err)
		}
		<-time.After(30 * time.Millisecond)
	}
	f.Close()
	h.find(&h.stderr, `"what":"configuration","generation":2`)
	h.counts(`levee_reloads_total{result="failed"} 0`)
	h.find(&h.stderr, `"msg":"listening","listener":"more"`)
	h.put("version: [")
	h.find(&h.stderr, `"msg":"not reloaded; what was in force before is kept"`)
	if err := os.Remove(h.path); err != nil {
		t.Fatal(err)
	}
	h.find(&h.stderr, `no such file`)
	h.put(top + one(loopback, toEcho))
	h.find(&h.stderr, `"what":"configuration","generation":3`)
	c := dial(t, h.address())
	send(t, c, "hi")
	expect(t, c, "hi")
}

// A listener that is removed and comes back while its connections finish is one as far as its counts go.
func TestCountsDoNotGoBack(t *testing.T) {
	port := freePort(t)
	two := one(loopback, toEcho) + "  - {name: more, listen: [\"127.0.0.1:" + port + "\"], routes: [{handler: discard}]}\n"
	h := openHouse(t, "drain: {timeout: 5s}\n"+two)
	h.address()
	const most = 4
	for i := range most {
		c := dial(t, "127.0.0.1:"+port)
		send(t, c, "held")
		h.counts(fmt.Sprintf(`levee_connections_accepted_total{listener="more"} %d`, i+1))
		h.becomes("drain: {timeout: 5s}\n" + one(loopback, toEcho))
		h.becomes("drain: {timeout: 5s}\n" + two)
		h.counts(fmt.Sprintf(`levee_connections_accepted_total{listener="more"} %d`, i+1))
	}
}

// A connection keeps what it needs of the configuration that let it in, and so does a part of it that is in the next as well. The
// accounts of clients of another listener are not among that: they are seven megabytes.
func TestWhatAListenerHadGoesWithItWhateverStays(t *testing.T) {
	cert, key := leveetest.NewCA(t).WriteFiles(t.TempDir(), "localhost")
	stays := one(loopback, "    routes: [{match: {source: [192.0.2.1]}, upstream: behind}, {handler: echo}]\n") +
		fmt.Sprintf("  - {name: secure, listen: [%q], tls: {certificates: [{cert: %q, key: %q}]}, routes: [{handler: echo}]}\n", loopback, cert, key)
	behind := fmt.Sprintf("upstreams:\n  - {name: behind, servers: [%q], health: {interval: 1h}}\n", upstreamThat(t, func(c net.Conn) { c.Close() }))
	more := func(i int) string {
		return fmt.Sprintf("  - {name: more%d, listen: [%q], routes: [{handler: echo}]}\n", i, loopback)
	}
	heap := func() int {
		runtime.GC()
		runtime.GC() // what lies in pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc) //nolint:gosec // it is not that much
	}
	h := openHouse(t, stays+more(0)+behind)
	h.address() // it has read its configuration
	before := heap()
	for i := range 6 {
		c := dial(t, h.address())
		send(t, c, "hi")
		expect(t, c, "hi")
		h.becomes(stays + more(i+1) + behind)
	}
	h.becomes(stays + behind)
	for late := time.Now().Add(patience); heap() > before-4<<20; runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("%d MiB of heap, and %d with one more listener", heap()>>20, before>>20)
		}
	}
}

func TestManyReloadsLeaveNothingBehind(t *testing.T) {
	server := upstreamThat(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	configs := make([]string, 2)
	for i := range configs {
		configs[i] = one(loopback, fmt.Sprintf("    limits: {max_connections: %d, per_client: {connections: %d}, deny: [192.0.2.%d]}\n    timeouts: {idle: %dm}\n    routes: [{match: {protocol: http}, handler: hello}, {upstream: behind%d}]\n", 100+i, 50+i, i+1, i+1, i)) +
			fmt.Sprintf("upstreams:\n  - {name: behind%d, servers: [%q], health: {interval: 10ms, timeout: 5ms}}\n", i, server)
	}
	h := openHouse(t, configs[0])
	c := dial(t, h.address())
	send(t, c, "hi")
	expect(t, c, "hi")
	reload := func(n int) {
		for range n {
			h.becomes(configs[h.generation%2])
		}
	}
	reload(10)
	goroutines := func() int { runtime.GC(); return runtime.NumGoroutine() }
	before := goroutines()
	reload(50)
	_ = c.SetDeadline(time.Now().Add(patience)) // a busy machine has needed more than that until here
	send(t, c, "hi")
	expect(t, c, "hi")
	for late := time.Now().Add(patience); goroutines() > before+5; runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("%d goroutines, and %d before", goroutines(), before)
		}
	}
}
