package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// A soak is a levee with several listeners, clients of many habits, and everything that happens to it, for a while.
type soak struct {
	soakResult
	register
	t *testing.T
	*lineage

	ca        *leveetest.CA
	config    string            // its file
	variants  int               // of it, so far
	addresses map[string]string // of listeners
	flows     *flows
	digests   digests
	framed    string // its address
	behind    string // that of a server that echoes, and never fails
	mortal    [2]*process
	mortals   [2]string // their addresses
	victims   *victims

	clients, ordeals sync.WaitGroup
	upgrading        chan struct{} // holds one while there is an upgrade
	flooding         chan struct{} // and one while there is a flood
	accepted         map[string]float64
}

// listenersOfSoak are those that clients use, in the order of the configuration.
var listenersOfSoak = []string{"echo", "steady", "framed", "proxied", "tls", "sealed", "fragile"}

// exact are the listeners that nobody uses but clients who say so.
var exact = []string{"framed", "proxied", "fragile", "sealed"}

func newSoak(t *testing.T, o soakOptions) *soak {
	t.Helper()
	for o.seed == 0 {
		o.seed = rand.Uint64() >> 1
	}
	s := &soak{
		t: t, ca: leveetest.NewCA(t), config: filepath.Join(t.TempDir(), "levee.yaml"),
		addresses: make(map[string]string), accepted: make(map[string]float64),
		upgrading: make(chan struct{}, 1), flooding: make(chan struct{}, 1),
	}
	s.made = make(map[string]int64)
	s.Began, s.Duration, s.Seed = time.Now(), o.duration, o.seed
	s.Machine, s.Commit = soakMachine(), strings.TrimSpace(said("git", "rev-parse", "--short=10", "HEAD"))
	s.Version = strings.TrimSpace(said(levee, "version"))
	s.flows = newFlows(t, 30, 1)
	s.behind = serve(t, listen(t), echo)
	s.victims = newVictims(t)
	s.framed = serve(t, listen(t), s.digests.serve)
	for i, port := range freePorts(t, len(s.mortal)) {
		s.mortals[i] = "127.0.0.1:" + port
		s.mortal[i] = startEcho(t, s.mortals[i])
	}
	s.reconfigure()
	s.lineage = begin(t, s.config)
	for i, name := range listenersOfSoak {
		s.addresses[name] = s.addressOf(i)
	}
	return s
}

func soakMachine() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(release)), runtime.Version())
}

// said is what a program prints; nothing if it cannot be run.
func said(program string, args ...string) string {
	out, _ := exec.Command(program, args...).Output()
	return string(out)
}

func (s *soak) now() time.Duration { return time.Since(s.Began) }

// reconfigure writes the next configuration: what clients use stays, and everything else differs from one to the next.
func (s *soak) reconfigure() {
	i := s.variants
	s.variants++
	cert, key := filepath.Join(filepath.Dir(s.config), "cert.pem"), filepath.Join(filepath.Dir(s.config), "key.pem")
	if i == 0 {
		from, keyFrom := s.ca.WriteFiles(s.t.TempDir(), "soak.example.com")
		deploy(s.t, cert, from)
		deploy(s.t, key, keyFrom)
	}
	more := ""
	if hasMore(i) {
		more = "  - {name: more, listen: [\"127.0.4.1:0\"], routes: [{upstream: fragile}]}\n"
	}
	balance := []string{"round_robin", "least_connections", "p2c"}[i%3]
	// Nobody else is to come to an address by mistake, whose port another test may have had before.
	text := fmt.Sprintf(`version: 1
admin: {listen: "127.0.0.1:0"}
# Newcomers are not to be turned away because this machine has other things to do.
overload: {mode: off}
drain: {timeout: 15s}
upgrade: {settle: 300ms, probation: 700ms}
limits: {deny: [192.0.2.%d]}
telemetry: {logs: {access: all, access_file: access.log}}
listeners:
  - name: echo
    listen: ["127.0.4.1:0"]
    limits: {per_client: {mode: enforce, connections: %d, rate: 50/s}}
    routes: [{match: {protocol: http}, handler: hello}, {handler: echo}]
  - {name: steady, listen: ["127.0.4.1:0"], timeouts: {idle: %dm}, routes: [{upstream: steady}]}
  - {name: framed, listen: ["127.0.4.1:0"], limits: {max_connections: %d}, routes: [{upstream: framed}]}
  - {name: proxied, listen: ["127.0.4.1:0"], routes: [{match: {source: [192.0.2.%d]}, refuse: true}, {upstream: behind}]}
  - name: tls
    listen: ["127.0.4.1:0"]
    limits: {per_client: {mode: enforce, connections: 64, rate: 50/s}}
    tls: {certificates: [{cert: %q, key: %q}]}
    routes: [{handler: echo}]
  - {name: sealed, listen: ["127.0.4.1:0"], tls: {certificates: [{cert: %[6]q, key: %[7]q}]}, routes: [{upstream: framed}]}
  - {name: fragile, listen: ["127.0.4.1:0"], routes: [{upstream: fragile}]}
%supstreams:
  - {name: steady, servers: [%q], health: {interval: %dms, timeout: 5s}}
  - {name: framed, servers: [%q], health: {interval: 1s, timeout: 900ms}, max_connections: %d}
  - {name: behind, servers: [%q], balance: %s}
  - name: fragile
    servers: [%q, %q, %q]
    balance: %[14]s
    slow_start: off
    health: {interval: 250ms, timeout: 200ms, fast_interval: 100ms}
    breaker: {open: 500ms, max_open: 1s}
`, 1+i%200, 50+i%10, 1+i%7, 2000+i%2, 1+i%100, cert, key, more, s.flows.server, 5000+i%2, s.framed, 2000+i%2, s.behind, balance,
		s.mortals[0], s.mortals[1], s.victims.address)
	replace(s.t, s.config, text)
}

