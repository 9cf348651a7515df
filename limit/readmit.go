package limit

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// Readmit counts a connection that another process has let in: in all scopes, for the client by its address
// and by what its TLS has told, and with the other machines if limits are Shared and [Gate.Shared] has
// a method Hold. It is paced as the others are. Neither limits nor lists nor bans refuse it, and no rate is charged.
func (g *Gate) Readmit(c *levee.Conn) levee.Pass {
	g.init()
	p := g.newPass()
	if p.readmit(c) {
		p.pace(c)
	}
	return p
}

// readmit counts the connection, and reports whether it is to be paced.
func (p *pass) readmit(c *levee.Conn) (paced bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.client = true, c.ClientAddr().Addr().WithZone("")
	p.stake.readmit(p.client, c.TLS(), time.Now())
	if claims := p.gate().hold(p.questions(0, c.TLS())); len(claims) > 0 {
		p.extraLocked().claims = claims
	}
	return p.addSharesLocked(&p.stake, 0)
}

// readmit counts one more connection in the accounts of all rules, and charges nothing.
func (st *stake) readmit(addr netip.Addr, state *tls.ConnectionState, now time.Time) {
	for i := range st.of.rules {
		r := &st.of.rules[i]
		switch c := r.clients; {
		case c == nil:
			st.count(i, spot{set: &r.scope.sum}, now)
		case c.By != ByAddress && state == nil: // who that is will never be known
		default:
			st.countClient(i, addr, state, now)
		}
	}
}

func (st *stake) countClient(i int, addr netip.Addr, state *tls.ConnectionState, now time.Time) {
	c := st.of.rules[i].clients
	if c.By != ByAddress {
		if name, ok := c.nameOf(state); ok {
			st.count(i, c.table.spot(name), now)
			return
		}
	}
	if !addr.IsValid() {
		return
	}
	spots, n := c.table.spots(addr)
	for _, s := range spots[:n] {
		st.count(i, s, now)
	}
}

func (st *stake) count(i int, s spot, now time.Time) {
	r := &st.of.rules[i]
	h := held{set: s.set, rule: uint16(i), width: s.width}
	s.set.mu.Lock()
	defer s.set.mu.Unlock()
	if r.clients != nil {
		h.slot = uint8(r.clients.table.open(s.set, s.tag, r.law.since(now)))
	}
	h.account().open++
	st.hold(h)
}

// Reroute counts a connection that another process has routed here, and returns what serves it.
func (r *route) Reroute(c *levee.Conn) (levee.Handler, error) {
	next, err := r.beyond(c) // first: it is not to be counted if there is nothing
	if err != nil {
		return nil, err
	}
	st := &stake{of: &r.ruleset}
	addr := c.ClientAddr().Addr().WithZone("")
	st.readmit(addr, c.TLS(), time.Now())
	var claims []Claim
	if r.gate != nil && r.gate.Shared != nil {
		claims = r.gate.hold(st.questions(0, addr, c.TLS()))
	}
	r.hold(st, claims, c)
	return next, nil
}

// beyond returns what serves the connection behind the routers that are left.
func (r *route) beyond(c *levee.Conn) (levee.Handler, error) {
	router, ok := r.next.(levee.Router)
	if !ok {
		return r.next, nil
	}
	rerouter, ok := router.(levee.Rerouter)
	if !ok {
		return nil, fmt.Errorf("%T cannot go on with what another process has routed", router)
	}
	return rerouter.Reroute(c)
}

// HasRoute reports whether what is behind it has a route of that name, for a router that it is behind.
func (r *route) HasRoute(name string) bool {
	inside, ok := r.next.(interface{ HasRoute(name string) bool })
	return ok && inside.HasRoute(name)
}
