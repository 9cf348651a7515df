package top

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// A charset is what to draw with.
type charset struct {
	levels   []rune // of a sparkline, lowest first
	cut      string // stands where a text goes on
	down, up string
}

// charsetOf goes by the locale: a terminal that knows no UTF-8 shows garbage for it.
func charsetOf(environ []string) charset {
	locale := ""
	for _, name := range []string{"LANG", "LC_CTYPE", "LC_ALL"} { // the later one wins
		if v := variable(environ, name); v != "" {
			locale = v
		}
	}
	locale = strings.ToUpper(locale)
	if strings.Contains(locale, "UTF-8") || strings.Contains(locale, "UTF8") {
		return charset{levels: []rune("▁▂▃▄▅▆▇█"), cut: "…", down: "↓", up: "↑"}
	}
	return charset{levels: []rune("_.-:=+*#"), cut: "~", down: "down", up: "up"}
}

// number writes an integer with commas.
func number[N int | int64](n N) string {
	text := strconv.FormatInt(int64(n), 10)
	sign := ""
	if n < 0 {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// short writes a count or a size with about two digits and a decimal prefix, in at most four characters: 0, 999, 1.2k, 34M.
func short(v float64) string {
	if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	prefixes := []string{"", "k", "M", "G", "T", "P", "E"}
	i := 0
	for v >= 999.5 && i < len(prefixes)-1 {
		v /= 1000
		i++
	}
	if i > 0 && v < 9.95 {
		return fmt.Sprintf("%.1f%s", v, prefixes[i])
	}
	return fmt.Sprintf("%.0f%s", v, prefixes[i])
}

// size writes a size with its unit, such as 1.2 kB.
func size(v float64) string {
	text := short(v)
	digits := strings.TrimRight(text, "kMGTPE")
	return digits + " " + text[len(digits):] + "B"
}

// ago writes a span with its largest unit, in at most four characters.
func ago(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 100*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// since writes how long ago t was, and nothing of a time that is not known.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(now.Sub(t))
}

// seconds writes a latency with two digits and its unit.
func seconds(s float64) string {
	switch {
	case s <= 0:
		return "-"
	case s < 0.0000995:
		return fmt.Sprintf("%.0fµs", s*1e6)
	case s < 0.00995:
		return fmt.Sprintf("%.1fms", s*1e3)
	case s < 0.9995:
		return fmt.Sprintf("%.0fms", s*1e3)
	}
	return fmt.Sprintf("%.1fs", s)
}

// per writes a rate.
func per(v float64) string {
	if v > 0 && v < 9.95 {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + "/s"
	}
	return short(v) + "/s"
}

// most names the largest counts, largest first.
func most(counts map[string]int64, n int) string {
	names := make([]string, 0, len(counts))
	for name, count := range counts {
		if count > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if counts[a] != counts[b] {
			return int(min(max(counts[b]-counts[a], -1), 1))
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = Plain(name) + " " + number(counts[name])
	}
	return strings.Join(names[:min(n, len(names))], ", ")
}

func sum(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// A history is the last values of a rate.
type history []float64

const longestHistory = 200 // looks: as many as a wide screen shows

func (h *history) add(v float64) {
	*h = append(*h, max(v, 0))
	if more := len(*h) - longestHistory; more > 0 {
		*h = slices.Delete(*h, 0, more)
	}
}

// spark draws the last values into so many cells, the newest at the right. The largest of them has the highest level.
func (h history) spark(cells int, levels []rune) string {
	cells = max(cells, 0)
	shown := h[max(0, len(h)-cells):]
	if len(shown) == 0 {
		return strings.Repeat(" ", cells)
	}
	top := slices.Max(shown)
	text := []rune(strings.Repeat(" ", cells-len(shown)))
	for _, v := range shown {
		level := 0
		if v > 0 { // however little, it is not nothing
			level = 1 + int(v/top*float64(len(levels)-2)+0.5)
		}
		text = append(text, levels[min(level, len(levels)-1)])
	}
	return string(text)
}

// pad cuts or fills a text to so many cells.
func pad(text string, cells int, right bool, cut string) string {
	if cells <= 0 {
		return ""
	}
	text = ansi.Truncate(text, cells, cut)
	room := strings.Repeat(" ", max(0, cells-ansi.StringWidth(text)))
	if right {
		return room + text
	}
	return text + room
}

// line sets a text to the left and another to the right, and drops that if there is no room for both.
func line(left, right string, cells int, cut string) string {
	room := cells - ansi.StringWidth(left) - ansi.StringWidth(right)
	if right == "" || room < 2 {
		return pad(left, cells, false, cut)
	}
	return left + strings.Repeat(" ", room) + right
}

// fitting joins as many of the parts as there is room for, most important first.
func fitting(parts []string, gap string, cells int, cut string) string {
	if len(parts) == 0 {
		return ""
	}
	text := parts[0]
	for _, part := range parts[1:] {
		if part == "" {
			continue
		}
		if ansi.StringWidth(text)+len(gap)+ansi.StringWidth(part) > cells {
			break
		}
		text += gap + part
	}
	return ansi.Truncate(text, cells, cut)
}
