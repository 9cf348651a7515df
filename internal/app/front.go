package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/httpserve"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/telemetry"
)

// A front is a running levee: what there is of it whatever its configuration becomes, and the
// generation of that which is in force.
type front struct {
	env   Env
	log   *slog.Logger
	level *slog.LevelVar
	trace *levee.Trace // of all servers
	web   webHandlers

	connections *telemetry.Metrics
	upstreams   *upstreamMetrics
	metrics     *tlsMetrics
	registry    *prometheus.Registry
	scraped     *scraped            // the registry, as /metrics tells it
	used        prometheus.Gatherer // of the process; see process

	admin       *admin.Server // nil when off
	adminSocket *doorway
	own         []*part // that is no generation's

	ca        *certs.CA    // nil when no listener asks for it
	shared    *sharedStore // nil when no Redis is configured
	outs      *evictor
	refused   sync.Map // *refusals, by the listener's name
	endings   sync.Map // identities of terms, by the *tls.Config that ends TLS by them
	relieving sync.Mutex
	adjustsGC bool // memory that the kernel holds is to be told to Go's collector

	first     *config.Config // that it was started with
	reloads   *reloads
	upgrades  upgrades
	reloading sync.Mutex // by whoever makes a generation, or ends one
	past      []parts    // of generations that are in force no more, and have connections still; guarded by reloading
	now       atomic.Pointer[generation]
	steering  sync.Mutex    // of servers by an operator, while the generation stays the same
	ending    atomic.Bool   // no reload and no upgrade begins any more
	ended     chan struct{} // closed when none is under way either

	state   state
	told    *telling
	tracing *tracing // nil when nobody asks for spans

	stopped bool            // somebody wants it to end, and not only has another process taken its place
	hurried <-chan struct{} // closed at a second signal to stop; nil before the first

	mu        sync.Mutex
	listeners []*listener // those that are leaving too
	closing   bool        // those that come are closed

	running sync.WaitGroup
	beside  context.Context // of what works beside the servers
	broken  chan error      // has room for one
}

// assemble builds everything that can be built before a port is opened. Its
// errors carry their exit code.
func assemble(cfg *config.Config, env Env) (*front, error) {
	f := &front{first: cfg, env: env, level: new(slog.LevelVar), broken: make(chan error, 1), ended: make(chan struct{}), beside: context.Background()}
	f.state.begin()
	f.level.Set(cfg.Telemetry.Logs.Level)
	f.log = newLogger(env, cfg.Telemetry.Logs.Format, f.level)
	f.registry, f.used = prometheus.NewRegistry(), newUsed()
	f.scraped = &scraped{registry: f.registry}
	f.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	f.connections = telemetry.NewMetrics(f.registry)
	f.metrics, f.upstreams = newTLSMetrics(f), newUpstreamMetrics(f.registry)
	f.reloads = newReloads(f)
	f.initUpgrades()
	if err := f.startTracing(&cfg.Telemetry.Traces); err != nil {
		return nil, exit(exitUsage, err)
	}
	var err error
	if f.told, err = f.tell(&cfg.Telemetry.Logs); err != nil {
		return nil, exit(exitNotStart, err)
	}
	f.outs = newEvictor(f)
	f.connections.TraceID = f.tracing.TraceID
	f.trace = levee.Traces(f.connections.Trace(), telemetry.Log(f.log), f.told.trace(), f.policyTrace(), f.limitTrace(), f.tracing.hooks())
	f.web = webHandlers{
		hello:     httpserve.Handler(f.httpServer(handlers.Hello)),
		challenge: httpserve.Handler(f.httpServer(http.HandlerFunc(f.answerChallenge))),
	}
	if f.shared, err = newSharedStore(&cfg.Redis); err != nil {
		return nil, exit(exitUsage, err)
	}
	g, err := f.build(cfg, nil)
	if err != nil {
		return nil, err
	}
	f.now.Store(g)
	f.registry.MustRegister(&limitMetrics{f}, &overloadMetrics{f})
	if !cfg.Admin.Listen.Off() {
		if f.admin, err = f.adminServer(&cfg.Admin); err != nil {
			return nil, exit(exitUsage, err)
		}
	}
	return f, nil
}

// endTLS has the server end TLS before any routing, where that is the same for all of the listener.
func endTLS(server *levee.Server, l *config.Listener, s *security) {
	if whole := s.whole(l); whole != nil {
		server.TLSConfig, server.AllowPlaintext = whole.config, l.TLS.Mode == config.TLSOptional
	}
}

// filesPerConn returns how many files a listener's connection takes: two if it is joined
// to an upstream.
func filesPerConn(l *config.Listener) int {
	if l.Proxies() {
		return 2
	}
	return 1
}

