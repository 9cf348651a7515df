package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/httpserve"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/telemetry"
)

// A front is a configuration come to life: a server for each of its listeners,
// and the admin port beside them.
type front struct {
	cfg *config.Config
	env Env
	log *slog.Logger

	servers  []*levee.Server // one for each listener, in the configuration's order
	secured  []*security     // the same
	sockets  [][]net.Listener
	backends []*backend // one for each upstream, in the configuration's order

	admin       *admin.Server // nil when off
	adminSocket net.Listener

	ca          *certs.CA    // nil when no listener asks for it
	shared      *sharedStore // nil when no Redis is configured
	issuers     []*issuer
	reloadables []reloadable
	policies    []*policy
	policyOf    map[*tls.Config]*policy // of what TLS ends with

	limits *limiting
	relief *relief

	metrics *tlsMetrics
}

// assemble builds everything that can be built before a port is opened. Its
// errors carry their exit code.
func assemble(cfg *config.Config, env Env) (*front, error) {
	f := &front{cfg: cfg, env: env, log: newLogger(env, cfg.Telemetry.Logs)}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := telemetry.NewMetrics(registry)
	f.metrics, f.policyOf = newTLSMetrics(registry), make(map[*tls.Config]*policy)

	upstreams := newUpstreamMetrics(registry)
	for i := range cfg.Upstreams {
		b, err := newBackend(&cfg.Upstreams[i], f.log, upstreams)
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		f.backends = append(f.backends, b)
	}
	var err error
	if f.shared, err = newSharedStore(&cfg.Redis); err != nil {
		return nil, exit(exitUsage, err)
	}
	web := webHandlers{
		hello:     httpserve.Handler(f.httpServer(handlers.Hello)),
		challenge: httpserve.Handler(f.httpServer(http.HandlerFunc(f.answerChallenge))),
	}
	for i := range cfg.Listeners {
		secured, err := f.secure(&cfg.Listeners[i], fmt.Sprintf("listeners[%d]", i))
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		f.secured = append(f.secured, secured)
	}
	if err := f.limit(); err != nil {
		return nil, exit(exitUsage, err)
	}
	registry.MustRegister(&limitMetrics{f.limits})
	trace := levee.Traces(metrics.Trace(), telemetry.Log(f.log), f.policyTrace(), f.limits.trace())
	shares := shareConns(cfg.Listeners, cfg.Limits.MaxConnections)
	for i := range cfg.Listeners {
		l, secured := &cfg.Listeners[i], f.secured[i]
		serve := func(j int) levee.Handler { return f.limits.route(i, j, f.handler(l, j, &web)) }
		server := &levee.Server{
			Name:               l.Name,
			Handler:            handlerOf(l, secured, serve),
			Gate:               f.limits.gates[i],
			MaxHandshakes:      l.Limits.Handshakes,
			MaxArrivals:        l.Limits.Arriving,
			ProxyFrom:          l.ProxyProtocol.From,
			MaxConns:           shares[i],
			ArrivalTimeout:     l.Timeouts.Arrival,
			ProxyHeaderTimeout: l.Timeouts.ProxyHeader,
			SniffTimeout:       l.Timeouts.Sniff,
			IdleTimeout:        l.Timeouts.Idle,
			HalfClosedTimeout:  l.Timeouts.HalfClosed,
			WriteStallTimeout:  l.Timeouts.WriteStall,
			MessageTimeout:     l.Timeouts.Message,
			MaxLifetime:        l.Timeouts.Lifetime,
			DrainTimeout:       cfg.Drain.Timeout,
			Trace:              trace,
			Logger:             f.log,
		}
		endTLS(server, l, secured)
		f.adopt(secured, server)
		metrics.Watch(server)
		f.servers = append(f.servers, server)
	}
	f.relief = f.relieve()
	registry.MustRegister(&overloadMetrics{f.relief})
	if !cfg.Admin.Listen.Off() {
		f.admin = &admin.Server{Metrics: registry, Log: f.log, API: f.api()}
	}
	return f, nil
}

// endTLS has the server end TLS before any routing, where that is the same for all of the listener.
func endTLS(server *levee.Server, l *config.Listener, s *security) {
	if whole := s.whole(l); whole != nil {
		server.TLSConfig, server.AllowPlaintext = whole.config, l.TLS.Mode == config.TLSOptional
	}
}

