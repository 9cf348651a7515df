package limit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

const (
	defaultSharedTimeout = 50 * time.Millisecond
	verdictHolds         = 500 * time.Millisecond // at most
)

// sharing is a gate's part in counting together with other machines.
type sharing struct {
	timeout time.Duration

	mu       sync.Mutex
	counts   SharedStats
	verdicts map[uint64]time.Time // refusals, by what was refused: until when they hold
}

// maxVerdicts bounds what is remembered of refusals.
const maxVerdicts = 4096

func (s *sharing) stats() SharedStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// A question is a claim, and what it is about.
type question struct {
	Claim
	rule *rule
	tag  uint64 // of the account
	by   width
	mode Mode
}

// questions returns what has to be asked about the accounts from the given one on. The client has a
// name by which it is known if it has shown a certificate, or asked for a server.
func (p *pass) questions(from int, state *tls.ConnectionState) []question {
	if p.gate().Shared == nil {
		return nil
	}
	return p.stake.questions(from, p.client, state)
}

func (st *stake) questions(from int, addr netip.Addr, state *tls.ConnectionState) (all []question) {
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		r := &st.of.rules[h.rule]
		t := r.law.terms.Load()
		n := &t.numbers[h.width]
		if !t.shared || n.most == 0 && n.rate.interval == 0 {
			continue
		}
		all = append(all, question{
			Claim: Claim{Limit: r.law.name, Key: r.key(h.width, addr, state), Most: int(n.most), Rate: n.rate.perSecond(), Burst: n.rate.burst()},
			rule:  r, tag: h.tag(), by: h.width, mode: t.mode,
		})
	}
	return all
}

// key returns whose account it is, in the words of all machines. That of the totals is "".
func (r *rule) key(w width, addr netip.Addr, state *tls.ConnectionState) string {
	if r.clients == nil {
		return ""
	}
	if r.clients.By != ByAddress && state != nil {
		if name, ok := r.clients.nameOf(state); ok {
			return name
		}
	}
	return clientPrefix(addr, prefixBits[w]).String()
}