// shareConns gives each listener its cap on connections: its own figure, or an
// equal share of what the limit of open files leaves. None needs more than all of them
// may have together, if that is not 0.
func shareConns(listeners []config.Listener, together int) []int {
	total, sharers := levee.DefaultMaxConns(), 0
	left := total
	shares := make([]int, len(listeners))
	for i := range listeners {
		shares[i] = listeners[i].Limits.MaxConnections
		if shares[i] == 0 {
			sharers++
		} else {
			left -= shares[i] * filesPerConn(&listeners[i])
		}
	}
	for i := range shares {
		if shares[i] == 0 && total > 0 {
			shares[i] = max(1, left/sharers)
			if listeners[i].Proxies() {
				shares[i] = levee.JoinedConns(shares[i])
			}
			if together > 0 {
				shares[i] = min(shares[i], together)
			}
		}
	}
	return shares
}

func (f *front) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
	}
}

// open opens every port, or none.
func (f *front) open(ctx context.Context) (*opening, error) {
	g := f.now.Load()
	p, err := g.opens(ctx)
	if err != nil || f.admin == nil {
		return p, err
	}
	l, err := f.listenPrivately(ctx, g.cfg.Admin.Listen)
	if err != nil {
		p.abandon()
		return nil, fmt.Errorf("admin: %w", err)
	}
	f.adminSocket = newDoorway(l)
	return p, nil
}

// run serves until a signal, the context or a broken listener ends it, and
// drains. What it started has ended when it returns.
func (f *front) run(ctx context.Context, p *opening) error {
	defer f.told.close()
	defer f.tracing.end(f.log)
	defer f.shared.close()
	defer f.env.process.Leave()
	defer f.awaitRunning()
	beside, stop := context.WithCancel(context.Background())
	defer stop()
	if err := f.begin(ctx, beside, p); err != nil {
		return exit(exitNotStart, err)
	}
	if f.admin != nil {
		f.admin.SetReady(true)
		f.running.Go(func() { // ends with admin.Close
			if err := f.admin.Serve(f.adminSocket); err != nil {
				f.log.Error("admin port is down", "err", err)
			}
		})
		defer f.admin.Close()
	}
	f.running.Go(func() { f.reloads.run(beside) })
	if err := f.wait(ctx); err != nil {
		if f.isWatched() {
			f.log.Error("ended, as the process before can still go on in this one's place", "err", err)
			f.closeServers()
			return &exitError{code: exitNotStart}
		}
		f.ending.Store(true)
		f.log.Error("draining, as a listener is down", "err", err)
		_ = f.drain() // it has said how that went
		return &exitError{code: exitCut}
	}
	return f.drain()
}

// begin has the first generation come into force, once it is this process's turn.
func (f *front) begin(ctx, beside context.Context, p *opening) error {
	f.reloading.Lock()
	defer f.reloading.Unlock()
	f.beside = beside
	g := f.now.Load()
	f.restore(g.backendHeirlooms())
	g.begin()
	for _, p := range f.own {
		p.run(beside, &f.running)
	}
	f.running.Go(func() { f.outs.run(beside) })
	f.running.Go(func() { f.tellRefusals(beside) })
	f.running.Go(func() { f.tidyUp(beside) })
	f.running.Go(func() { f.upgrades.hearLast(beside) })
	if err := f.awaitTurn(ctx); err != nil {
		p.abandon()
		return err
	}
	g.enter(p, nil)
	return nil
}

// wait returns nil when it is time to drain.
func (f *front) wait(ctx context.Context) error {
	for {
		select {
		case sig := <-f.env.Signals:
			switch sig {
			case syscall.SIGHUP:
				f.reloads.ask()
				continue
			case upgradeSignal:
				f.running.Go(f.upgradeBySignal) // each of its steps has a bound
				continue
			}
			f.awaitFreedom()
			f.stopped = true
			f.upgrades.stop(sig)
			f.tellDraining("draining", "signal", sig.String())
			return nil
		case <-f.upgrades.handed:
			f.tellDraining("draining what has not moved")
			return nil
		case <-f.state.asked:
			f.awaitFreedom()
			f.stopped = true
			f.upgrades.stop(syscall.SIGTERM)
			f.tellDraining("draining", "by", "an operator")
			return nil
		case <-ctx.Done():
			f.upgrades.stop(syscall.SIGTERM)
			f.tellDraining("draining")
			return nil
		case err := <-f.broken:
			f.upgrades.stop(syscall.SIGTERM)
			return err
		}
	}
}

// tellDraining says that levee drains, once that is so: a reload that is asked for after that is refused.
func (f *front) tellDraining(message string, args ...any) {
	f.ending.Store(true)
	f.log.Info(message, append(args, "timeout", f.now.Load().cfg.Drain.Timeout)...)
}