// hasMore reports whether a configuration has a listener more than the first.
func hasMore(variant int) bool { return variant%3 == 2 }

// metrics are those of whichever process answers.
func (s *soak) metrics() (scrape, error) {
	status, body, err := fetch(context.Background(), http.MethodGet, s.admin("/metrics"), patience)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("metrics: status %d", status)
	}
	return newScrape(body), err
}

// sums is a sum over a listener's reasons.
func (s scrape) sums(name, listener string) (sum float64) {
	prefix := fmt.Sprintf("%s{listener=%q", name, listener)
	for key, value := range s {
		if strings.HasPrefix(key, prefix) {
			sum += value
		}
	}
	return sum
}

// look takes a sample, and counts, unless there are two processes at that time.
func (s *soak) look() error {
	alone := len(s.processes()) == 1
	if _, _, err := fetch(context.Background(), http.MethodGet, s.admin("/debug/pprof/heap?gc=1"), patience); err != nil { // collects
		return err
	}
	m, err := s.metrics()
	if err != nil {
		return err
	}
	after, err := s.tells()
	if err != nil {
		return err
	}
	if !alone || len(s.processes()) != 1 {
		return nil
	}
	s.Quiet++
	for _, listener := range listenersOfSoak {
		s.counted(m, listener)
	}
	s.Samples = append(s.Samples, soakSample{
		At: s.now(), PID: after.PID, Heap: m["go_memstats_heap_inuse_bytes"], RSS: residentMemory(after.PID),
		vitals: vitalsOf(after),
	})
	return nil
}

// counted wants what has been accepted to be closed or active, and no count to fall.
func (s *soak) counted(m scrape, listener string) {
	accepted, active, closed := m.sums("levee_connections_accepted_total", listener), m.sums("levee_connections_active", listener), m.sums("levee_connections_closed_total", listener)
	if accepted != active+closed {
		s.unbalanced("%s: %v accepted, %v active, %v closed", listener, accepted, active, closed)
	}
	if before := s.accepted[listener]; accepted < before {
		s.unbalanced("%s: %v accepted, and %v before", listener, accepted, before)
	}
	s.accepted[listener] = accepted
}

func (s *soak) unbalanced(format string, args ...any) {
	s.Unbalanced = append(s.Unbalanced, fmt.Sprintf("at %s: ", short(s.now()))+fmt.Sprintf(format, args...))
}

// residentMemory is a process's, in bytes.
func residentMemory(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib float64
	_, _ = fmt.Sscan(rest, &kib)
	return kib * 1024
}

