package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// A limiting is who may come in, and how much they may take.
type limiting struct {
	front *front

	scopes []*limit.Scope // those of all listeners, of each, and of routes
	whole  *limit.Scope   // of all listeners
	gates  []*limit.Gate  // one for each listener, in the configuration's order
	lists  []*limit.Lists // each once
	bans   *limit.Bans
	said   map[string]description // of limits, by name

	shared     *redislimit.Limits // nil if no limit is shared
	sharedBans *redislimit.Bans   // nil without Redis

	outs    *evictor
	refused map[string]*refusals // by listener
}

// A description is what the configuration says of a limit.
type description struct{ mode, setting string }

// wholeName is what limits of all listeners are called: no listener can be.
const wholeName = "*"

// limit makes the gates of all listeners.
func (f *front) limit() error {
	l := &limiting{front: f, said: make(map[string]description), outs: newEvictor(f), refused: make(map[string]*refusals)}
	f.limits = l
	w := &f.cfg.Limits
	l.describe(wholeName, w.Mode, "", map[string]string{"connections": fmt.Sprint(w.MaxConnections), "rate": rateInWords(w.Rate, w.Burst)})
	l.whole = l.scope(wholeName, limit.Limits{Connections: w.MaxConnections, Rate: rateOf(w.Rate, w.Burst), Mode: modeOf(w.Mode)}, nil)
	l.bans = &limit.Bans{
		Refusals: w.Bans.Refusals, Within: w.Bans.Within, For: w.Bans.For, Max: w.Bans.Max, Mode: modeOf(w.Bans.Mode),
		Changed: func(limit.Ban) { l.outs.changed() },
	}
	l.said["bans"] = description{l.bans.Mode.String(), bansInWords(&w.Bans)}
	if f.shared != nil {
		l.sharedBans = &redislimit.Bans{Reach: f.shared.client, Changed: l.sharing("bans")}
		l.bans.Shared = l.sharedBans
	}
	known := make(map[string]*limit.Lists)
	for i := range f.cfg.Listeners {
		gate, err := l.gate(i, known)
		if err != nil {
			return err
		}
		l.gates = append(l.gates, gate)
	}
	return nil
}

// gate makes the gate of a listener. Lists that are known are those of listeners before it.
func (l *limiting) gate(i int, known map[string]*limit.Lists) (*limit.Gate, error) {
	cfg := &l.front.cfg.Listeners[i]
	lists, err := l.listsOf(i, known)
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
	l.refused[cfg.Name] = new(refusals)
	scope := l.scope(cfg.Name, totals, l.clients(cfg.Name, &of.PerClient, l.knownNames(i, -1)))
	scope.Connection = bandwidthOf(of.ConnectionBandwidth)
	gate := &limit.Gate{Scopes: []*limit.Scope{l.whole, scope}, Lists: lists, Bans: l.bans, Manner: manners[l.front.cfg.Limits.Refuse]}
	if l.shares(cfg) {
		gate.Shared = l.sharedLimits()
	}
	return gate, nil
}

// route returns a route's handler as one that keeps to the route's limits.
func (l *limiting) route(listener, i int, h levee.Handler) levee.Handler {
	cfg := &l.front.cfg.Listeners[listener]
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
	scope := l.scope(name, totals, l.clients(name, &of.PerClient, l.knownNames(listener, i)))
	return l.gates[listener].Route(scope, h)
}

func (l *limiting) scope(name string, totals limit.Limits, clients []*limit.Clients) *limit.Scope {
	s := &limit.Scope{Name: name, Limits: totals, Clients: clients}
	l.scopes = append(l.scopes, s)
	return s
}

