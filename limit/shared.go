package limit

import (
	"context"
	"net/netip"
	"time"
)

// Shared is where several machines keep limits together. limit/redislimit is one. Its methods
// may be called from several goroutines.
type Shared interface {
	// Claim asks for all of the claims of one connection: it gets all or nothing. It
	// returns the index of the first that is refused, or -1. After an error the machine
	// decides alone: that has to come soon, whatever ails the other side.
	Claim(ctx context.Context, claims []Claim) (refused int, err error)

	// Release gives back what counts as open connections. It does not wait.
	Release(claims []Claim)
}

// A Claim is what a connection asks of a limit.
type Claim struct {
	Limit string  // its name
	Key   string  // whose: an address prefix, a TLS identity, a server name; any bytes
	Most  int     // open at once; 0 is any number
	Rate  float64 // new ones per second; 0 is any rate
	Burst int     // that may come at once
}

// SharedBans is where several machines keep bans together.
type SharedBans interface {
	Ban(ctx context.Context, b Ban) error
	Lift(ctx context.Context, prefix netip.Prefix) error
	// Watch tells of all bans that are in force, and again whenever that changes, until ctx ends. asOf is
	// when it began to look: of what was changed later it may not know yet.
	Watch(ctx context.Context, tell func(bans []Ban, asOf time.Time))
}

// A Ban keeps the clients of a prefix out for a while.
type Ban struct {
	Prefix netip.Prefix
	Until  time.Time
	Why    string // one short line
}
