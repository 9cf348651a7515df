package config

import (
	"fmt"
	"slices"
)

// settleLimits fills in what the limits leave open.
func (c *Config) settleLimits() {
	c.Limits.settle()
	c.Overload.settle()
	for i := range c.Listeners {
		l := &c.Listeners[i]
		l.Limits.settle(c.Redis.Given())
		for j := range l.Routes {
			l.Routes[j].Limits.settle(c.Redis.Given())
		}
	}
}

func (w *Whole) settle() {
	if w.Mode != LimitOff {
		fill(&w.Rate, NoRate)
		fillBurst(&w.Burst, w.Rate)
	}
	w.Bans.settle()
}

// What each client of a listener gets where nothing else is said.
const (
	clientConnections = 256
	clientRate        = 50 // a second
)

func (l *Limits) settle(shared bool) {
	if l.Mode != LimitOff {
		fill(&l.Rate, NoRate)
		fill(&l.HandshakeRate, NoRate)
		fillBurst(&l.Burst, l.Rate)
		fillBurst(&l.HandshakeBurst, l.HandshakeRate)
	}
	connections, r := clientConnections, perSecond(clientRate)
	if l.MaxConnections > 0 { // the defaults give way
		connections = min(connections, l.MaxConnections)
	}
	if l.Rate.exceededBy(r) {
		r = l.Rate
	}
	l.PerClient.settle(connections, r, shared)
}

func (l *RouteLimits) settle(shared bool) {
	if l.Mode != LimitOff {
		fill(&l.Rate, NoRate)
		fillBurst(&l.Burst, l.Rate)
	}
	l.PerClient.settle(int(Off), NoRate, shared)
}

// checkLimits finds limits that make no sense, alone or beside others.
func (c *Config) checkLimits(ps *Problems) {
	c.Limits.check(ps, "limits")
	c.Overload.check(ps, "overload")
	for i := range c.Listeners {
		l, listener := &c.Listeners[i], fmt.Sprintf("listeners[%d]", i)
		if !ps.keysKnown(listener) || !ps.clean(listener+".limits") {
			continue
		}
		at := checkpoint{ps, l, listener + ".limits", listener + ".tls"}
		at.checkListener(&c.Limits)
		at.checkClients(&l.Limits.PerClient, at.path+".per_client", l.tlsAnywhere(), l.clientsAnywhere(), c.Redis.Given())
		for j := range l.Routes {
			r, route := &l.Routes[j], fmt.Sprintf("%s.routes[%d]", listener, j)
			if !ps.keysKnown(route) || !ps.clean(route+".limits") {
				continue
			}
			at.path = route + ".limits"
			at.checkRoute(r)
			whole := l.TLSOf(r)
			at.checkClients(&r.Limits.PerClient, at.path+".per_client", l.Terminates(r), len(whole.ClientCA) > 0, c.Redis.Given())
		}
	}
}

func (w *Whole) check(ps *Problems, path string) {
	w.Bans.check(ps, path+".bans")
	checkSources(ps, path, w.Allow, w.Deny)
	if !ps.clean(path) {
		return
	}
	if w.Mode == LimitOff {
		idle(ps, w.Pos, path, []setting{{"max_connections", w.MaxConnections != 0}, {"rate", !w.Rate.Off()}, {"burst", w.Burst != 0}})
		return
	}
	checkBurst(ps, w.Pos, path, "burst", w.Burst, w.Rate)
	if w.MaxConnections == 0 && w.Rate.Off() {
		inVain(ps, w.Pos, path, w.Mode, "max_connections or rate", "bans have a mode of their own, and so has each per_client")
	}
}

// A checkpoint is where limits are judged.
type checkpoint struct {
	ps        *Problems
	listener  *Listener
	path, tls string
}

func (at checkpoint) refuse(pos Position, path, format string, args ...any) {
	at.ps.add(pos, path, format, args...)
}

// A setting is one that a mode of off makes meaningless.
type setting struct {
	name string
	made bool
}

// idle says that a mode is off beside a setting, if there is any.
func idle(ps *Problems, pos Position, path string, settings []setting) {
	for _, s := range settings {
		if s.made {
			ps.add(pos, path, "mode is off, yet there is %s; set mode: shadow or enforce, or remove it", s.name)
			return
		}
	}
}

