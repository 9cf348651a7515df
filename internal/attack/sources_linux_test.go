package attack_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/levee-net/levee/internal/attack"
)

const inNamespace = "LEVEE_ATTACK_IN_NAMESPACE"

// TestRotatingSourcesAreOfAPrefix runs in a network namespace of its own, where the
// prefix is routed to its loopback interface.
func TestRotatingSourcesAreOfAPrefix(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		again.Env = append(os.Environ(), inNamespace+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := again.CombinedOutput()
		if os.Geteuid() != 0 && err != nil {
			t.Skipf("no network namespace: %v", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	prefix := attack.DefaultPrefix
	for _, command := range [][]string{{"link", "set", "lo", "up"}, {"-6", "route", "add", "local", prefix.String(), "dev", "lo"}} {
		if out, err := exec.CommandContext(t.Context(), "ip", command...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v\n%s", command, err, out)
		}
	}
	for name, want := range map[string]struct{ addresses, networks int }{"ipv6-64": {20, 1}, "ipv6-48": {20, 20}} {
		var mu sync.Mutex
		addresses, networks := map[netip.Addr]bool{}, map[netip.Prefix]bool{}
		f := small(serveOn(t, "[::1]:0", func(c *net.TCPConn) {
			source := addr(c)
			network, _ := source.Prefix(64)
			mu.Lock()
			if prefix.Contains(source) {
				addresses[source], networks[network] = true, true
			}
			mu.Unlock()
			echo(c)
		}), name)
		f.Rate = 1000
		report := run(t, f)
		mu.Lock()
		if len(addresses) < want.addresses || len(networks) < want.networks || want.networks == 1 && len(networks) != 2 { // the other one has asked the way
			t.Errorf("%s: %d addresses of %d networks; %+v", name, len(addresses), len(networks), report.Results)
		}
		mu.Unlock()
	}
}

func TestRotatingSourcesNeedTheirPrefix(t *testing.T) {
	f := small(serveOn(t, "[::1]:0", echo), "ipv6-64")
	f.Prefix = netip.MustParsePrefix("fd4c:6576:6566::/48") // which nobody routes
	want := "addresses of fd4c:6576:6566::/48 are not this machine's (as root: ip -6 route add local fd4c:6576:6566::/48 dev lo)"
	if got := run(t, f).Results[0].Skipped; got != want {
		t.Errorf("skipped because %q, want %q", got, want)
	}
}
