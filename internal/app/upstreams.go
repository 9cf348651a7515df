package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
	"github.com/levee-net/levee/upstream/probe"
)

// A backend is a configured upstream come to life: a pool, and those who tell it where
// its servers are.
type backend struct {
	cfg    *config.Upstream
	log    *slog.Logger
	pool   *upstream.Pool
	header proxy.Header
	record record

	itself  levee.Target // for those who are looking for a server
	targets sync.Map     // *levee.Target by a server's name

	tracing *tracing

	sources []*lookout

	mu         sync.Mutex
	collecting bool   // answers, which the pool is to be told of at once
	users      int    // connections, and tries to make one
	unused     func() // called when there are none; nil while a generation that is in force has it
}

// A source tells where servers are, and again when that changes, until ctx ends.
type source interface {
	Run(ctx context.Context, update func([]upstream.Server)) error
}

// A lookout is a source, and what has been heard from it.
type lookout struct {
	source
	where string // for logs
	once  sync.Once
	heard chan struct{} // closed once there has been an answer

	servers []upstream.Server // guarded by the backend's mu
}

func newLookout(where string) *lookout { return &lookout{where: where, heard: make(chan struct{})} }

func (l *lookout) answered() { l.once.Do(func() { close(l.heard) }) }

// backend returns what serves an upstream. One that says the same keeps all that it knows of its servers.
func (g *generation) backend(cfg *config.Upstream) (*backend, error) {
	key := "upstream " + config.Said(cfg) + contentsOf(cfg.TLS.CA, cfg.TLS.Certificate, cfg.TLS.Key)
	return keep(g, key, func(p *part) (*backend, error) {
		b, err := newBackend(cfg, g.log, g.upstreams, g.told.record)
		if err != nil {
			return nil, err
		}
		b.tracing = g.tracing
		p.retire = b.retire
		p.run = func(ctx context.Context, running *sync.WaitGroup) {
			g.upstreams.watch(cfg.Name, b.pool)
			b.start(ctx, running)
		}
		metrics := g.upstreams // and not g, or it would live as long as the pool
		p.over = func() { metrics.unwatch(cfg.Name, b.pool) }
		return b, nil
	})
}

// newBackend builds what can be built before anything is dialled.
func newBackend(cfg *config.Upstream, log *slog.Logger, metrics *upstreamMetrics, record record) (*backend, error) {
	b := &backend{cfg: cfg, log: log.With("upstream", cfg.Name), record: record, itself: levee.Target{Upstream: cfg.Name}}
	balance, err := upstream.ParseBalance(cfg.Balance)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Pos, err)
	}
	header, err := proxy.ParseHeader(cfg.SendProxy)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Pos, err)
	}
	secure, err := upstreamTLS(&cfg.TLS)
	if err != nil {
		return nil, fmt.Errorf("%s: upstream %s: %w", cfg.Pos, cfg.Name, err)
	}
	b.pool = &upstream.Pool{
		Name:             cfg.Name,
		Balance:          balance,
		TLS:              secure,
		HandshakeTimeout: cfg.TLS.HandshakeTimeout,
		Source:           cfg.Dial.Source,
		DialTimeout:      cfg.Dial.Timeout,
		Tries:            cfg.Dial.Tries,
		TotalTimeout:     cfg.Dial.TotalTimeout,
		RetryBudget:      cfg.Dial.RetryBudget,
		MaxConnections:   cfg.MaxConnections,
		QueueTimeout:     cfg.Queue.Timeout,
		MaxQueue:         cfg.Queue.Length,
		SlowStart:        cfg.SlowStart,
		PanicThreshold:   cfg.PanicThreshold,
		Health:           healthOf(&cfg.Health, header),
		Breaker:          breakerOf(&cfg.Breaker),
		EarlyClose:       cfg.EarlyClose,
		CutOnDown:        cfg.OnDown.Cut,
		CutRate:          cfg.OnDown.Rate,
		Rebalance:        cfg.Rebalance,
		Trace:            b.trace(metrics.of(cfg.Name)),
	}
	b.header = header
	b.sources = b.sourcesOf(cfg.Servers)
	return b, nil
}

