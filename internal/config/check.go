package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/levee-net/levee/internal/servername"
)

// Check applies the rules that tie several settings together. Parse has applied them; call it again after changing a
// Config, such as from a flag. The error is a *Problems.
func (c *Config) Check() error {
	var ps Problems
	c.check(&ps)
	return ps.err()
}

func (c *Config) check(ps *Problems) {
	c.checkAdmin(ps)
	c.Drain.check(ps, "drain")
	c.Upgrade.check(ps)
	c.Telemetry.Traces.check(ps, "telemetry.traces")
	c.Redis.check(ps, "redis")
	c.checkNames(ps)
	own := c.checkOverlaps(ps)
	c.checkTargets(ps)
	for i := range c.Listeners {
		path := fmt.Sprintf("listeners[%d]", i)
		l := &c.Listeners[i]
		if ps.keysKnown(path) { // else tls or insecure may be there, misspelt
			l.checkTLS(ps, path)
			l.checkPlaintext(ps, path)
		}
		l.checkRoutes(ps, path)
	}
	c.checkChallenges(ps)
	c.checkLimits(ps)
	for i := range c.Upstreams {
		c.Upstreams[i].check(ps, fmt.Sprintf("upstreams[%d]", i), own)
	}
}

func (d *Drain) check(ps *Problems, path string) {
	if ps.clean(path) && 2*d.Spread > d.Timeout {
		ps.add(d.Pos, path, "spread (%s) is more than half of timeout (%s), and who is asked late has to leave as well; change one of them", formatDuration(d.Spread), formatDuration(d.Timeout))
	}
}

func (c *Config) checkAdmin(ps *Problems) {
	const path = "admin.listen"
	a := c.Admin.Listen
	if !ps.clean(path) || a.Off() || a.Loopback() || !ps.keysKnown("admin") || !ps.clean("admin.token_file") || !ps.keysKnown("admin.tls") {
		return
	}
	switch {
	case c.Admin.TokenFile == "" && c.Admin.TLS.ClientCA == "":
		ps.add(a.Pos, path, "%s can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock, or say who may come in: by admin.token_file, or by admin.tls.client_ca", quote(a.String()))
	case !c.Admin.TLS.Given() && !c.Admin.Insecure && ps.clean("admin.insecure"):
		ps.add(a.Pos, path, "%s can be reached from other machines, and the token would be sent there in plaintext; add admin.tls, or say insecure: true if nobody listens on the way", quote(a.String()))
	}
}

func (c *Config) checkNames(ps *Problems) {
	listeners, upstreams := make(names), make(names)
	for i, l := range c.Listeners {
		listeners.claim(ps, l.Pos, "listeners", i, l.Name)
	}
	for i, u := range c.Upstreams {
		upstreams.claim(ps, u.Pos, "upstreams", i, u.Name)
	}
}

// names holds the names of a list's entries seen so far, and where each stands.
type names map[string]int

func (ns names) claim(ps *Problems, pos Position, list string, i int, name string) {
	if name == "" { // could not be read
		return
	}
	if j, taken := ns[name]; taken {
		ps.add(pos, fmt.Sprintf("%s[%d].name", list, i), "%q is the name of %s[%d] already; names are unique", name, list, j)
		return
	}
	ns[name] = i
}

// checkOverlaps finds addresses that cannot be bound at the same time, and returns those that can.
func (c *Config) checkOverlaps(ps *Problems) claims {
	taken := make(claims)
	try := func(a Address, path string) {
		if other, ok := taken.claim(a, path); !ok {
			ps.add(a.Pos, path, "%s cannot be bound beside %s (%s); change one of them", a, other.Address, other.path)
		}
	}
	try(c.Admin.Listen, "admin.listen")
	for i, l := range c.Listeners {
		for j, a := range l.Listen {
			try(a, fmt.Sprintf("listeners[%d].listen[%d]", i, j))
		}
	}
	return taken
}

// A claim is an address and the key that asks for it.
type claim struct {
	Address
	path string
}

// claims holds the addresses seen so far, by host and port, and each port's first one under the host "*".
type claims map[[2]string]claim