// adopt has the listener's policies for clients kept on the server's connections.
func (f *front) adopt(s *security, server *levee.Server) {
	for _, t := range s.terms {
		if t.clients == nil {
			continue
		}
		f.policyOf[t.config] = t.clients
		if t.clients.server == nil {
			t.clients.server = server
			f.policies = append(f.policies, t.clients)
		}
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
func (f *front) open(ctx context.Context) error {
	err := f.openAll(ctx)
	if err != nil {
		f.closeSockets()
	}
	return err
}

func (f *front) openAll(ctx context.Context) error {
	for _, l := range f.cfg.Listeners {
		f.sockets = append(f.sockets, nil)
		where := "change it in the configuration"
		if len(f.cfg.Listeners) == 1 {
			where = "choose another with --listen"
		}
		for _, address := range l.Listen {
			socket, err := listen(ctx, address, where)
			if err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
			last := len(f.sockets) - 1
			f.sockets[last] = append(f.sockets[last], socket)
		}
	}
	if f.admin != nil {
		socket, err := listenPrivately(ctx, f.cfg.Admin.Listen)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		f.adminSocket = socket
	}
	return nil
}

func (f *front) closeSockets() {
	for _, sockets := range f.sockets {
		for _, s := range sockets {
			_ = s.Close()
		}
	}
	if f.adminSocket != nil {
		_ = f.adminSocket.Close()
	}
}

// run serves until a signal, the context or a broken listener ends it, and
// drains. What it started has ended when it returns.
func (f *front) run(ctx context.Context) error {
	var running sync.WaitGroup
	defer f.shared.close()
	defer running.Wait()
	beside, stop := context.WithCancel(context.Background())
	defer stop()
	f.startBackends(beside, &running)
	f.watchFiles(beside, &running)
	f.issue(beside, &running)
	f.limits.run(beside, &running)
	f.relief.run(beside, &running)
	broken := make(chan error, len(f.servers))
	for i, server := range f.servers {
		running.Go(func() { // ends with the server, which drain sees to
			if err := server.Serve(context.Background(), f.sockets[i]...); !errors.Is(err, levee.ErrServerClosed) {
				broken <- fmt.Errorf("listener %s: %w", server.Name, err)
			}
		})
	}
	if f.admin != nil {
		f.admin.SetReady(true)
		running.Go(func() { // ends with admin.Close
			if err := f.admin.Serve(f.adminSocket); err != nil {
				f.log.Error("admin port is down", "err", err)
			}
		})
		defer f.admin.Close()
	}
	if err := f.wait(ctx, broken); err != nil {
		f.log.Error("draining, as a listener is down", "err", err)
		_ = f.drain() // it has said how that went
		return &exitError{code: exitCut}
	}
	return f.drain()
}

// wait returns nil when it is time to drain.
func (f *front) wait(ctx context.Context, broken <-chan error) error {
	for {
		select {
		case sig := <-f.env.Signals:
			if sig == syscall.SIGHUP {
				f.reload()
				continue
			}
			f.log.Info("draining", "signal", sig.String(), "timeout", f.cfg.Drain.Timeout)
			return nil
		case <-ctx.Done():
			f.log.Info("draining", "timeout", f.cfg.Drain.Timeout)
			return nil
		case err := <-broken:
			return err
		}
	}
}

// drain lets the connections finish. Another signal ends it at once.
func (f *front) drain() error {
	began := time.Now()
	if f.admin != nil {
		f.admin.SetReady(false)
	}
	done := make(chan struct{})
	defer close(done)
	hurry := f.hurry(done)
	if pause := f.cfg.Drain.PreStop; pause > 0 {
		f.log.Info("not ready any more, still accepting", "pre_stop", pause)
		select {
		case <-hurry:
		case <-time.After(pause):
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.cfg.Drain.Timeout)
	defer cancel()
	go func() { // ends with done
		select {
		case <-hurry:
			f.log.Warn("a second signal: cutting what is left")
			f.closeServers()
		case <-done:
		}
	}()
	cut := f.shutDown(ctx)
	took := time.Since(began).Round(time.Millisecond)
	if cut > 0 {
		f.log.Error("drained, but connections that had not finished were cut", "cut", cut, "took", took)
		return &exitError{code: exitCut}
	}
	f.log.Info("drained", "took", took)
	return nil
}

// hurry returns a channel that is closed at the next signal to stop.
func (f *front) hurry(done <-chan struct{}) <-chan struct{} {
	hurry := make(chan struct{})
	go func() { // ends with done
		for {
			select {
			case sig := <-f.env.Signals:
				if sig != syscall.SIGHUP {
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

// shutDown drains all servers at the same time and returns how many connections
// had to be cut.
func (f *front) shutDown(ctx context.Context) int {
	var (
		all sync.WaitGroup
		mu  sync.Mutex
		cut int
	)
	for _, server := range f.servers {
		all.Go(func() {
			drained := (*levee.DrainError)(nil)
			if errors.As(server.Shutdown(ctx), &drained) {
				mu.Lock()
				defer mu.Unlock()
				cut += drained.Cut
			}
		})
	}
	all.Wait()
	return cut
}

func (f *front) closeServers() {
	for _, server := range f.servers {
		_ = server.Close()
	}
}
