package app_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

// greeter is a server that says its name and hangs up when the client has spoken.
func greeter(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

func TestProxyStandsInFrontOfItsServersInTurn(t *testing.T) {
	leveetest.CheckLeaks(t)
	a, b := greeter(t, "a"), greeter(t, "b")
	r := start(t, app.Env{}, "proxy", "--listen", "127.0.0.1:0", "--to", a+", "+b, "--admin", "127.0.0.1:0")
	got := make(map[string]int)
	for range 4 {
		c := dial(t, r.address())
		name := make([]byte, 1)
		if _, err := io.ReadFull(c, name); err != nil {
			t.Fatal(err)
		}
		got[string(name)]++
		c.Close()
	}
	if got["a"] != 2 || got["b"] != 2 {
		t.Errorf("the servers were reached %v times", got)
	}
	_, metrics := get(t, r.admin("/metrics"))
	for _, want := range []string{
		`levee_upstream_healthy{server="` + a + `",upstream="servers"} 1`,
		`levee_breaker_state{server="` + b + `",upstream="servers"} 0`,
		`levee_upstream_dials_total{result="ok",server="` + a + `",upstream="servers"} 2`,
		`levee_upstream_connect_duration_seconds_count{upstream="servers"} 4`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	r.signals <- os.Interrupt
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestProxyTerminatesTLS(t *testing.T) {
	server := greeter(t, "hello")
	ca := leveetest.NewCA(t)
	cert, key := ca.WriteFiles(t.TempDir(), "localhost")
	r := start(t, app.Env{}, "proxy", "--listen", "127.0.0.1:0", "--to", server, "--admin", "off", "--tls", cert+","+key)
	secure := tls.Client(dial(t, r.address()), ca.ClientConfig("localhost"))
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	expect(t, secure, "hello")
}

func TestProxyToNobodyClosesItsClientsAndSaysWhy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := start(t, app.Env{}, "proxy", "--listen", "127.0.0.1:0", "--to", l.Addr().String(), "--admin", "127.0.0.1:0")
	c := dial(t, r.address())
	send(t, c, "anybody?")
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("read %q, %v; want EOF", got, err)
	}
	r.find(&r.stderr, `upstream servers: no server available: .*connection refused`)
	_, metrics := get(t, r.admin("/metrics"))
	if !strings.Contains(metrics, "\n"+`levee_connections_closed_total{listener="proxy",reason="upstream_unavailable"} 1`+"\n") {
		t.Error("the metrics do not count it as upstream_unavailable")
	}
}

// The honesty report says what is risky about an upstream.
func TestTheReportNamesWhatAnUpstreamLeavesUnprotected(t *testing.T) {
	file := write(t, "levee.yaml", `version: 1
admin: {listen: off}
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{upstream: db}]}
upstreams:
  - name: db
    servers: [db.example.com:5432]
    tls: {mode: on, skip_verify: true}
    health: {interval: off}
    breaker: {mode: off}
`)
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", file)
	for _, want := range []string{
		"db: TLS to db.example.com:5432; round_robin; dial 5s, 3 tries, 10s in all; no health checks; no breaker\n",
		"warning: db: its servers' certificates are not verified",
		"warning: db: health checks are off",
		"warning: db: the breaker is off",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("it does not say %q in\n%s%s", want, stdout, stderr)
		}
	}
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A connection that is joined to an upstream takes two files.
func TestTheReportCountsBothSocketsOfAProxiedConnection(t *testing.T) {
	limit := levee.DefaultMaxConns()
	if limit < 0 {
		t.Skip("there is no limit here")
	}
	for target, warned := range map[string]bool{"handler: echo": false, "upstream: db": true} {
		file := write(t, "levee.yaml", fmt.Sprintf(`version: 1
listeners:
  - {name: main, listen: ["127.0.0.1:0"], limits: {max_connections: %d}, routes: [{%s}]}
upstreams:
  - {name: db, servers: [127.0.0.1:1]}
`, limit/5*3, target))
		_, stdout, stderr := result(t, app.Env{}, "check", "-c", file)
		if got := strings.Contains(stdout, "limit of open files"); got != warned {
			t.Errorf("%s: warned %t, in\n%s%s", target, got, stdout, stderr)
		}
	}
}

// The two name the same things, and neither may import the other.
func TestConfigurationAndPoolAgreeOnTheWordsOfBalance(t *testing.T) {
	for _, word := range []string{"round_robin", "least_connections", "p2c", "source_hash", "maglev"} {
		file := write(t, "levee.yaml", `version: 1
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{upstream: db}]}
upstreams:
  - {name: db, servers: [127.0.0.1:1], balance: `+word+`}
`)
		if code, _, stderr := result(t, app.Env{}, "check", "-c", file); code != 0 {
			t.Errorf("%s: exit code %d, %s", word, code, stderr)
		}
	}
}

func TestTheReportWarnsOfTLSThatAServerDoesNotUnderstand(t *testing.T) {
	for probe, want := range map[string]bool{"postgres": true, "mysql": true, "redis": false} {
		file := write(t, "levee.yaml", `version: 1
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{upstream: db}]}
upstreams:
  - {name: db, servers: [127.0.0.1:1], tls: {mode: on}, health: {probe: `+probe+`}}
`)
		_, stdout, _ := result(t, app.Env{}, "check", "-c", file)
		warning := "warning: db: TLS begins at once (tls.mode: on), which " + probe + " servers understand only behind a TLS wrapper"
		if got := strings.Contains(stdout, warning); got != want {
			t.Errorf("%s: a warning: %t, in\n%s", probe, got, stdout)
		}
	}
}
