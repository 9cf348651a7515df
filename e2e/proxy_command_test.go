package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// answering serves every connection until the test ends, which closes those that are
// left, and returns its address.
func answering(t *testing.T, serve func(c net.Conn)) string {
	t.Helper()
	return answeringOn(t, "127.0.0.1:0", serve)
}

func answeringOn(t *testing.T, address string, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var (
		running sync.WaitGroup
		over    = make(chan struct{})
	)
	t.Cleanup(func() {
		close(over)
		l.Close()
		running.Wait()
	})
	running.Go(func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served := make(chan struct{})
			running.Go(func() { // ends with served, or over
				select {
				case <-served:
				case <-over:
				}
				c.Close()
			})
			running.Go(func() { // ends with c
				defer close(served)
				serve(c)
			})
		}
	})
	return l.Addr().String()
}

// echoing sends back what it reads.
func echoing(c net.Conn) { _, _ = io.Copy(c, c) }

// unavailable is how many connections of levee proxy found no server.
func (p *process) unavailable() float64 {
	p.t.Helper()
	return p.scrape()[`levee_connections_closed_total{listener="proxy",reason="upstream_unavailable"}`]
}

// turnedAway reports what is wrong with how a new connection is closed.
func turnedAway(address string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return errors.New("it is answered")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return nil
}

func TestWithNoServerItServesAndTurnsClientsAwaySoon(t *testing.T) {
	t.Parallel()
	nobody := "127.0.0.1:" + freePorts(t, 1)[0]
	p := before(t, nobody)
	address := p.address()
	began := time.Now()
	if err := turnedAway(address); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("after %v", took)
	}
	eventually(t, "it is counted", func() bool { return p.unavailable() == 1 })
	if line := p.logged("server down"); line["server"] != nobody || line["err"] != "connection refused" {
		t.Errorf("%v", line)
	}

	answeringOn(t, nobody, echoing)
	eventually(t, "clients are served once somebody is there", func() bool { return echoes(address) == nil })
	p.logged("server up")
}

func TestWhoIsTurnedAwayStandsInTheLogWithItsReason(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", proxying(t, "127.0.0.1:"+freePorts(t, 1)[0], "telemetry: {logs: {level: debug}}", "", ""))
	if err := turnedAway(p.address()); err != nil {
		t.Error(err)
	}
	line := p.logged("connection closed")
	if err, _ := line["err"].(string); line["reason"] != "upstream_unavailable" || !strings.HasSuffix(err, "connection refused") {
		t.Errorf("%v", line)
	}
}

