package limit

import (
	"context"
	"net/netip"
	"time"
)

// Lists say who may come in at all, by address. They take a million prefixes.
//
// Who is on the deny list is refused, also if on the allow list. If there is an
// allow list, who is not on it is refused. Connections without an IP address (a Unix
// socket's) are not asked for one.
//
// A file has a prefix or an address on each line; blank lines and what follows a # are nothing. It is all or nothing:
// with a mistake in any file, Load says where, as in
//
//	deny.txt:17: "10.0.0.0/33": prefix length out of range
//
// and what was in force stays. Until Load has gone right once, everybody is refused.
//
// The fields must not be changed after Load. Methods may be called from several goroutines.
type Lists struct {
	Name                  string // of the limit in Stats; "" means "lists"
	Allow, Deny           []netip.Prefix
	AllowFiles, DenyFiles []string
	Mode                  Mode

	// Interval is how often Watch reads the files when nothing seems to happen in
	// their folders. Zero means 10 seconds, negative never.
	Interval time.Duration

	// Problem, if it is set, is told what keeps Watch from loading the files; the same once.
	Problem func(error)

	// Changed, if it is set, is called by Watch after other prefixes have come into force:
	// connections that are there may have to go (see [Gate.Denies]).
	Changed func()
}

// Load reads the files and puts what they hold in force.
func (l *Lists) Load() error

// Watch reads the files again whenever they may have changed, until ctx ends; it returns
// ctx's error. Load need not have been called, but says at once what is wrong.
func (l *Lists) Watch(ctx context.Context) error

// Denies returns why addr may not come in, or nil, whatever the mode.
func (l *Lists) Denies(addr netip.Addr) error

// Stats returns the lists' counts.
func (l *Lists) Stats() ListStats
