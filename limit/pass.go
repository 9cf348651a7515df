package limit

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/servername"
)

// A pass is what a connection holds of a gate.
type pass struct {
	mu     sync.Mutex
	stake  stake
	gone   bool       // Leave has been called
	shut   bool       // it was turned away by StageClient
	known  bool       // StageClient was reached
	client netip.Addr // not valid if it has none
	extra  *extra     // nil for most
}

// extra is what a pass has of limits that not everybody uses.
type extra struct {
	in, out shares
	claims  []Claim // that other machines count as open
}

func (p *pass) extraLocked() *extra {
	if p.extra == nil {
		p.extra = new(extra)
	}
	return p.extra
}

func (p *pass) gate() *Gate { return p.stake.of.gate }

// A waiter is a pass that has to ask other machines.
type waiter pass

var (
	_ levee.Pass   = (*pass)(nil)
	_ levee.Waiter = (*waiter)(nil)
)

func (p *pass) enter(now time.Time) *levee.Refusal {
	for i := range p.stake.of.rules {
		if p.stake.of.rules[i].clients != nil {
			continue
		}
		if refusal := p.stake.total(i, now); refusal != nil {
			p.stake.refund(0)
			p.stake.leave(0)
			return refusal
		}
	}
	return nil
}

// Reach charges the connection with what has become known of it.
func (p *pass) Reach(c *levee.Conn, at levee.Stage) *levee.Refusal {
	switch at {
	case levee.StageClient:
		return p.meet(c)
	case levee.StageHandshake:
		return p.handshake()
	case levee.StageSecured:
		return p.identify(c)
	}
	return nil
}

// meet charges the client by its address.
func (p *pass) meet(c *levee.Conn) *levee.Refusal {
	addr := c.ClientAddr().Addr().WithZone("")
	refusal, strike, paced := p.greet(addr)
	if strike {
		p.gate().Bans.strike(addr)
	}
	if paced {
		p.pace(c)
	}
	return refusal
}

func (p *pass) greet(addr netip.Addr) (refusal *levee.Refusal, strike, paced bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.client = true, addr
	refusal = p.gate().bar(addr, now)
	if refusal == nil {
		var by *rule
		refusal, by = p.chargeClient(addr, now)
		strike = refusal != nil && p.gate().Bans != nil && by.blames()
	}
	if refusal != nil {
		p.stake.refund(0)
		p.shut = true
		return refusal, strike, false
	}
	return nil, false, p.addSharesLocked(&p.stake, 0)
}

func (p *pass) chargeClient(addr netip.Addr, now time.Time) (*levee.Refusal, *rule) {
	for i := range p.stake.of.rules {
		if c := p.stake.of.rules[i].clients; c == nil || c.By != ByAddress {
			continue
		}
		if refusal := p.stake.address(i, addr, now); refusal != nil {
			return refusal, &p.stake.of.rules[i]
		}
	}
	return p.gate().sharing.recall(&p.stake, 0, now)
}

func (p *pass) handshake() *levee.Refusal {
	p.mu.Lock()
	refusal, by := p.stake.handshake(0, time.Now())
	addr := p.client
	p.mu.Unlock()
	if refusal != nil && by.blames() && p.gate().Bans != nil {
		p.gate().Bans.strike(addr)
	}
	return refusal
}

// identify charges the client by what the handshake has told of it.
func (p *pass) identify(c *levee.Conn) *levee.Refusal {
	if !slices.ContainsFunc(p.stake.of.rules, func(r rule) bool { return r.clients != nil && r.clients.By != ByAddress }) {
		return nil
	}
	state := c.TLS()
	if state == nil {
		return nil
	}
	now := time.Now()
	p.mu.Lock()
	mark := len(p.stake.held)
	refusal, _ := p.stake.identify(state, p.client, now)
	if refusal == nil {
		refusal, _ = p.stake.handshake(mark, now)
	}
	if refusal == nil {
		refusal, _ = p.gate().sharing.recall(&p.stake, mark, now)
	}
	if refusal != nil {
		p.stake.refund(mark)
		p.mu.Unlock()
		return refusal
	}
	paced := p.addSharesLocked(&p.stake, mark)
	questions := p.questions(mark, state)
	p.mu.Unlock()
	if paced {
		p.pace(c)
	}
	return p.ask(context.Background(), questions)
}

