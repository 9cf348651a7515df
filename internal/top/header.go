package top

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/levee-net/levee/internal/admin"
)

// The words about a levee as a whole, which a screen and a table have in common. Each is a part that can be left out
// from the end where there is no room.

func stateWords(s *admin.Status, now time.Time) []string {
	state := Plain(s.State)
	if !s.Ready && s.Drain == nil {
		state += ", not ready"
	}
	name := "levee"
	if version := strings.Fields(strings.TrimPrefix(s.Version, "levee ")); len(version) > 0 { // without what it was built with
		name += " " + Plain(version[0])
	}
	if s.Drain != nil {
		state = fmt.Sprintf("%s: %s left, cut in %s", state, number(s.Drain.Left), ago(s.Drain.Until.Sub(now)))
	}
	words := []string{
		name, state, "up " + up(s, now),
		fmt.Sprintf("generation %d for %s", s.Generation.Number, since(s.Generation.Since, now)),
	}
	if u := s.Upgrade; u != nil && u.Ended.IsZero() {
		words = append(words, fmt.Sprintf("upgrade %s for %s", Plain(u.State), since(u.Began, now)))
	}
	if p := s.Predecessor; p != nil && !p.Gone {
		words = append(words, fmt.Sprintf("%s finish in process %d", number(p.Left), p.PID))
	}
	return words
}

// up is how long levee has been there, and this process if that is less.
func up(s *admin.Status, now time.Time) string {
	own := since(s.Started, now)
	if s.Since.IsZero() || !s.Since.Before(s.Started) {
		return own
	}
	return since(s.Since, now) + ", this process " + own
}

// speeds is how fast totals grow.
type speeds struct {
	accepted, ended, refused, in, out float64 // a second
	cpu                               float64 // processors
}

// between returns how fast it went between two looks; ok is false if they cannot be compared.
func between(was, is *admin.Status, d time.Duration) (v speeds, ok bool) {
	if d <= 0 || was.PID != is.PID || !was.Started.Equal(is.Started) {
		return v, false
	}
	per := func(was, is int64) float64 { return max(0, float64(is-was)/d.Seconds()) } // a listener that is gone takes its count along
	return speeds{
		accepted: per(was.Totals.Accepted, is.Totals.Accepted),
		ended:    per(sum(was.Totals.Closed), sum(is.Totals.Closed)),
		refused:  per(sum(was.Totals.Refused), sum(is.Totals.Refused)),
		in:       per(was.Totals.In, is.Totals.In),
		out:      per(was.Totals.Out, is.Totals.Out),
		cpu:      max(0, (is.Process.CPU-was.Process.CPU)/d.Seconds()),
	}, true
}

// summary is a line of words for each thing that is worth one; v is nil for one look alone.
func summary(s *admin.Status, o *admin.Overload, v *speeds) []words {
	t, p := &s.Totals, &s.Process
	open := []string{number(t.Active) + " open", number(t.Arriving) + " arriving"}
	traffic := []string{size(float64(t.In)) + " in", size(float64(t.Out)) + " out"}
	ended := []string{number(sum(t.Closed)) + " ended", number(sum(t.Refused)) + " refused"}
	cpu := fmt.Sprintf("cpu %.0fs", p.CPU)
	if v == nil {
		open = append(open, number(t.Accepted)+" accepted")
	} else {
		open = append(open, per(v.accepted)+" new")
		traffic = []string{size(v.in) + "/s in", size(v.out) + "/s out"}
		ended = []string{per(v.ended), per(v.refused) + " refused"}
		cpu = fmt.Sprintf("cpu %.0f%%", v.cpu*100)
	}
	if t.Panics > 0 {
		ended = append(ended, number(t.Panics)+" panics")
	}
	ended = append(ended, counted("most: ", most(t.Closed, 2)), counted("refused: ", most(t.Refused, 2)))
	process := []string{cpu, "memory " + size(float64(p.Memory)), fmt.Sprintf("files %s of %s", number(p.Files), number(p.FilesMax)), number(p.Goroutines) + " goroutines"}
	if p.MemoryMax > 0 {
		process[1] += " of " + size(float64(p.MemoryMax))
	}
	if p.LoopLag > 0 {
		process = append(process, "loop lag "+seconds(p.LoopLag))
	}
	return []words{
		{"connections", open},
		{"traffic", traffic},
		{"ended", ended},
		{"overload", overloadWords(o)},
		{"process", process},
	}
}

