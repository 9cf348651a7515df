package app

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// refusalPause is the time between two lines about a listener's refusals. A line for each would be what the attacker
// wants.
const refusalPause = time.Second

// A refusal is one of many, to show what they are like.
type refusal struct{ client, why string }

// refusals are those that were turned away at a listener's door and have not been told yet.
type refusals struct {
	limited, denied, overloaded atomic.Int64
	sample                      atomic.Pointer[refusal]
}

// refusalsOf returns those of a listener.
func (f *front) refusalsOf(listener string) *refusals {
	if of, ok := f.refused.Load(listener); ok {
		return of.(*refusals)
	}
	of, _ := f.refused.LoadOrStore(listener, new(refusals))
	return of.(*refusals)
}

// note counts a refusal, and keeps one of them for the next line of log.
func (f *front) note(c *levee.Conn, r *levee.Refusal) {
	of := f.refusalsOf(c.Server().Name)
	switch r.Reason {
	case levee.Limited:
		of.limited.Add(1)
	case levee.Overloaded:
		of.overloaded.Add(1)
	default:
		of.denied.Add(1)
	}
	if of.sample.Load() != nil {
		return
	}
	why := r.Reason.String()
	if r.Cause != nil {
		why = r.Cause.Error()
	}
	of.sample.CompareAndSwap(nil, &refusal{c.ClientAddr().String(), why})
}

// tellRefusals logs at most one line a second for each listener, and one for bans, until ctx ends.
func (f *front) tellRefusals(ctx context.Context) {
	pace := time.NewTicker(refusalPause)
	defer pace.Stop()
	made := int64(0)
	for {
		for _, l := range f.every() {
			f.tellRefusalsOf(l.name)
		}
		g := f.now.Load()
		if stats := g.limits.bans.Stats(); stats.Made > made {
			f.log.Warn("banned clients that were refused again and again", "count", stats.Made-made, "mode", string(g.cfg.Limits.Bans.Mode), "active", stats.Active)
			f.told.record.banned(stats.Made-made, string(g.cfg.Limits.Bans.Mode))
			made = stats.Made
		}
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
	}
}

func (f *front) tellRefusalsOf(listener string) {
	of := f.refusalsOf(listener)
	limited, denied, overloaded := of.limited.Swap(0), of.denied.Swap(0), of.overloaded.Swap(0)
	if limited+denied+overloaded == 0 {
		return
	}
	attrs := []slog.Attr{
		slog.String("listener", listener),
		slog.Int64("limited", limited), slog.Int64("denied", denied), slog.Int64("overloaded", overloaded),
	}
	if one := of.sample.Swap(nil); one != nil {
		attrs = append(attrs, slog.String("one_was", one.client), slog.String("why", one.why))
	}
	f.log.LogAttrs(context.Background(), slog.LevelWarn, "turned connections away", attrs...)
}
