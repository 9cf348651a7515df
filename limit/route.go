package limit

import (
	"context"
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// Route returns a handler that counts what h serves in a scope of its own as well: from when
// it is routed until it ends. It is a [levee.Router], and does for h what a Router's Route
// does; what it refuses ends with a *[levee.Refusal]. A nil Gate shares nothing, and bans nobody.
// It is a [levee.Rerouter] as well: what another process has routed is counted, and neither charged to a
// rate nor refused.
//
// All that the scope limits is asked then, at once. Handshakes limits nothing.
func (g *Gate) Route(s *Scope, h levee.Handler) levee.Handler {
	r := &route{ruleset{g, rulesOf([]*Scope{s}, levee.Reset, 0)}, h}
	if g != nil {
		g.init()
	}
	return r
}

type route struct {
	ruleset
	next levee.Handler
}

var _ levee.Rerouter = (*route)(nil)

// ServeTCP routes and serves in one.
func (r *route) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, err := r.Route(ctx, c)
	if err != nil {
		return err
	}
	return h.ServeTCP(ctx, c)
}

// Route charges the connection, or refuses it.
func (r *route) Route(ctx context.Context, c *levee.Conn) (levee.Handler, error) {
	st := &stake{of: &r.ruleset}
	addr := c.ClientAddr().Addr().WithZone("")
	refusal, by := r.charge(st, c, addr, time.Now())
	var claims []Claim
	if refusal == nil && r.gate != nil && r.gate.Shared != nil {
		if questions := st.questions(0, addr, c.TLS()); len(questions) > 0 {
			claims, refusal, by = r.gate.ask(ctx, questions)
		}
	}
	if refusal != nil {
		st.refund(0)
		st.leave(0)
		if by.blames() && r.gate != nil && r.gate.Bans != nil {
			r.gate.Bans.strike(addr)
		}
		return nil, refusal
	}
	r.hold(st, claims, c)
	return r.next, nil
}

// hold has the connection count until it ends.
func (r *route) hold(st *stake, claims []Claim, c *levee.Conn) {
	c.AtEnd(func() {
		st.leave(0)
		if len(claims) > 0 {
			r.gate.Shared.Release(claims)
		}
	})
	r.pace(st, c)
}

// charge asks what each client may take before what all may: who is over the one is not to
// hide behind the other.
func (r *route) charge(st *stake, c *levee.Conn, addr netip.Addr, now time.Time) (*levee.Refusal, *rule) {
	for i := range r.rules {
		if clients := r.rules[i].clients; clients == nil || clients.By != ByAddress {
			continue
		}
		if refusal := st.address(i, addr, now); refusal != nil {
			return refusal, &r.rules[i]
		}
	}
	if state := c.TLS(); state != nil {
		if refusal, by := st.identify(state, addr, now); refusal != nil {
			return refusal, by
		}
	}
	if refusal := st.total(0, now); refusal != nil {
		return refusal, &r.rules[0]
	}
	if r.gate != nil {
		return r.gate.sharing.recall(st, 0, now)
	}
	return nil, nil
}

// pace has the connection keep to the route's bandwidth as well as to what its gate has given it.
func (r *route) pace(st *stake, c *levee.Conn) {
	p := passOf(c)
	if p == nil {
		p = new(pass)
	}
	p.mu.Lock()
	paced := p.addSharesLocked(st, 0)
	p.mu.Unlock()
	if paced {
		p.pace(c)
	}
}