// claim takes an address, unless another that cannot be bound beside it came first: then it returns that one.
func (cs claims) claim(a Address, path string) (other claim, ok bool) {
	host, port := a.split()
	if a.Network != "tcp" || port == "0" { // port 0 is a new one each time
		return claim{}, true
	}
	rivals := []string{host, ""}
	if host == "" {
		rivals = []string{"*"}
	}
	for _, rival := range rivals {
		if other, taken := cs[[2]string{rival, port}]; taken {
			return other, false
		}
	}
	cs[[2]string{host, port}] = claim{a, path}
	if _, taken := cs[[2]string{"*", port}]; !taken {
		cs[[2]string{"*", port}] = claim{a, path}
	}
	return claim{}, true
}

// ending returns the claim at which a connection to the server would end.
func (cs claims) ending(server ServerAddress) (own claim, ok bool) {
	if !server.single() && server.Kind != KindDNS {
		return claim{}, false
	}
	host, port := Address{Network: "tcp", Address: server.Address}.split()
	hosts := []string{host}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		hosts = append(hosts, "")
	}
	if server.Kind != KindAddress && host == "127.0.0.1" { // localhost
		hosts = append(hosts, "::1")
	}
	for _, host := range hosts {
		if own, ok = cs[[2]string{host, port}]; ok {
			return own, true
		}
	}
	return claim{}, false
}

// checkPlaintext keeps what is not encrypted on this machine, unless the file says that it means it.
func (l *Listener) checkPlaintext(ps *Problems, path string) {
	switch {
	case l.Insecure || l.TLS.Mode == TLSTerminate || l.TLS.Mode == TLSPassthrough || l.onlyChallenges():
		return
	case !ps.clean(path+".insecure") || !ps.clean(path+".tls.mode") || !ps.keysKnown(path+".tls"):
		return
	}
	for j, a := range l.Listen {
		if a.Off() || a.Loopback() { // off: could not be read
			continue
		}
		ps.add(a.Pos, fmt.Sprintf("%s.listen[%d]", path, j),
			"%s can be reached from other machines and tls.mode %s lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant", quote(a.String()), l.TLS.Mode)
	}
}

// onlyChallenges reports whether the listener is for an ACME authority, which comes in plaintext.
func (l *Listener) onlyChallenges() bool {
	for i := range l.Routes {
		if r := &l.Routes[i]; r.Handler != HandlerACME && !r.Refuse {
			return false
		}
	}
	return len(l.Routes) > 0
}

// checkChallenges makes sure that an authority that comes finds an answer, and that who answers has a question.
func (c *Config) checkChallenges(ps *Problems) {
	var all []asking
	var answers *Position
	for i := range c.Listeners {
		l, path := &c.Listeners[i], fmt.Sprintf("listeners[%d]", i)
		if !ps.keysKnown(path) || !ps.clean(path) {
			return
		}
		ask := func(t *TLS, path string) {
			if t.ACME.Given() {
				all = append(all, asking{&t.ACME, path + ".tls.acme", l.STARTTLS})
			}
		}
		ask(&l.TLS, path)
		for j := range l.Routes {
			ask(&l.Routes[j].TLS, fmt.Sprintf("%s.routes[%d]", path, j))
			if l.Routes[j].Handler == HandlerACME {
				answers = &l.Routes[j].Pos
			}
		}
	}
	var asks *Position
	reached := make(map[string]bool) // the names for which a hello is taken
	byHTTP := make(map[string]asking)
	for _, a := range all {
		for _, w := range a.acme.Domains {
			name := canonicalName(w.Text)
			reached[name] = reached[name] || a.acme.By(ChallengeTLSALPN) && !a.behind.serverFirst()
			if !a.acme.By(ChallengeHTTP) {
				continue
			}
			asks = &a.acme.Pos
			if other, taken := byHTTP[name]; taken && !other.acme.keepsWith(a.acme) {
				ps.add(w.Pos, a.path+".domains", "%s is one of %s by http-01 already, which has another authority or folder, and only that one would be answered for; give both the same", quote(w.Text), other.path)
			} else if !taken {
				byHTTP[name] = a
			}
		}
	}
	switch {
	case asks != nil && answers == nil:
		ps.add(*asks, "listeners", "an acme has challenges: http-01, which nobody answers; add a listener on port 80 with routes: [{handler: acme}]")
	case asks == nil && answers != nil:
		ps.add(*answers, "listeners", "handler: acme answers http-01, which no acme has among its challenges; add challenges: http-01 there, or remove this")
	}
	for _, a := range all {
		for _, w := range a.acme.Domains {
			if !a.acme.By(ChallengeHTTP) && !reached[canonicalName(w.Text)] {
				ps.add(w.Pos, a.path, "levee speaks first in the place of an %s server, so no authority gets to show its hello for %s; set challenges: http-01, or have the same acme on a listener without starttls", a.behind, quote(w.Text))
				break
			}
		}
	}
}

