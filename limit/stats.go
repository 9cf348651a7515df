package limit

import "time"

// Decisions are those of one limit.
type Decisions struct {
	Limit       string // its name
	Allowed     int64  // for bandwidth 0
	Refused     int64  // for bandwidth: waits
	WouldRefuse int64  // of these in Shadow
}

// ScopeStats are a scope's counts. Each number is right, but they are not taken at one instant.
type ScopeStats struct {
	Open    int64        // connections
	Limits  []Decisions  // those that limit something or have decided something; in a fixed order
	Clients []TableStats // one for each of Clients
}

// TableStats tell how full what remembers clients is.
type TableStats struct {
	Name    string // as "public.client"
	Entries int    // there is room for
	Used    int    // of these: remember somebody
	// Evicted is how often somebody was forgotten who had a rate to make up for, because there was
	// no room. Others who are forgotten make no difference, and are not counted.
	Evicted int64
	// Crowded is how often a connection was counted together with others, because no entry was to be had.
	Crowded int64
}

// GateStats are a gate's counts.
type GateStats struct {
	Shared SharedStats
}

// SharedStats tell how the sharing of limits with other machines goes.
type SharedStats struct {
	Asked, Failed int64     // questions, and those of them without an answer in time
	FailingSince  time.Time // when the first failed since the last answer; zero if all is well
	LastError     error     // why; nil if all is well
}

// ListStats are a list's.
type ListStats struct {
	Decisions   Decisions
	Allow, Deny int       // prefixes
	Loaded      time.Time // when the files last changed what is in force
	Err         error     // of the last load, if it failed
}

// BanStats are the counts of bans.
type BanStats struct {
	Decisions Decisions // Allowed stays 0
	Active    int       // bans
	Made      int64     // bans by refusals, also in Shadow
	Dropped   int64     // bans that had to end early, for others
	Untold    int64     // bans and lifts that SharedBans was not told, because it failed or was behind
	Err       error     // of the last telling, if it failed
}

// Stats returns the scope's counts. It looks at all that is remembered of clients, so it is for the pace
// of a metrics scrape.
func (s *Scope) Stats() ScopeStats {
	s.init()
	s.sum.mu.Lock()
	stats := ScopeStats{Open: int64(s.sum.accounts[0].open)}
	s.sum.mu.Unlock()
	stats.Limits = s.totals.stats()
	for _, c := range s.Clients {
		stats.Limits = append(stats.Limits, c.each.stats()...)
		stats.Clients = append(stats.Clients, c.stats())
	}
	return stats
}

func (c *Clients) stats() TableStats {
	return TableStats{
		Name:    c.each.name,
		Entries: len(c.table.sets) * ways,
		Used:    c.table.used(c.each.since(time.Now())),
		Evicted: c.table.evicted.Load(),
		Crowded: c.table.crowded.Load(),
	}
}
