package attack

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes the report for people: a line for each attack, and below it what
// there is to complain of.
func (r *Report) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "attack\tattempts\trefused\tended by the server, after\tprobe ok\tp50\tp99\tp99 kept\tp99 new\tCPU\tmemory\tverdict")
	fmt.Fprintf(table, "(idle)\t\t\t\t%s\t%s\t%s\t%s\t%s\t\t\t\n", percent(r.Idle.OK()), round(r.Idle.All.P50), round(r.Idle.All.P99), round(r.Idle.RoundTrips.P99), round(r.Idle.Connections.P99))
	for _, result := range r.Results {
		if result.Skipped == "" {
			fmt.Fprintln(table, strings.Join(result.columns(), "\t"))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return r.writeNotes(w)
}

func (r *Result) columns() []string {
	verdict := "held"
	switch {
	case r.CutShort:
		verdict = "cut short"
	case len(r.Complaints) > 0:
		verdict = "did not hold"
	}
	return []string{
		r.Attack, fmt.Sprint(r.Tally.Attempts), fmt.Sprint(r.Tally.Refused), r.Tally.reaped(), percent(r.During.OK()),
		round(r.During.All.P50).String(), round(r.During.All.P99).String(), round(r.During.RoundTrips.P99).String(), round(r.During.Connections.P99).String(),
		r.Spent.cpu(), r.Spent.memory(), verdict,
	}
}

func (t *Tally) reaped() string {
	if t.Ended == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, %s/%s/%s", t.Ended, round(t.EndedMin), round(t.EndedMedian), round(t.EndedMax))
}

func (s Spent) cpu() string {
	if !s.Known {
		return "?"
	}
	return fmt.Sprintf("%.1f s", s.CPU.Seconds())
}

func (s Spent) memory() string {
	if !s.Known {
		return "?"
	}
	return fmt.Sprintf("%+.0f MiB", float64(s.Memory)/(1<<20))
}

// writeNotes writes what has no room in the table.
func (r *Report) writeNotes(w io.Writer) error {
	for _, result := range r.Results {
		for _, complaint := range result.Complaints {
			if _, err := fmt.Fprintf(w, "%s: %s\n", result.Attack, complaint); err != nil {
				return err
			}
		}
		if lag := result.During.Lag.P99; lag > defaultFloor {
			if _, err := fmt.Fprintf(w, "%s: this machine is short of processors: timers were late by %s (p99), and so is what was measured\n", result.Attack, round(lag)); err != nil {
				return err
			}
		}
		if n := result.Tally.Failed; n > 0 {
			if _, err := fmt.Fprintf(w, "%s: %d attempts failed for want of ports, files or memory on this side\n", result.Attack, n); err != nil {
				return err
			}
		}
	}
	return r.writeSkipped(w)
}

// writeSkipped groups the attacks by the reason.
func (r *Report) writeSkipped(w io.Writer) error {
	var reasons []string
	names := map[string][]string{}
	for _, result := range r.Results {
		if why := result.Skipped; why != "" {
			if names[why] == nil {
				reasons = append(reasons, why)
			}
			names[why] = append(names[why], result.Attack)
		}
	}
	for _, why := range reasons {
		if _, err := fmt.Fprintf(w, "skipped: %s: %s\n", strings.Join(names[why], ", "), why); err != nil {
			return err
		}
	}
	return nil
}

// round leaves about three digits.
func round(d time.Duration) time.Duration {
	for unit := time.Second; unit >= time.Microsecond; unit /= 10 {
		if d >= 10*unit {
			return d.Round(unit / 10)
		}
	}
	return d
}