// words are parts of a line under a label.
type words struct {
	label string
	parts []string
}

func counted(label, text string) string {
	if text == "" {
		return ""
	}
	return label + text
}

func overloadWords(o *admin.Overload) []string {
	parts := []string{cmp.Or(Plain(o.Pressure), "unknown")}
	if o.Mode != "" && o.Mode != "on" {
		parts[0] = Plain(o.Mode)
		if o.Pressure != "" && o.Pressure != "none" {
			parts[0] += ": " + Plain(o.Pressure)
		}
	}
	if o.TurnedAway > 0 {
		parts = append(parts, fmt.Sprintf("%.0f%% of newcomers turned away", o.TurnedAway*100))
	}
	if o.Cause != "" {
		parts = append(parts, "cause: "+Plain(o.Cause))
	}
	inputs := make([]string, 0, len(o.Load))
	for name := range o.Load {
		inputs = append(inputs, name)
	}
	slices.SortFunc(inputs, func(a, b string) int {
		return cmp.Or(cmp.Compare(o.Load[b], o.Load[a]), strings.Compare(a, b))
	})
	for _, name := range inputs[:min(3, len(inputs))] {
		parts = append(parts, fmt.Sprintf("%s %.0f%%", Plain(name), o.Load[name]*100))
	}
	return parts
}

// trouble is what somebody should look at.
func trouble(s *admin.Status, now time.Time) string {
	if u := s.Upgrade; u != nil && u.Problem != "" {
		return fmt.Sprintf("the upgrade %s ago failed: %s", since(u.Ended, now), Plain(u.Problem))
	}
	if g := &s.Generation; g.Problem != "" {
		return fmt.Sprintf("the reload %s ago was not taken: %s", since(g.Failed, now), Plain(g.Problem))
	}
	return ""
}

const labelWidth = 13 // "connections" and a gap

// WriteStatus writes a levee's state in a few lines.
func WriteStatus(out io.Writer, s *admin.Status, o *admin.Overload, now time.Time) {
	lines := []string{strings.Join(stateWords(s, now), ", ")}
	for _, w := range summary(s, o, nil) {
		if w.label == "overload" && o.Mode == "" {
			continue // it was not asked for
		}
		parts := slices.DeleteFunc(w.parts, func(p string) bool { return p == "" })
		lines = append(lines, pad(w.label, labelWidth, false, "")+strings.Join(parts, ", "))
	}
	if t := trouble(s, now); t != "" {
		lines = append(lines, t)
	}
	_, _ = io.WriteString(out, strings.Join(lines, "\n")+"\n") // out keeps what went wrong, if anybody asks
}

// Write writes what was seen as tables.
func (s *Snapshot) Write(out io.Writer) { s.write(out, time.Now()) }

func (s *Snapshot) write(out io.Writer, now time.Time) {
	WriteStatus(out, &s.Status, &s.Overload, now)
	_, _ = io.WriteString(out, "\n")
	WriteListeners(out, s.Listeners)
	if len(s.Upstreams) > 0 {
		_, _ = io.WriteString(out, "\n")
		WriteUpstreams(out, s.Upstreams, now)
	}
	if c := &s.Connections; len(c.Connections) > 0 {
		_, _ = io.WriteString(out, "\n")
		WriteConnections(out, c.Connections, now)
		if more := c.Matching - len(c.Connections); more > 0 {
			_, _ = fmt.Fprintf(out, "and %s more\n", number(more))
		}
	}
}
