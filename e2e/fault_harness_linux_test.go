package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// A way is a listener and the upstream that it leads to. Both are called name.
type way struct {
	name     string
	listener string // what the listener has beside its address and its route, with a comma before it
	upstream string // what the upstream has
}

// ways is a configuration of them. Nobody is turned away for being one too many, as a busy machine would have it.
func ways(t *testing.T, all ...way) (path string) {
	t.Helper()
	listeners, upstreams := "listeners:\n", "upstreams:\n"
	for _, w := range all {
		listeners += fmt.Sprintf("  - {name: %s, listen: [\"127.0.0.1:0\"], routes: [{upstream: %s}]%s}\n", w.name, w.name, w.listener)
		upstreams += fmt.Sprintf("  - {name: %s, %s}\n", w.name, w.upstream)
	}
	return write(t, "levee.yaml", "version: 1\nadmin: {listen: 127.0.0.1:0}\noverload: {mode: off}\n"+listeners+upstreams)
}

// addressOf is where the nth listener listens, of which the first is 0.
func (p *process) addressOf(n int) string {
	p.t.Helper()
	return p.find(&p.stdout, fmt.Sprintf(`\A(?:Listening on \S+\n){%d}Listening on (\S+)\n`, n))
}

// servers is a list of servers for a way's upstream.
func servers(addresses ...string) string {
	return `servers: ["` + strings.Join(addresses, `", "`) + `"]`
}

// Of a server of the upstream called main.
func (s scrape) server(metric, server string) float64 {
	return s[fmt.Sprintf("levee_%s{server=%q,upstream=\"main\"}", metric, server)]
}

func (s scrape) breaker(server string) float64 { return s.server("breaker_state", server) }
func (s scrape) active(server string) float64  { return s.server("upstream_connections_active", server) }

func (s scrape) dials(server, result string) float64 {
	return s[fmt.Sprintf("levee_upstream_dials_total{result=%q,server=%q,upstream=\"main\"}", result, server)]
}

// failures are what a breaker counts.
func (s scrape) failures(server string) float64 {
	n := s.server("upstream_early_closes_total", server)
	for _, result := range []string{"refused", "timed_out", "unreachable", "reset", "other"} {
		n += s.dials(server, result)
	}
	return n
}

const breakerClosed = 0

// listen listens on a port of this machine that nobody has.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve has handle serve each connection until the end of the test, and closes it then.
func serve(t *testing.T, l net.Listener, handle func(net.Conn)) (address string) {
	t.Helper()
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[net.Conn]bool)
		over  bool
	)
	enters := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		conns[c] = true
		return !over
	}
	leaves := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		delete(conns, c)
		c.Close()
	}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer leaves(c)
				if enters(c) {
					handle(c)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		over = true
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// echo sends back what it reads.
func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// reset ends a connection by a reset.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// startEcho starts a server that is a process, and can be killed and frozen as one. It does
// what levee does least: no TLS, no routes, and on the other side of everything that is
// tested here.
func startEcho(t *testing.T, address string) *process {
	t.Helper()
	path := write(t, "echo.yaml", `version: 1
admin: {listen: off}
overload: {mode: off}
listeners:
  - {name: echo, listen: ["`+address+`"], timeouts: {idle: off}, routes: [{handler: echo}]}
`)
	p := launch(t, exec.Command(levee, "serve", "-c", path))
	p.address()
	return p
}

// A chat is a connection that is used for one echo after the other.
type chat struct {
	net.Conn
	rounds int
}

// chatsOn makes connections to an address, each of which has seen one echo.
func chatsOn(t *testing.T, address string, n int) []*chat {
	t.Helper()
	chats := make([]*chat, n)
	for i := range chats {
		chats[i] = &chat{Conn: dial(t, address)}
		if err := chats[i].round(); err != nil {
			t.Fatal(err)
		}
	}
	return chats
}

func (c *chat) round() error {
	c.rounds++
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := echoesOn(c); err != nil {
		return fmt.Errorf("in round %d: %w", c.rounds, err)
	}
	return nil
}

// roundOfAll has one echo on each of them, and returns those on which there is none.
func roundOfAll(chats []*chat) (broken []*chat, err error) {
	var (
		all  sync.WaitGroup
		errs = make([]error, len(chats))
	)
	for i, c := range chats {
		all.Go(func() { errs[i] = c.round() })
	}
	all.Wait()
	for i, c := range chats {
		if errs[i] != nil {
			broken = append(broken, c)
		}
	}
	return broken, errors.Join(errs...)
}
