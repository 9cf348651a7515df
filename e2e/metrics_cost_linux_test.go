package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Prometheus gives a scrape ten seconds, and what takes a good part of one is felt by others.
func TestMetricsOfNineThousandConnectionsToFiftyServersAreToldQuickly(t *testing.T) {
	const (
		pairs   = 9000
		nofile  = 20_000
		quickly = 500 * time.Millisecond // 25 to 50 are usual; a busy machine is not this test's matter
	)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < nofile {
		t.Skipf("skipped: a process may have %d open files, and %d are needed (%v)", limit.Cur, nofile, err)
	}
	far := launch(t, exec.Command(levee, "serve", "-c", write(t, "echo.yaml", `version: 1
admin: {listen: off}
listeners:
  - {name: echo, listen: ["0.0.0.0:0"], insecure: true, timeouts: {idle: off}, routes: [{handler: echo}]}
`)))
	_, port, err := net.SplitHostPort(far.address())
	if err != nil {
		t.Fatal(err)
	}
	fifty := make([]string, 50)
	for i := range fifty {
		fifty[i] = fmt.Sprintf("127.1.0.%d:%s", i+1, port)
	}
	p := start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
overload: {mode: off}
listeners:
  - {name: main, listen: ["127.0.0.1:0"], timeouts: {idle: off}, routes: [{upstream: main}]}
upstreams:
  - {name: main, `+servers(fifty...)+`, health: {interval: off}}
`)) // a busy machine would turn some away
	conns := dialMany(t, p.addressOf(0), pairs)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	eventually(t, "all are joined", func() bool {
		joined, all := 0.0, p.scrape()
		for _, server := range fifty {
			joined += all.active(server)
		}
		return joined == pairs
	})
	var took []time.Duration
	for range 20 {
		began := time.Now()
		if status, _ := get(t, p.admin("/metrics")); status != http.StatusOK {
			t.Fatal(status)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("median of %d: %v, best %v, worst %v", len(took), took[len(took)/2], took[0], took[len(took)-1])
	if took[len(took)/2] > quickly {
		t.Errorf("a scrape takes %v", took[len(took)/2])
	}
}

// Whatever server names strangers ask for, there are as many series as before. 100,000 names with
// LEVEE_E2E_FLOOD=full, and 10,000 without.
func TestServerNamesOfStrangersMakeNoSeries(t *testing.T) {
	t.Parallel()
	names := 10_000
	if os.Getenv("LEVEE_E2E_FLOOD") == "full" {
		names = 100_000
	}
	far := startEcho(t, "127.0.0.1:0")
	p := start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
overload: {mode: off}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {mode: passthrough}
    routes:
      - {match: {sni: [db.example.com]}, upstream: main}
      - {refuse: true}
upstreams:
  - {name: main, servers: ["`+far.address()+`"], health: {interval: off}}
`))
	ask := func(hello []byte) error {
		c, err := net.DialTimeout("tcp", p.address(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(hello); err != nil {
			return err
		}
		_, _ = c.Read(make([]byte, 1)) // it is refused, one way or the other
		return nil
	}
	const name = "0123456789abcdef.example.com"
	hello := helloFor(t, name)
	if err := ask(hello); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is counted", func() bool { return p.scrape().closed("no_route") == 1 })
	before := len(p.scrape())
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for range names / 8 {
				other := fmt.Sprintf("%016x.example.com", rand.Uint64())
				if err := ask(bytes.Replace(hello, []byte(name), []byte(other), 1)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	asking.Wait()
	eventually(t, "all are counted", func() bool { return p.scrape().closed("no_route") == float64(1+names/8*8) })
	all := p.scrape()
	for series := range all {
		if strings.Contains(series, "example.com") {
			t.Errorf("a stranger's name: %s", series)
		}
	}
	if after := len(all); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}

// helloFor returns the first that a client says who asks for a name.
func helloFor(t *testing.T, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { _ = tls.Client(near, &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}).Handshake() }() // ends with the pipe
	hello := make([]byte, 16<<10)
	n, err := far.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}
