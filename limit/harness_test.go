package limit

import (
	"net/netip"
	"testing"

	"github.com/levee-net/levee"
)

// come has a connection of a client arrive at a gate, as a server would.
func come(g *Gate, addr netip.Addr) (*pass, *levee.Refusal) {
	admitted, refusal := g.Admit(nil)
	if refusal != nil {
		return nil, refusal
	}
	p, ok := admitted.(*pass)
	if !ok {
		p = (*pass)(admitted.(*waiter))
	}
	refusal, strike, _ := p.greet(addr)
	if strike {
		g.Bans.strike(addr)
	}
	if refusal != nil {
		p.Leave(nil, levee.End{Reason: refusal.Reason})
		return nil, refusal
	}
	return p, nil
}

func comes(t *testing.T, g *Gate, addr string) *pass {
	t.Helper()
	p, refusal := come(g, netip.MustParseAddr(addr))
	if refusal != nil {
		t.Fatalf("%s: %v", addr, refusal)
	}
	return p
}

func isRefused(t *testing.T, g *Gate, addr, by string) {
	t.Helper()
	switch _, refusal := come(g, netip.MustParseAddr(addr)); {
	case refusal == nil:
		t.Fatalf("%s came in; want it refused by %s", addr, by)
	case refusal.Cause.Error() != by:
		t.Fatalf("%s was refused by %q; want %q", addr, refusal.Cause, by)
	}
}

func leaves(p *pass) { p.Leave(nil, levee.End{Reason: levee.ClientClosed}) }

// decisions returns what the limit of that name has decided: allowed, refused, would_refuse.
func decisions(all []Decisions, limit string) [3]int64 {
	for _, d := range all {
		if d.Limit == limit {
			return [3]int64{d.Allowed, d.Refused, d.WouldRefuse}
		}
	}
	return [3]int64{-1, -1, -1}
}

func wants(t *testing.T, s *Scope, limit string, allowed, refused, wouldRefuse int64) {
	t.Helper()
	if got, want := decisions(s.Stats().Limits, limit), [3]int64{allowed, refused, wouldRefuse}; got != want {
		t.Errorf("%s: allowed, refused and would_refuse are %d; want %d", limit, got, want)
	}
}
