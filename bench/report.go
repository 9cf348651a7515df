//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// print prints the figures, the bars, and what to think of it all. It reports
// whether a bar was missed.
func (b *bench) print(w io.Writer) (missed bool) {
	for _, s := range b.suites {
		missed = b.printSuite(w, s) || missed
	}
	return missed
}

func (b *bench) printSuite(w io.Writer, s *suite) (missed bool) {
	fmt.Fprintf(w, "\n== %s\n", s.name)
	b.printThroughput(w, s)
	b.printIdle(w, s)
	fmt.Fprintf(w, "\n%-52s %-18s %-10s %9s %8s\n", "bar", "server", "against", "measured", "wanted")
	for _, v := range b.judge(s) {
		fmt.Fprintf(w, "%-52s %-18s %-10s %9.3f %8s  %s\n", v.name(), v.Server, v.against, v.Measured, v.Wanted, v.word())
		missed = missed || !v.Held
	}
	for _, note := range b.notes(s) {
		fmt.Fprintf(w, "\nnote: %s", note)
	}
	fmt.Fprintln(w)
	return missed
}

func (b *bench) printThroughput(w io.Writer, s *suite) {
	units := func(cell func(unit) string) (row string) {
		for _, u := range s.units {
			row += fmt.Sprintf(" %6s", cell(u))
		}
		return row
	}
	titles := units(func(u unit) string { return "/" + u.title })
	for _, work := range s.works {
		if !work.kind.hasRate() || len(b.samples[work.key]) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n%-18s %10s%s  %7s%s  %10s %10s %10s  %6s %6s\n", work.name, "",
			"per second", titles, "µs CPU", titles, "p50", "p99", "p99.9", "server", "load")
		for _, it := range s.servers {
			if len(b.samples[work.key][it.key]) == 0 {
				continue
			}
			relative := func(m metric) string {
				return units(func(u unit) string { return b.cell(work, it, u, m) })
			}
			fmt.Fprintf(w, "%-18s %10.0f%s  %7.2f%s  %10s %10s %10s  %5.0f%% %5.0f%%\n", it.name,
				b.value(work, it, rate), relative(rate), b.value(work, it, cpu), relative(cpu),
				b.latency(work, it, p50), b.latency(work, it, p99), b.latency(work, it, p999),
				100*b.value(work, it, serving), 100*b.value(work, it, loading))
		}
	}
}

func (b *bench) printIdle(w io.Writer, s *suite) {
	for _, work := range s.works {
		if work.kind != idle || len(b.samples[work.key]) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n%-18s %16s %16s %10s\n", work.name, "", "KiB each", "files each", "drain")
		for _, it := range s.servers {
			if len(b.samples[work.key][it.key]) == 0 {
				continue
			}
			fmt.Fprintf(w, "%-18s %16.2f %16.2f", it.name, b.value(work, it, memory), b.value(work, it, files))
			if ms, ok := b.figure(work.key, it.key, drain); ok {
				fmt.Fprintf(w, " %7.0f ms", ms)
			}
			fmt.Fprintln(w)
		}
	}
}

func (b *bench) value(w work, s server, m metric) float64 {
	v, _ := b.figure(w.key, s.key, m)
	return v
}

func (b *bench) latency(w work, s server, m metric) time.Duration {
	return time.Duration(b.value(w, s, m) * 1e3).Round(time.Microsecond)
}

func (b *bench) cell(w work, s server, to unit, m metric) string {
	v, ok := b.ratio(w.key, s.key, to, m)
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.2f", v)
}

// A verdict is what came of a bar.
type verdict struct {
	Work     string  `json:"work"`
	Metric   metric  `json:"metric"`
	Server   string  `json:"server"`
	Against  string  `json:"against,omitempty"`
	Measured float64 `json:"measured"`
	Wanted   string  `json:"wanted"`
	Held     bool    `json:"held"`
	Failed   bool    `json:"failed,omitempty"` // nothing was measured: the server could not do the work
	Doubtful bool    `json:"doubtful"`         // others used the server's core too, and CPU is not the metric
	Limited  bool    `json:"limited"`          // the load's core was full, and the server's was not: it could not show more

	against string // in the table
}

func (v verdict) name() string { return fmt.Sprintf("%s, %s", v.Work, v.Metric) }

func (v verdict) word() string {
	word := "missed"
	switch {
	case v.Held:
		word = "held"
	case v.Failed:
		word = "missed: it failed"
	}
	if v.Limited {
		word += ", but the load was the limit: go by the CPU"
	}
	if v.Doubtful {
		word += ", but the machine was not idle"
	}
	return word
}

