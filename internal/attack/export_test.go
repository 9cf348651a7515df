package attack

import (
	"context"
	"testing"
)

// Strike makes one attack until ctx ends, with nobody else there: what the server
// sees are attackers.
func Strike(ctx context.Context, t *testing.T, f Flood, name string) Tally {
	t.Helper()
	a, ok := Named(name)
	if !ok {
		t.Fatalf("there is no attack %q", name)
	}
	f, _ = f.withDefaults()
	to := &target{addr: f.Target, host: f.Target.String(), tls: f.TLS, forTLS: f.attackersTLS(), proxyHeader: f.ProxyHeader, protocol: f.Protocol, prefix: f.Prefix}
	if f.Protocol.answer == nil {
		to.protocol = Echo()
	}
	force := newForce(&f, a, to)
	if err := force.strike(ctx); err != nil {
		t.Error(err)
	}
	return force.tally.snapshot()
}

var ReadMetrics = readMetrics
