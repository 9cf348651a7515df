package attack

import (
	"context"
	"net/netip"
	"slices"
)

// An Attack is one way to wear a server out.
type Attack struct {
	Name  string
	Does  string // what an attacker does, in a few words
	Phase Phase  // of a connection's life, in which it strikes

	needs      needs
	size       size
	receive    int                                      // bytes of the receive buffer; 0 is the system's
	bystanders int                                      // well-behaved clients beside the usual one, at most 250
	source     func(t *target, number int64) netip.Addr // where the attacker of that number comes from; nil is the system's choice

	// strike returns nil when the attacker is done and leaves, and how the connection
	// was ended when it was not by him.
	strike func(ctx context.Context, a *attacker) error
}

// A Phase is one of a connection's life. What comes before it an attacker does as
// everybody does.
type Phase uint8

// The phases.
const (
	PhaseConnect   Phase = iota + 1 // connected, and nothing sent
	PhaseHeader                     // the PROXY protocol header
	PhaseHandshake                  // TLS begins
	PhaseRequest                    // messages, in TLS where that is spoken
)

func (p Phase) String() string {
	return [...]string{PhaseConnect: "connect", PhaseHeader: "header", PhaseHandshake: "handshake", PhaseRequest: "request"}[p]
}

// needs are what a target has to be for an attack to be one.
type needs uint8

const (
	needTLS needs = 1 << iota
	needHTTP
	needHeader
	needLoopback4 // addresses of 127.0.0.0/8
	needPrefix    // a prefix that is routed here
)

// A size is how many attackers there are at once.
type size uint8

const (
	few   size = iota // 64, who come again and again
	crowd             // all connections of the flood
	cores             // as many as keep half of the processors busy
	loud              // 2,000
)

// All is every attack, in the order of the phases.
func All() []Attack {
	return []Attack{
		{Name: "hold", Does: "connects and says nothing", Phase: PhaseConnect, size: crowd, strike: hold},
		{Name: "churn", Does: "connects and closes", Phase: PhaseConnect, strike: churn},
		{Name: "resets", Does: "connects and resets", Phase: PhaseConnect, strike: reset},
		{Name: "half-close", Does: "connects, ends its side at once, and stays", Phase: PhaseConnect, size: crowd, strike: halfClose},

		{Name: "slow-hello", Does: "sends a ClientHello a byte a second", Phase: PhaseHandshake, needs: needTLS, size: crowd, strike: slowHello},
		{Name: "handshakes", Does: "makes a full TLS handshake, and leaves", Phase: PhaseRequest, needs: needTLS, size: cores, strike: churn},

		{Name: "garbage", Does: "sends random bytes", Phase: PhaseHandshake, strike: garbage},
	}
}

// unsuited says why an attack would be none on this target.
func (a Attack) unsuited(ctx context.Context, t *target) string {
	switch {
	case a.needs&needTLS != 0 && t.forTLS == nil:
		return "the server does not speak TLS"
	case a.needs&needHTTP != 0 && !t.http:
		return "the server does not speak HTTP"
	case a.needs&needHeader != 0 && !t.proxyHeader:
		return "no PROXY protocol header is spoken of"
	case a.needs&needLoopback4 != 0:
		return t.lacksLoopback(ctx)
	case a.needs&needPrefix != 0:
		return t.lacksPrefix(ctx)
	}
	return ""
}

// Named returns the attack of a name.
func Named(name string) (a Attack, ok bool) {
	all := All()
	if i := slices.IndexFunc(all, func(a Attack) bool { return a.Name == name }); i >= 0 {
		return all[i], true
	}
	return Attack{}, false
}

// BestKnown are the attacks that a server on the Internet meets on its first day.
func BestKnown() (known []Attack) {
	for _, name := range []string{"hold", "churn", "slow-hello", "handshakes", "garbage"} {
		if a, ok := Named(name); ok {
			known = append(known, a)
		}
	}
	return known
}
