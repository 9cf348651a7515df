package upstream

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/upstream/internal/balance"
	"github.com/levee-net/levee/upstream/internal/breaker"
)

// A Pool is a set of servers of which any will do. Its zero value is ready for
// [Pool.Update]. Fields must not be changed once it is in use; its methods may be
// called by several goroutines at once. It must not be copied.
//
// Of durations, counts and rates zero means the documented default, and negative means
// off.
type Pool struct {
	// Name is what errors call it.
	Name string

	// Balance is how a server is picked. Zero means RoundRobin.
	Balance Balance

	// TLS, if not nil, is spoken to the servers. It is cloned. An empty ServerName
	// means that of the [Server], or the host of its name; a nil ClientSessionCache a
	// small one for each server.
	TLS *tls.Config

	// HandshakeTimeout is how long the TLS handshake may take, within the try's
	// DialTimeout. Zero means what is left of that.
	HandshakeTimeout time.Duration

	// Source are local addresses to connect from, which are taken in turn: each gives
	// a server as many connections as there are local ports. One that has no port left
	// is passed over. Servers whose family (IPv4, IPv6) none of them has are connected
	// to from the address that the system picks.
	Source []netip.Addr

	// DialTimeout is how long a try may take: look-up, connecting, handshake. Zero
	// means 5 seconds.
	DialTimeout time.Duration

	// Tries is how many servers a Dial tries. Zero means 3, negative 1.
	Tries int

	// TotalTimeout bounds a Dial as a whole: the queue, all tries and the pauses
	// between them. Zero means 10 seconds; negative means that only the context of the
	// Dial, DialTimeout and QueueTimeout bound it.
	TotalTimeout time.Duration

	// RetryBudget is how many retries there may be for each first try of the last 10
	// seconds; 30 are always allowed. Zero means 0.2; negative means no more than the 30.
	RetryBudget float64

	// MaxConnections is how many connections a server may have, those that are being
	// made included. Zero and negative mean no cap.
	MaxConnections int

	// QueueTimeout is how long a Dial waits when every server that could be used has
	// MaxConnections, and MaxQueue how many may wait. The one that has waited longest
	// gets the first place that becomes free. Zero means what is left of TotalTimeout,
	// and 1024; negative means that nobody waits.
	QueueTimeout time.Duration
	MaxQueue     int

	// SlowStart is how long the weight of a server that was added later, or has come
	// back, takes to rise evenly from a tenth to the whole. Zero means 10 seconds.
	// SourceHash and Maglev do without: each step would send clients elsewhere.
	SlowStart time.Duration

	// PanicThreshold is the share of a tier's servers that have to pass their health
	// checks. Of a tier with fewer the checks are not believed: if no other tier is
	// better, all its servers are used. Breakers are always believed. Zero means 0.5;
	// negative means that checks are always believed.
	PanicThreshold float64

	// Health is how servers are checked while Run runs.
	Health Health

	// Breaker is when a server that fails is left alone.
	Breaker Breaker

	// EarlyClose is within which time of its birth a connection counts as a failure
	// when the server ends it without having sent a byte, unless that may be the client's
	// doing. Zero means 1 second; negative means that connecting is success enough.
	EarlyClose time.Duration

	// CutOnDown says that a server's connections are cut when its health checks declare
	// it down: CutRate of them a second, the oldest first, until it is up again; also
	// those that it still gets, within a second or so. It waits while so many servers
	// are down that the checks are not believed. Zero means 100 a second; it cannot be
	// negative, as CutOnDown turns it off.
	CutOnDown bool
	CutRate   float64

	// Rebalance is how many connections a second may be asked to move when a server has
	// come (back) and the others have more than their share; the quietest of the server
	// that has most too many first. A tier that was stood in for gets its connections
	// back in the same way. Zero and negative mean none. SourceHash and Maglev do
	// without: a client would return to the server that it came from.
	Rebalance float64

	// Trace, if not nil, is told what happens.
	Trace *Trace

	connect func(context.Context, address) (net.Conn, error) // set by tests before the first use

	once       sync.Once
	terms      terms
	began      time.Time // of the clock
	budget     *breaker.Budget
	news       bulletin
	nextSource atomic.Uint32
	lineup     atomic.Pointer[lineup] // what is picked from
	running    atomic.Bool
	changed    chan struct{} // capacity 1; tells Run that there is another lineup
	returned   chan struct{} // capacity 1; tells Run that a server has come (back)
	counts     counts

	waiting atomic.Int64 // the length of queue

	mu      sync.Mutex
	members map[string]*member // those of the lineup, and those that left and still have connections
	told    bool               // there has been an Update
	queue   list.List          // of *waiter, the longest-waiting first

	inherited       map[string]savedServer // what another process knew of servers that there are not yet
	inheritedAt     time.Time              // as of when
	inheritedCounts savedCounts
}

