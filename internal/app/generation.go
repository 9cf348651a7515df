package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/watch"
)

// A generation is a configuration come to life: all that is made of it. It does not change
// once it is in force; the next one takes over from it what says the same.
type generation struct {
	*front
	number int // from 1
	since  time.Time
	cfg    *config.Config

	servers  []*levee.Server // what that of each listener is to be like, in the configuration's order; see front.every for those that serve
	secured  []*security     // the same
	backends []*backend      // one for each upstream, in the configuration's order
	limits   *limiting
	relief   *relief
	issuers  []*issuer
	policies []*policy
	expiries []listenerExpiries
	tickets  []ownTickets

	contents string // stands for that of files which are read only when a part is made

	before  *generation // which it takes parts over from; nil once it is in force
	parts   parts
	commits []func() // what is to be changed, when it comes into force, of parts that were there
}

// parts are a generation's, by what they are made of. They are guarded by front.reloading.
type parts map[string]*part

// A part is something that generations have in common if they say the same of it.
type part struct {
	made any
	load func() error                                       // reads its files again; nil if it has none
	far  bool                                               // they are on another machine, which may not answer
	run  func(ctx context.Context, running *sync.WaitGroup) // has it work until ctx ends, and returns when it is of use; may be nil
	stop context.CancelFunc                                 // nil while it does not
	over func()                                             // called once when nobody needs it any more; may be nil
	once sync.Once

	// lasts says that connections need it: it works until the last of its generations' has gone, and
	// not only until the next generation is in force.
	lasts bool
	// retire is called when the part is in force no more, with what ends it: the part knows better when
	// nobody needs it. Nil if it does not.
	retire func(end func())

	users int // generations that are not over; guarded by front.reloading
}

// keep returns the part of that key, from the generation before or from this one, or else has it
// made. The key tells all that it is made of.
func keep[T any](g *generation, key string, make func(p *part) (T, error)) (T, error) {
	p := g.parts[key]
	if p == nil && g.before != nil {
		p = g.before.parts[key]
	}
	if p == nil {
		p = new(part)
		made, err := make(p)
		if err != nil {
			return made, err
		}
		p.made = made
	}
	g.parts[key] = p
	return p.made.(T), nil
}

// contentsOf stands for what files hold, where a part reads them when it is made and not again.
func contentsOf(files ...string) string {
	var sums strings.Builder
	for _, file := range files {
		if file == "" {
			continue
		}
		content, err := watch.ReadFile(file, maxRoots)
		fmt.Fprintf(&sums, " %x %t", sha256.Sum256(content), err == nil)
	}
	return sums.String()
}

// contentsFor is contentsOf for all such files of a configuration.
func contentsFor(cfg *config.Config) (all string) {
	for i := range cfg.Upstreams {
		t := &cfg.Upstreams[i].TLS
		all += contentsOf(t.CA, t.Certificate, t.Key)
	}
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		all += contentsOf(l.TLS.ACME.CA)
		for j := range l.Routes {
			all += contentsOf(l.Routes[j].TLS.ACME.CA)
		}
	}
	return all
}

// build makes all that a configuration needs and that is not there, and changes nothing of what
// is. Its errors carry their exit code.
func (f *front) build(cfg *config.Config, before *generation) (*generation, error) {
	g := &generation{front: f, number: 1, cfg: cfg, before: before, parts: make(parts), contents: contentsFor(cfg)}
	if before != nil {
		g.number = before.number + 1
	}
	for i := range cfg.Upstreams {
		b, err := g.backend(&cfg.Upstreams[i])
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		g.backends = append(g.backends, b)
	}
	for i := range cfg.Listeners {
		secured, err := g.secure(&cfg.Listeners[i], fmt.Sprintf("listeners[%d]", i))
		if err != nil {
			return nil, exit(exitUsage, err)
		}
		g.secured = append(g.secured, secured)
	}
	if err := g.limit(); err != nil {
		return nil, exit(exitUsage, err)
	}
	shares := shareConns(cfg.Listeners, cfg.Limits.MaxConnections)
	for i := range cfg.Listeners {
		g.servers = append(g.servers, g.server(i, shares[i]))
	}
	g.relief = g.relieve()
	return g, nil
}

