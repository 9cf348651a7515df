package config

import "fmt"

// Check applies the rules that tie several settings together. Parse has applied them; call it again after changing a
// Config, such as from a flag. The error is a *Problems.
func (c *Config) Check() error {
	var ps Problems
	c.check(&ps)
	return ps.err()
}

func (c *Config) check(ps *Problems) {
	c.checkAdmin(ps)
	c.checkNames(ps)
	c.checkOverlaps(ps)
	for i := range c.Listeners {
		path := fmt.Sprintf("listeners[%d]", i)
		l := &c.Listeners[i]
		if ps.keysKnown(path) { // else tls or insecure may be there, misspelt
			l.checkTLS(ps, path+".tls")
			l.checkPlaintext(ps, path)
		}
		l.checkRoutes(ps, path+".routes")
	}
}

func (c *Config) checkAdmin(ps *Problems) {
	const path = "admin.listen"
	a := c.Admin.Listen
	if ps.clean(path) && !a.Off() && !a.Loopback() {
		ps.add(a.Pos, path, "%s can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock", quote(a.String()))
	}
}

func (c *Config) checkNames(ps *Problems) {
	first := make(map[string]int)
	for i, l := range c.Listeners {
		path := fmt.Sprintf("listeners[%d].name", i)
		if l.Name == "" { // could not be read
			continue
		}
		if j, taken := first[l.Name]; taken {
			ps.add(l.Pos, path, "%q is the name of listeners[%d] already; names are unique", l.Name, j)
			continue
		}
		first[l.Name] = i
	}
}

// checkOverlaps finds addresses that cannot be bound at the same time.
func (c *Config) checkOverlaps(ps *Problems) {
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

func (l *Listener) checkTLS(ps *Problems, path string) {
	has := len(l.TLS.Certificates) > 0
	switch {
	case !ps.clean(path):
	case has && l.TLS.Development:
		ps.add(l.TLS.Pos, path, "has both certificates and development: true; keep one of them")
	case l.TLS.Mode == TLSOff && (has || l.TLS.Development):
		ps.add(l.TLS.Pos, path, "mode is off, yet there is a certificate; remove it, or set mode: terminate")
	case l.TLS.Mode != TLSOff && !has && !l.TLS.Development:
		ps.add(l.TLS.Pos, path, "mode %s needs a certificate; add certificates: [{cert: a.pem, key: a-key.pem}], or development: true", l.TLS.Mode)
	}
}

// checkPlaintext keeps what is not encrypted on this machine, unless the file says that it means it.
func (l *Listener) checkPlaintext(ps *Problems, path string) {
	switch {
	case l.Insecure || l.TLS.Mode == TLSTerminate:
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

// checkRoutes makes sure that every connection finds a route and every route can be found.
func (l *Listener) checkRoutes(ps *Problems, path string) {
	if !ps.clean(path) {
		return
	}
	taken := make(map[Match]int)
	for i, r := range l.Routes {
		at := fmt.Sprintf("%s[%d]", path, i)
		if j, ok := taken[Match{}]; ok {
			ps.add(r.Pos, at, "is never reached: routes[%d] has no match and takes every connection; move that one to the end", j)
			return
		}
		if j, ok := taken[r.Match]; ok {
			ps.add(r.Pos, at, "is never reached: routes[%d] takes the same connections", j)
			continue
		}
		taken[r.Match] = i
	}
	if _, ok := taken[Match{}]; !ok && len(l.Routes) > 0 {
		last := len(l.Routes) - 1
		ps.add(l.Routes[last].Pos, fmt.Sprintf("%s[%d]", path, last), "has a match, and no route follows for the connections it leaves; add one without match, such as {handler: discard}")
	}
}
