package e2e

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// checked has health checks by which a frozen process is down in half a second: that the
// kernel accepts connections for it does not help.
const checked = `, slow_start: off, early_close: 200ms, breaker: {failures: 5, open: 500ms, max_open: 1s, probes: 1}` +
	`, dial: {timeout: 300ms}` +
	`, health: {interval: 200ms, fast_interval: 100ms, timeout: 200ms, fall: 2, rise: 2, send: "hi\n", expect: "hi\n"}`

func TestClientsNoticeTheDeathOfAServerOnlyIfTheyAreOnIt(t *testing.T) {
	t.Parallel()
	const chats = 60
	one, two := startEcho(t, "127.0.0.1:0"), startEcho(t, "127.0.0.1:0")
	victim := two.address()
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(one.address(), victim) + checked}))
	address := p.addressOf(0)
	all := chatsOn(t, address, chats)
	onVictim := int(p.scrape().active(victim))
	if onVictim < chats/3 || onVictim > chats*2/3 {
		t.Fatalf("%d of %d are on one of two servers", onVictim, chats)
	}

	two.signal(os.Kill)
	two.wait() // and the kernel has closed its sockets
	killed := time.Now()
	clients := newCrowd(address)
	broken := 0
	for rounds := 0; time.Since(killed) < time.Second; rounds++ {
		lost, _ := roundOfAll(all)
		if rounds == 0 {
			broken = len(lost)
			all = without(all, lost)
		} else if len(lost) > 0 {
			t.Fatalf("%d more are lost in round %d", len(lost), rounds)
		}
	}
	if broken != onVictim {
		t.Errorf("%d are lost, and %d were on the server", broken, onVictim)
	}
	eventually(t, "the server is down", func() bool { return p.scrape().server("upstream_healthy", victim) == 0 })

	startEcho(t, victim)
	back := time.Now()
	before := p.scrape().dials(victim, "ok")
	eventually(t, "the server gets connections again", func() bool { return p.scrape().dials(victim, "ok") > before+10 })
	// Two good checks 100 ms apart after at most 220 ms, and a breaker that is open for a second at most.
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("it is taken back after %v", took)
	}
	clients.goes()
	if failed := clients.failed.Load(); failed > 0 {
		t.Errorf("%d new clients were not served, and %d were", failed, clients.served.Load())
	}
	if _, err := roundOfAll(all); err != nil {
		t.Error(err)
	}
}

// without returns those that are not lost.
func without(all, lost []*chat) (rest []*chat) {
	gone := make(map[*chat]bool)
	for _, c := range lost {
		gone[c] = true
	}
	for _, c := range all {
		if !gone[c] {
			rest = append(rest, c)
		}
	}
	return rest
}

func TestAFrozenServersConnectionsAreCutAtTheirRate(t *testing.T) {
	t.Parallel()
	const (
		chats = 60
		rate  = 30 // a second
	)
	one, two := startEcho(t, "127.0.0.1:0"), startEcho(t, "127.0.0.1:0")
	frozen := two.address()
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(one.address(), frozen) + checked + `, on_down: {cut: true, rate: 30}`}))
	all := chatsOn(t, p.addressOf(0), chats)
	onFrozen := int(p.scrape().active(frozen))
	if onFrozen < chats/3 {
		t.Fatalf("%d of %d are on one of two servers", onFrozen, chats)
	}

	two.signal(syscall.SIGSTOP)
	var (
		clients sync.WaitGroup
		mu      sync.Mutex
		cuts    []time.Time
		cut     = make(map[*chat]bool)
	)
	for _, c := range all {
		clients.Go(func() {
			_ = c.SetReadDeadline(time.Now().Add(4 * time.Second))
			_, err := c.Read(make([]byte, 1))
			if os.IsTimeout(err) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			cuts = append(cuts, time.Now())
			cut[c] = true
		})
	}
	clients.Wait()
	if len(cuts) != onFrozen {
		t.Fatalf("%d are cut, and %d were on the server", len(cuts), onFrozen)
	}
	first, last := cuts[0], cuts[0]
	for _, at := range cuts {
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	want := time.Duration(len(cuts)-1) * time.Second / rate
	if took := last.Sub(first); took < want*9/10 || took > 2*want {
		t.Errorf("%d are cut within %v, want %v", len(cuts), took, want)
	}
	for _, c := range all {
		if cut[c] {
			continue
		}
		if err := c.round(); err != nil {
			t.Errorf("on the other server: %v", err)
		}
	}
	if n := p.scrape().closed("killed"); n != float64(len(cuts)) {
		t.Errorf("%v are counted as killed", n)
	}
	two.signal(syscall.SIGCONT)
	eventually(t, "the server is up again", func() bool { return p.scrape().server("upstream_healthy", frozen) == 1 })
}

func TestQuietConnectionsMoveToAServerThatHasComeBack(t *testing.T) {
	t.Parallel()
	const quiet, busy = 40, 20
	one, two := startEcho(t, "127.0.0.1:0"), startEcho(t, "127.0.0.1:0")
	returns := two.address()
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(one.address(), returns) + checked + `, balance: least_connections, rebalance: 30`}))
	address := p.addressOf(0)
	two.signal(os.Kill)
	two.wait()
	eventually(t, "the server is down", func() bool { return p.scrape().server("upstream_healthy", returns) == 0 })
	waiting, working := chatsOn(t, address, quiet), chatsOn(t, address, busy)
	if n := p.scrape().active(one.address()); n != quiet+busy {
		t.Fatalf("%v on the one that is left", n)
	}

	var (
		clients sync.WaitGroup
		leave   = make(chan struct{})
	)
	for _, c := range working {
		clients.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-leave:
					return
				case <-tick.C:
				}
				if err := c.round(); err != nil {
					t.Errorf("one that is busy: %v", err)
					return
				}
			}
		})
	}
	for _, c := range waiting {
		clients.Go(func() { c.comesAgain(t, address, leave) })
	}
	startEcho(t, returns)
	eventually(t, "half of them are on the server that has come back", func() bool {
		here, there := p.scrape().active(one.address()), p.scrape().active(returns)
		return here+there == quiet+busy && there >= (quiet+busy)/2-1
	})
	if n := p.scrape().closed("drained"); n > (quiet+busy)/2+1 {
		t.Errorf("%v had to move", n)
	}
	close(leave)
	clients.Wait()
}

// comesAgain makes a new connection whenever the old one has ended in good order.
func (c *chat) comesAgain(t *testing.T, address string, leave <-chan struct{}) {
	for {
		conn, ended := c.Conn, make(chan error, 1)
		_ = conn.SetReadDeadline(time.Time{})
		go func() { // ends with the connection
			_, err := conn.Read(make([]byte, 1))
			ended <- err
		}()
		select {
		case <-leave:
			conn.Close()
			return
		case err := <-ended:
			conn.Close()
			if err != io.EOF {
				t.Errorf("one that is quiet: %v", err)
			}
		}
		next, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			t.Error(err)
			return
		}
		c.Conn = next
		if err := c.round(); err != nil {
			t.Errorf("one that has moved: %v", err)
			next.Close()
			return
		}
	}
}
