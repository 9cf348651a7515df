package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/watch"
)

// Reloads are what asks for another generation, and what has become of that.
type reloads struct {
	front *front
	read  func() (*config.Config, error) // reads the configuration again; nil if it is not from a file
	file  string                         // it
	watch bool
	asked chan struct{} // holds one if there is to be a reload

	mu      sync.Mutex
	problem string // of the last
	failed  time.Time
	taken   int64
	failing int64
}

func newReloads(f *front) *reloads {
	f.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "levee_config_generation",
		Help: "Which configuration is in force: 1 is that of the start, and each reload that has changed something is one more.",
	}, func() float64 { return float64(f.now.Load().number) }))
	return &reloads{front: f, asked: make(chan struct{}, 1)}
}

// ask has the configuration read again, soon. What is asked for while that is under way is done once more
// after it.
func (r *reloads) ask() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// run does what it is asked, until ctx ends.
func (r *reloads) run(ctx context.Context) {
	if r.watch {
		r.front.running.Go(func() { _ = r.watchFile(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.asked:
			_, _ = r.front.reload(ctx) // it is logged
		}
	}
}

// stillTime is how long a file that has changed must stay as it is to be read: a part of what is being
// written may be a configuration too, with fewer listeners.
const stillTime = 200 * time.Millisecond

// watchFile asks for a reload when the file has changed and is no longer being written, until ctx ends.
func (r *reloads) watchFile(ctx context.Context) error {
	last := r.sum()
	return watch.Run(ctx, []string{r.file}, 0, func(err error) { r.front.log.Warn("the configuration's changes may go unnoticed", "err", err) }, func() error {
		now := r.sum()
		for before := []byte(nil); !bytes.Equal(now, before) && ctx.Err() == nil; now = r.sum() {
			if bytes.Equal(now, last) {
				return nil
			}
			before = now
			select {
			case <-ctx.Done():
			case <-time.After(stillTime):
			}
		}
		last = now
		r.ask()
		return nil
	})
}

// sum stands for the file's content, or for its absence.
func (r *reloads) sum() []byte {
	content, err := os.ReadFile(r.file)
	sum := sha256.Sum256(fmt.Append(content, err != nil))
	return sum[:]
}

var (
	errEnding    = errors.New("levee is draining")
	errUpgrading = errors.New("an upgrade is under way; the new process reads the configuration anew")
)

// reload reads the configuration again and has it come into force, all of it or nothing. Where
// it says the same, or is not from a file, the files that it names are read again.
//
// It returns the generation that is in force after that. It may be called from several goroutines:
// one reload waits for the other.
func (f *front) reload(ctx context.Context) (admin.Generation, error) {
	f.reloading.Lock()
	defer f.reloading.Unlock()
	if f.ending.Load() {
		err := errors.Join(errEnding, f.told.Reopen()) // a drain may take hours, and its connections are logged
		for line := range strings.Lines(err.Error()) {
			f.log.Warn("not reloaded; the access log's file is opened anew", "err", strings.TrimSuffix(line, "\n"))
		}
		return f.generation(), err
	}
	_ = handover.NotifyReloading() // it matters to nobody else if that fails, here and below
	defer func() { _ = handover.Notify("READY=1") }()
	if f.upgrades.postpones() {
		f.log.Warn("not reloaded", "err", errUpgrading)
		return f.generation(), errUpgrading
	}
	changed, err := f.renew(ctx)
	err = errors.Join(err, f.told.Reopen())
	f.reloads.note(err)
	f.metrics.reloaded(err == nil)
	now := f.generation()
	f.told.record.reloaded(changed, now.Number, err)
	switch {
	case err != nil:
		for line := range strings.Lines(err.Error()) {
			f.log.Error("not reloaded; what was in force before is kept", "err", strings.TrimSuffix(line, "\n"))
		}
	case changed:
		f.log.Info("reloaded", "what", "configuration", "generation", now.Number)
	case f.reloads.read == nil:
		f.log.Info("certificates, client policies, tickets and lists are read again; the configuration is not from a file")
	default:
		f.log.Info("certificates, client policies, tickets and lists are read again; the configuration says the same", "generation", now.Number)
	}
	return now, err
}

// renew reports whether there is another generation.
func (f *front) renew(ctx context.Context) (changed bool, err error) {
	before := f.now.Load()
	if f.reloads.read == nil {
		return false, before.readAgain()
	}
	cfg, err := f.reloads.read()
	if err != nil {
		return false, err
	}
	if bytes.Equal(cfg.YAML(), before.cfg.YAML()) && before.contents == contentsFor(cfg) {
		return false, before.readAgain()
	}
	g, err := f.build(cfg, before)
	if err != nil {
		return false, err
	}
	if err := g.reread(); err != nil {
		return false, err
	}
	o, err := g.opens(ctx)
	if err != nil {
		return false, err
	}
	g.begin()
	g.enter(o, before)
	g.tellWhatNeedsARestart()
	return true, nil
}

// readAgain reads files again whose names have not changed.
func (g *generation) readAgain() error {
	err := g.reread()
	g.sweep()
	return err
}

// enter has the generation come into force, after another if there is one.
func (g *generation) enter(o *opening, before *generation) {
	for _, part := range g.parts {
		part.users++
	}
	g.since = time.Now()
	g.before = nil
	for _, commit := range g.commits {
		commit()
	}
	g.commits = nil
	g.steering.Lock()
	if before != nil {
		g.stayDrained(before)
	}
	g.now.Store(g)
	g.steering.Unlock()
	g.level.Set(g.cfg.Telemetry.Logs.Level)
	gone := g.carryOut(o)
	g.pressed()
	if before != nil {
		before.limits.retire(g.limits)
		before.supersede(g, gone)
		g.sweep()
	}
}

// sweep has connections end that would not be let in any more.
func (g *generation) sweep() {
	for _, p := range g.policies {
		p.changed()
	}
	g.outs.changed()
}

// generation tells which generation is in force, and what became of the reloads.
func (f *front) generation() admin.Generation {
	g, r := f.now.Load(), f.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	return admin.Generation{
		Number: g.number, Since: g.since, File: r.file,
		Problem: r.problem, Failed: r.failed, Reloads: r.taken, Failing: r.failing,
	}
}

// note keeps what became of a reload.
func (r *reloads) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.problem, r.failed = "", time.Time{}
		r.taken++
		return
	}
	r.problem, r.failed = inOneLine(err), time.Now()
	r.failing++
}