// identify charges the client to all rules that tell clients apart by TLS.
func (st *stake) identify(state *tls.ConnectionState, addr netip.Addr, now time.Time) (*levee.Refusal, *rule) {
	for i := range st.of.rules {
		c := st.of.rules[i].clients
		if c == nil || c.By == ByAddress {
			continue
		}
		var refusal *levee.Refusal
		if name, ok := c.nameOf(state); ok {
			refusal = st.name(i, name, now)
		} else {
			refusal = st.address(i, addr, now)
		}
		if refusal != nil {
			return refusal, &st.of.rules[i]
		}
	}
	return nil, nil
}

// nameOf returns the client's name, if it has one.
func (c *Clients) nameOf(state *tls.ConnectionState) (name string, ok bool) {
	if c.By == ByServerName {
		return "sni:" + c.serverName(state.ServerName), true
	}
	// What no authority has vouched for the client could have made up, a new one for each connection.
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return "", false
	}
	switch leaf := state.VerifiedChains[0][0]; {
	case len(leaf.URIs) > 0:
		return "uri:" + leaf.URIs[0].String(), true
	case len(leaf.DNSNames) > 0:
		return "dns:" + strings.ToLower(leaf.DNSNames[0]), true
	case leaf.Subject.CommonName != "":
		return "cn:" + leaf.Subject.CommonName, true
	}
	return "", false
}

// serverName returns the name in its one form, and "" for those that are not known.
func (c *Clients) serverName(sent string) string {
	name, err := servername.Normalize(sent)
	if err != nil || c.Known != nil && !c.Known(name) {
		return ""
	}
	return name
}

// Leave gives back what the connection holds.
func (p *pass) Leave(_ *levee.Conn, end levee.End) {
	p.mu.Lock()
	p.gone = true
	p.stake.leave(0)
	g, known, shut, addr := p.gate(), p.known, p.shut, p.client
	var claims []Claim
	if p.extra != nil {
		claims = p.extra.claims
	}
	p.mu.Unlock()
	if len(claims) > 0 {
		g.Shared.Release(claims)
	}
	if shut {
		g.recycle(p)
		return
	}
	if known && g.Bans != nil && g.Bans.counts(end.Reason) {
		g.Bans.strike(addr)
	}
}

// addSharesLocked has the connection's bytes count in a stake's accounts, from the given one on, and
// reports whether any limit is on them.
func (p *pass) addSharesLocked(st *stake, from int) bool {
	in, out, own := st.shares(from, up), st.shares(from, down), st.own(from)
	if len(in)+len(out) == 0 && own == (Bandwidth{}) {
		return false
	}
	x := p.extraLocked()
	x.in.rest = append(x.in.rest, in...)
	x.out.rest = append(x.out.rest, out...)
	x.in.add(own.Up)
	x.out.add(own.Down)
	return true
}

// own returns the least that the scopes of which something is held allow a connection.
func (st *stake) own(from int) (least Bandwidth) {
	for _, h := range st.held[from:] {
		if r := &st.of.rules[h.rule]; r.clients == nil {
			moves := r.scope.connection()
			least.Up = lesser(least.Up, moves.Up)
			least.Down = lesser(least.Down, moves.Down)
		}
	}
	return least
}

// lesser returns the lesser of two limits, of which one may be none.
func lesser(a, b int64) int64 {
	if a <= 0 || b > 0 && b < a {
		return max(0, b)
	}
	return a
}

func (s *shares) add(bytesPerSecond int64) {
	if bytesPerSecond > 0 {
		s.own = append(s.own, NewBucket(bytesPerSecond))
	}
}

// pacer returns a pacer for what the shares are now, or nil.
func (s *shares) pacer() levee.Pacer {
	if len(s.own) == 0 && len(s.rest) == 0 {
		return nil
	}
	return &shares{slices.Clone(s.own), slices.Clone(s.rest)}
}

// pace tells the connection how fast it may be.
func (p *pass) pace(c *levee.Conn) {
	p.mu.Lock()
	x := p.extraLocked()
	in, out := x.in.pacer(), x.out.pacer()
	p.mu.Unlock()
	c.Pace(in, out)
}

// passOf returns the pass of a connection, if it is one of a Gate's.
func passOf(c *levee.Conn) *pass {
	switch p := c.Pass().(type) {
	case *waiter:
		return (*pass)(p)
	case *pass:
		return p
	}
	return nil
}
