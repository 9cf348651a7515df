//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// print prints the figures, the bars, and what to think of it all. It reports
// whether a bar was missed.
func (b *bench) print(w io.Writer) (missed bool) {
	b.printThroughput(w)
	b.printIdle(w)
	verdicts := b.judge()
	fmt.Fprintf(w, "\n%-52s %-18s %-10s %9s %8s\n", "bar", "server", "against", "measured", "wanted")
	for _, v := range verdicts {
		fmt.Fprintf(w, "%-52s %-18s %-10s %9.3f %8s  %s\n", v.name(), v.Server, v.Against, v.Measured, v.Wanted, v.word())
		missed = missed || !v.Held
	}
	for _, note := range b.notes() {
		fmt.Fprintf(w, "\nnote: %s", note)
	}
	fmt.Fprintln(w)
	return missed
}

func (b *bench) printThroughput(w io.Writer) {
	for _, work := range b.works {
		if work.kind == idle || work.kind == mallocs {
			continue
		}
		fmt.Fprintf(w, "\n%s\n%-18s %10s %6s %6s  %7s %6s %6s  %10s %10s %10s  %6s %6s\n", work.name, "",
			"per second", "/C", "/Tokio", "µs CPU", "/C", "/Tokio", "p50", "p99", "p99.9", "server", "load")
		for _, s := range b.servers {
			fmt.Fprintf(w, "%-18s %10.0f %s %s  %7.2f %s %s  %10s %10s %10s  %5.0f%% %5.0f%%\n", s.name,
				b.value(work, s, rate), b.cell(work, s, "c", rate), b.cell(work, s, "tokio", rate),
				b.value(work, s, cpu), b.cell(work, s, "c", cpu), b.cell(work, s, "tokio", cpu),
				b.latency(work, s, p50), b.latency(work, s, p99), b.latency(work, s, p999),
				100*b.value(work, s, serving), 100*b.value(work, s, loading))
		}
	}
}

func (b *bench) printIdle(w io.Writer) {
	for _, work := range b.works {
		if work.kind != idle {
			continue
		}
		fmt.Fprintf(w, "\n%s\n%-18s %16s %16s %10s\n", work.name, "", "KiB each", "files each", "drain")
		for _, s := range b.servers {
			fmt.Fprintf(w, "%-18s %16.2f %16.2f", s.name, b.value(work, s, memory), b.value(work, s, files))
			if ms, ok := b.figure(work.key, s.key, drain); ok {
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

func (b *bench) cell(w work, s server, base string, m metric) string {
	v, ok := b.ratio(w.key, s.key, base, m)
	if !ok {
		return "     –"
	}
	return fmt.Sprintf("%6.2f", v)
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
	Doubtful bool    `json:"doubtful"` // others used the server's core too, and CPU is not the metric
}

func (v verdict) name() string { return fmt.Sprintf("%s, %s", v.Work, v.Metric) }

func (v verdict) word() string {
	word := "missed"
	if v.Held {
		word = "held"
	}
	if v.Doubtful {
		word += ", but the machine was not idle"
	}
	return word
}

// judge holds the figures against the bars. A bar whose figures were not measured,
// because a peer could not be built or was not chosen, is left out.
func (b *bench) judge() (verdicts []verdict) {
	for _, r := range bars {
		v, ok := b.figure(r.work, r.server, r.metric)
		if r.against != "" {
			v, ok = b.ratio(r.work, r.server, r.against, r.metric)
		}
		if ok {
			verdicts = append(verdicts, verdict{r.work, r.metric, r.server, r.against, v, r.bound(), r.held(v), b.doubtful(r)})
		}
	}
	return verdicts
}

// doubtful reports whether the bar is about time, and others took some of it.
func (b *bench) doubtful(r bar) bool {
	for _, server := range []string{r.server, r.against} {
		if foreign, _ := b.figure(r.work, server, others); foreign > disturbed && r.metric != cpu {
			return true
		}
	}
	return false
}

// What counts as busy, and as disturbed: a few ticks in two seconds are noise.
const (
	saturated = 0.95
	disturbed = 0.05
)

// notes says where the figures need care.
func (b *bench) notes() (notes []string) {
	worst := 0.0
	for _, w := range b.works {
		for _, s := range b.servers {
			foreign, its := b.value(w, s, others), b.value(w, s, serving)
			worst = max(worst, foreign)
			if w.kind == echo && its < saturated && foreign <= disturbed {
				notes = append(notes, fmt.Sprintf("%s, %s: the server was busy for %.0f %% of the time, the load for %.0f %%; it may be faster than this, so go by its CPU",
					w.name, s.name, 100*its, 100*b.value(w, s, loading)))
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
	Date      string                         `json:"date"`
	Machine   machine                        `json:"machine"`
	LoadAfter string                         `json:"load_after"`
	Rounds    int                            `json:"rounds"`
	Seconds   float64                        `json:"seconds"`
	Works     map[string]string              `json:"works"`
	Servers   map[string]string              `json:"servers"`
	Bars      []verdict                      `json:"bars"`
	Notes     []string                       `json:"notes"`
	Samples   map[string]map[string][]sample `json:"samples"`
}

// save writes results.json and results.svg.
func (b *bench) save() error {
	r := results{
		Date: b.began.Format(time.RFC3339), Machine: b.machine, LoadAfter: b.loadAfter,
		Rounds: b.options.rounds, Seconds: b.duration.Seconds(), Works: map[string]string{}, Servers: map[string]string{},
		Bars: b.judge(), Notes: b.notes(), Samples: b.samples,
	}
	for _, w := range b.works {
		r.Works[w.key] = w.name
	}
	for _, s := range b.servers {
		r.Servers[s.key] = s.name
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
	return os.WriteFile(filepath.Join(b.out, "results.svg"), b.plot(), 0o644)
}
