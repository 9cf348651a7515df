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
	needTLS  needs = 1 << iota
	needKeys       // that are changed by TLS 1.3
	needHTTP
	needHeader
	needLoopback // addresses of 127.0.0.0/8
	needPrefix   // a prefix that is routed here
)

// Needs says in words what a target has to be for the attack to be one.
func (a Attack) Needs() (words []string) {
	for i, word := range []string{"TLS", "1.3 with AES", "HTTP", "PROXY header", "127.0.0.0/8", "IPv6 prefix"} {
		if a.needs&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	return words
}

// A size is how many attackers there are at once.
type size uint8

const (
	few   size = iota // 64, who come again and again
	cores             // as many as keep half of the processors busy
	many              // 1,000
	loud              // 2,000
	crowd             // all connections of the flood
)

// All is every attack, in the order of the phases.
func All() []Attack {
	return []Attack{
		{Name: "hold", Does: "connects and says nothing", Phase: PhaseConnect, size: crowd, strike: hold},
		{Name: "churn", Does: "connects and closes", Phase: PhaseConnect, strike: churn},
		{Name: "resets", Does: "connects and resets", Phase: PhaseConnect, strike: reset},
		{Name: "half-close", Does: "connects, ends its side at once, and stays", Phase: PhaseConnect, size: crowd, strike: halfClose},
		{Name: "one-source", Does: "2,000 of one address stay, while 100 others want to be served", Phase: PhaseConnect, needs: needLoopback, size: loud, bystanders: 100, strike: hold},

		{Name: "slow-header", Does: "sends a PROXY header a byte a second", Phase: PhaseHeader, needs: needHeader, size: crowd, strike: slowHeader},
		{Name: "long-header", Does: "announces a PROXY header of 65,535 bytes", Phase: PhaseHeader, needs: needHeader, size: crowd, strike: longHeader},

		{Name: "slow-hello", Does: "sends a ClientHello a byte a second", Phase: PhaseHandshake, needs: needTLS, size: crowd, strike: slowHello},
		{Name: "hellos", Does: "sends a ClientHello, and leaves once it is answered", Phase: PhaseHandshake, needs: needTLS, strike: hello},
		{Name: "fragments", Does: "sends a ClientHello in records of one byte", Phase: PhaseHandshake, needs: needTLS, strike: fragments},
		{Name: "long-record", Does: "announces a TLS record of 65,535 bytes", Phase: PhaseHandshake, needs: needTLS, size: crowd, strike: longRecord},
		{Name: "names", Does: "makes a TLS handshake for a random server name", Phase: PhaseHandshake, needs: needTLS, size: cores, strike: names},
		{Name: "key-updates", Does: "changes its TLS keys before each byte of its requests", Phase: PhaseHandshake, needs: needTLS | needKeys, size: cores, strike: keyUpdates},
		{Name: "garbage", Does: "sends random bytes", Phase: PhaseHandshake, strike: garbage},

		{Name: "handshakes", Does: "makes a full TLS handshake, and leaves", Phase: PhaseRequest, needs: needTLS, size: cores, strike: churn},
		{Name: "silence", Does: "makes a TLS handshake, and says nothing more", Phase: PhaseRequest, needs: needTLS, size: many, strike: hold},
		{Name: "faults", Does: "sends a part of a request, and closes, half-closes or resets", Phase: PhaseRequest, strike: faults},
		{Name: "slow-request", Does: "sends an HTTP request a byte a second", Phase: PhaseRequest, needs: needHTTP, size: crowd, strike: slowRequest},
		{Name: "slow-line", Does: "sends a line a byte a second", Phase: PhaseRequest, size: crowd, strike: slowLine},
		{Name: "slow-message", Does: "sends a message with its length in front, a byte a second", Phase: PhaseRequest, size: crowd, strike: slowMessage},
		{Name: "length-bomb", Does: "announces a message of some gigabytes", Phase: PhaseRequest, size: crowd, strike: lengthBomb},
		{Name: "long-body", Does: "announces an HTTP body of 2^63-1 bytes, and sends a byte of it a second", Phase: PhaseRequest, needs: needHTTP, size: crowd, strike: longBody},
		{Name: "endless-line", Does: "sends a line of 8 MiB", Phase: PhaseRequest, size: cores, strike: endlessLine},
		{Name: "slow-read", Does: "asks for much, and reads 1 KiB a second", Phase: PhaseRequest, size: many, receive: 4 << 10, strike: slowRead},
		{Name: "zero-window", Does: "asks for much, and does not read", Phase: PhaseRequest, size: many, receive: 1, strike: zeroWindow},
		{Name: "pipeline", Does: "asks without end, and does not read", Phase: PhaseRequest, strike: pipeline},
		{Name: "many-sources", Does: "makes a request from an address that is new each time", Phase: PhaseRequest, needs: needLoopback, source: loopbackSource, strike: request},
		{Name: "ipv6-64", Does: "makes a request from an address of an IPv6 /64 that is new each time", Phase: PhaseRequest, needs: needPrefix, source: from64, strike: request},
		{Name: "ipv6-48", Does: "makes a request from a /64 of an IPv6 /48 that is new each time", Phase: PhaseRequest, needs: needPrefix, source: from48, strike: request},
	}
}

// unsuited says why an attack would be none on this target.
func (a Attack) unsuited(ctx context.Context, t *target) string {
	switch {
	case a.needs&needTLS != 0 && t.forTLS == nil:
		return "the server does not speak TLS"
	case a.needs&needKeys != 0 && !isSealable(t.suite):
		return "the server does not speak TLS 1.3 with AES"
	case a.needs&needHTTP != 0 && !t.http:
		return "the server does not speak HTTP"
	case a.needs&needHeader != 0 && !t.proxyHeader:
		return "its connections do not begin with a PROXY protocol header"
	case a.needs&needLoopback != 0:
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
