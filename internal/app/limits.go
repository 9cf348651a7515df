package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// A limiting is who may come in, and how much they may take, as a generation says.
type limiting struct {
	gen *generation

	scopes []*limit.Scope // those of all listeners, of each, and of routes
	whole  *limit.Scope   // of all listeners
	gates  []*limit.Gate  // one for each listener, in the configuration's order
	lists  []*limit.Lists // each once
	bans   *limit.Bans
	said   map[string]description // of limits, by name

	shared     *redislimit.Limits // nil if no limit is shared
	sharedBans *redislimit.Bans   // nil without Redis

	past *past
}

// A description is what the configuration says of a limit.
type description struct{ mode, setting string }

// wholeName is what limits of all listeners are called: no listener can be.
const wholeName = "*"

// limit makes the gates of all listeners.
func (g *generation) limit() (err error) {
	l := &limiting{gen: g, said: make(map[string]description)}
	g.limits = l
	w := &g.cfg.Limits
	l.past, _ = keep(g, "past", func(*part) (*past, error) { return new(past), nil })
	l.describe(wholeName, w.Mode, "", map[string]string{"connections": fmt.Sprint(w.MaxConnections), "rate": rateInWords(w.Rate, w.Burst)})
	l.whole = l.scope(wholeName, "", limit.Limits{Connections: w.MaxConnections, Rate: rateOf(w.Rate, w.Burst), Mode: modeOf(w.Mode)}, limit.Bandwidth{}, nil)
	l.ban()
	for i := range g.cfg.Listeners {
		gate, err := l.gate(i)
		if err != nil {
			return err
		}
		l.gates = append(l.gates, gate)
	}
	return nil
}

// ban makes the bans, which stay whatever the configuration becomes.
func (l *limiting) ban() {
	f, cfg := l.gen.front, &l.gen.cfg.Limits.Bans
	if f.shared != nil {
		l.sharedBans, _ = keep(l.gen, "shared bans", func(*part) (*redislimit.Bans, error) {
			return &redislimit.Bans{Reach: f.shared.client, Changed: f.sharing("bans")}, nil
		})
	}
	wanted := &limit.Bans{Refusals: cfg.Refusals, Within: cfg.Within, For: cfg.For, Max: cfg.Max, Mode: modeOf(cfg.Mode)}
	l.bans, _ = keep(l.gen, "bans", func(p *part) (*limit.Bans, error) {
		bans := &limit.Bans{
			Refusals: cfg.Refusals, Within: cfg.Within, For: cfg.For, Max: cfg.Max, Mode: wanted.Mode,
			Changed: func(limit.Ban) { f.outs.changed() },
		}
		if l.sharedBans != nil {
			bans.Shared = l.sharedBans
			p.run = func(ctx context.Context, running *sync.WaitGroup) {
				running.Go(func() { _ = bans.Run(ctx) })
			}
		}
		return bans, nil
	})
	l.gen.commits = append(l.gen.commits, func() { l.bans.Set(wanted) })
	l.said["bans"] = description{wanted.Mode.String(), bansInWords(cfg)}
}