// An asking is an acme, and the dialogue in front of it.
type asking struct {
	acme   *ACME
	path   string
	behind Dialogue
}

func canonicalName(text string) string {
	p, _ := servername.ParsePattern(text) // notDomain made sure
	return p.String()
}

// keepsWith reports whether both are of one authority and keep what they have in one place.
func (a *ACME) keepsWith(other *ACME) bool {
	return a.Directory == other.Directory && a.Staging == other.Staging && a.Folder == other.Folder
}

// checkTargets makes sure that every route leads somewhere, and that some route leads to every upstream.
func (c *Config) checkTargets(ps *Problems) {
	reached := make(map[string]bool)
	upstreams := make([]string, len(c.Upstreams))
	for i, u := range c.Upstreams {
		upstreams[i], reached[u.Name] = u.Name, false
	}
	// What could not be read may be what is missed.
	namesKnown := ps.keysKnown("") && !slices.Contains(upstreams, "")
	routesKnown := ps.keysKnown("")
	for i, l := range c.Listeners {
		path := fmt.Sprintf("listeners[%d]", i)
		routesKnown = routesKnown && ps.keysKnown(path) && ps.clean(path+".routes")
		for j, r := range l.Routes {
			at := fmt.Sprintf("%s.routes[%d]", path, j)
			_, exists := reached[r.Upstream]
			if exists {
				reached[r.Upstream] = true
			}
			switch {
			case !ps.clean(at):
			case r.Handler != "" && r.Upstream != "":
				ps.add(r.Pos, at, "has both a handler and an upstream; keep one of them")
			case r.Refuse && (r.Handler != "" || r.Upstream != ""):
				ps.add(r.Pos, at, "refuses, and yet leads somewhere; keep one of them")
			case r.Handler == "" && r.Upstream == "" && !r.Refuse:
				ps.add(r.Pos, at, "leads nowhere; add a handler such as echo, the name of an upstream, or refuse: true")
				routesKnown = false
			case r.Upstream != "" && !exists && namesKnown:
				near := ps.unknownUpstream(r, at, upstreams)
				reached[near] = true
				routesKnown = routesKnown && near != ""
			}
		}
	}
	for i, u := range c.Upstreams {
		if path := fmt.Sprintf("upstreams[%d]", i); routesKnown && !reached[u.Name] && u.Name != "" {
			ps.add(u.Pos, path, "no route leads to %q; remove it, or add a route such as {upstream: %s}", u.Name, u.Name)
		}
	}
}

// unknownUpstream says that there is no upstream of the route's name, and returns the one that it probably means.
func (ps *Problems) unknownUpstream(r Route, path string, upstreams []string) (near string) {
	if len(ps.List) < maxProblems { // else it is only counted, and looking for names takes time
		near = nearest(r.Upstream, upstreams)
	}
	if near == "" {
		ps.add(r.Pos, path+".upstream", "there is no upstream %q; add it to upstreams, or name one of those", r.Upstream)
		return ""
	}
	ps.add(r.Pos, path+".upstream", "there is no upstream %q; did you mean %q?", r.Upstream, near)
	return near
}

func (u *Upstream) check(ps *Problems, path string, own claims) {
	u.checkServers(ps, path, own)
	if ps.clean(path) && u.SendTraceparent && u.SendProxy != "v2" {
		ps.add(u.Pos, path, "has send_traceparent: true, which goes into a PROXY header of version 2; set send_proxy: v2, or remove it")
	}
	u.TLS.check(ps, path+".tls")
	u.Health.check(ps, path+".health")
	if at := path + ".breaker"; ps.clean(at) && u.Breaker.Open > u.Breaker.MaxOpen {
		ps.add(u.Breaker.Pos, at, "open (%s) is longer than max_open (%s); change one of them", formatDuration(u.Breaker.Open), formatDuration(u.Breaker.MaxOpen))
	}
	if at := path + ".dial"; ps.clean(at) && u.Dial.Timeout > u.Dial.TotalTimeout {
		ps.add(u.Dial.Pos, at, "timeout (%s), for one try, is longer than total_timeout (%s), for all; change one of them", formatDuration(u.Dial.Timeout), formatDuration(u.Dial.TotalTimeout))
	}
}

