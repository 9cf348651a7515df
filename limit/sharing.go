package limit

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

const (
	defaultSharedTimeout = 50 * time.Millisecond
	pauseAfterFailure    = 250 * time.Millisecond
	verdictHolds         = 500 * time.Millisecond // at most
)

// sharing is a gate's part in counting together with other machines.
type sharing struct {
	timeout time.Duration

	mu       sync.Mutex
	counts   SharedStats
	retry    time.Time            // nobody waits for an answer before
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
	if p.gate == nil || p.gate.Shared == nil {
		return nil
	}
	return p.stake.questions(from, p.client, state)
}

func (st *stake) questions(from int, addr netip.Addr, state *tls.ConnectionState) (all []question) {
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		r := &st.rules[h.rule]
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

// Await asks the other machines.
func (w *waiter) Await(ctx context.Context, _ *levee.Conn) *levee.Refusal {
	w.mu.Lock()
	questions := w.questions(0, nil)
	w.mu.Unlock()
	return w.ask(ctx, questions)
}

func (p *pass) ask(ctx context.Context, questions []question) *levee.Refusal {
	if len(questions) == 0 {
		return nil
	}
	got, refusal, by := p.gate.ask(ctx, questions)
	p.mu.Lock()
	gone, addr := p.gone, p.client
	if !gone {
		p.claims = append(p.claims, got...)
	}
	p.mu.Unlock()
	if gone && len(got) > 0 {
		p.gate.Shared.Release(got)
	}
	if refusal != nil && by.blames() && p.gate.Bans != nil {
		p.gate.Bans.strike(addr)
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
		refused, ok := g.claim(ctx, enforced)
		switch {
		case !ok:
			return nil, nil, nil
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
		refused, ok := g.claim(ctx, shadows)
		if !ok {
			break
		}
		if refused < 0 {
			got = granted(got, shadows)
			break
		}
		shadows[refused].rule.law.counts[shared].wouldRefuse.Add(1)
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
		if q.Most > 0 {
			got = append(got, q.Claim)
		}
	}
	return got
}

// claim asks, unless there was no answer a moment ago. It is not ok without an answer.
func (g *Gate) claim(ctx context.Context, questions []question) (refused int, ok bool) {
	s := &g.sharing
	if !s.mayAsk(time.Now()) {
		return -1, false
	}
	claims := make([]Claim, len(questions))
	for i, q := range questions {
		claims[i] = q.Claim
	}
	refused, err := g.Shared.Claim(ctx, claims)
	if err == nil && refused >= len(claims) {
		err = fmt.Errorf("claim %d of %d refused", refused, len(claims))
	}
	if context.Cause(ctx) == context.Canceled { // the connection has ended, which says nothing of the others
		return -1, false
	}
	s.answered(err, time.Now())
	return refused, err == nil
}

func (s *sharing) mayAsk(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.retry) {
		s.counts.Skipped++
		return false
	}
	s.counts.Asked++
	return true
}

func (s *sharing) answered(err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.retry, s.counts.FailingSince, s.counts.LastError = time.Time{}, time.Time{}, nil
		return
	}
	s.counts.Failed++
	s.counts.LastError = err
	if s.counts.FailingSince.IsZero() {
		s.counts.FailingSince = now
	}
	s.retry = now.Add(pauseAfterFailure)
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
		r := &st.rules[h.rule]
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
