package app

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/upstream"
)

const (
	stateServing  = "serving"
	stateDraining = "draining"
)

// status is how it goes, at one look.
func (f *front) status() admin.Status {
	s := admin.Status{Version: version(), Go: runtime.Version(), PID: os.Getpid(), Started: f.state.started, Since: f.upgrades.servingSince(), State: stateServing}
	s.Generation, s.Drain = f.generation(), f.state.told()
	s.Upgrade, s.Predecessor = f.upgrades.told(), f.upgrades.toldPredecessor()
	var stats levee.Stats
	for _, l := range f.every() {
		stats = stats.Add(f.statsOf(l))
	}
	s.Totals = totalsOf(stats)
	if s.Drain != nil {
		s.State, s.Drain.Left = stateDraining, s.Totals.Active
		r := reportOf(f.allServers())
		s.Drain.Drained, s.Drain.Gone, s.Drain.Cut = int64(r.Drained), int64(r.Gone), int64(r.Cut)
	}
	s.Ready = f.admin.Ready()
	s.Process = f.process()
	s.Process.LoopLag = stats.LoopLag.Seconds()
	return s
}

func totalsOf(s levee.Stats) admin.Totals {
	return admin.Totals{
		Active: s.Active, Arriving: s.Arriving, Accepted: s.Accepted, In: s.Read, Out: s.Written, Panics: s.Panics,
		Closed: byWord(s.Closed), Refused: byWord(s.Refused),
	}
}

func byWord(counts map[levee.CloseReason]int64) map[string]int64 {
	all := make(map[string]int64, len(counts))
	for reason, n := range counts {
		all[reason.String()] = n
	}
	return all
}

// process asks the system what the process uses of it.
func (f *front) process() admin.Process {
	p := admin.Process{Goroutines: runtime.NumGoroutine()}
	memory := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(memory)
	p.Memory = int64(memory[0].Value.Uint64() - memory[1].Value.Uint64()) //nolint:gosec // less than a machine has
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		p.MemoryMax = limit
	}
	families, _ := f.used.Gather() // what cannot be told stays 0
	for _, family := range families {
		switch v := valueOf(family); family.GetName() {
		case "process_open_fds":
			p.Files = int(v)
		case "process_max_fds":
			p.FilesMax = int(v)
		case "process_cpu_seconds_total":
			p.CPU = v
		}
	}
	return p
}

