package limit

import (
	"net/netip"
	"time"

	"github.com/levee-net/levee"
)

// A rule is a law that a gate or a route applies, with its ways to say no.
type rule struct {
	scope    *Scope
	clients  *Clients // nil for the totals
	law      *law
	refusals [widths][kinds]levee.Refusal
}

// A ruleset is the rules that a gate or a route applies.
type ruleset struct {
	gate  *Gate // nil for a route without one
	rules []rule
}

func rulesOf(scopes []*Scope, manner levee.Manner, delay time.Duration) []rule {
	var rules []rule
	add := func(s *Scope, c *Clients, l *law) {
		r := rule{scope: s, clients: c, law: l}
		for w := range r.refusals {
			for k := range r.refusals[w] {
				cause := &Error{Limit: l.names[k], bits: prefixBits[w]}
				if c == nil || w == int(one) {
					cause.bits = 0
				}
				r.refusals[w][k] = levee.Refusal{Reason: levee.Limited, Cause: cause, Manner: manner, Delay: delay}
			}
		}
		rules = append(rules, r)
	}
	for _, s := range scopes {
		s.init()
		add(s, nil, &s.totals)
		for _, c := range s.Clients {
			add(s, c, &c.each)
		}
	}
	return rules
}

// A stake is what a connection holds of the accounts of its rules.
type stake struct {
	of   *ruleset
	held []held
	room [3]held // for a client of IPv4 and two totals
}

// held is a connection's part in an account. That is there as long as the connection is open.
type held struct {
	set     *set
	rule    uint16
	slot    uint8 // in the set
	width   width
	charged bool // with a rate
	shaken  bool // charged with the handshake that was begun last
}

func (h *held) account() *account { return &h.set.accounts[h.slot] }

// A spot is where the account of a key is.
type spot struct {
	set   *set
	tag   uint64
	width width
}

// total charges the connection to a rule's sum.
func (st *stake) total(i int, now time.Time) *levee.Refusal {
	return st.join(i, now, spot{set: &st.of.rules[i].scope.sum})
}

// address charges the connection to its client by address.
func (st *stake) address(i int, addr netip.Addr, now time.Time) *levee.Refusal {
	if !addr.IsValid() {
		return nil
	}
	spots, n := st.of.rules[i].clients.table.spots(addr)
	return st.join(i, now, spots[:n]...)
}

// spots returns where a client by address has its accounts. The widest comes first: what it refuses leaves no trace of
// the narrower ones, of which there are so many.
func (t *table) spots(addr netip.Addr) (all [widths]spot, n int) {
	widest := wide48
	if addr.Is4() {
		widest = one
	}
	for w := int(widest); w >= int(one); w-- {
		tag := t.address(addr, prefixBits[w])
		all[n] = spot{set: t.set(tag), tag: tag, width: width(w)}
		n++
	}
	return all, n
}

// name charges the connection to its client by a name.
func (st *stake) name(i int, name string, now time.Time) *levee.Refusal {
	return st.join(i, now, st.of.rules[i].clients.table.spot(name))
}

// spot returns where a client by a name has its account.
func (t *table) spot(name string) spot {
	tag := t.name(name)
	return spot{set: t.set(tag), tag: tag}
}

// join charges one more connection to the accounts of a rule, to all of them or to none.
func (st *stake) join(i int, now time.Time, spots ...spot) *levee.Refusal {
	r := &st.of.rules[i]
	t, at, mark := r.law.terms.Load(), r.law.since(now), len(st.held)
	over := none
	for _, s := range spots {
		h := held{set: s.set, rule: uint16(i), width: s.width}
		switch k := r.enter(&h, s.tag, at, t, over); {
		case k != none && t.mode == Enforce:
			st.refund(mark)
			st.leave(mark)
			r.law.admitted(t, k)
			return &r.refusals[s.width][k]
		case k != none:
			over = k
			st.refund(mark)
		}
		st.hold(h)
	}
	r.law.admitted(t, over)
	return nil
}

