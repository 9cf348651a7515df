package upstream

import "slices"

// take picks a server that is not among the tried, and seizes it. If there is none, full
// says that there is one which only lacks a free place.
//
// Which tier: the first whose servers are well enough and of which one can be used. A
// full one is waited for; the next tier does not stand in for that. When no such tier is
// left, those come into question that are not well enough, all their servers alike.
func (p *Pool) take(key uint64, tried []*member) (m *member, full bool) {
	for range 100 { // a pick that was overtaken is made again; a hundred times in a row would be a fault elsewhere
		m, full = p.pick(key, tried)
		if m == nil || m.seize() {
			return m, full
		}
	}
	return nil, p.terms.maxConnections > 0
}

func (p *Pool) pick(key uint64, tried []*member) (m *member, full bool) {
	tiers := p.lineup.Load().tiers
	for _, well := range [...]bool{true, false} {
		for _, t := range tiers {
			if t.well.Load() != well {
				continue
			}
			if m, full = t.pick(key, tried, !well && p.terms.panics, p.terms.maxConnections > 0); m != nil || full {
				return m, full
			}
		}
	}
	return nil, false
}

// pick picks among the tier's servers; if unbelieving, whatever their health checks say.
func (t *tier) pick(key uint64, tried []*member, unbelieving, capped bool) (m *member, full bool) {
	mayTake := func(m *member) bool { return m.usable(unbelieving) && !slices.Contains(tried, m) }
	i := t.picker.Pick(key, func(i int) bool { return !t.members[i].full() && mayTake(t.members[i]) })
	if i >= 0 {
		return t.members[i], false
	}
	return nil, capped && slices.ContainsFunc(t.members, mayTake) // by now it may even have a free place
}