// A lineup is a set of servers as an Update left it. Only what its members and tiers
// hold changes.
type lineup struct {
	members []*member // of all tiers, in order
	tiers   []*tier   // the one to use first first
}

// A tier is the servers of one Server.Tier.
type tier struct {
	rank    int
	members []*member
	picker  *balance.Picker
	well    atomic.Bool // enough of the members pass their health checks
}

// The floor of the retry budget is 3 a second: Finagle and tower have 10. It must leave room
// for a pool with little traffic to find out about one bad server, which takes as many
// failures as open a breaker, without a client that notices.
const (
	retryWindow = 10 * time.Second
	retryFloor  = 30
)

// start makes the pool ready at its first use.
func (p *Pool) start() {
	p.once.Do(func() {
		p.terms = p.settle()
		p.began = time.Now()
		p.budget = breaker.NewBudget(p.RetryBudget, retryFloor, retryWindow)
		p.changed = make(chan struct{}, 1)
		p.returned = make(chan struct{}, 1)
		p.members = make(map[string]*member)
		p.lineup.Store(new(lineup))
		if p.connect == nil {
			p.connect = p.connectSocket
		}
	})
}

// clock is the time since the pool's first use. It is never 0.
func (p *Pool) clock() time.Duration { return time.Since(p.began) + 1 }

// Update replaces the set of servers. If one of them is invalid, or two have the same
// name, nothing is changed and the error says which.
//
// Connections to servers that are not among them any more live on, but there will be
// no new ones. A server that comes back while it still has some is the same as before:
// its health, its breaker, its latency and an operator's Drain are remembered. One that
// stays also keeps them if its addresses, its weight or its tier have changed.
func (p *Pool) Update(servers []Server) error {
	p.start()
	specs, err := p.inspect(servers)
	if err != nil {
		return fmt.Errorf("upstream %s: %w", p.Name, err)
	}
	defer p.news.tell()
	p.mu.Lock()
	defer p.mu.Unlock()
	present := make([]*member, len(specs))
	for i, s := range specs {
		present[i] = p.enlistLocked(s)
	}
	l := p.lineUp(present)
	p.assess(l)
	p.lineup.Store(l)
	p.dismissLocked(present) // not before: whoever picks one that left has to find others when he picks again
	p.told = true
	p.serveQueueLocked()
	signal(p.changed)
	signal(p.returned)
	return nil
}

// enlistLocked returns the member that s is of, and makes it if there is none.
func (p *Pool) enlistLocked(s *spec) *member {
	m := p.members[s.name]
	switch {
	case m == nil:
		m = p.admitLocked(s)
	case m.left.Load():
		m.left.Store(false)
	default:
		m.become(s)
		return m
	}
	m.become(s)
	p.news.post(func() { p.Trace.serverAdded(s.name) })
	if p.told {
		m.riseSlowly()
	}
	return m
}

// admitLocked makes a member, which knows what another process knew of the server.
func (p *Pool) admitLocked(s *spec) *member {
	m := newMember(p, s)
	m.spec.Store(s)
	p.members[s.name] = m
	if known, ok := p.inherited[s.name]; ok {
		delete(p.inherited, s.name)
		m.inherit(&known, time.Since(p.inheritedAt))
		m.inheritCounts(&known.Counts)
	}
	return m
}

// dismissLocked has those leave that are not present.
func (p *Pool) dismissLocked(present []*member) {
	stays := make(map[*member]bool, len(present))
	for _, m := range present {
		stays[m] = true
	}
	for name, m := range p.members {
		if stays[m] {
			continue
		}
		if !m.left.Swap(true) {
			p.news.post(func() { p.Trace.serverLeft(name) })
		}
		p.forgetLocked(m)
	}
}

// forgetLocked drops a member that left and has no connections.
func (p *Pool) forgetLocked(m *member) {
	if m.left.Load() && m.active.Load() == 0 && p.members[m.name] == m {
		delete(p.members, m.name)
	}
}