func upstreamTLS(cfg *config.UpstreamTLS) (*tls.Config, error) {
	if cfg.Mode != config.ModeOn {
		return nil, nil
	}
	secure := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         cfg.ServerName,
		InsecureSkipVerify: cfg.SkipVerify, //nolint:gosec // asked for by name, and said in the honesty report
	}
	var err error
	if secure.RootCAs, err = rootsOf(cfg.CA); err != nil {
		return nil, err
	}
	if cfg.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(cfg.Certificate, cfg.Key)
		if err != nil {
			return nil, err
		}
		secure.Certificates = []tls.Certificate{pair}
	}
	return secure, nil
}

func healthOf(cfg *config.Health, header proxy.Header) upstream.Health {
	return upstream.Health{
		Interval:     cfg.Interval,
		FastInterval: cfg.FastInterval,
		Timeout:      cfg.Timeout,
		Fall:         cfg.Fall,
		Rise:         cfg.Rise,
		Probe:        probeOf(cfg),
		First:        header.Local(),
	}
}

// probeOf returns nil where connecting is all.
func probeOf(cfg *config.Health) probe.Probe {
	switch cfg.Probe {
	case config.ProbeSendExpect:
		return probe.SendExpect([]byte(cfg.Send), []byte(cfg.Expect))
	case config.ProbePostgres:
		return probe.Postgres(cfg.User, cfg.Database)
	case config.ProbeMySQL:
		return probe.MySQL(cfg.User)
	case config.ProbeRedis:
		return probe.Redis(cfg.Password)
	case config.ProbeHTTP:
		return probe.HTTP(probe.Request{Path: cfg.Path, Host: cfg.Host})
	}
	return nil
}

func breakerOf(cfg *config.Breaker) upstream.Breaker {
	if cfg.Mode == config.ModeOff {
		return upstream.Breaker{Failures: -1, Rate: -1}
	}
	return upstream.Breaker{
		Failures: cfg.Failures,
		Rate:     cfg.Rate,
		Volume:   cfg.Volume,
		Window:   cfg.Window,
		Open:     cfg.Open,
		MaxOpen:  cfg.MaxOpen,
		Probes:   cfg.Probes,
	}
}

// sourcesOf returns one source for all servers with fixed addresses, and one for each of
// the others.
func (b *backend) sourcesOf(servers []config.ServerSource) []*lookout {
	var fixed discover.Static
	var sources []*lookout
	for _, s := range servers {
		l := newLookout(s.Address)
		problem := b.problem(l)
		switch s.Kind {
		case config.KindAddress:
			fixed = append(fixed, upstream.Server{Name: s.Name, Addresses: []string{s.Address}, Weight: s.Weight, Tier: s.Tier})
		case config.KindName, config.KindDNS:
			host, port, _ := net.SplitHostPort(s.Address) // the configuration has been checked
			number, _ := strconv.Atoi(port)
			dns := &discover.DNS{Name: host, Port: number, Single: s.Kind == config.KindName, Problem: problem}
			l.source = &like{dns, s}
		case config.KindSRV:
			l.source = &discover.SRV{Name: s.Address, Problem: problem}
		case config.KindFile:
			l.source = &discover.File{Path: s.Address, Problem: problem}
		}
		if l.source != nil {
			sources = append(sources, l)
		}
	}
	if len(fixed) > 0 {
		l := newLookout("configuration")
		l.source = fixed
		sources = append(sources, l)
	}
	return sources
}

// like gives the servers of a source what the configuration says of them.
type like struct {
	source
	as config.ServerSource
}

func (l *like) Run(ctx context.Context, update func([]upstream.Server)) error {
	return l.source.Run(ctx, func(servers []upstream.Server) {
		servers = append([]upstream.Server(nil), servers...)
		for i := range servers {
			servers[i].Weight, servers[i].Tier = l.as.Weight, l.as.Tier
			if l.as.Name != "" && len(servers) == 1 {
				servers[i].Name = l.as.Name
			}
		}
		update(servers)
	})
}

// problemPause is how often a source's trouble is logged.
const problemPause = 30 * time.Second