// clientPrefix returns an IPv4 address, or the first bits of one of IPv6.
func clientPrefix(addr netip.Addr, bits int) netip.Prefix {
	if addr.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// tag tells the account from all others; it is 0 for those that several keys have in common.
func (h *held) tag() uint64 {
	if h.slot == ways {
		return 0
	}
	return h.set.tags[h.slot] // which stays as it is while the connection is open
}

func (c cadence) perSecond() float64 {
	if c.interval == 0 {
		return 0
	}
	return float64(time.Second) / float64(c.interval)
}

func (c cadence) burst() int {
	if c.interval == 0 {
		return 0
	}
	return int(c.tolerance/c.interval) + 1
}

func (w *waiter) Reach(c *levee.Conn, at levee.Stage) *levee.Refusal { return (*pass)(w).Reach(c, at) }

func (w *waiter) Leave(c *levee.Conn, end levee.End) { (*pass)(w).Leave(c, end) }

// Await asks the other machines.
func (w *waiter) Await(ctx context.Context, _ *levee.Conn) *levee.Refusal {
	p := (*pass)(w)
	p.mu.Lock()
	questions := p.questions(0, nil)
	p.mu.Unlock()
	return p.ask(ctx, questions)
}

func (p *pass) ask(ctx context.Context, questions []question) *levee.Refusal {
	if len(questions) == 0 {
		return nil
	}
	got, refusal, by := p.gate().ask(ctx, questions)
	p.mu.Lock()
	gone, addr := p.gone, p.client
	if !gone && len(got) > 0 {
		x := p.extraLocked()
		x.claims = append(x.claims, got...)
	}
	p.mu.Unlock()
	if gone && len(got) > 0 {
		p.gate().Shared.Release(got)
	}
	if refusal != nil && by.blames() && p.gate().Bans != nil {
		p.gate().Bans.strike(addr)
	}
	return refusal
}

// blames reports whether the rule refuses a client for what it has done itself.
func (r *rule) blames() bool { return r.clients != nil && r.clients.By == ByAddress }

// ask returns the claims that count as open on the other machines; or what refuses the connection there, and
// by which rule.
func (g *Gate) ask(ctx context.Context, questions []question) (got []Claim, refusal *levee.Refusal, by *rule) {
	ctx, cancel := context.WithTimeout(ctx, g.sharing.timeout)
	defer cancel()
	inShadow := func(q question) bool { return q.mode == Shadow }
	enforced := slices.DeleteFunc(slices.Clone(questions), inShadow)
	if len(enforced) > 0 {
		refused, err := g.claim(ctx, enforced)
		switch {
		case err != nil:
			return g.hold(questions), nil, nil
		case refused >= 0:
			q := enforced[refused]
			q.rule.law.counts[shared].refused.Add(1)
			g.sharing.remember(q, time.Now())
			return nil, &q.rule.refusals[q.by][shared], q.rule
		}
		got = granted(got, enforced)
	}
	// Those in Shadow must not keep the others from being granted, nor one of them another.
	shadows := slices.DeleteFunc(slices.Clone(questions), func(q question) bool { return !inShadow(q) })
	for len(shadows) > 0 {
		refused, err := g.claim(ctx, shadows)
		switch {
		case err != nil:
			return append(got, g.hold(shadows)...), nil, nil
		case refused < 0:
			return granted(got, shadows), nil, nil
		}
		q := shadows[refused]
		q.rule.law.counts[shared].wouldRefuse.Add(1)
		got = append(got, g.hold([]question{q})...) // it comes in all the same
		shadows = slices.Delete(shadows, refused, refused+1)
	}
	return got, nil, nil
}

// granted counts what was allowed, and returns the claims that have to be given back.
func granted(got []Claim, questions []question) []Claim {
	for _, q := range questions {
		if q.by == one {
			q.rule.law.counts[shared].allowed.Add(1)
		}
	}
	return append(got, open(questions)...)
}

// open returns the claims that count as open connections.
func open(questions []question) (claims []Claim) {
	for _, q := range questions {
		if q.Most > 0 {
			claims = append(claims, q.Claim)
		}
	}
	return claims
}

// hold has a connection counted that comes in without having been granted, if that is possible, and returns the
// claims that have to be given back then.
func (g *Gate) hold(questions []question) []Claim {
	claims := open(questions)
	holder, ok := g.Shared.(interface{ Hold(claims []Claim) })
	if !ok || len(claims) == 0 {
		return nil
	}
	holder.Hold(claims)
	return claims
}

// claim asks.
func (g *Gate) claim(ctx context.Context, questions []question) (refused int, err error) {
	claims := make([]Claim, len(questions))
	for i, q := range questions {
		claims[i] = q.Claim
	}
	refused, err = g.Shared.Claim(ctx, claims)
	if err == nil && refused >= len(claims) {
		err = fmt.Errorf("claim %d of %d refused", refused, len(claims))
	}
	g.sharing.answered(ctx, err)
	return refused, err
}

func (s *sharing) answered(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Asked++
	switch {
	case err == nil:
		s.counts.FailingSince, s.counts.LastError = time.Time{}, nil
		return
	case errors.Is(ctx.Err(), context.Canceled): // the connection has ended, which says nothing of the others
		return
	}
	s.counts.Failed++
	s.counts.LastError = err
	if s.counts.FailingSince.IsZero() {
		s.counts.FailingSince = time.Now()
	}
}

// remember has what was refused be refused for a moment without asking.
func (s *sharing) remember(q question, now time.Time) {
	if q.tag == 0 {
		return
	}
	holds := verdictHolds
	if q.Rate > 0 {
		holds = min(holds, time.Duration(float64(time.Second)/q.Rate))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.verdicts) >= maxVerdicts {
		clear(s.verdicts)
	}
	if s.verdicts == nil {
		s.verdicts = make(map[uint64]time.Time)
	}
	s.verdicts[q.tag] = now.Add(holds)
}

// recall returns what refuses the connection by what was answered a moment ago.
func (s *sharing) recall(st *stake, from int, now time.Time) (*levee.Refusal, *rule) {
	if !st.anyShared() {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.verdicts) == 0 {
		return nil, nil
	}
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		r := &st.of.rules[h.rule]
		if t := r.law.terms.Load(); !t.shared || t.mode != Enforce {
			continue
		}
		tag := h.tag()
		switch until, ok := s.verdicts[tag]; {
		case !ok:
		case now.Before(until):
			r.law.counts[shared].refused.Add(1)
			return &r.refusals[h.width][shared], r
		default:
			delete(s.verdicts, tag)
		}
	}
	return nil, nil
}