// gate makes the gate of a listener.
func (l *limiting) gate(i int) (*limit.Gate, error) {
	cfg := &l.gen.cfg.Listeners[i]
	lists, err := l.listsOf(i)
	if err != nil {
		return nil, err
	}
	of := &cfg.Limits
	l.describe(cfg.Name, of.Mode, "", map[string]string{
		"rate":       rateInWords(of.Rate, of.Burst),
		"handshakes": rateInWords(of.HandshakeRate, of.HandshakeBurst),
		"up":         of.Bandwidth.Up.String(),
		"down":       of.Bandwidth.Down.String(),
	})
	totals := limit.Limits{
		Rate: rateOf(of.Rate, of.Burst), Handshakes: rateOf(of.HandshakeRate, of.HandshakeBurst),
		Bandwidth: bandwidthOf(of.Bandwidth), Mode: modeOf(of.Mode),
	}
	scope := l.scope(cfg.Name, "", totals, bandwidthOf(of.ConnectionBandwidth), l.clients(cfg.Name, &of.PerClient, l.knownNames(i, -1)))
	gate := &limit.Gate{Scopes: []*limit.Scope{l.whole, scope}, Lists: lists, Bans: l.bans, Manner: manners[l.gen.cfg.Limits.Refuse]}
	if l.shares(cfg) {
		gate.Shared = l.sharedLimits()
	}
	key := fmt.Sprintf("gate %s %p %p %p %v %t", cfg.Name, l.whole, scope, lists, gate.Manner, gate.Shared != nil)
	return keep(l.gen, key, func(*part) (*limit.Gate, error) { return gate, nil })
}

// route returns a route's handler as one that keeps to the route's limits.
func (l *limiting) route(listener, i int, h levee.Handler) levee.Handler {
	cfg := &l.gen.cfg.Listeners[listener]
	of := &cfg.Routes[i].Limits
	if of.MaxConnections == 0 && of.Rate.Off() && of.PerClient.Mode == config.LimitOff {
		return h
	}
	name := cfg.Name + "/" + routeName(cfg, i)
	l.describe(name, of.Mode, "", map[string]string{
		"connections": fmt.Sprint(of.MaxConnections),
		"rate":        rateInWords(of.Rate, of.Burst),
	})
	totals := limit.Limits{Connections: of.MaxConnections, Rate: rateOf(of.Rate, of.Burst), Mode: modeOf(of.Mode)}
	scope := l.scope(name, routeIdentity(&cfg.Routes[i]), totals, limit.Bandwidth{}, l.clients(name, &of.PerClient, l.knownNames(listener, i)))
	return l.gates[listener].Route(scope, h)
}

// clientLimits are what a scope's clients may take each.
type clientLimits struct {
	by    limit.Key
	each  limit.Limits
	known func(serverName string) bool // nil if that is not known of any
}

// A keptScope is a scope, which keeps its accounts while others take the place of its limits.
type keptScope struct {
	*limit.Scope
	known atomic.Pointer[func(serverName string) bool]
}

// scope returns the scope of that name, and of what tells it from another that had the name.
func (l *limiting) scope(name, identity string, totals limit.Limits, each limit.Bandwidth, clients *clientLimits) *limit.Scope {
	entries := l.gen.cfg.Limits.Clients
	key := fmt.Sprintf("scope %s %q", name, identity)
	if clients != nil {
		key += fmt.Sprintf(" of clients by %d, %d of them", clients.by, entries)
	}
	s, _ := keep(l.gen, key, func(*part) (*keptScope, error) {
		s := &keptScope{Scope: &limit.Scope{Name: name, Limits: totals, Connection: each}}
		if clients != nil {
			s.known.Store(&clients.known)
			s.Clients = []*limit.Clients{{By: clients.by, Limits: clients.each, Entries: entries, Known: s.knows}}
		}
		return s, nil
	})
	l.gen.commits = append(l.gen.commits, func() {
		s.Set(totals)
		s.SetConnection(each)
		if clients != nil {
			s.known.Store(&clients.known)
			s.Clients[0].Set(clients.each)
		}
	})
	l.scopes = append(l.scopes, s.Scope)
	return s.Scope
}

func (s *keptScope) knows(serverName string) bool {
	known := *s.known.Load()
	return known == nil || known(serverName)
}