// clients returns none if the mode is off: nothing is to be remembered then.
func (l *limiting) clients(scope string, c *config.PerClient, known func(string) bool) []*limit.Clients {
	if c.Mode == config.LimitOff {
		return nil
	}
	each := limit.Limits{
		Connections: max(0, c.Connections), Rate: rateOf(c.Rate, c.Burst), Handshakes: rateOf(c.HandshakeRate, c.HandshakeBurst),
		Bandwidth: bandwidthOf(c.Bandwidth), Mode: modeOf(c.Mode), Shared: *c.Shared && l.front.shared != nil,
	}
	l.describe(scope+".client", c.Mode, " for each "+clientInWords(c.By), map[string]string{
		"connections": fmt.Sprint(c.Connections),
		"rate":        rateInWords(c.Rate, c.Burst),
		"handshakes":  rateInWords(c.HandshakeRate, c.HandshakeBurst),
		"up":          c.Bandwidth.Up.String(),
		"down":        c.Bandwidth.Down.String(),
		"shared":      "connections and rate, by redis",
	})
	return []*limit.Clients{{By: keys[c.By], Limits: each, Known: known, Entries: l.front.cfg.Limits.Clients}}
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
	if s := l.front.secured[listener]; route < 0 {
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
	return l.front.shared != nil && (shared(&cfg.Limits.PerClient) ||
		slices.ContainsFunc(cfg.Routes, func(r config.Route) bool { return shared(&r.Limits.PerClient) }))
}

func (l *limiting) sharedLimits() *redislimit.Limits {
	if l.shared == nil {
		l.shared = &redislimit.Limits{Reach: l.front.shared.client, Changed: l.sharing("limits")}
	}
	return l.shared
}

// sharing logs how it goes with Redis.
func (l *limiting) sharing(what string) func(redislimit.State) {
	return func(s redislimit.State) {
		if s.Err != nil {
			l.front.log.Warn("not shared with other machines: each decides alone", "what", what, "err", s.Err)
			return
		}
		l.front.log.Info("shared with other machines", "what", what)
	}
}

// listsOf returns the listener's lists: the allow that it has, or else that of all, and both denies.
func (l *limiting) listsOf(i int, known map[string]*limit.Lists) (*limit.Lists, error) {
	whole, own := &l.front.cfg.Limits, &l.front.cfg.Listeners[i].Limits
	allow, deny := whole.Allow, slices.Concat(whole.Deny, own.Deny)
	if len(own.Allow) > 0 {
		allow = own.Allow
	}
	if len(allow)+len(deny) == 0 {
		return nil, nil
	}
	name := "lists"
	if len(own.Allow)+len(own.Deny) > 0 {
		name = l.front.cfg.Listeners[i].Name + ".lists"
	}
	if lists := known[name]; lists != nil {
		return lists, nil
	}
	lists := &limit.Lists{Name: name}
	lists.Allow, lists.AllowFiles = split(allow)
	lists.Deny, lists.DenyFiles = split(deny)
	lists.Problem = func(err error) {
		l.front.metrics.reloaded(false)
		l.front.log.Error("not reloaded; what was in force before is kept", "what", name, "err", err)
	}
	lists.Changed = func() {
		l.outs.changed() // first: who reads the log may rely on it
		l.front.metrics.reloaded(true)
		l.front.log.Info("reloaded", "what", name)
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
		return nil, located(own.Pos, err)
	}
	known[name] = lists
	l.lists = append(l.lists, lists)
	l.said[name] = description{"enforce", fmt.Sprintf("%d entries", len(allow)+len(deny))}
	if len(lists.AllowFiles)+len(lists.DenyFiles) > 0 {
		l.front.watch(lists)
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

// run keeps the limits until ctx ends.
func (l *limiting) run(ctx context.Context, running *sync.WaitGroup) {
	running.Go(func() { l.outs.run(ctx) })
	running.Go(func() { l.tellRefusals(ctx) })
	if l.shared != nil {
		running.Go(func() { _ = l.shared.Run(ctx) })
	}
	if l.bans.Shared != nil {
		running.Go(func() { _ = l.bans.Run(ctx) })
	}
}