func (st *stake) hold(h held) {
	if st.held == nil {
		st.held = st.room[:0]
	}
	st.held = append(st.held, h)
}

// enter charges one account, and returns what that would exceed: then only Shadow has charged it, with
// an open connection.
func (r *rule) enter(h *held, tag uint64, now int64, t *terms, over kind) kind {
	h.set.mu.Lock()
	defer h.set.mu.Unlock()
	if r.clients != nil {
		h.slot = uint8(r.clients.table.open(h.set, tag, now))
	}
	a := h.account()
	if t.mode == Off || over != none {
		a.open++
		return none
	}
	k, after := t.numbers[h.width].over(a, now)
	switch {
	case k == none:
		a.rate, h.charged = after, true
		a.open++
	case t.mode == Shadow:
		a.open++
	}
	return k
}

// refund gives back rates: the connection will not come in.
func (st *stake) refund(from int) {
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		if !h.charged {
			continue
		}
		h.charged = false
		interval := st.of.rules[h.rule].law.terms.Load().numbers[h.width].rate.interval
		h.set.mu.Lock()
		h.account().rate -= interval
		h.set.mu.Unlock()
	}
}

// leave gives back open connections.
func (st *stake) leave(from int) {
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		h.set.mu.Lock()
		h.account().open--
		h.set.mu.Unlock()
	}
	st.held = st.held[:from]
}

// handshake charges a handshake to all accounts from the given one on, or to none.
func (st *stake) handshake(from int, now time.Time) (*levee.Refusal, *rule) {
	for i := from; i < len(st.held); {
		end := i + 1
		for end < len(st.held) && st.held[end].rule == st.held[i].rule {
			end++
		}
		if refusal := st.shake(i, end, now); refusal != nil {
			st.unshake(from, i)
			return refusal, &st.of.rules[st.held[i].rule]
		}
		i = end
	}
	return nil, nil
}

// shake charges a handshake to a rule's accounts.
func (st *stake) shake(from, to int, now time.Time) *levee.Refusal {
	r := &st.of.rules[st.held[from].rule]
	t, at := r.law.terms.Load(), r.law.since(now)
	for i := from; i < to; i++ {
		st.held[i].shaken = false
	}
	if t.mode == Off || !t.has(handshakes) {
		return nil
	}
	for i := from; i < to; i++ {
		h := &st.held[i]
		h.set.mu.Lock()
		a := h.account()
		after, ok := t.numbers[h.width].handshakes.next(a.handshakes, at)
		if ok {
			a.handshakes, h.shaken = after, true
		}
		h.set.mu.Unlock()
		if ok {
			continue
		}
		st.unshake(from, i)
		r.law.exceeded(t, handshakes)
		if t.mode == Shadow {
			return nil
		}
		return &r.refusals[h.width][handshakes]
	}
	r.law.counts[handshakes].allowed.Add(1)
	return nil
}

// unshake gives back handshakes, of which a limit in Shadow may have charged none.
func (st *stake) unshake(from, to int) {
	for i := from; i < to; i++ {
		h := &st.held[i]
		if !h.shaken {
			continue
		}
		h.shaken = false
		interval := st.of.rules[h.rule].law.terms.Load().numbers[h.width].handshakes.interval
		h.set.mu.Lock()
		h.account().handshakes -= interval
		h.set.mu.Unlock()
	}
}

// shares returns the stake's parts in what may be moved in one direction, from the given one on.
func (st *stake) shares(from int, of kind) (all []share) {
	for i := from; i < len(st.held); i++ {
		h := &st.held[i]
		l := st.of.rules[h.rule].law
		if l.terms.Load().numbers[h.width].nsPerByte[of-up] > 0 {
			all = append(all, share{law: l, width: h.width, earned: &h.account().bytes[of-up], of: of})
		}
	}
	return all
}

// anyShared reports whether other machines have to be asked about any rule.
func (st *stake) anyShared() bool {
	for i := range st.of.rules {
		if st.of.rules[i].law.terms.Load().shared {
			return true
		}
	}
	return false
}