// problem logs a source's trouble, now and then. That there is no such name or file is an
// answer, too.
func (b *backend) problem(l *lookout) func(error) {
	var last time.Time
	return func(err error) { // by the source's goroutine alone
		if errors.Is(err, discover.ErrAbsent) || errors.Is(err, fs.ErrNotExist) {
			defer l.answered()
		}
		if !last.IsZero() && time.Since(last) < problemPause { // whatever it says: such texts have numbers in them that change
			return
		}
		last = time.Now()
		b.mu.Lock()
		known := len(l.servers) > 0
		b.mu.Unlock()
		message := "servers cannot be found, trying again"
		if known {
			message = "servers may have changed unnoticed, trying again"
		}
		b.log.Warn(message, "where", l.where, "err", err)
	}
}

// trace logs what an operator wants to know of the pool.
func (b *backend) trace(metrics *upstreamMetric) *upstream.Trace {
	return &upstream.Trace{
		ServerAdded: func(server string) { b.log.Info("server added", "server", server) },
		ServerLeft: func(server string) {
			b.targets.Delete(server)
			b.log.Info("server left", "server", server)
		},
		ServerUp: func(server string) {
			b.log.Info("server up", "server", server)
			b.record.serverUp(b.cfg.Name, server)
		},
		ServerDown: func(server string, err error) {
			b.log.Warn("server down", "server", server, "err", err)
			b.record.serverDown(b.cfg.Name, server, err)
		},
		BreakerChanged: func(server string, from, to upstream.BreakerState) {
			level := slog.LevelInfo
			if to == upstream.BreakerOpen {
				level = slog.LevelWarn
			}
			b.log.Log(context.Background(), level, "breaker "+to.String(), "server", server, "was", from.String())
			b.record.breakerChanged(b.cfg.Name, server, from, to)
		},
		Dialed: metrics.dialed,
	}
}

// dial is the proxy's.
func (b *backend) dial(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error) {
	request := upstream.Request{First: header, Client: b.clientOf(c), Tried: b.tracing.tries(c, b.cfg.Name)}
	if b.pool.Balance == upstream.SourceHash || b.pool.Balance == upstream.Maglev {
		addr := c.ClientAddr().Addr().As16()
		request.Key = upstream.Hash(addr[:])
	}
	c.SetTarget(&b.itself, 0)
	b.enter()
	conn, err := b.pool.Dial(ctx, request)
	if err != nil {
		b.leave()
		return levee.Upstream{}, err
	}
	c.SetTarget(b.target(conn.Server()), conn.Tries())
	return levee.Upstream{Conn: conn.Conn, Rest: restOf(b.cfg.Speaks()), Ended: b.toldBy(conn.Ended)}, nil
}

// resume is the proxy's, for what another process has dialled.
func (b *backend) resume(c *levee.Conn) (levee.Upstream, error) {
	to := c.Target()
	if to == nil || to.Upstream != b.cfg.Name {
		return levee.Upstream{}, fmt.Errorf("upstream %s: the connection is to another", b.cfg.Name)
	}
	b.enter()
	over, err := b.pool.Resume(to.Server, b.clientOf(c))
	if err != nil {
		b.leave()
		return levee.Upstream{}, err
	}
	c.SetTarget(b.target(to.Server), c.Story().Tries)
	return levee.Upstream{Rest: restOf(b.cfg.Speaks()), Ended: b.toldBy(over)}, nil
}

// toldBy returns what tells the pool how a connection has ended.
func (b *backend) toldBy(over func(upstream.End)) func(levee.UpstreamEnd) {
	return func(end levee.UpstreamEnd) {
		defer b.leave()
		over(upstream.EndOf(end))
	}
}

// clientOf returns the connection as its pool sees it, if that has something to ask of it.
func (b *backend) clientOf(c *levee.Conn) upstream.Client {
	if b.pool.CutOnDown || b.pool.Rebalance > 0 {
		return upstream.ClientOf(c)
	}
	return nil
}