// watch looks again and again until ctx ends.
func (s *soak) watch(ctx context.Context) {
	tick := time.NewTicker(min(max(s.Duration/200, 500*time.Millisecond), 5*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := s.look(); err != nil {
			s.problem("the admin port: %v", err)
		}
	}
}

func (s *soak) newClient(h habit, t *deeds, number int, dice uint64) *soakClient {
	return &soakClient{soak: s, habit: h, tally: t, from: fmt.Sprintf("127.0.1.%d", number), dice: rand.New(rand.NewPCG(s.Seed, dice))}
}

// populate has all clients live until ctx ends.
func (s *soak) populate(ctx context.Context) {
	s.flows.start(s.addresses["steady"])
	number := 0
	for _, h := range s.habits() {
		t := &deeds{Habit: h.name, Clients: h.clients}
		s.Habits = append(s.Habits, t)
		for range h.clients {
			number++
			c := s.newClient(h, t, number, uint64(number))
			s.clients.Go(func() { c.live(ctx) })
		}
	}
	s.Habits = append(s.Habits, &deeds{Habit: slowly.name})
}

// run is the soak.
func (s *soak) run() {
	s.Base = s.rest()
	s.Began = time.Now() // what went before is not a part of it
	s.t.Logf("soak of %v with seed %d: --seed %[2]d repeats it", s.Duration, s.Seed)
	census := s.count(50 * time.Millisecond)
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	s.populate(ctx)
	watching := make(chan struct{})
	watched, cease := context.WithCancel(s.t.Context())
	defer cease()
	go func() { // ends with watched
		defer close(watching)
		s.watch(watched)
	}()
	s.endure(plan(s.Seed, s.Duration))
	<-time.After(s.Duration - s.now())
	s.ordeals.Wait()
	cease()
	<-watching
	stop()
	s.clients.Wait()
	wrong, moved := s.flows.end()
	s.Streams, s.StreamMiB = len(s.flows.all), moved>>20
	for _, err := range wrong {
		s.Broken = append(s.Broken, err.Error())
	}
	s.Processes = census.ends()
	if hasMore(s.variants - 1) {
		s.reload()
	}
	s.settle()
}

// rest is what an idle process holds that has taken over from another, and has served.
func (s *soak) rest() vitals {
	s.t.Helper()
	if _, err := s.replaceProcess(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "there is one process", s.isAlone)
	before := s.mustTell().Totals.Active
	for i, h := range s.habits() { // what a listener needs, it has from its first connection on
		h.rounds = 1
		s.newClient(h, new(deeds), 1+i, uint64(i)).visit(s.t.Context())
	}
	c, err := dialFrom("127.0.1.1", s.addresses["steady"]) // whose server has no more to do with who leaves without a word
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	eventually(s.t, "the first clients have left", func() bool { return s.mustTell().Totals.Active == before })
	return vitalsOf(s.mustTell())
}

// settle waits until levee is at its base again, and looks at what it has counted.
func (s *soak) settle() {
	within(patience/3, func() bool {
		now, err := s.tells()
		s.End = vitalsOf(now)
		return err == nil && len(s.judgeLeaks().Broken) == 0
	})
	if len(s.judgeLeaks().Broken) > 0 {
		s.Left = fmt.Sprint(s.goroutines(), "\n", filesOf(s.mustTell().PID))
	}
	m, err := s.metrics()
	if err != nil {
		s.problem("at the end: %v", err)
		return
	}
	s.Quiet++
	for _, listener := range listenersOfSoak {
		s.counted(m, listener)
	}
	for _, listener := range exact {
		if accepted, made := s.accepted[listener], float64(s.made[listener]); accepted != made {
			s.unbalanced("%s: %v accepted, and clients have made %v", listener, accepted, made)
		}
	}
}

// goroutines are the process's.
func (s *soak) goroutines() string {
	_, text, err := fetch(context.Background(), http.MethodGet, s.admin("/debug/pprof/goroutine?debug=1"), patience)
	if err != nil {
		return err.Error()
	}
	return text
}

// filesOf are a process's open files, by kind: socket, pipe, anon_inode, or a path.
func filesOf(pid int) map[string]int {
	kinds := make(map[string]int)
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(folder, e.Name())) // one may be gone by now
		kind, _, _ := strings.Cut(target, ":[")
		kinds[kind]++
	}
	return kinds
}

// vitalsOf are what a process holds that has said how it stands.
func vitalsOf(now standing) vitals {
	v := vitals{Goroutines: now.Process.Goroutines, Active: now.Totals.Active}
	for kind, n := range filesOf(now.PID) {
		if kind == "pipe" {
			v.Pipes += n
		} else {
			v.Files += n
		}
	}
	return v
}

// conclude judges, says and keeps what came of it.
func (s *soak) conclude(out string) (good bool) {
	s.Complaints = s.complaints
	load, _ := os.ReadFile("/proc/loadavg")
	s.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	good = s.judge()
	s.t.Logf("\n%s", s.table())
	if out != "" {
		if err := s.save(out); err != nil {
			s.t.Error(err)
		}
	}
	return good
}

// In the small this is in `make test`; `make soak` has half an hour of it.
func TestSoak(t *testing.T) {
	s := newSoak(t, soaking)
	done := false
	defer func() {
		if good := s.conclude(soaking.out); !good || !done {
			t.Errorf("the soak with seed %d has failed", s.Seed)
		}
	}()
	s.run()
	done = true
}

// A soak that cannot fail would say nothing.
func TestASoakFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSoak(t, soakOptions{duration: 6 * time.Second})
	s.digests.corrupt.Store(true)
	var forgotten []net.Conn
	defer func() {
		for _, c := range forgotten {
			c.Close()
		}
	}()
	for range 20 {
		c, err := dialFrom("127.0.3.1", s.addresses["proxied"])
		if err != nil {
			t.Fatal(err)
		}
		forgotten = append(forgotten, c)
	}
	s.run()
	if s.conclude("") {
		t.Fatal("it finds nothing")
	}
	for promise, want := range map[string]string{"answered right": errDiffers.Error(), "back to base": "connections are counted", "counts go on": "clients have made"} {
		i := slices.IndexFunc(s.Verdict, func(f finding) bool { return strings.Contains(f.Promise, promise) })
		if !strings.Contains(strings.Join(s.Verdict[i].Broken, "\n"), want) {
			t.Errorf("%s: %q, want %q", promise, s.Verdict[i].Broken, want)
		}
	}
	for _, c := range s.Complaints {
		if !c.Excused && !strings.Contains(c.Habit, "frames") && !strings.Contains(c.Habit, "to an upstream") {
			t.Errorf("%+v", c)
		}
	}
}
