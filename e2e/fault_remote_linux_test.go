package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A remote is a network namespace behind a pair of veth devices: another machine, as far as
// the kernel's TCP is concerned, with a firewall of its own. It has no name, only a
// descriptor here, so the kernel removes it with the test, however that ends.
type remote struct {
	t     *testing.T
	space *os.File
	ip    netip.Addr // of the far end
}

// links counts the remotes of this process.
var links atomic.Uint32

func newRemote(t *testing.T) *remote {
	t.Helper()
	r := newSpace(t)
	n := links.Add(1)
	device, near := fmt.Sprintf("lv%d-%d", os.Getpid(), n), freePair(t, uint32(os.Getpid())*16+n)
	r.ip = near.Next()
	r.run("", "ip", "link", "add", device, "type", "veth", "peer", "name", "far", "netns", r.path())
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", device).Run() }) // the kernel would, but later
	r.run("", "ip", "address", "add", near.String()+"/30", "dev", device)
	r.run("", "ip", "link", "set", device, "up")
	r.run("", "nsenter", "--net="+r.path(), "ip", "address", "add", r.ip.String()+"/30", "dev", "far")
	r.run("", "nsenter", "--net="+r.path(), "ip", "link", "set", "far", "up")
	r.awaitCarrier()
	return r
}

// newSpace makes a namespace that leads nowhere yet.
func newSpace(t *testing.T) *remote {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: only root can make a network namespace")
	}
	for _, program := range []string{"ip", "nft", "nsenter"} {
		need(t, program)
	}
	r := &remote{t: t}
	if err := r.unshare(); err != nil {
		t.Skipf("skipped: no network namespace: %v", err)
	}
	t.Cleanup(func() { r.space.Close() })
	return r
}

// awaitCarrier waits until packets get through: a link that is up loses them at first.
func (r *remote) awaitCarrier() {
	r.t.Helper()
	l := r.listen()
	defer l.Close()
	eventually(r.t, "packets get through", func() bool {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// freePair returns the first of two addresses that nobody has here, out of the block that is
// for benchmarks (RFC 2544, 198.18.0.0/15).
func freePair(t *testing.T, at uint32) netip.Addr {
	t.Helper()
	taken, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; at++ {
		addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 198<<24|18<<16+at%(1<<15)*4+1)))
		if !slices.ContainsFunc(taken, func(a net.Addr) bool { return strings.HasPrefix(a.String(), addr.String()+"/") }) {
			return addr
		}
	}
}

// unshare makes the namespace.
func (r *remote) unshare() error {
	return onThreadOfItsOwn(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			r.space, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
}

// onThreadOfItsOwn calls f on a thread that ends with it, and with what f did to it.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error)
	go func() { // ends with f
		runtime.LockOSThread() // and never unlocks it
		done <- f()
	}()
	return <-done
}

// within calls f on a thread that is in the namespace: sockets that f makes, and processes that it starts, are there.
func (r *remote) within(f func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(r.space.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// path is how other programs find the namespace.
func (r *remote) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.space.Fd()) }

func (r *remote) run(input, program string, args ...string) {
	r.t.Helper()
	if out, err := client(r.t, input, program, args...); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

// listen listens there, on a port that is free there.
func (r *remote) listen() (l net.Listener) {
	r.t.Helper()
	err := r.within(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(r.ip, 0).String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// What the firewall does with packets that come in.
const (
	lets     = ""
	refuses  = "tcp flags syn / fin,syn,rst,ack reject with tcp reset"
	swallows = "tcp flags syn / fin,syn,rst,ack drop"
)

// firewall sets the rule for packets that come in.
func (r *remote) firewall(rule string) {
	r.t.Helper()
	r.filter(rule, "")
}

// loses has one packet in so many get lost, of those that come in and of those that go out.
func (r *remote) loses(oneIn int) {
	r.t.Helper()
	rule := fmt.Sprintf("numgen random mod %d 0 drop", oneIn)
	r.filter(rule, rule)
}

func (r *remote) filter(in, out string) {
	r.t.Helper()
	const chain = "chain %s {\ntype filter hook %[1]s priority 0\n%s\n}\n"
	rules := "flush ruleset\ntable inet faults {\n" + fmt.Sprintf(chain, "input", in) + fmt.Sprintf(chain, "output", out) + "}\n"
	r.run(rules, "nsenter", "--net="+r.path(), "nft", "-f", "-")
}
