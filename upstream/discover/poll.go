package discover

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/levee-net/levee/upstream"
)

// Static is a source of servers that never change.
type Static []upstream.Server

// Run tells the servers and waits for ctx to end. It may run several times at once.
func (s Static) Run(ctx context.Context, update func([]upstream.Server)) error {
	OnChange(update)(s)
	<-ctx.Done()
	return ctx.Err()
}

// A Poll is a source made of a function that is asked again and again.
type Poll struct {
	// Ask returns the servers, and how long that is good: it is called again after
	// that. An Ask that waits for a change by itself returns 0.
	//
	// With an error, no servers (nil) means that nothing is known: the last ones are
	// kept, and Ask is called again after next, or if that is 0 after a back-off: 1 s
	// at first, doubled up to 30 s, of which half is chosen by chance. Servers are
	// believed with an error too, which then tells that they may not be all.
	Ask func(ctx context.Context) (servers []upstream.Server, next time.Duration, err error)

	// Problem, if it is set, is told of each of Ask's errors.
	Problem func(error)
}

// Run asks until ctx ends.
func (p *Poll) Run(ctx context.Context, update func([]upstream.Server)) error {
	tell := OnChange(update)
	backoff := time.Duration(0)
	for ctx.Err() == nil {
		servers, next, err := p.Ask(ctx)
		if ctx.Err() != nil {
			break
		}
		if err == nil || servers != nil {
			tell(servers)
		}
		report(p.Problem, err)
		switch {
		case err == nil:
			backoff = 0
		case next == 0:
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			next = backoff/2 + rand.N(backoff/2+1)
		}
		wait(ctx, next)
	}
	return ctx.Err()
}

const (
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
)

func report(problem func(error), err error) {
	if err != nil && problem != nil {
		problem(err)
	}
}

// wait waits, at most until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// OnChange returns a function that calls update the first time, and then only with
// servers that are others than the time before. Neither their order nor that of their
// addresses makes a difference, nor whether a default is written out. Update is given
// a copy. The function is for one goroutine at a time.
func OnChange(update func([]upstream.Server)) func([]upstream.Server) {
	var (
		told bool
		last []upstream.Server
	)
	return func(servers []upstream.Server) {
		now := canonical(servers)
		if told && slices.EqualFunc(now, last, same) {
			return
		}
		told, last = true, now
		servers = slices.Clone(servers)
		for i := range servers {
			servers[i].Addresses = slices.Clone(servers[i].Addresses)
		}
		update(servers)
	}
}

// canonical returns a copy with defaults written out, and everything in order.
func canonical(servers []upstream.Server) []upstream.Server {
	servers = slices.Clone(servers)
	for i, s := range servers {
		s.Addresses = slices.Sorted(slices.Values(s.Addresses))
		switch {
		case len(s.Addresses) == 0:
			s.Addresses = []string{s.Name}
		case s.Name == "":
			s.Name = servers[i].Addresses[0]
		}
		s.Weight = max(1, s.Weight)
		servers[i] = s
	}
	slices.SortFunc(servers, func(a, b upstream.Server) int { return strings.Compare(a.Name, b.Name) })
	return servers
}

func same(a, b upstream.Server) bool {
	return a.Name == b.Name && a.ServerName == b.ServerName && a.Weight == b.Weight && a.Tier == b.Tier && slices.Equal(a.Addresses, b.Addresses)
}