// clients returns nil if the mode is off: nothing is to be remembered then.
func (l *limiting) clients(scope string, c *config.PerClient, known func(string) bool) *clientLimits {
	if c.Mode == config.LimitOff {
		return nil
	}
	each := limit.Limits{
		Connections: max(0, c.Connections), Rate: rateOf(c.Rate, c.Burst), Handshakes: rateOf(c.HandshakeRate, c.HandshakeBurst),
		Bandwidth: bandwidthOf(c.Bandwidth), Mode: modeOf(c.Mode), Shared: *c.Shared && l.gen.shared != nil,
	}
	l.describe(scope+".client", c.Mode, " for each "+clientInWords(c.By), map[string]string{
		"connections": fmt.Sprint(c.Connections),
		"rate":        rateInWords(c.Rate, c.Burst),
		"handshakes":  rateInWords(c.HandshakeRate, c.HandshakeBurst),
		"up":          c.Bandwidth.Up.String(),
		"down":        c.Bandwidth.Down.String(),
		"shared":      "connections and rate, by redis",
	})
	return &clientLimits{keys[c.By], each, known}
}

func clientInWords(by config.ClientKey) string {
	switch by {
	case config.ByIdentity:
		return "identity"
	case config.BySNI:
		return "server name"
	}
	return "address"
}

func bansInWords(b *config.Bans) string {
	if b.Mode == config.LimitOff {
		return "by hand only"
	}
	return fmt.Sprintf("after %d refusals in %s, for %s and up to %s", b.Refusals, shortDuration(b.Within), shortDuration(b.For), shortDuration(b.Max))
}

// describe keeps in words what limits of a scope are, by their kind.
func (l *limiting) describe(scope string, mode config.LimitMode, whose string, settings map[string]string) {
	for kind, setting := range settings {
		l.said[scope+"."+kind] = description{string(mode), setting + whose}
	}
}

var (
	manners = map[config.Refuse]levee.Manner{config.RefuseReset: levee.Reset, config.RefuseClose: levee.Politely, config.RefuseSlow: levee.Slowly}
	keys    = map[config.ClientKey]limit.Key{config.ByAddress: limit.ByAddress, config.ByIdentity: limit.ByCertificate, config.BySNI: limit.ByServerName}
	modes   = map[config.LimitMode]limit.Mode{config.LimitEnforce: limit.Enforce, config.LimitShadow: limit.Shadow, config.LimitOff: limit.Off}
)

func modeOf(m config.LimitMode) limit.Mode { return modes[m] }

func rateOf(r config.Rate, burst int) limit.Rate {
	return limit.Rate{PerSecond: r.PerSecond(), Burst: burst}
}

func bandwidthOf(b config.Bandwidth) limit.Bandwidth {
	return limit.Bandwidth{Up: int64(b.Up), Down: int64(b.Down)}
}

// knownNames reports which server names have a certificate at the listener, or on its route: of others, clients could
// make up any number. It is nil if that is not known, as with the development CA.
func (l *limiting) knownNames(listener, route int) func(string) bool {
	var all []*terms
	if s := l.gen.secured[listener]; route < 0 {
		all = s.terms
	} else if t := s.ofRoute[route]; t != nil {
		all = []*terms{t}
	}
	return knownTo(all)
}

// knownTo reports which names are those of any of the terms.
func knownTo(all []*terms) func(string) bool {
	if slices.ContainsFunc(all, func(t *terms) bool { return t.files == nil && !t.cfg.ACME.Given() }) {
		return nil
	}
	ordered := make(map[*terms]nameSet) // by an authority
	for _, t := range all {
		if t.cfg.ACME.Given() {
			ordered[t] = newNameSet(config.Texts(t.cfg.ACME.Domains))
		}
	}
	return func(name string) bool {
		return slices.ContainsFunc(all, func(t *terms) bool {
			if names, ok := ordered[t]; ok {
				return names.meets(name)
			}
			c, err := t.files.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
			return c != nil && err == nil
		})
	}
}

// shares reports whether the listener or a route of it has a limit that is shared.
func (l *limiting) shares(cfg *config.Listener) bool {
	shared := func(c *config.PerClient) bool { return c.Shared != nil && *c.Shared }
	return l.gen.shared != nil && (shared(&cfg.Limits.PerClient) ||
		slices.ContainsFunc(cfg.Routes, func(r config.Route) bool { return shared(&r.Limits.PerClient) }))
}