// inVain says that a mode is shadow where there is nothing that it is for: something else was meant to be only counted.
func inVain(ps *Problems, pos Position, path string, mode LimitMode, settings, others string) {
	if mode == LimitShadow {
		ps.add(pos, path, "mode is shadow, yet there is no %s that it is for; %s", settings, others)
	}
}

func checkBurst(ps *Problems, pos Position, path, name string, burst int, r Rate) {
	if burst > 0 && r.Off() {
		ps.add(pos, path, "has %s without the rate that it is for; add %s, or remove it", name, rateOf(name)+": 50/s")
	}
}

func rateOf(burst string) string {
	if burst == "handshake_burst" {
		return "handshake_rate"
	}
	return "rate"
}

func (at checkpoint) checkListener(whole *Whole) {
	l, ps := &at.listener.Limits, at.ps
	checkSources(ps, at.path, l.Allow, l.Deny)
	if l.Mode == LimitOff {
		idle(ps, l.Pos, at.path, []setting{
			{"rate", !l.Rate.Off()},
			{"burst", l.Burst != 0},
			{"handshake_rate", !l.HandshakeRate.Off()},
			{"handshake_burst", l.HandshakeBurst != 0},
			{"bandwidth", l.Bandwidth.Given()},
		})
	} else {
		checkBurst(ps, l.Pos, at.path, "burst", l.Burst, l.Rate)
		checkBurst(ps, l.Pos, at.path, "handshake_burst", l.HandshakeBurst, l.HandshakeRate)
		if l.Rate.Off() && l.HandshakeRate.Off() && !l.Bandwidth.Given() {
			inVain(ps, l.Pos, at.path, l.Mode, "rate, handshake_rate or bandwidth", "max_connections is enforced in any case")
		}
	}
	if ps.clean("limits") {
		at.within(l.Pos, at.path, "max_connections", l.MaxConnections, whole.MaxConnections, "limits.max_connections, of all listeners together")
		at.rateWithin(l.Pos, at.path, "rate", l.Rate, whole.Rate, "limits.rate, of all listeners together")
	}
	at.within(l.Pos, at.path, "arriving", l.Arriving, l.MaxConnections, "max_connections")
	at.bytesWithin(&l.ConnectionBandwidth, at.path+".connection_bandwidth", &l.Bandwidth, "bandwidth, of all connections together")
	if ps.clean(at.tls) && !at.listener.tlsAnywhere() && !l.HandshakeRate.Off() {
		ps.add(l.Pos, at.path, "has handshake_rate, yet no TLS ends at this listener; remove it, or set tls.mode: terminate")
	}
	c := &l.PerClient
	at.within(c.Pos, at.path+".per_client", "connections", c.Connections, l.MaxConnections, "the listener's max_connections")
	at.rateWithin(c.Pos, at.path+".per_client", "rate", c.Rate, l.Rate, "the listener's rate")
	at.rateWithin(c.Pos, at.path+".per_client", "handshake_rate", c.HandshakeRate, l.HandshakeRate, "the listener's handshake_rate")
	at.bytesWithin(&c.Bandwidth, at.path+".per_client.bandwidth", &l.Bandwidth, "the listener's bandwidth")
}

func (at checkpoint) checkRoute(r *Route) {
	l, c, own := &r.Limits, &r.Limits.PerClient, &at.listener.Limits
	if r.Refuse && l.limits() {
		at.refuse(l.Pos, at.path, "the route refuses every connection, and so has nothing to limit; remove one of them")
		return
	}
	if l.Mode == LimitOff {
		idle(at.ps, l.Pos, at.path, []setting{{"max_connections", l.MaxConnections != 0}, {"rate", !l.Rate.Off()}, {"burst", l.Burst != 0}})
	} else {
		checkBurst(at.ps, l.Pos, at.path, "burst", l.Burst, l.Rate)
		if l.MaxConnections == 0 && l.Rate.Off() {
			inVain(at.ps, l.Pos, at.path, l.Mode, "max_connections or rate", "per_client has a mode of its own")
		}
	}
	at.within(l.Pos, at.path, "max_connections", l.MaxConnections, own.MaxConnections, "the listener's")
	at.rateWithin(l.Pos, at.path, "rate", l.Rate, own.Rate, "the listener's")
	per := at.path + ".per_client"
	at.within(c.Pos, per, "connections", c.Connections, l.MaxConnections, "the route's max_connections")
	at.rateWithin(c.Pos, per, "rate", c.Rate, l.Rate, "the route's rate")
	if of := &own.PerClient; of.Mode == LimitEnforce && of.By == c.By {
		at.within(c.Pos, per, "connections", c.Connections, of.Connections, "what the listener gives a client")
		at.rateWithin(c.Pos, per, "rate", c.Rate, of.Rate, "what the listener gives a client")
	}
	if !c.HandshakeRate.Off() {
		at.refuse(c.Pos, per, "has handshake_rate, yet a handshake begins before the route is known; set it in the listener's limits.per_client")
	}
}