// judge holds the figures against the bars. A bar whose figures were not measured,
// because a peer could not be built or was not chosen, is left out; one that could
// not be measured because the server failed is missed.
func (b *bench) judge(s *suite) (verdicts []verdict) {
	for _, r := range s.bars {
		v, ok := b.figure(r.work, r.server, r.metric)
		if r.against.of != "" {
			v, ok = b.ratio(r.work, r.server, r.against, r.metric)
		}
		failed := b.failed[task{r.work, r.server}] != nil
		if ok || failed {
			verdicts = append(verdicts, verdict{
				Work: r.work, Metric: r.metric, Server: r.server, Against: r.against.of, Measured: v, Wanted: r.bound(),
				Held: r.held(v) && !failed, Failed: failed, Doubtful: b.doubtful(r), Limited: b.limited(r), against: r.against.title,
			})
		}
	}
	return verdicts
}

// doubtful reports whether the bar is about time, and others took some of it.
func (b *bench) doubtful(r bar) bool {
	for peer := range strings.SplitSeq(r.server+","+r.against.of, ",") {
		if foreign, _ := b.figure(r.work, peer, others); foreign > disturbed && r.metric != cpu {
			return true
		}
	}
	return false
}

// limited reports whether the bar is about throughput, and the load could not make
// more of it.
func (b *bench) limited(r bar) bool {
	its, _ := b.figure(r.work, r.server, serving)
	loads, _ := b.figure(r.work, r.server, loading)
	return r.metric == rate && its < saturated && loads >= nearlyFull
}

// What counts as busy, as nearly full, and as disturbed: a few ticks in two seconds are noise.
const (
	saturated  = 0.95
	nearlyFull = 0.90
	disturbed  = 0.05
)

// notes says where the figures need care.
func (b *bench) notes(s *suite) (notes []string) {
	worst := 0.0
	for _, w := range s.works {
		for _, it := range s.servers {
			if err := b.failed[task{w.key, it.key}]; err != nil {
				notes = append(notes, fmt.Sprintf("%s, %s: left out, for it failed: %v", w.name, it.name, err))
			}
			foreign, its := b.value(w, it, others), b.value(w, it, serving)
			worst = max(worst, foreign)
			if w.kind.isBusy() && its > 0 && its < saturated && foreign <= disturbed {
				notes = append(notes, fmt.Sprintf("%s, %s: the server was busy for %.0f %% of the time, the load for %.0f %%; it may be faster than this, so go by its CPU",
					w.name, it.name, 100*its, 100*b.value(w, it, loading)))
			}
		}
		if w.kind == churn {
			notes = append(notes, w.name+": opening a connection costs the load more than the server, so the figure is the CPU per connection, not their number")
		}
	}
	if worst > disturbed {
		notes = append(notes, fmt.Sprintf("others used up to %.0f %% of the server's core, and of the load's most likely too: only the CPU is worth a look; measure again when the machine is idle", 100*worst))
	}
	return notes
}

// results is the file for machines.
type results struct {
	Date      string                 `json:"date"`
	Machine   machine                `json:"machine"`
	LoadAfter string                 `json:"load_after"`
	Rounds    int                    `json:"rounds"`
	Seconds   float64                `json:"seconds"`
	Suites    map[string]suiteResult `json:"suites"`
}

type suiteResult struct {
	Works   map[string]string              `json:"works"`
	Servers map[string]string              `json:"servers"`
	Bars    []verdict                      `json:"bars"`
	Notes   []string                       `json:"notes"`
	Samples map[string]map[string][]sample `json:"samples"`
}

// save writes results.json and the pictures.
func (b *bench) save() error {
	r := results{
		Date: b.began.Format(time.RFC3339), Machine: b.machine, LoadAfter: b.loadAfter,
		Rounds: b.options.rounds, Seconds: b.duration.Seconds(), Suites: map[string]suiteResult{},
	}
	for _, s := range b.suites {
		r.Suites[s.key] = b.result(s)
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.out, "results.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	for _, s := range b.suites {
		if s.picture == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(b.out, s.picture), b.plot(s), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) result(s *suite) suiteResult {
	r := suiteResult{
		Works: map[string]string{}, Servers: map[string]string{}, Bars: b.judge(s), Notes: b.notes(s),
		Samples: map[string]map[string][]sample{},
	}
	for _, w := range s.works {
		r.Works[w.key] = w.name
		if samples := b.samples[w.key]; samples != nil {
			r.Samples[w.key] = samples
		}
	}
	for _, it := range s.servers {
		r.Servers[it.key] = it.name
	}
	return r
}
