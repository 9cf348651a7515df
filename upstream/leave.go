package upstream

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// cut ends the connections of a server that is down, the oldest first, until ctx ends. While
// the checks are not believed it waits.
func (m *member) cut(ctx context.Context, reason error) {
	cause := fmt.Errorf("%w: %w", ErrServerDown, reason)
	pace := newPace(m.pool.terms.cutRate)
	defer pace.stop()
	for {
		allowed, ok := pace.next(ctx)
		if !ok {
			return
		}
		if !m.believed() {
			continue
		}
		victims := m.oldest(allowed)
		if len(victims) == 0 && !rest(ctx, cutLook) {
			return
		}
		for _, c := range victims {
			c.cut(cause)
		}
	}
}

// cutLook is how often it is looked for connections of a server that is down when there
// were none left: some were being made when it was declared down, or when it was used
// all the same.
const cutLook = time.Second

// believed reports whether the server's tier has enough servers that are well, or another
// has: if none has, the checks may be what is wrong.
func (m *member) believed() bool {
	return !m.pool.terms.panics || slices.ContainsFunc(m.pool.lineup.Load().tiers, func(t *tier) bool { return t.well.Load() })
}

// oldest returns up to n of the oldest connections that have not been told to go.
func (m *member) oldest(n int) (conns []*Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := m.first; c != nil && len(conns) < n; c = c.next {
		if !c.cutting {
			c.cutting = true
			conns = append(conns, c)
		}
	}
	return conns
}

func (c *Conn) cut(cause error) {
	c.member.pool.Trace.cut(c.Server())
	switch {
	case c.client != nil:
		c.client.Cut(cause)
	case c.Conn != nil:
		c.Conn.Close() // whoever reads it finds out
	}
}

// A pace is a rate, as a number of things that may be done at each step.
type pace struct {
	perStep float64
	credit  float64
	ticker  *time.Ticker
}

// newPace makes steps of at least 10 ms: a timer for each of thousands of things a second
// would cost more than the things.
func newPace(perSecond float64) *pace {
	step := max(10*time.Millisecond, time.Duration(float64(time.Second)/max(perSecond, 0.001)))
	return &pace{perStep: max(1, perSecond*step.Seconds()), ticker: time.NewTicker(step)}
}

// next waits for the next step and returns how many may be done in it. It reports whether
// ctx has not ended.
func (p *pace) next(ctx context.Context) (n int, ok bool) {
	select {
	case <-ctx.Done():
		return 0, false
	case <-p.ticker.C:
	}
	p.credit += p.perStep
	n = int(p.credit)
	p.credit -= float64(n)
	return n, ctx.Err() == nil
}

func (p *pace) stop() { p.ticker.Stop() }

func (p *Pool) rebalances() bool { return p.terms.rebalance > 0 && !p.Balance.hashes() }

// rebalance asks connections to move whenever a server has come (back), until ctx ends.
func (p *Pool) rebalance(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.returned:
			p.levelOut(ctx)
		}
	}
}

// levelOut asks connections to move until no server has too many, and none is starting
// slowly any more. It asks no more than would have done if all had come back: clients
// that stay away must not make it go on until there are none.
func (p *Pool) levelOut(ctx context.Context) {
	pace := newPace(p.terms.rebalance)
	defer pace.stop()
	for left := p.overhang(); left > 0; {
		allowed, ok := pace.next(ctx)
		if !ok {
			return
		}
		asked, rising := p.moveQuietest(min(allowed, left))
		if asked == 0 && !rising {
			return
		}
		left -= asked
	}
}

// overhang is how many connections are too many where they are, once nobody starts slowly
// any more.
func (p *Pool) overhang() int {
	burdens, _ := p.burdens(func(m *member) float64 { return m.spec.Load().weight })
	sum := 0.0
	for _, b := range burdens {
		sum += max(0, b.excess)
	}
	return int(math.Ceil(sum))
}

// moveQuietest asks up to n connections to leave: of the server that has most too many
// each time. It returns how many were asked, and whether some servers do not take their
// whole share yet.
func (p *Pool) moveQuietest(n int) (asked int, rising bool) {
	burdens, rising := p.burdens((*member).Weight)
	chosen := make(map[*member]int)
	for range n {
		heaviest := heaviestOf(burdens)
		if heaviest == nil {
			break
		}
		heaviest.excess--
		chosen[heaviest.member]++
	}
	for m, count := range chosen {
		for _, c := range m.quietest(count) {
			asked++
			p.Trace.moved(m.name)
			c.client.Leave(ErrRebalancing)
		}
	}
	return asked, rising
}

// A burden is how many connections a server has beyond its share.
type burden struct {
	member *member
	excess float64
}

// heaviestOf returns the burden with most too many, or nil if none has a whole connection
// too many.
func heaviestOf(burdens []burden) *burden {
	var heaviest *burden
	for i := range burdens {
		if b := &burdens[i]; b.excess >= 1 && (heaviest == nil || b.excess > heaviest.excess) {
			heaviest = b
		}
	}
	return heaviest
}

// burdens compares what servers have with what their weights in the tier in use entitle
// them to. Servers that get no new connections are left alone, but for those of a tier
// that stood in. Connections that were asked before count as gone, and as about to come
// back.
func (p *Pool) burdens(weight func(*member) float64) (burdens []burden, rising bool) {
	var inUse *tier
	total, weights := 0.0, 0.0
	for _, t := range p.lineup.Load().tiers {
		if inUse == nil && t.well.Load() {
			inUse = t
		}
		for _, m := range t.members {
			if !m.usable(false) {
				continue
			}
			staying, leaving := m.connections()
			burdens = append(burdens, burden{m, float64(staying)})
			total += float64(staying + leaving)
			if t == inUse {
				rising = rising || m.rising.Load() != 0
				weights += weight(m)
			}
		}
	}
	if inUse == nil || weights == 0 {
		return nil, false
	}
	for i := range burdens {
		if m := burdens[i].member; slices.Contains(inUse.members, m) {
			burdens[i].excess -= total * weight(m) / weights
		}
	}
	return burdens, rising
}

// connections counts those that have been asked to leave apart.
func (m *member) connections() (staying, leaving int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active.Load() - m.leaving, m.leaving
}

// quietest returns the n connections that have been quiet for longest, of those that can
// be asked and have not been.
func (m *member) quietest(n int) []*Conn {
	conns := m.askable()
	quiet := make(map[*Conn]time.Duration, len(conns))
	for _, c := range conns {
		quiet[c] = c.client.Quiet()
	}
	slices.SortStableFunc(conns, func(a, b *Conn) int { return cmp.Compare(quiet[b], quiet[a]) })
	conns = conns[:min(n, len(conns))]
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(conns, func(c *Conn) bool {
		if c.ended {
			return true
		}
		c.asked = true
		m.leaving++
		return false
	})
}

func (m *member) askable() (conns []*Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := m.first; c != nil; c = c.next {
		if c.client != nil && !c.asked {
			conns = append(conns, c)
		}
	}
	return conns
}
