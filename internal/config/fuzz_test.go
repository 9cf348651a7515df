package config

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// FuzzParse holds Parse to its promises: what it accepts, the schema accepts too, and its normal form means the same;
// what it rejects, it rejects in a bounded number of printable lines that point into the document.
func FuzzParse(f *testing.F) {
	f.Add(DefaultYAML())
	for _, c := range accepted {
		f.Add([]byte(c.doc))
		f.Add(c.want.YAML())
	}
	for _, c := range rejected {
		f.Add([]byte(c.doc))
	}
	schema := schemaValidator(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		cfg, err := Parse("levee.yaml", doc)
		if err != nil {
			checkProblems(t, doc, err)
			return
		}
		if err := validate(t, schema, string(doc)); err != nil {
			t.Errorf("the schema rejects what Parse accepts: %v", err)
		}
		normal := cfg.YAML()
		again, err := Parse("levee.yaml", normal)
		if err != nil {
			t.Fatalf("the normal form is rejected: %v in:\n%s", err, normal)
		}
		if diff := cmp.Diff(cfg, again, sameConfig); diff != "" {
			t.Errorf("the normal form means something else:\n%s", diff)
		}
	})
}

func checkProblems(t *testing.T, doc []byte, err error) {
	t.Helper()
	var problems *Problems
	if !errors.As(err, &problems) {
		t.Fatalf("the error is a %T", err)
	}
	if n := len(problems.List); n == 0 || n > 20 || n < 20 && problems.More > 0 {
		t.Errorf("%d problems and %d more", n, problems.More)
	}
	lines := bytes.Split(doc, []byte("\n"))
	for _, p := range problems.List {
		if p.Pos.Line < 1 || p.Pos.Line > len(lines) {
			t.Errorf("%s: the document has %d lines", p, len(lines))
		} else if width := utf8.RuneCount(lines[p.Pos.Line-1]); p.Pos.Column < 1 || p.Pos.Column > width+1 {
			t.Errorf("%s: that line has %d columns", p, width)
		}
		if strings.ContainsFunc(p.String(), func(c rune) bool { return !unicode.IsPrint(c) }) || len(p.String()) > 700 {
			t.Errorf("not a printable line: %q", p)
		}
	}
}
