package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// table is what a reader wants to know.
func (s *soakResult) table() string {
	var out strings.Builder
	fmt.Fprintf(&out, "Soak of %v, begun %s, seed %d\n%s; load average at the end %s\n%s, commit %s\n\n",
		s.Duration, s.Began.UTC().Format("2006-01-02 15:04 MST"), s.Seed, s.Machine, s.Load, s.Version, s.Commit)
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "clients\t\tconnections\trequests\tMiB\tslowest\texcused\tfailed\t")
	for _, h := range s.Habits {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%.1f\t%s\t%d\t%d\t\n", h.Habit, h.Clients, h.Connections, h.Requests, float64(h.Bytes)/(1<<20), short(time.Duration(h.Slowest)), h.Excused, h.Failed)
	}
	table.Flush()
	out.WriteString("\n")
	for _, f := range s.Verdict {
		fmt.Fprintf(&out, "%-10s %s\n           %s\n", f.mark(), f.Promise, f.Figure)
		for i, b := range f.Broken {
			if i == 20 {
				fmt.Fprintf(&out, "           ... and %d more\n", len(f.Broken)-i)
				break
			}
			fmt.Fprintf(&out, "           - %s\n", b)
		}
	}
	return out.String()
}

func (f finding) mark() string {
	switch {
	case f.Skipped != "":
		return "not judged"
	case len(f.Broken) > 0:
		return "BROKEN"
	default:
		return "held"
	}
}

// save writes the result into a folder, under the time at which it began.
func (s *soakResult) save(folder string) error {
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	name := filepath.Join(folder, "soak-"+s.Began.UTC().Format("20060102-150405"))
	return errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(name+".json", append(text, '\n'), 0o644), os.WriteFile(name+".txt", []byte(s.table()), 0o644))
}
