package limit

import (
	"context"
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// Bans keep out for a while whoever is refused again and again, and whom an operator says.
//
// A client (an IPv4 address or an IPv6 /64) has so many Refusals, one of which is forgiven
// every Within/Refusals. With the last it is banned: for For, and each time again for twice as long as
// before, up to Max, if it comes back before as much time has passed as the ban before took. Refusals
// by limits of each client count, and connections that end for one of Reasons; refusals by
// totals do not, nor what happened before a PROXY header: the client has no part in those.
//
// The zero value is ready to use. Its fields must not be changed then. Methods may be called from several
// goroutines.
type Bans struct {
	Name     string        // of the limit in Stats; "" means "bans"
	Refusals int           // zero means 100
	Within   time.Duration // zero means a minute
	For      time.Duration // zero means 10 minutes
	Max      time.Duration // zero means a day
	// Mode is for the bans that refusals make: Shadow makes none but counts them and whom they
	// would refuse, with Off there are none. Those by hand, and others', are in force in any case.
	Mode Mode

	// Reasons are the ends of connections that count as refusals. Nil means arrival_timeout,
	// tls_failed and proxy_header_refused; empty none.
	Reasons []levee.CloseReason

	// Size is how many bans there may be. One more ends that which would end first. Zero means 65,536.
	Size int
	// Entries is how many clients' refusals are remembered, as [Clients.Entries]. Zero means 65,536.
	Entries int

	// Changed, if it is set, is called after a ban, with no lock held, by whoever made it: connections that are there may have to
	// go (see [Gate.Denies]). It must not block.
	Changed func(Ban)

	// Shared, if it is set, is told of bans that are made here, and tells of others'. Run does so.
	Shared SharedBans
}

// Ban keeps the clients of a prefix out. A ban of the same prefix is replaced.
func (b *Bans) Ban(prefix netip.Prefix, d time.Duration, why string) error

// Lift ends the ban of a prefix, and reports whether there was one.
func (b *Bans) Lift(prefix netip.Prefix) bool

// List returns up to n of the bans that are in force, those that end first first; all if n is 0.
func (b *Bans) List(n int) []Ban

// Denies returns why addr is kept out, or nil.
func (b *Bans) Denies(addr netip.Addr) error

// Run tells Shared of bans and has it tell of others', until ctx ends; it returns ctx's error.
func (b *Bans) Run(ctx context.Context) error

// Stats returns the counts of bans.
func (b *Bans) Stats() BanStats