// isWatched reports whether the process before would go on in this one's place if it ended.
func (f *front) isWatched() bool { return !isClosed(f.env.process.Free()) }

// isStop reports whether a signal is one to end.
func isStop(sig os.Signal) bool { return sig != syscall.SIGHUP && sig != upgradeSignal }

// awaitFreedom waits for the end of the upgrade by which this process has come, which has a bound, or for another signal to end: else
// the process before would go on in this one's place.
func (f *front) awaitFreedom() {
	if f.isWatched() {
		f.log.Info("draining when the upgrade is over that this process has come by")
	}
	for {
		select {
		case <-f.env.process.Free():
			return
		case sig := <-f.env.Signals:
			if isStop(sig) {
				return
			}
		}
	}
}

// drain lets the connections finish. Another signal ends it at once.
func (f *front) drain() error {
	began := time.Now()
	f.told.record.draining(f.now.Load().cfg.Drain.Timeout)
	f.state.drains(began, f.patience())
	if !f.upgrades.isHanded() { // the service goes on elsewhere
		_ = handover.Notify("STOPPING=1", "STATUS=Draining") // it matters to nobody else if that fails
	}
	if f.admin != nil {
		f.admin.SetReady(false)
	}
	done := make(chan struct{})
	defer close(done)
	hurry := f.hurry(done)
	f.hurried = hurry
	go func() { // ends with done
		select {
		case <-hurry:
			f.log.Warn("a second signal: cutting what is left")
			f.closeServers()
		case <-done:
		}
	}()
	go func() { // ends with done
		select {
		case err := <-f.env.process.HeirFailed():
			f.log.Error("the process that has taken over has failed, and nobody serves: cutting what is left, for another to be started", "err", err)
			f.closeServers()
		case <-done:
		}
	}()
	f.endReloads(hurry)
	cfg := &f.now.Load().cfg.Drain
	if pause := cfg.PreStop; pause > 0 && !f.upgrades.isHanded() {
		f.log.Info("not ready any more, still accepting", "pre_stop", pause)
		select {
		case <-hurry:
		case <-time.After(pause):
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Timeout)
	defer cancel()
	f.running.Go(func() { f.upgrades.tellLeft(done) })
	went := f.shutDown(ctx)
	f.told.record.drained(went)
	took := time.Since(began).Round(time.Millisecond)
	if went.Cut > 0 {
		f.log.Error("drained, but connections that had not finished were cut", "cut", went.Cut, "drained", went.Drained, "gone", went.Gone, "took", took)
		return &exitError{code: exitCut}
	}
	f.log.Info("drained", "drained", went.Drained, "gone", went.Gone, "took", took)
	return nil
}

// endReloads waits for the generation that is about to come, unless that would take too long for who is in a hurry. There
// is none after that.
func (f *front) endReloads(hurry <-chan struct{}) {
	ended := make(chan struct{})
	go func() { // ends with the reload
		defer close(ended)
		f.reloading.Lock()
		defer f.reloading.Unlock()
		close(f.ended)
	}()
	select {
	case <-ended:
	case <-hurry:
	}
}

// lastWork is what those who work beside the servers have to come to an end when there has been a second signal.
const lastWork = 100 * time.Millisecond

// awaitRunning waits for all that was started, but hardly if somebody is in a hurry: a reload may wait for others.
func (f *front) awaitRunning() {
	over := make(chan struct{})
	go func() { // ends with them
		defer close(over)
		f.running.Wait()
	}()
	select {
	case <-over:
		return
	case <-f.hurried:
	}
	select {
	case <-over:
	case <-time.After(lastWork):
	}
}

// hurry returns a channel that is closed at the second signal to stop. A process whose place another has taken has had none:
// a supervisor sends the first to both.
func (f *front) hurry(done <-chan struct{}) <-chan struct{} {
	hurry := make(chan struct{})
	go func() { // ends with done
		isFirst := f.upgrades.isHanded() && !f.stopped
		for {
			select {
			case sig := <-f.env.Signals:
				switch sig {
				case syscall.SIGHUP:
					f.reloads.ask()
				case upgradeSignal:
				default:
					if isFirst {
						isFirst = false
						continue
					}
					close(hurry)
					return
				}
			case <-done:
				return
			}
		}
	}()
	return hurry
}

// shutDown drains all servers at the same time and returns what has become of their connections.
func (f *front) shutDown(ctx context.Context) (went levee.DrainReport) {
	var all sync.WaitGroup
	servers := f.allServers()
	for _, server := range servers {
		all.Go(func() { _ = server.Shutdown(ctx) }) // its report says so
	}
	all.Wait()
	return reportOf(servers)
}

// closeServers cuts all connections, and those of the listeners that a reload may be about to add.
func (f *front) closeServers() {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	for _, l := range f.every() {
		_ = l.server.Close()
	}
}