// limits reports whether there is any limit.
func (l *RouteLimits) limits() bool {
	return l.MaxConnections > 0 || !l.Rate.Off() || l.PerClient.Mode != LimitOff
}

// checkClients judges what each client gets, where there is TLS or not, and clients' certificates or not.
func (at checkpoint) checkClients(c *PerClient, path string, tls, certificates, redis bool) {
	if c.Mode == LimitOff {
		idle(at.ps, c.Pos, path, c.settings())
		return
	}
	checkBurst(at.ps, c.Pos, path, "burst", c.Burst, c.Rate)
	checkBurst(at.ps, c.Pos, path, "handshake_burst", c.HandshakeBurst, c.HandshakeRate)
	if c.Shared != nil && *c.Shared && !redis {
		at.refuse(c.Pos, path, "has shared: true, yet there is no redis to share it by; add redis: {address: …}, or remove it")
	}
	if !at.ps.clean(at.tls) {
		return
	}
	switch {
	case c.By == ByIdentity && !certificates:
		at.refuse(c.Pos, path, "by: identity needs clients' certificates, yet there is no client_ca; add that to tls, or say by: address")
	case c.By == BySNI && !tls:
		at.refuse(c.Pos, path, "by: sni needs TLS that ends here, and there is none; set tls.mode: terminate, or say by: address")
	case c.By != ByAddress && !c.HandshakeRate.Off():
		at.refuse(c.Pos, path, "has handshake_rate, yet who a client is by: %s is known only after the handshake; say by: address, or remove it", c.By)
	case c.By == ByAddress && !tls && !c.HandshakeRate.Off():
		at.refuse(c.Pos, path, "has handshake_rate, yet no TLS ends here; remove it, or set tls.mode: terminate")
	}
}

// tlsAnywhere reports whether TLS ends at the listener, on whatever route.
func (l *Listener) tlsAnywhere() bool {
	return slices.ContainsFunc(l.Routes, func(r Route) bool { return l.Terminates(&r) })
}

// clientsAnywhere reports whether some clients of the listener show certificates.
func (l *Listener) clientsAnywhere() bool {
	return slices.ContainsFunc(l.Routes, func(r Route) bool {
		t := l.TLSOf(&r)
		return l.Terminates(&r) && len(t.ClientCA) > 0
	})
}

func (at checkpoint) within(pos Position, path, name string, n, most int, of string) {
	if n > 0 && most > 0 && n > most {
		at.refuse(pos, path, "%s (%d) is more than %s (%d); change one of them", name, n, of, most)
	}
}

func (at checkpoint) rateWithin(pos Position, path, name string, r, most Rate, of string) {
	if most.exceededBy(r) {
		at.refuse(pos, path, "%s (%s) is more than %s (%s); change one of them", name, r, of, most)
	}
}

func (at checkpoint) bytesWithin(b *Bandwidth, path string, most *Bandwidth, of string) {
	for _, d := range []struct {
		name    string
		n, most ByteRate
	}{{"up", b.Up, most.Up}, {"down", b.Down, most.Down}} {
		if d.n > 0 && d.most > 0 && d.n > d.most {
			at.refuse(b.Pos, path, "%s (%s) is more than that of %s (%s); change one of them", d.name, d.n, of, d.most)
		}
	}
}

// checkSources finds sources that stand twice.
func checkSources(ps *Problems, path string, allow, deny []Source) {
	first := make(map[Source]string)
	for _, list := range []struct {
		name string
		of   []Source
	}{{"allow", allow}, {"deny", deny}} {
		for i, s := range list.of {
			where := fmt.Sprintf("%s[%d]", list.name, i)
			key := Source{Prefix: s.Prefix, File: s.File}
			if key.File == "" && !key.Prefix.IsValid() { // could not be read
				continue
			}
			if other, taken := first[key]; taken {
				ps.add(s.Pos, path+"."+where, "%s is %s already; remove one of them", quote(s.String()), other)
				continue
			}
			first[key] = where
		}
	}
}