func (l *limiting) sharedLimits() *redislimit.Limits {
	f := l.gen.front
	l.shared, _ = keep(l.gen, "shared limits", func(p *part) (*redislimit.Limits, error) {
		made := &redislimit.Limits{Reach: f.shared.client, Changed: f.sharing("limits")}
		p.lasts = true // what connections hold of it they give back
		p.run = func(ctx context.Context, running *sync.WaitGroup) {
			running.Go(func() { _ = made.Run(ctx) })
		}
		return made, nil
	})
	return l.shared
}

// sharing logs how it goes with Redis.
func (f *front) sharing(what string) func(redislimit.State) {
	return func(s redislimit.State) {
		if s.Err != nil {
			f.log.Warn("not shared with other machines: each decides alone", "what", what, "err", s.Err)
			return
		}
		f.log.Info("shared with other machines", "what", what)
	}
}

// listsOf returns the listener's lists: the allow that it has, or else that of all, and both denies.
func (l *limiting) listsOf(i int) (*limit.Lists, error) {
	whole, own := &l.gen.cfg.Limits, &l.gen.cfg.Listeners[i].Limits
	allow, deny := whole.Allow, slices.Concat(whole.Deny, own.Deny)
	if len(own.Allow) > 0 {
		allow = own.Allow
	}
	if len(allow)+len(deny) == 0 {
		return nil, nil
	}
	name := "lists"
	if len(own.Allow)+len(own.Deny) > 0 {
		name = l.gen.cfg.Listeners[i].Name + ".lists"
	}
	key := fmt.Sprintf("lists %s %q %q", name, sourcesInWords(allow), sourcesInWords(deny))
	lists, err := keep(l.gen, key, func(p *part) (*limit.Lists, error) { return l.newLists(name, allow, deny, own.Pos, p) })
	if err != nil {
		return nil, err
	}
	if !slices.Contains(l.lists, lists) {
		l.lists = append(l.lists, lists)
	}
	l.said[name] = description{"enforce", fmt.Sprintf("%d entries", len(allow)+len(deny))}
	return lists, nil
}

func sourcesInWords(sources []config.Source) (all []string) {
	for _, s := range sources {
		all = append(all, fmt.Sprint(s.File, s.Prefix))
	}
	return all
}

func (l *limiting) newLists(name string, allow, deny []config.Source, pos config.Position, p *part) (*limit.Lists, error) {
	f := l.gen.front
	lists := &limit.Lists{Name: name}
	lists.Allow, lists.AllowFiles = split(allow)
	lists.Deny, lists.DenyFiles = split(deny)
	lists.Problem = func(err error) {
		f.metrics.reloaded(false)
		f.log.Error("not reloaded; what was in force before is kept", "what", name, "err", err)
	}
	lists.Changed = func() {
		f.outs.changed() // first: who reads the log may rely on it
		f.metrics.reloaded(true)
		f.log.Info("reloaded", "what", name)
	}
	if err := lists.Load(); err != nil {
		for _, s := range slices.Concat(allow, deny) { // which of them is it?
			if s.File == "" {
				continue
			}
			if err := (&limit.Lists{DenyFiles: []string{s.File}}).Load(); err != nil {
				return nil, located(s.Pos, err)
			}
		}
		return nil, located(pos, err)
	}
	if len(lists.AllowFiles)+len(lists.DenyFiles) > 0 {
		p.reads(lists)
	}
	return lists, nil
}

func split(sources []config.Source) (prefixes []netip.Prefix, files []string) {
	for _, s := range sources {
		if s.File != "" {
			files = append(files, s.File)
		} else {
			prefixes = append(prefixes, s.Prefix)
		}
	}
	return prefixes, files
}