// server returns a server that is what the listener says.
func (g *generation) server(i, maxConns int) *levee.Server {
	l, secured := &g.cfg.Listeners[i], g.secured[i]
	serve := func(j int) levee.Handler { return g.limits.route(i, j, g.handler(l, j, &g.web)) }
	server := &levee.Server{
		Name:               l.Name,
		Handler:            handlerOf(l, secured, serve),
		Gate:               g.limits.gates[i],
		MaxHandshakes:      l.Limits.Handshakes,
		MaxArrivals:        l.Limits.Arriving,
		ProxyFrom:          l.ProxyProtocol.From,
		MaxConns:           maxConns,
		ArrivalTimeout:     l.Timeouts.Arrival,
		ProxyHeaderTimeout: l.Timeouts.ProxyHeader,
		SniffTimeout:       l.Timeouts.Sniff,
		IdleTimeout:        l.Timeouts.Idle,
		HalfClosedTimeout:  l.Timeouts.HalfClosed,
		WriteStallTimeout:  l.Timeouts.WriteStall,
		MessageTimeout:     l.Timeouts.Message,
		MaxLifetime:        l.Timeouts.Lifetime,
		DrainTimeout:       g.cfg.Drain.Timeout,
		DrainSpread:        g.cfg.Drain.Spread,
		Trace:              g.trace,
		Logger:             g.log,
	}
	if needsNoRouter(l, secured) {
		server.Route = routeName(l, 0)
	}
	endTLS(server, l, secured)
	return server
}

// begin has the new parts work, and waits until they are of use.
func (g *generation) begin() {
	var beginning sync.WaitGroup
	for _, p := range g.parts {
		if p.stop != nil {
			continue
		}
		ctx, cancel := context.WithCancel(g.beside)
		p.stop = cancel
		if run := p.run; run != nil {
			p.run = nil // it knows the generation that made the part, which may live longer
			beginning.Go(func() { run(ctx, &g.running) })
		}
	}
	beginning.Wait()
}

// reread has the files read again of parts that were there before, all at the same time, as some may be
// kept waiting by a machine that does not answer.
func (g *generation) reread() error {
	var (
		loading sync.WaitGroup
		mu      sync.Mutex
		errs    []error
	)
	for _, p := range slices.AppendSeq(slices.Clone(g.own), maps.Values(g.parts)) {
		if p.load == nil || p.users == 0 {
			continue
		}
		loading.Go(func() {
			err := p.load()
			if err == nil {
				return
			}
			if p.far {
				g.log.Warn("not read again; what was in force before is kept", "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	loading.Wait()
	return joinSorted(errs)
}

// supersede is called when the next generation is in force, with what is closed when the last
// connections of this one have gone.
func (g *generation) supersede(next *generation, gone []<-chan struct{}) {
	for key, p := range g.parts {
		if next.parts[key] != p && p.retire != nil {
			p.retire(p.end)
		}
	}
	f, left := g.front, g.parts // and not g, which has more than connections need: accounts of all clients of a listener that is there no more
	f.past = append(f.past, left)
	for _, all := range f.past {
		all.shed(next)
	}
	f.running.Go(func() { // ends with the connections, or with the front
		for _, ch := range gone {
			select {
			case <-ch:
			case <-f.beside.Done():
				return
			}
		}
		f.reloading.Lock()
		defer f.reloading.Unlock()
		left.release()
		f.past = slices.DeleteFunc(f.past, func(all parts) bool { return len(all) == 0 })
	})
}

// shed lets go of what the next generation does not have and connections do not need.
func (all parts) shed(next *generation) {
	for key, p := range all {
		if next.parts[key] != p && !p.lasts && p.retire == nil {
			p.stop()
			all.remove(key)
		}
	}
}

// release ends what no generation has any more that is not over.
func (all parts) release() {
	for key := range all {
		all.remove(key)
	}
}

func (all parts) remove(key string) {
	p := all[key]
	delete(all, key)
	if p.users--; p.users == 0 {
		p.end()
	}
}

func (p *part) end() {
	p.once.Do(func() {
		if p.stop != nil {
			p.stop()
		}
		if p.over != nil {
			p.over()
		}
	})
}