// restOf returns what knows when a client of a server that speaks a protocol may leave; nil if nothing does.
func restOf(protocol config.Protocol) func(first, last []byte) levee.Rest {
	switch protocol {
	case config.ProtocolPostgres:
		return proxy.PostgresRest
	case config.ProtocolRedis:
		return proxy.RedisRest
	}
	return nil
}

// target is the same for all connections to a server, for as long as it is among the pool's.
func (b *backend) target(server string) *levee.Target {
	if to, ok := b.targets.Load(server); ok {
		return to.(*levee.Target)
	}
	to, _ := b.targets.LoadOrStore(server, &levee.Target{Upstream: b.cfg.Name, Server: server})
	return to.(*levee.Target)
}

func (b *backend) enter() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users++
}

func (b *backend) leave() {
	b.mu.Lock()
	b.users--
	end := b.unused
	if b.users > 0 {
		end = nil
	}
	b.mu.Unlock()
	if end != nil {
		end()
	}
}

// retire has the pool end when its last connection has: no generation in force has it any more. A connection
// that is still arriving may dial even so: then it is nobody who says what is well, and all servers are believed to be.
func (b *backend) retire(end func()) {
	b.mu.Lock()
	b.unused = end
	idle := b.users == 0
	b.mu.Unlock()
	if idle {
		end()
	}
}

// firstAnswer is how long levee waits at its start until it knows where servers are.
const firstAnswer = 2 * time.Second

// start runs the pool and its sources until ctx ends, and waits a moment for the first
// answers: those who come first would be turned away otherwise. The pool is told of these
// together, as who comes later starts slowly.
func (b *backend) start(ctx context.Context, running *sync.WaitGroup) {
	b.trySources()
	b.collecting = true
	defer b.tellAll()
	for _, l := range b.sources {
		running.Go(func() {
			err := l.Run(ctx, func(servers []upstream.Server) {
				b.update(l, servers)
				l.answered()
			})
			if err != nil && ctx.Err() == nil {
				b.log.Error("servers cannot be found", "where", l.where, "err", err)
			}
			l.answered()
		})
	}
	running.Go(func() {
		if err := b.pool.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			b.log.Error("no health checks", "err", err)
		}
	})
	late := time.After(firstAnswer)
	for _, l := range b.sources {
		select {
		case <-l.heard:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// trySources warns of addresses that cannot be connected from.
func (b *backend) trySources() {
	for _, addr := range b.cfg.Dial.Source {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) // binds, and disturbs nobody
		if err == nil {
			_ = socket.Close()
			continue
		}
		if call, ok := errors.AsType[*os.SyscallError](err); ok {
			err = call.Err
		}
		b.log.Warn("cannot connect from dial.source; is it an address of this machine?", "source", addr, "err", err)
	}
}

// update gives the pool what all sources know, now that one knows of these servers. If
// they cannot be, those that it told of before stay.
func (b *backend) update(l *lookout, servers []upstream.Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updateLocked(l, servers)
}

func (b *backend) updateLocked(l *lookout, servers []upstream.Server) {
	before := l.servers
	l.servers = servers
	if b.collecting {
		return
	}
	if err := b.pool.Update(b.everyServer()); err != nil {
		l.servers = before
		b.log.Error("servers left as they were", "where", l.where, "err", err)
	}
}

// tellAll ends the collecting.
func (b *backend) tellAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.collecting = false
	all := b.everyServer()
	if len(all) == 0 || b.pool.Update(all) == nil {
		return
	}
	told := make(map[*lookout][]upstream.Server, len(b.sources)) // one of them is to blame
	for _, l := range b.sources {
		told[l], l.servers = l.servers, nil
	}
	for _, l := range b.sources {
		if servers := told[l]; servers != nil {
			b.updateLocked(l, servers)
		}
	}
}

// everyServer returns what all sources have told. If two tell of the same server, the
// first is believed.
func (b *backend) everyServer() (all []upstream.Server) {
	seen := make(map[string]bool)
	for _, l := range b.sources {
		for _, s := range l.servers {
			name := s.Name
			if name == "" {
				name = strings.Join(s.Addresses[:min(1, len(s.Addresses))], "")
			}
			if !seen[name] {
				seen[name] = true
				all = append(all, s)
			}
		}
	}
	return all
}
