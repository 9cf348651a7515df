package e2e

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// One address has 2,000 clients, and 100 others have one each.
func TestOneSourceIsCappedAndTheOthersAreServed(t *testing.T) {
	const most = 100
	least := sized(t, "attempts at least", 3*most, 2000) // a busy machine makes few in so short a time
	duration := sized(t, "duration", 2*time.Second, 12*time.Second)
	p := startOnCore(t, "serve", "-c", config(t, "", `limits: {per_client: {mode: enforce, connections: 100, rate: off}}`))
	watched, highest := make(chan bool), 0.0
	go func() { // ends with the flood
		defer close(watched)
		for over := time.After(duration + 3*time.Second); ; {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
				highest = max(highest, p.scrape().of("levee_connections_active"))
			}
		}
	}()
	a := flood(t, p.address(), "--attack", "one-source", "-c", "2000", "-d", duration.String()).Attacks[0]
	<-watched
	if a.Attempts < least || a.Failed > 0 {
		t.Errorf("there were %d attempts, of which %d failed for want of something here", a.Attempts, a.Failed)
	}
	if n := a.During.RoundTrips.Failed + a.During.Connections.Failed; n > 0 {
		t.Errorf("%d round trips of the others failed: %s%s", n, a.During.RoundTrips.Error, a.During.Connections.Error)
	}
	const others = 100 + 2 // the probe keeps one, and makes others
	if highest < most || highest > most+others {
		t.Errorf("there were up to %v connections, want %d of the one source, and %d", highest, most, others)
	}
}

// An IPv6 client has a /64 at least, and may have a /48: all of its addresses are one client.
func TestAnIPv6PrefixIsLimitedAsOneClient(t *testing.T) {
	w := newWorld(t)
	w.run("ip", "-6", "route", "add", "local", "fd4c:6576:6565::/48", "dev", "lo")
	addresses := sized(t, "addresses", 1000, 10_000)
	const rate = 2500
	duration := 4 * time.Duration(addresses) * time.Second / rate
	for attack, networks := range map[string]int{"ipv6-64": 1, "ipv6-48": 16} {
		socket := write(t, "admin", "") // a path that is free
		p := launch(t, w.command(levee, "serve", "-c", write(t, "levee.yaml", strings.ReplaceAll(`version: 1
admin: {listen: "unix:SOCKET.socket"}
listeners:
  - name: main
    listen: ["[::1]:7000"]
    limits: {per_client: {mode: enforce, connections: 50, rate: 20/s, burst: 40}}
    routes: [{handler: echo}]
`, "SOCKET", socket))))
		a := floodBy(t, w.command(levee, "flood", "--json", "--target", p.address(), "--attack", attack, "--rate", strconv.Itoa(rate), "-d", duration.String())).Attacks[0]
		most := networks * (40 + 20*int(duration/time.Second+1))
		if a.Attempts < addresses || a.Failed > 0 {
			t.Errorf("%s: there were %d attempts, of which %d failed here; want %d", attack, a.Attempts, a.Failed, addresses)
		}
		if a.Left > most || a.Left < networks*40 {
			t.Errorf("%s: %d of %d were served, want %d to %d", attack, a.Left, a.Attempts, networks*40, most)
		}
		if n := a.During.RoundTrips.Failed + a.During.Connections.Failed; n > 0 {
			t.Errorf("%s: %d round trips from elsewhere failed: %s%s", attack, n, a.During.RoundTrips.Error, a.During.Connections.Error)
		}
		p.signal(syscall.SIGTERM)
		p.wait()
	}
}

// A world is a network namespace of the test's own, in which there is only a loopback device.
type world struct {
	t     *testing.T
	keeps *process // of the namespace
}

func newWorld(t *testing.T) *world {
	t.Helper()
	for _, program := range []string{"ip", "unshare", "nsenter"} {
		need(t, program)
	}
	if out, err := exec.Command("unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("skipped: no network namespace: %v: %s", err, out)
	}
	w := &world{t, launch(t, exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"))}
	w.keeps.find(&w.keeps.stdout, "^(up)$")
	return w
}

// command is one that is run there.
func (w *world) command(program string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/proc/" + strconv.Itoa(w.keeps.pid()) + "/ns/net", program}, args...)...)
}

func (w *world) run(program string, args ...string) {
	w.t.Helper()
	if out, err := w.command(program, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", program, err, out)
	}
}
