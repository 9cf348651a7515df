package limit

import (
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// A Gate lets connections into a [levee.Server] as limits, lists and bans say. It
// may serve several servers, and a scope, lists and bans several gates: a gate itself holds
// nothing of its connections, so another with the same scopes can take its place at any time.
//
// Its fields must not be changed once it is in use. Methods may be called from several
// goroutines.
type Gate struct {
	Scopes []*Scope // a connection counts in each
	Lists  *Lists
	Bans   *Bans

	// Manner and Delay are how connections are turned away.
	Manner levee.Manner
	Delay  time.Duration

	// Shared, if it is set, counts together with other machines what limits say that are Shared.
	// It is asked last, and has SharedTimeout for its answer; zero means 50 ms. Without an answer
	// the local limits decide alone, and for 250 ms nobody waits for it again.
	//
	// A client that it has refused is refused for a moment without asking, half a second or until its
	// rate lets one more in: so a flood does not reach it.
	Shared        Shared
	SharedTimeout time.Duration
}

// Denies returns why the gate's lists and bans would not let addr in, or nil. It is for
// connections that are there when either has changed; see [levee.Conn.Forbid].
func (g *Gate) Denies(addr netip.Addr) error

// Stats returns the gate's own counts; for the others see [Scope.Stats], [Lists.Stats] and [Bans.Stats].
func (g *Gate) Stats() GateStats

// Route returns a handler that counts what h serves in a scope of its own as well: from when
// it is routed until it ends. It is a [levee.Router], and does for h what a Router's Route
// does; what it refuses ends with an error that wraps a *[levee.Refusal]. A nil Gate shares nothing.
//
// All limits of the scope are asked then, so Handshakes limits nothing.
func (g *Gate) Route(s *Scope, h levee.Handler) levee.Handler

// A LimitError is the cause of a refusal by a limit.
type LimitError struct {
	Limit string // its name
	Bits  int    // of the IPv6 prefix that has taken too much; 0 otherwise
}
