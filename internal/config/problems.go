package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxProblems = 20 // a screenful; after the first few, the rest are usually their consequences
	maxQuoted   = 60 // runes of the file that a message repeats
)

// Position is a place in a configuration file. Line and Column count from 1, Column in characters; the zero Position
// is nowhere: a default, or a value that did not come from a file.
type Position struct {
	File         string
	Line, Column int
}

// String returns file:line:column, which editors and terminals turn into a link.
func (p Position) String() string {
	switch {
	case p.Line > 0:
		return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
	case p.File != "":
		return p.File
	}
	return "config"
}

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Pos  Position
	Path string // the key, such as listeners[0].tls.mode; empty is the whole file
	Text string // what is wrong and what to do
}

// String returns the problem as one line: position, key and text.
func (p Problem) String() string {
	if p.Path == "" {
		return p.Pos.String() + ": " + p.Text
	}
	return p.Pos.String() + ": " + p.Path + ": " + p.Text
}

// Problems is the error of a configuration that cannot be used: everything that is wrong with it, in the order of the
// file.
type Problems struct {
	List []Problem // 20 at most
	More int       // how many were found beyond those
}

// Error returns one line a problem, without a newline at the end.
func (ps *Problems) Error() string {
	var b strings.Builder
	for i, p := range ps.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.String())
	}
	if ps.More > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more", Position{File: ps.List[0].Pos.File}, ps.More)
	}
	return b.String()
}

func (ps *Problems) add(pos Position, path, format string, args ...any) {
	if len(ps.List) == maxProblems {
		ps.More++
		return
	}
	ps.List = append(ps.List, Problem{Pos: pos, Path: path, Text: fmt.Sprintf(format, args...)})
}

// err returns the problems in the order of the file, or nil when there are none.
func (ps *Problems) err() error {
	if len(ps.List) == 0 {
		return nil
	}
	slices.SortStableFunc(ps.List, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	return ps
}

// clean reports whether no problem lies at path or below it. A rule that judges what could not be read only adds noise.
func (ps *Problems) clean(path string) bool {
	return !slices.ContainsFunc(ps.List, func(p Problem) bool {
		rest, ok := strings.CutPrefix(p.Path, path)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// keysKnown reports whether every key of the mapping at path was understood. If not, the one that seems to be missing
// may be there under a wrong name.
func (ps *Problems) keysKnown(path string) bool {
	return !slices.ContainsFunc(ps.List, func(p Problem) bool { return p.Path == path })
}

func joinKey(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// lastKey is what a message calls the value at path: "mode" for listeners[0].tls.mode, without the place in a list.
func lastKey(path string) string {
	key, _, _ := strings.Cut(path[strings.LastIndexByte(path, '.')+1:], "[")
	return key
}

// quote shows a piece of the file: escaped, so that no byte of it reaches a terminal, and of bounded length.
func quote(s string) string { return strconv.Quote(clip(s)) }

func clip(s string) string { return clipTo(maxQuoted, s) }

func clipTo(runes int, s string) string {
	if utf8.RuneCountInString(s) <= runes {
		return s
	}
	return string([]rune(s)[:runes]) + "..."
}

// enumerate writes "a, b and c".
func enumerate(words []string, conjunction string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " " + conjunction + " " + words[last]
}

// nearest returns the name that was probably meant, or "" when none is near.
func nearest(got string, names []string) string {
	got = folded(got)
	best, bestDistance := "", 1<<30
	for _, name := range names {
		want := folded(name)
		distance := 1 // for dev and warning, which mean development and warn
		if got == want || min(len(got), len(want)) < 3 || !strings.HasPrefix(want, got) && !strings.HasPrefix(got, want) {
			distance = editDistance(got, want, max(1, len(want)/3))
		}
		if distance <= max(1, len(want)/3) && distance < bestDistance {
			best, bestDistance = name, distance
		}
	}
	return best
}

// folded leaves out what people forget: maxConnections is max_connections.
func folded(s string) string { return separators.Replace(strings.ToLower(clip(s))) }

var separators = strings.NewReplacer("_", "", "-", "")

// editDistance counts the letters to insert, drop, change or swap with their neighbour to turn a into b. Beyond most
// it returns any larger number.
func editDistance(a, b string, most int) int {
	if len(a)-len(b) > most || len(b)-len(a) > most {
		return most + 1
	}
	before, above := make([]int, len(b)+1), make([]int, len(b)+1) // two rows up, one row up
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 0
			if a[i-1] != b[j-1] {
				change = 1
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above = above, row
	}
	return above[len(b)]
}