// newUsed returns what process asks. It is made once: it has files to look for, and a registry its checks to make.
func newUsed() prometheus.Gatherer {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

func valueOf(family *dto.MetricFamily) float64 {
	m := family.GetMetric()[0]
	return m.GetGauge().GetValue() + m.GetCounter().GetValue()
}

// statsOf are a listener's counts, with those of the processes before this one, and of those of its name that are gone.
func (f *front) statsOf(l *listener) levee.Stats {
	stats := l.server.Stats()
	if !l.leaving.Load() { // else another may have its name
		stats = stats.Add(f.connections.Before(l.name))
	}
	return stats
}

// toldListeners are the listeners with their counts, those that are leaving too.
func (f *front) toldListeners() admin.Listeners {
	all, now := admin.Listeners{Listeners: []admin.Listener{}}, f.now.Load()
	for _, of := range f.every() {
		stats := f.statsOf(of)
		l := admin.Listener{
			Name: of.name, Addresses: f.addressesOf(of), TLS: now.modeOf(of.name), State: stateServing, Generation: now.number,
			Active: stats.Active, Max: stats.MaxConns, Arriving: stats.Arriving, Accepted: stats.Accepted,
			Closed: byWord(stats.Closed), Refused: byWord(stats.Refused), In: stats.Read, Out: stats.Written, Panics: stats.Panics,
			QueueLength: stats.QueueLength, QueueLimit: stats.QueueLimit,
		}
		if stats.Draining || of.leaving.Load() {
			l.State = stateDraining
		}
		all.Listeners = append(all.Listeners, l)
	}
	return all
}

// modeOf says how a listener has to do with TLS, "" if it is configured no more.
func (g *generation) modeOf(listener string) string {
	for i := range g.cfg.Listeners {
		if l := &g.cfg.Listeners[i]; l.Name == listener {
			return string(l.TLS.Mode)
		}
	}
	return ""
}

// toldUpstreams are the upstreams with their servers.
func (f *front) toldUpstreams() admin.Upstreams {
	backends := f.now.Load().backends
	all := admin.Upstreams{Upstreams: make([]admin.Upstream, 0, len(backends))}
	for _, b := range backends {
		stats := b.pool.Stats()
		u := admin.Upstream{
			Name: b.cfg.Name, Balance: b.cfg.Balance, Queue: stats.Queue, Retries: stats.Retries,
			Exhausted: stats.BudgetExhausted, Refused: stats.Refused, Servers: make([]admin.UpstreamServer, 0, len(stats.Servers)),
		}
		for _, s := range stats.Servers {
			u.Servers = append(u.Servers, toldServer(s))
		}
		all.Upstreams = append(all.Upstreams, u)
	}
	return all
}

func toldServer(s upstream.ServerStats) admin.UpstreamServer {
	told := admin.UpstreamServer{
		Name: s.Name, Tier: s.Tier, Weight: s.Weight, Healthy: s.Healthy, Problem: textOf(s.HealthError), Checked: s.Checked,
		Drained: s.Drained, Left: s.Left, Breaker: s.Breaker.String(), Active: s.Active, Latency: s.Latency.Seconds(),
		Dials: s.Dials, Failures: make(map[string]int64, len(s.Failures)), Sent: s.Sent, Received: s.Received,
	}
	for kind, n := range s.Failures {
		told.Failures[kind.String()] = n
	}
	return told
}

func (f *front) toldConfig() admin.Config {
	return admin.Config{Generation: f.generation(), YAML: string(f.now.Load().cfg.Redacted())}
}

// drainServer has a server get no new connections, or get them again.
func (f *front) drainServer(name, server string, drained bool) (found bool) {
	f.steering.Lock()
	defer f.steering.Unlock()
	backends := f.now.Load().backends
	i := slices.IndexFunc(backends, func(b *backend) bool { return b.cfg.Name == name })
	if i < 0 {
		return false
	}
	b := backends[i]
	if drained {
		found = b.pool.Drain(server)
	} else {
		found = b.pool.Undrain(server)
	}
	if found {
		b.log.Warn(map[bool]string{true: "server drained", false: "server gets connections again"}[drained], "server", server, "by", "an operator")
	}
	return found
}

// stayDrained has servers that an operator has drained stay so where their upstream is made anew.
func (g *generation) stayDrained(before *generation) {
	for _, old := range before.backends {
		i := slices.IndexFunc(g.backends, func(b *backend) bool { return b.cfg.Name == old.cfg.Name })
		if i < 0 || g.backends[i] == old {
			continue
		}
		for _, s := range old.pool.Stats().Servers {
			if s.Drained && !s.Left && g.backends[i].pool.Drain(s.Name) {
				old.log.Warn("server stays drained", "server", s.Name, "by", "an operator")
			}
		}
	}
}

// patience is how long a drain takes at most.
func (f *front) patience() time.Duration {
	drain := &f.now.Load().cfg.Drain
	return drain.PreStop + drain.Timeout
}

// reportOf tells what becomes of the connections of servers that drain.
func reportOf(servers []*levee.Server) (all levee.DrainReport) {
	for _, server := range servers {
		r := server.DrainReport()
		all.Drained += r.Drained
		all.Gone += r.Gone
		all.Cut += r.Cut
		all.Open += r.Open
	}
	return all
}

// beginDrain begins what SIGTERM does.
func (f *front) beginDrain() admin.Status {
	f.state.askToDrain(f.patience())
	return f.status()
}