func (p *Pool) forget(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgetLocked(m)
}

// lineUp sorts members into tiers.
func (p *Pool) lineUp(members []*member) *lineup {
	l := &lineup{members: members}
	for _, m := range members {
		rank := m.spec.Load().tier
		at, found := slices.BinarySearchFunc(l.tiers, rank, func(t *tier, rank int) int { return t.rank - rank })
		if !found {
			l.tiers = slices.Insert(l.tiers, at, &tier{rank: rank})
		}
		l.tiers[at].members = append(l.tiers[at].members, m)
	}
	for _, t := range l.tiers {
		peers := make([]balance.Peer, len(t.members))
		for i, m := range t.members {
			peers[i] = m
		}
		t.picker = balance.New(balance.Kind(p.Balance), peers)
	}
	return l
}

// assess notes which tiers have enough servers that are well.
func (p *Pool) assess(l *lineup) {
	for _, t := range l.tiers {
		all, well := 0, 0
		for _, m := range t.members {
			if m.drained.Load() {
				continue
			}
			all++
			if !m.down.Load() {
				well++
			}
		}
		t.well.Store(well > 0 && float64(well) >= p.terms.panicThreshold*float64(all))
	}
}

// reassess is for when a member's health has changed.
func (p *Pool) reassess() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reassessLocked()
}

func (p *Pool) reassessLocked() {
	p.assess(p.lineup.Load())
	p.serveQueueLocked()
}

// Drain gives the server no new connections until Undrain, also if Updates tell of it
// again. Those that it has live on. It reports whether there is such a server.
func (p *Pool) Drain(name string) bool { return p.setDrained(name, true) }

// Undrain takes back a Drain; the server then starts slowly. It reports whether there
// is such a server.
func (p *Pool) Undrain(name string) bool { return p.setDrained(name, false) }

func (p *Pool) setDrained(name string, drained bool) bool {
	p.start()
	defer p.news.tell()
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	if m == nil {
		return false
	}
	if m.drained.Swap(drained) && !drained {
		m.riseSlowly()
	}
	p.reassessLocked()
	signal(p.returned)
	return true
}

// signal wakes whoever waits for c, now or when he next looks.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run checks the servers' health, cuts the connections of those that are down, and
// rebalances. It returns nil when ctx has ended and everything that it started has
// ended too; all servers then count as healthy again. An error means that the pool is
// running already.
func (p *Pool) Run(ctx context.Context) error {
	p.start()
	if !p.running.CompareAndSwap(false, true) {
		return fmt.Errorf("upstream %s: %w", p.Name, errRunning)
	}
	defer p.running.Store(false)
	var all sync.WaitGroup
	if p.rebalances() {
		all.Go(func() { p.rebalance(ctx) }) // ends with ctx
	}
	p.supervise(ctx, &all)
	all.Wait()
	p.believeAll()
	return nil
}

var errRunning = errors.New("running already")

// supervise keeps a watch on every server that is present, and decides about
// connections when nobody dials, until ctx ends.
func (p *Pool) supervise(ctx context.Context, all *sync.WaitGroup) {
	watched := make(map[*member]context.CancelFunc)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if p.terms.checks {
			p.watchThePresent(ctx, all, watched)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.review()
		case <-p.changed:
		}
	}
}

// watchThePresent starts and ends watches so that each member of the lineup has one.
func (p *Pool) watchThePresent(ctx context.Context, all *sync.WaitGroup, watched map[*member]context.CancelFunc) {
	present := make(map[*member]bool)
	for _, m := range p.lineup.Load().members {
		present[m] = true
		if watched[m] != nil {
			continue
		}
		watch, end := context.WithCancel(ctx)
		watched[m] = end
		all.Go(func() { m.watch(watch, all) }) // ends with ctx, or when the server leaves
	}
	for m, end := range watched {
		if !present[m] {
			end()
			delete(watched, m)
		}
	}
}

// review has what only time has changed take effect: connections that have lived long
// enough, breakers that have been open long enough.
func (p *Pool) review() {
	defer p.news.tell()
	p.decideDue()
	for _, m := range p.lineup.Load().members {
		m.breaker.State() // notices
	}
	if p.waiting.Load() > 0 {
		p.serveQueue()
	}
}
