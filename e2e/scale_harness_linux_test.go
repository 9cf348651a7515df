package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/leveetest"
)

// A fleet is several levees, each in a network namespace of its own, behind one address of a router, which is a namespace
// too, and where all that they share is: Redis, the ACME authority, and the server behind them.
//
//	clients ── router (the address; health checks) ──┬── levee 0
//	           Redis, authority, upstream            ├── levee 1
//	                                                 └── levee 2
//
// The addresses are those for documentation (RFC 5737), which nobody has. From newFleet on the test itself is in the router.
type fleet struct {
	t       *testing.T
	router  *remote
	clients *remote
	nodes   []*node
	token   string // a file
	ca      *leveetest.CA
	trusted string // its certificate's file

	mu      sync.Mutex
	serving []string // the nodes that the router sends to
	changes []change
}

// A change is of what the router sends to.
type change struct {
	at   time.Time
	node string
	in   bool
}

const (
	fleetAddress = "192.0.2.1"  // where clients go
	sharedAt     = "192.0.2.2"  // where what is shared is
	clientsFrom  = "192.0.2.34" // and the 28 after it
	adminPort    = "9180"
)

// A node is one levee.
type node struct {
	*lineage
	space     *remote
	ip        string
	cert, key string // files, of the admin port
	admin     *tls.Config
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{t: t, router: newSpace(t), clients: newSpace(t), token: write(t, "token", strings.Repeat("t", 32)+"\n"), ca: leveetest.NewCA(t)}
	f.trusted = write(t, "ca.pem", string(f.ca.PEM()))
	f.enter()
	f.in("ip link set lo up", "ip address add "+fleetAddress+"/32 dev lo", "ip address add "+sharedAt+"/32 dev lo", "sysctl -q -w net.ipv4.ip_forward=1")
	f.link(f.clients, "clients", "192.0.2.33", clientsFrom, 27)
	for i := 1; i < 28; i++ {
		f.clients.in(fmt.Sprintf("ip address add %s/32 dev eth0", plus(clientsFrom, i)))
	}
	for i := range n {
		n := &node{space: newSpace(t), ip: plus("192.0.2.66", 4*i)}
		n.cert, n.key = f.ca.WriteFiles(t.TempDir(), n.ip)
		n.admin = f.ca.ClientConfig(n.ip)
		f.link(n.space, fmt.Sprintf("node%d", i), plus("192.0.2.65", 4*i), n.ip, 30)
		f.nodes = append(f.nodes, n)
	}
	return f
}

func plus(address string, n int) string {
	a := netip.MustParseAddr(address)
	for range n {
		a = a.Next()
	}
	return a.String()
}

// enter takes the test into the router. Its thread ends with it.
func (f *fleet) enter() {
	f.t.Helper()
	runtime.LockOSThread()
	if err := unix.Setns(int(f.router.space.Fd()), unix.CLONE_NEWNET); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) in(commands ...string) {
	f.t.Helper()
	for _, c := range commands {
		words := strings.Fields(c)
		f.router.run("", words[0], words[1:]...)
	}
}

// in runs commands in the namespace.
func (r *remote) in(commands ...string) {
	r.t.Helper()
	for _, c := range commands {
		r.run("", "nsenter", append([]string{"--net=" + r.path()}, strings.Fields(c)...)...)
	}
}

// link connects a namespace to the router, which becomes its way to everywhere.
func (f *fleet) link(r *remote, device, near, far string, bits int) {
	f.t.Helper()
	f.in(fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", device, r.path()),
		fmt.Sprintf("ip address add %s/%d dev %s", near, bits, device), "ip link set "+device+" up")
	r.in("ip link set lo up", fmt.Sprintf("ip address add %s/%d dev eth0", far, bits), "ip link set eth0 up", "ip route add default via "+near)
}

// start starts a node's levee, and waits until it is ready.
func (f *fleet) start(n *node, text string) {
	f.t.Helper()
	binary := ownBinary(f.t)
	n.lineage = beginAs(f.t, binary, exec.Command("nsenter", "--net="+n.space.path(), binary, "serve", "-c", write(f.t, "levee.yaml", text)))
	eventually(f.t, "levee is ready", func() bool { return n.isReady() })
}

// isReady asks as a router would.
func (n *node) isReady() bool {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: checkTimeout}, "tcp", n.ip+":"+adminPort, n.admin)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(checkTimeout))
	status, _, err := getOn(c, "/readyz")
	return err == nil && status == http.StatusOK
}

// operate runs a command of levee's against a node.
func (f *fleet) operate(n *node, args ...string) (text string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), longestReady)
	defer cancel()
	cmd := exec.CommandContext(ctx, levee, args...)
	cmd.Env = append(os.Environ(), "LEVEE_ADMIN="+n.ip+":"+adminPort, "LEVEE_TOKEN_FILE="+f.token, "LEVEE_CA="+f.trusted)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// How the router finds out who is well: two checks in a row that fail are enough, and one that does not.
const (
	checkEvery   = 100 * time.Millisecond
	checkTimeout = 300 * time.Millisecond // with a TLS handshake
	checkFall    = 2
)

// route has the router look after its nodes, until the test ends: what keepalived, or a cloud's load balancer, does.
func (f *fleet) route() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.router.within(func() error { return f.check(ctx) }) }() // until the clean-up
	f.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
	eventually(f.t, "the router sends to all", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.serving) == len(f.nodes)
	})
}

func (f *fleet) check(ctx context.Context) error {
	failed := make([]int, len(f.nodes))
	for i := range failed {
		failed[i] = checkFall // until it has been seen to be well
	}
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		before := fmt.Sprint(f.serving)
		var now []string
		for i, n := range f.nodes {
			if n.isReady() {
				failed[i] = 0
			} else {
				failed[i]++
			}
			if failed[i] < checkFall {
				now = append(now, n.ip)
			}
		}
		if fmt.Sprint(now) != before {
			if err := f.send(now); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// send has new connections go to these nodes, in turn. The kernel knows where those go that are there already.
func (f *fleet) send(to []string) error {
	rule := "reject with tcp reset"
	if len(to) > 0 {
		var list []string
		for i, ip := range to {
			list = append(list, fmt.Sprintf("%d : %s", i, ip))
		}
		rule = fmt.Sprintf("dnat to numgen inc mod %d map { %s }", len(to), strings.Join(list, ", "))
	}
	if len(to) == 0 {
		return errors.New("no node is well")
	}
	text := "table ip fleet\nflush table ip fleet\ntable ip fleet {\n"
	for _, hook := range []string{"prerouting", "output"} { // the authority is in the router itself
		text += fmt.Sprintf("chain %s { type nat hook %[1]s priority -100\nip daddr %s ip protocol tcp %s\n}\n", hook, fleetAddress, rule)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text + "}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s\n%s", err, out, text)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	at := time.Now()
	for _, n := range f.nodes {
		was, is := slices.Contains(f.serving, n.ip), slices.Contains(to, n.ip)
		if was != is {
			f.changes = append(f.changes, change{at, n.ip, is})
		}
	}
	f.serving = to
	return nil
}

// changed waits until the router sends to a node, or does not any more, and returns how long that took since.
func (f *fleet) changed(n *node, in bool, since time.Time) (took time.Duration) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("that the router sends to %s is %t", n.ip, in), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.changes {
			if c.node == n.ip && c.in == in && c.at.After(since) {
				took = c.at.Sub(since)
				return true
			}
		}
		return false
	})
	return took
}
