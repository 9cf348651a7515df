package app

import "encoding/json"

// An heirloom is what a part of a process knows, and the same part of the process that takes its place is to know.
type heirloom struct {
	name string
	of   interface {
		Save() ([]byte, error)
		Restore([]byte) error
	}
}

// counters are those that count until the process ends: what they know goes along once more then.
func (f *front) counters() []heirloom {
	return append([]heirloom{
		{"metrics", f.connections}, {"upstream metrics", f.upstreams.connecting}, {"upstreams before", f.upstreams}, {"counters", f.scraped},
	}, f.now.Load().backendHeirlooms()...)
}

// heirlooms are all of those that connections rely on, and whoever counts them.
func (f *front) heirlooms() (all []heirloom) {
	g := f.now.Load()
	all = append(f.counters(), heirloom{"upgrades", &f.upgrades}, heirloom{"bans", g.limits.bans}, heirloom{"limits before", g.limits.past})
	for _, s := range g.limits.scopes {
		all = append(all, heirloom{"limits " + s.Name, s})
	}
	for _, l := range g.limits.lists {
		all = append(all, heirloom{"lists " + l.Name, l})
	}
	for _, t := range g.tickets {
		all = append(all, heirloom{t.name, t.tickets})
	}
	return all
}

// backendHeirlooms are what is known of upstreams. It has to be there before their servers are asked how they are.
func (g *generation) backendHeirlooms() (all []heirloom) {
	for _, b := range g.backends {
		all = append(all, heirloom{"upstream " + b.cfg.Name, b.pool})
	}
	return all
}

// save is called in the process that is to be replaced: for what the next one begins with, and again when that is to accept.
func (f *front) save() map[string][]byte { return f.saved(f.heirlooms()) }

func (f *front) saved(all []heirloom) map[string][]byte {
	state := make(map[string][]byte)
	for _, h := range all {
		saved, err := h.of.Save()
		if err != nil {
			f.log.Warn("a part of what is known does not go along", "what", h.name, "err", err)
			continue
		}
		state[h.name] = saved
	}
	together, err := json.Marshal(state)
	if err != nil {
		f.log.Warn("what is known does not go along", "err", err)
		return nil
	}
	return map[string][]byte{inheritance: together}
}

// inheritance is the one name under which everything goes along: there may be very many names of ours, and long ones.
const inheritance = "levee"

// restoreOwn takes over what connections rely on, before any comes.
func (f *front) restoreOwn() { f.restore(f.heirlooms()) }

// restore is called in the process that takes its place.
func (f *front) restore(all []heirloom) { f.restoreFrom(f.env.process.State, all) }

func (f *front) restoreFrom(given func(name string) []byte, all []heirloom) {
	together := given(inheritance)
	if together == nil {
		return
	}
	var state map[string][]byte
	if err := json.Unmarshal(together, &state); err != nil {
		f.log.Warn("what was known has not come along", "err", err)
		return
	}
	for _, h := range all {
		saved, ok := state[h.name]
		if !ok {
			continue
		}
		if err := h.of.Restore(saved); err != nil {
			f.log.Warn("a part of what was known has not come along", "what", h.name, "err", err)
		}
	}
}