func TestNameThatDoesNotResolveIsAWarning(t *testing.T) {
	t.Parallel()
	p := before(t, "no.such.name.invalid:5432") // RFC 2606 keeps it so
	if line := p.logged("servers cannot be found, trying again"); line["level"] != "WARN" || line["where"] != "no.such.name.invalid:5432" {
		t.Errorf("%v", line)
	}
	if err := turnedAway(p.address()); err != nil {
		t.Error(err)
	}
	eventually(t, "it is counted", func() bool { return p.unavailable() == 1 })
	if status, _ := get(t, p.admin("/livez")); status != 200 {
		t.Errorf("livez: %d", status)
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestListOfServersMayComeLater(t *testing.T) {
	t.Parallel()
	list := filepath.Join(t.TempDir(), "servers")
	p := before(t, "file://"+list)
	p.logged("servers cannot be found, trying again")
	if err := turnedAway(p.address()); err != nil {
		t.Error(err)
	}
	if err := os.Rename(write(t, "servers", answering(t, echoing)+"\n"), list); err != nil {
		t.Fatal(err)
	}
	p.logged("server added")
	eventually(t, "clients are served", func() bool { return echoes(p.address()) == nil })
}

func TestProxyRefusesWhatCannotBeMeant(t *testing.T) {
	t.Parallel()
	own := "127.0.0.1:" + freePorts(t, 1)[0]
	for args, want := range map[string]string{
		"":                                   `--listen is missing`,
		"--listen 127.0.0.1:0":               `--to is missing`,
		"--listen 127.0.0.1:0 --to 10.0.0.7": `levee: --to: "10.0.0.7" has no port`,
		"--listen 127.0.0.1:0 --to 10.0.0.7:99999":               `levee: --to: "10.0.0.7:99999": port "99999" is not a number from 0 to 65535`,
		"--listen 127.0.0.1:0 --to 10.0.0.7:1,":                  `levee: --to: is empty`,
		"--listen 127.0.0.1:0 --to 10.0.0.7:1,10.0.0.7:1":        `"10.0.0.7:1" is servers[0] already`,
		"--listen 127.0.0.1 --to 10.0.0.7:1":                     `levee: --listen: "127.0.0.1" has no port`,
		"--listen :7432 --to 10.0.0.7:1":                         `levee: --tls is missing: other machines can reach ":7432"`,
		"--listen 0.0.0.0:7432 --tls off --to 10.0.0.7:1":        `levee: --tls off: other machines can reach "0.0.0.0:7432", and would talk in plaintext; say --insecure if that is meant`,
		"--listen 127.0.0.1:0 --tls no,where --to 10.0.0.7:1":    `levee: --tls: certificate: open no: no such file or directory`,
		"--listen 127.0.0.1:0 --tls maybe --to 10.0.0.7:1":       `levee: --tls: "maybe" is neither off nor dev nor two files`,
		"--listen 127.0.0.1:0 --balance random --to 10.0.0.7:1":  `levee: --balance: unknown balance "random"`,
		"--listen 127.0.0.1:0 --send-proxy v3 --to 10.0.0.7:1":   `levee: --send-proxy: unknown PROXY header "v3"`,
		"--listen 127.0.0.1:0 --to 10.0.0.7:1 and more":          `unexpected argument "and"`,
		"--listen 127.0.0.1:0 --to 10.0.0.7:1 --turbo":           `levee: unknown flag --turbo`,
		"--listen OWN --to 10.0.0.7:1,OWN":                       `"OWN" is where levee itself listens`,
		"--listen 0.0.0.0:PORT --insecure --to OWN":              `"OWN" is where levee itself listens`,
		"--listen OWN --to localhost:PORT":                       `"localhost:PORT" is where levee itself listens`,
		"--listen 127.0.0.1:0 --admin OWN --to OWN":              `"OWN" is where levee itself listens`,
		"--listen 127.0.0.1:0 --admin 0.0.0.0:1 --to 10.0.0.7:1": `"0.0.0.0:1" can be reached from other machines`,
	} {
		mine := strings.NewReplacer("OWN", own, "PORT", portOf(t, own))
		args, want = mine.Replace(args), mine.Replace(want)
		p := start(t, append([]string{"proxy"}, strings.Fields(args)...)...)
		code, said := p.wait(), p.stderr.String()
		if code != 2 || p.stdout.String() != "" || !strings.HasPrefix(said, "levee: ") || !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
			t.Errorf("levee proxy %s: exit code %d, %q%q, want %q", args, code, &p.stdout, said, want)
		}
	}
}

func TestInsecurelyMeansWhatItSays(t *testing.T) {
	t.Parallel()
	p := start(t, "proxy", "--listen", "0.0.0.0:0", "--tls", "off", "--insecure", "--admin", "127.0.0.1:0", "--to", answering(t, echoing))
	if err := echoes("127.0.0.1:" + portOf(t, p.address())); err != nil {
		t.Error(err)
	}
	if line := p.logged("proxy: plaintext is accepted (tls.mode: off)"); line["level"] != "WARN" {
		t.Errorf("%v", line)
	}
}

func TestProxiedConnectionMayBeIdleForAnHour(t *testing.T) {
	t.Parallel()
	address := answering(t, echoing)
	for _, p := range []*process{before(t, address), start(t, "serve", "-c", proxying(t, address, "", "", ""))} {
		p.find(&p.stderr, ` idle 1h, `)
	}
}