func (u *Upstream) checkServers(ps *Problems, path string, own claims) {
	first := make(map[string]int) // of an address or a name
	nameless := ps.clean(path+".tls") && u.TLS.Mode == ModeOn && u.TLS.ServerName == "" && !u.TLS.SkipVerify
	for j, s := range u.Servers {
		at := fmt.Sprintf("%s.servers[%d]", path, j)
		if s.Kind == "" || !ps.clean(at) { // could not be read
			continue
		}
		if !s.single() && (s.Name != "" || s.Weight != 1 || s.Tier != 0) {
			ps.add(s.Pos, at, "%s may be several servers, and a name, a weight or a tier is one server's; keep only the address", quote(s.String()))
		}
		if listen, loops := own.ending(s.ServerAddress); loops {
			ps.add(s.Pos, at, "%s is where levee itself listens (%s); write the address of a server behind it", quote(s.String()), listen.path)
		}
		switch {
		case !nameless:
		case s.Kind == KindSRV:
			ps.add(s.Pos, at, "DNS would choose the names that the certificates must be for; set tls.server_name")
		case s.Name == "" && strings.HasPrefix(s.Address, unixScheme):
			ps.add(s.Pos, at, "a unix socket has no host that a certificate could be for; set tls.server_name")
		}
		if k, taken := first[s.identity()]; taken {
			ps.add(s.Pos, at, "%s is servers[%d] already; write each server once, and its share as its weight", quote(s.String()), k)
			continue
		}
		first[s.identity()] = j
		name := strings.ToLower(s.Name)
		if k, taken := first[name]; taken && k != j {
			ps.add(s.Pos, at+".name", "%q is what servers[%d] is called already; names are unique", s.Name, k)
			continue
		}
		if name != "" {
			first[name] = j
		}
	}
}

func (t *UpstreamTLS) check(ps *Problems, path string) {
	says := ""
	for _, setting := range []struct {
		name string
		made bool
	}{
		{"ca", t.CA != ""},
		{"server_name", t.ServerName != ""},
		{"certificate", t.Certificate != ""},
		{"key", t.Key != ""},
		{"skip_verify: true", t.SkipVerify},
		{"handshake_timeout", t.HandshakeTimeout != 0},
	} {
		if setting.made {
			says = setting.name
			break
		}
	}
	switch {
	case !ps.clean(path):
	case t.Mode == ModeOff && says != "":
		ps.add(t.Pos, path, "mode is off, yet there is %s; set mode: on, or remove it", says)
	case t.Certificate != "" && t.Key == "":
		ps.add(t.Pos, path, "has a certificate without its key; add key: a-key.pem")
	case t.Certificate == "" && t.Key != "":
		ps.add(t.Pos, path, "has a key without its certificate; add certificate: a.pem")
	case t.SkipVerify && t.CA != "":
		ps.add(t.Pos, path, "has both ca and skip_verify: true, which believes everybody; keep one of them")
	}
}

func (h *Health) check(ps *Problems, path string) {
	if !ps.clean(path) {
		return
	}
	for _, setting := range []struct {
		name, value string
		probes      []string
	}{
		{"send", h.Send, []string{ProbeSendExpect}},
		{"expect", h.Expect, []string{ProbeSendExpect}},
		{"user", h.User, []string{ProbePostgres, ProbeMySQL}},
		{"database", h.Database, []string{ProbePostgres}},
		{"password", h.Password, []string{ProbeRedis}},
		{"path", h.Path, []string{ProbeHTTP}},
		{"host", h.Host, []string{ProbeHTTP}},
	} {
		if setting.value != "" && !slices.Contains(setting.probes, h.Probe) {
			ps.add(h.Pos, path+"."+setting.name, "is for probe %s, yet probe is %s; change probe, or remove it", enumerate(setting.probes, "or"), h.Probe)
		}
	}
	switch {
	case h.Probe == ProbeSendExpect && h.Send == "" && h.Expect == "":
		ps.add(h.Pos, path, "probe send_expect has neither send nor expect; add one, or set probe: connect")
	case h.Interval < 0: // no checks
	case h.FastInterval > max(h.Interval, defaultFastInterval): // the default gives way
		ps.add(h.Pos, path, "fast_interval (%s) is longer than interval (%s); change one of them", formatDuration(h.FastInterval), formatDuration(h.Interval))
	}
}
