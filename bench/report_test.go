//go:build linux

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// made is a bench with figures that were made up.
func made(samples map[string]map[string][]sample) *bench {
	b := &bench{works: works, samples: samples}
	for _, p := range peers {
		b.servers = append(b.servers, server{peer: p})
	}
	return b
}

func TestRatioIsTheMedianOfTheRatiosWithinARound(t *testing.T) {
	b := made(map[string]map[string][]sample{"echo64": {
		"levee": {{rate: 100}, {rate: 10}, {rate: 90}}, // the second round was disturbed
		"tokio": {{rate: 50}, {rate: 5}, {rate: 100}},
	}})
	if v, ok := b.ratio("echo64", "levee", "tokio", rate); !ok || v != 2 {
		t.Errorf("ratio %v, %v; want 2", v, ok)
	}
	if v, ok := b.figure("echo64", "levee", rate); !ok || v != 90 {
		t.Errorf("figure %v, %v; want 90", v, ok)
	}
	if _, ok := b.ratio("echo64", "levee", "c", rate); ok {
		t.Error("a ratio to what was not measured")
	}
}

func TestBarsAreHeldOrMissedAndLeftOutWithoutFigures(t *testing.T) {
	b := made(map[string]map[string][]sample{
		"echo64": {"levee": {{rate: 97}}, "c": {{rate: 100}}, "tokio": {{rate: 98, others: 0.5}}},
		"idle":   {"levee": {{memory: 0.4, files: 1, drain: 301}}},
	})
	var got []string
	for _, v := range b.judge() {
		got = append(got, v.name()+" "+v.Against+" "+v.word())
	}
	want := []string{
		"echo64, messages_per_second tokio missed, but the machine was not idle",
		"echo64, messages_per_second c held",
		"idle, anonymous_kib_per_connection  held",
		"idle, files_per_connection  held",
		"idle, drain_ms  missed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var out strings.Builder
	if !b.print(&out) {
		t.Errorf("two bars are missed, but nothing says so:\n%s", &out)
	}
}

// TestEveryBarHasItsFigures: a bar about a work or a server that does not exist would be left out in silence.
func TestEveryBarHasItsFigures(t *testing.T) {
	for _, r := range bars {
		if !slices.Contains(workKeys(), r.work) || !slices.Contains(peerKeys(), r.server) || r.against != "" && !slices.Contains(peerKeys(), r.against) {
			t.Errorf("%+v", r)
		}
		if (r.atLeast > 0) == (r.atMost > 0) {
			t.Errorf("%+v: one bound", r)
		}
	}
	for _, p := range panels {
		if !slices.Contains(workKeys(), p.work) {
			t.Errorf("%+v", p)
		}
	}
}

func TestPlotIsWellFormedWhateverWasMeasured(t *testing.T) {
	for _, samples := range []map[string]map[string][]sample{
		nil,
		{"echo64": {"levee": {{rate: 0}}}},
		{"echo64": {"levee": {{rate: 12345}}, "c": {{rate: 23456}}}, "idle": {"levee": {{memory: 0.4}}}, "churn": {"c": {{cpu: 25}}}},
	} {
		plot := made(samples).plot()
		d := xml.NewDecoder(strings.NewReader(string(plot)))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in\n%s", err, plot)
			}
		}
		if strings.Contains(string(plot), "NaN") || strings.Contains(string(plot), "%!") {
			t.Errorf("%s", plot)
		}
	}
}

func TestChooseTakesWhatTheListNames(t *testing.T) {
	key := func(s string) string { return s }
	table := []string{"a", "b", "c"}
	for list, want := range map[string][]string{"": table, "c,a": {"c", "a"}} {
		if got, err := choose(table, list, key); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", list, got, err, want)
		}
	}
	if _, err := choose(table, "a,x", key); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("error %v", err)
	}
}