// inOneLine tells the first of several errors.
func inOneLine(err error) string {
	first, rest, more := strings.Cut(err.Error(), "\n")
	if more {
		first += fmt.Sprintf(" (and %d more)", 1+strings.Count(rest, "\n"))
	}
	return first
}

// tellWhatNeedsARestart warns of what has changed in the file and cannot change in a process.
func (g *generation) tellWhatNeedsARestart() {
	old, now := g.first, g.cfg
	for _, s := range []struct {
		key     string
		changed bool
		pos     config.Position // zero is the whole file
	}{
		{"admin.listen", old.Admin.Listen.String() != now.Admin.Listen.String(), now.Admin.Listen.Pos},
		{"admin.token_file", old.Admin.TokenFile != now.Admin.TokenFile, now.Admin.TokenPos},
		{"admin.tls", config.Said(&old.Admin.TLS) != config.Said(&now.Admin.TLS), now.Admin.TLS.Pos},
		{"admin.hosts", !slices.Equal(config.Texts(old.Admin.Hosts), config.Texts(now.Admin.Hosts)), config.Position{}},
		{"redis", config.Said(&old.Redis) != config.Said(&now.Redis), now.Redis.Pos},
		{"telemetry.logs.format", old.Telemetry.Logs.Format != now.Telemetry.Logs.Format, config.Position{}},
		{"telemetry.logs.access", old.Telemetry.Logs.Access != now.Telemetry.Logs.Access || old.Telemetry.Logs.AccessFile != now.Telemetry.Logs.AccessFile, config.Position{}},
		{"telemetry.traces", config.Said(&old.Telemetry.Traces) != config.Said(&now.Telemetry.Traces), now.Telemetry.Traces.Pos},
		{"overload.memory_limit", old.Overload.MemoryLimit != now.Overload.MemoryLimit, now.Overload.Pos},
	} {
		if s.changed {
			where := cmp.Or(s.pos, config.Position{File: g.reloads.file})
			g.log.Warn("needs a restart to come into force", "setting", s.key, "where", where.String())
		}
	}
}

// joinSorted joins errors that came in any order.
func joinSorted(errs []error) error {
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
