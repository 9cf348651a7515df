package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

// A Gate lets connections into a [levee.Server] as limits, lists and bans say. It
// may serve several servers, and a scope, lists and bans several gates. A gate itself keeps no
// account of connections, so another with the same scopes can take its place at any time.
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
	// the local limits decide alone. If it has a method Hold([]Claim), that is told of the
	// connections that came in without having been granted, and they are given back as the others are.
	//
	// What it has refused is refused for a moment without asking, half a second or until its
	// rate lets one more in: so a flood does not reach it.
	Shared        Shared
	SharedTimeout time.Duration

	once    sync.Once
	ruleset ruleset
	denied  map[error]*levee.Refusal
	sharing sharing
	idle    sync.Pool // of *pass: those that were turned away at the door, so that a flood makes no garbage
}

var _ levee.Readmitter = (*Gate)(nil)

// Why a client may not come in at all.
var (
	ErrDenied     = errors.New("on the deny list")
	ErrNotAllowed = errors.New("not on the allow list")
	ErrNotLoaded  = errors.New("the lists are not loaded yet")
	ErrBanned     = errors.New("banned")
)

// A Error is the cause of a refusal by a limit.
type Error struct {
	Limit string // its name

	bits int
}

// Error returns a sentence such as "limit public.client.rate (of the client's /48)".
func (e *Error) Error() string {
	if e.bits > 0 {
		return fmt.Sprintf("limit %s (of the client's /%d)", e.Limit, e.bits)
	}
	return "limit " + e.Limit
}

func (g *Gate) init() {
	g.once.Do(func() {
		g.ruleset = ruleset{g, rulesOf(g.Scopes, g.Manner, g.Delay)}
		g.denied = make(map[error]*levee.Refusal)
		for _, cause := range []error{ErrDenied, ErrNotAllowed, ErrNotLoaded, ErrBanned} {
			g.denied[cause] = &levee.Refusal{Reason: levee.Denied, Cause: cause, Manner: g.Manner, Delay: g.Delay}
		}
		g.sharing.timeout = orDefault(g.SharedTimeout, defaultSharedTimeout)
	})
}

// Admit charges a connection that has just been accepted to the totals.
func (g *Gate) Admit(*levee.Conn) (levee.Pass, *levee.Refusal) {
	g.init()
	p := g.newPass()
	if refusal := p.enter(time.Now()); refusal != nil {
		g.recycle(p)
		return nil, refusal
	}
	if g.Shared != nil && p.stake.anyShared() {
		return (*waiter)(p), nil
	}
	return p, nil
}

func (g *Gate) newPass() *pass {
	p, _ := g.idle.Get().(*pass)
	if p == nil {
		p = new(pass)
	}
	p.stake.of = &g.ruleset
	return p
}

// recycle takes back a pass that nobody has got to know.
func (g *Gate) recycle(p *pass) {
	*p = pass{}
	g.idle.Put(p)
}

// Denies returns why the gate's lists and bans would not let addr in, or nil. It is for
// connections that are there when either has changed; see [levee.Conn.Forbid].
func (g *Gate) Denies(addr netip.Addr) error {
	if g.Lists != nil && g.Lists.Mode == Enforce {
		if err := g.Lists.Denies(addr); err != nil {
			return err
		}
	}
	if g.Bans != nil {
		return g.Bans.Denies(addr)
	}
	return nil
}

// Stats returns the gate's own counts; for the others see [Scope.Stats], [Lists.Stats] and
// [Bans.Stats].
func (g *Gate) Stats() GateStats {
	return GateStats{Shared: g.sharing.stats()}
}

// bar returns what refuses a client because of who it is.
func (g *Gate) bar(addr netip.Addr, now time.Time) *levee.Refusal {
	if g.Lists != nil {
		if err := g.Lists.decide(addr); err != nil {
			return g.denied[err]
		}
	}
	if g.Bans != nil && g.Bans.decide(addr, now) {
		return g.denied[ErrBanned]
	}
	return nil
}
