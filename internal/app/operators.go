package app

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
)

const (
	shortestBan = time.Second
	longestBan  = 30 * 24 * time.Hour
	longestWhy  = 200 // bytes
)

// api is what operators may ask of the front, and have it do.
func (f *front) api() admin.API {
	limits := func() *limiting { return f.now.Load().limits }
	return admin.API{
		Status: f.status, Listeners: f.toldListeners, Upstreams: f.toldUpstreams, Config: f.toldConfig,
		Connections: f.toldConnections, Connection: f.toldConnection, End: f.end, EndAll: f.endAll,
		DrainServer: f.drainServer, Drain: f.beginDrain, Reload: f.reload, Upgrade: f.upgrade, Events: f.told.record,
		Limits:   func() admin.Limits { return limits().told() },
		Overload: func() admin.Overload { return f.now.Load().relief.told() },
		Bans:     func(most int) admin.Bans { return limits().toldBans(most) },
		Ban: func(prefix string, d time.Duration, why string) (admin.Ban, error) {
			return limits().banByHand(prefix, d, why)
		},
		Lift: func(prefix string) (bool, error) { return limits().lift(prefix) },
	}
}

// told returns what limits have decided so far.
func (l *limiting) told() admin.Limits {
	all := admin.Limits{Limits: []admin.Limit{}, Clients: []admin.Table{}, Lists: []admin.List{}, Shared: []admin.Shared{}}
	add := func(d limit.Decisions) {
		t := l.said[d.Limit]
		all.Limits = append(all.Limits, admin.Limit{
			Name: d.Limit, Mode: t.mode, Setting: t.setting,
			Allowed: d.Allowed, Refused: d.Refused, WouldRefuse: d.WouldRefuse,
		})
	}
	for _, s := range l.scopes {
		stats := s.Stats()
		for _, d := range stats.Limits {
			add(d)
		}
		for _, t := range stats.Clients {
			all.Clients = append(all.Clients, admin.Table{Name: t.Name, Entries: t.Entries, Used: t.Used, Evicted: t.Evicted, Crowded: t.Crowded})
		}
	}
	add(l.bans.Stats().Decisions)
	for _, list := range l.lists {
		s := list.Stats()
		add(s.Decisions)
		all.Lists = append(all.Lists, admin.List{
			Name: s.Decisions.Limit, Allow: s.Allow, Deny: s.Deny, Refused: s.Decisions.Refused, Loaded: s.Loaded, Problem: textOf(s.Err),
		})
	}
	if l.shared != nil {
		s := l.asked()
		all.Shared = append(all.Shared, admin.Shared{
			Asked: s.Asked, Failed: s.Failed, FailingSince: s.FailingSince, Problem: textOf(s.LastError),
		})
	}
	return all
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (l *limiting) toldBans(most int) admin.Bans {
	all := admin.Bans{Active: l.bans.Stats().Active, Bans: []admin.Ban{}}
	for _, b := range l.bans.List(most) {
		told := toldBan(b)
		told.Shadow = l.bans.Denies(b.Prefix.Addr()) == nil
		all.Bans = append(all.Bans, told)
	}
	return all
}

func toldBan(b limit.Ban) admin.Ban {
	return admin.Ban{Prefix: b.Prefix.String(), Until: b.Until, Why: b.Why}
}

// ban keeps clients out at an operator's word.
func (l *limiting) banByHand(text string, d time.Duration, why string) (admin.Ban, error) {
	prefix, err := config.ParsePrefix(text)
	switch {
	case err != nil:
		return admin.Ban{}, fmt.Errorf("prefix: %w", err)
	case d < shortestBan || d > longestBan:
		return admin.Ban{}, fmt.Errorf("for: %s is not from %s to %s", shortDuration(d), shortestBan, shortDuration(longestBan))
	case len(why) > longestWhy || strings.ContainsFunc(why, func(c rune) bool { return !unicode.IsPrint(c) }):
		return admin.Ban{}, fmt.Errorf("why: must be a line of at most %d bytes", longestWhy)
	}
	if err := l.bans.Ban(prefix, d, why); err != nil {
		return admin.Ban{}, err
	}
	made := limit.Ban{Prefix: prefix, Until: time.Now().Add(d), Why: why}
	l.gen.told.record.bannedByHand(prefix.String(), d, why)
	l.gen.log.Warn("banned", "prefix", prefix.String(), "for", d, "why", why)
	return toldBan(made), nil
}

func (l *limiting) lift(text string) (found bool, err error) {
	prefix, err := config.ParsePrefix(text)
	if err != nil {
		return false, errors.New("prefix: " + err.Error())
	}
	if found = l.bans.Lift(prefix); found {
		l.gen.told.record.unbanned(prefix.String())
		l.gen.log.Warn("ban lifted", "prefix", prefix.String())
	}
	wider, still := l.banAround(prefix)
	switch {
	case found && still:
		err = fmt.Errorf("the ban of %s is lifted, yet it is kept out by that of %s; lift that too", prefix, wider)
	case still:
		err = fmt.Errorf("%s is kept out by the ban of %s; lift that", prefix, wider)
	}
	return found, err
}

// banAround returns the prefix whose ban keeps out all of another.
func (l *limiting) banAround(prefix netip.Prefix) (wider netip.Prefix, found bool) {
	by, found := errors.AsType[*limit.BanError](l.bans.Denies(prefix.Addr()))
	if !found || by.Ban.Prefix.Bits() > prefix.Bits() {
		return netip.Prefix{}, false
	}
	return by.Ban.Prefix, true
}
