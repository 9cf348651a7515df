package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
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
	"github.com/levee-net/levee/route"
	"github.com/levee-net/levee/telemetry"
)

// A front is a configuration come to life: a server for each of its listeners,
// and the admin port beside them.
type front struct {
	cfg *config.Config
	env Env
	log *slog.Logger

	servers  []*levee.Server // one for each listener, in the configuration's order
	sockets  [][]net.Listener
	backends []*backend // one for each upstream, in the configuration's order

	admin       *admin.Server // nil when off
	adminSocket net.Listener

	ca *certs.CA // nil when no listener asks for it
}

// assemble builds everything that can be built before a port is opened. Its
// errors carry their exit code.
func assemble(cfg *config.Config, env Env) (*front, error) {
	f := &front{cfg: cfg, env: env, log: newLogger(env, cfg.Telemetry.Logs)}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := telemetry.NewMetrics(registry)
	trace := levee.Traces(metrics.Trace(), telemetry.Log(f.log))

	upstreams := newUpstreamMetrics(registry)
	for i := range cfg.Upstreams {
		b, err := newBackend(&cfg.Upstreams[i], f.log, upstreams)
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		f.backends = append(f.backends, b)
	}
	hello := httpserve.Handler(f.helloServer())
	shares := shareConns(cfg.Listeners)
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		tlsConfig, err := f.tlsConfig(l)
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		server := &levee.Server{
			Name:               l.Name,
			Handler:            f.routes(l, hello),
			TLSConfig:          tlsConfig,
			AllowPlaintext:     l.TLS.Mode == config.TLSOptional,
			ProxyFrom:          l.ProxyProtocol.From,
			MaxConns:           shares[i],
			ArrivalTimeout:     l.Timeouts.Arrival,
			ProxyHeaderTimeout: l.Timeouts.ProxyHeader,
			SniffTimeout:       l.Timeouts.Sniff,
			IdleTimeout:        l.Timeouts.Idle,
			HalfClosedTimeout:  l.Timeouts.HalfClosed,
			WriteStallTimeout:  l.Timeouts.WriteStall,
			MaxLifetime:        l.Timeouts.Lifetime,
			DrainTimeout:       cfg.Drain.Timeout,
			Trace:              trace,
			Logger:             f.log,
		}
		metrics.Watch(server)
		f.servers = append(f.servers, server)
	}
	if !cfg.Admin.Listen.Off() {
		f.admin = &admin.Server{Metrics: registry, Log: f.log}
	}
	return f, nil
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
// equal share of what the limit of open files leaves.
func shareConns(listeners []config.Listener) []int {
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
		}
	}
	return shares
}

// tlsConfig returns what the listener terminates TLS with, nil if it does not.
func (f *front) tlsConfig(l *config.Listener) (*tls.Config, error) {
	if l.TLS.Mode == config.TLSOff {
		return nil, nil
	}
	if l.TLS.Development {
		return f.developmentTLS()
	}
	pairs := make([]certs.Pair, 0, len(l.TLS.Certificates))
	for _, c := range l.TLS.Certificates {
		pairs = append(pairs, certs.Pair{Cert: c.Cert, Key: c.Key})
	}
	files := &certs.Files{Pairs: pairs, Problem: func(err error) { f.log.Warn("certificates", "listener", l.Name, "err", err) }}
	err := files.Load()
	if err == nil {
		return (&certs.Server{GetCertificate: files.GetCertificate, Context: l.Name}).Config(), nil
	}
	for i, c := range l.TLS.Certificates { // which of them is it?
		if err := (&certs.Files{Pairs: pairs[i : i+1]}).Load(); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Pos, err)
		}
	}
	return nil, err
}

// developmentTLS uses the development CA, the same for all listeners. Where there
// is no folder to keep it in it lives as long as the process.
func (f *front) developmentTLS() (*tls.Config, error) {
	if f.ca == nil {
		dir, err := f.env.developmentDir()
		if err != nil {
			f.log.Warn("the development CA is kept in memory only", "err", err)
		}
		if f.env.lookOnly && !certs.HasDevelopmentCA(dir) {
			dir = ""
		}
		ca, err := certs.DevelopmentCA(dir)
		if cannotKeep(err) {
			f.log.Warn("the development CA is kept in memory only", "err", err)
			ca, err = certs.DevelopmentCA("")
		}
		if err != nil {
			return nil, err
		}
		f.ca = ca
	}
	return f.ca.ServerConfig(), nil
}

// cannotKeep reports whether the folder is of no use, as that of a service's user
// often is; a CA in it that is no good is another matter.
func cannotKeep(err error) bool {
	for _, reason := range []error{os.ErrPermission, syscall.EROFS, syscall.ENOTDIR, syscall.ENOSPC} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// routes returns the listener's handler. One route needs no router.
func (f *front) routes(l *config.Listener, hello levee.Handler) levee.Handler {
	builtin := map[config.Handler]levee.Handler{
		config.HandlerEcho:    handlers.Echo,
		config.HandlerDiscard: handlers.Discard,
		config.HandlerHello:   helloFor(l, hello),
	}
	matchers := map[config.Protocol]route.Matcher{
		"":                  nil,
		config.ProtocolHTTP: route.HTTP,
		config.ProtocolTLS:  route.TLS,
	}
	serve := func(r *config.Route) levee.Handler {
		for _, b := range f.backends {
			if b.cfg.Name == r.Upstream {
				return b.proxy
			}
		}
		return builtin[r.Handler]
	}
	if len(l.Routes) == 1 {
		return serve(&l.Routes[0])
	}
	router := &route.Router{}
	for i := range l.Routes {
		r := &l.Routes[i]
		router.Routes = append(router.Routes, route.Route{Match: matchers[r.Match.Protocol], Handler: serve(r)})
	}
	return router
}

// helloFor returns what greets the listener's HTTP requests: in plaintext the page,
// which an event loop can serve, and over TLS net/http, which knows HTTP/2.
func helloFor(l *config.Listener, secure levee.Handler) levee.Handler {
	switch l.TLS.Mode {
	case config.TLSOff:
		return handlers.HelloPage
	case config.TLSOptional:
		return helloRouter{secure}
	}
	return secure
}

type helloRouter struct{ secure levee.Handler }

func (r helloRouter) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) {
	if c.TLS() == nil {
		return handlers.HelloPage, nil
	}
	return r.secure, nil
}

func (r helloRouter) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, _ := r.Route(ctx, c) // never fails
	return h.ServeTCP(ctx, c)
}

func (f *front) helloServer() *http.Server {
	return &http.Server{
		Handler:           handlers.Hello,
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
	defer running.Wait()
	upstreams, stop := context.WithCancel(context.Background())
	defer stop()
	f.startBackends(upstreams, &running)
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
				f.log.Warn("SIGHUP ignored: this version does not reload, restart it to apply a new configuration")
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
