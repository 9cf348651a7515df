//go:build linux

package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// made is a bench with figures that were made up, of all suites.
func made(samples map[string]map[string][]sample) *bench {
	b := &bench{samples: samples, failed: map[task]error{}}
	for _, s := range suites {
		for _, p := range s.peers {
			s.servers = append(s.servers, server{peer: p})
		}
		b.suites = append(b.suites, &s)
	}
	return b
}

// words are the verdicts on the suite's bars, in a line each.
func words(b *bench, s *suite) (lines []string) {
	for _, v := range b.judge(s) {
		lines = append(lines, v.name()+" "+v.against+" "+v.word())
	}
	return lines
}

func TestRatioIsTheMedianOfTheRatiosWithinARound(t *testing.T) {
	b := made(map[string]map[string][]sample{"echo64": {
		"levee": {{rate: 100}, {rate: 10}, {rate: 90}}, // the second round was disturbed
		"tokio": {{rate: 50}, {rate: 5}, {rate: 100}},
	}})
	if v, ok := b.ratio("echo64", "levee", perTokio, rate); !ok || v != 2 {
		t.Errorf("ratio %v, %v; want 2", v, ok)
	}
	if v, ok := b.figure("echo64", "levee", rate); !ok || v != 90 {
		t.Errorf("figure %v, %v; want 90", v, ok)
	}
	if _, ok := b.ratio("echo64", "levee", perC, rate); ok {
		t.Error("a ratio to what was not measured")
	}
}

func TestTheBestIsTheBestWithinEachRound(t *testing.T) {
	b := made(map[string]map[string][]sample{"proxy64": {
		"levee":   {{rate: 100, cpu: 10, p99: 300}, {rate: 60, cpu: 12}},
		"nginx":   {{rate: 50, cpu: 20, p99: 100}, {rate: 30, cpu: 10}},
		"haproxy": {{rate: 25, cpu: 40, p99: 200}, {rate: 60, cpu: 24}},
		"tokio":   {{rate: 20, cpu: 50, p99: 150}}, // failed in the second
		"gonet":   {{rate: 999, cpu: 1, p99: 1}, {rate: 999, cpu: 1}},
	}})
	for metric, want := range map[metric]float64{
		rate: (100.0/50 + 60.0/60) / 2,
		cpu:  (10.0/20 + 12.0/10) / 2,
		p99:  3,
	} {
		if v, ok := b.ratio("proxy64", "levee", perBest, metric); !ok || v != want {
			t.Errorf("%s: ratio %v, %v; want %v", metric, v, ok, want)
		}
	}
}

func TestBarsAreHeldOrMissedAndLeftOutWithoutFigures(t *testing.T) {
	b := made(map[string]map[string][]sample{
		"echo64": {"levee": {{rate: 97}}, "c": {{rate: 100}}, "tokio": {{rate: 98, others: 0.5}}},
		"idle":   {"levee": {{memory: 0.4, files: 1, drain: 301}}},
	})
	want := []string{
		"echo64, messages_per_second Tokio missed, but the machine was not idle",
		"echo64, messages_per_second C held",
		"idle, anonymous_kib_per_connection  held",
		"idle, files_per_connection  held",
		"idle, drain_ms  missed",
	}
	if got := words(b, b.suites[0]); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := words(b, b.suites[1]); len(got) > 0 {
		t.Errorf("verdicts on what was not measured: %q", got)
	}
	var out strings.Builder
	if !b.print(&out) {
		t.Errorf("two bars are missed, but nothing says so:\n%s", &out)
	}
}

func TestABarIsMissedWhenItsServerFailsAndTheOthersAreLeftOut(t *testing.T) {
	b := made(map[string]map[string][]sample{
		"pairs": {"levee": {{memory: 0.4, files: 2}}, "nginx": {{memory: 9, files: 2}}},
	})
	b.failed[task{"pairs9000", "levee"}] = errors.New("out of files")
	b.failed[task{"pairs", "gonet"}] = errors.New("connection reset")
	want := []string{
		"pairs, anonymous_kib_per_connection  held",
		"pairs, files_per_connection  held",
		"pairs9000, files_per_connection  missed: it failed",
	}
	if got := words(b, b.suites[1]); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var out strings.Builder
	if !b.print(&out) || !strings.Contains(out.String(), "out of files") || !strings.Contains(out.String(), "connection reset") {
		t.Errorf("a failure that is not told:\n%s", &out)
	}
	if b.does(server{peer: peer{key: "gonet"}}, work{key: "pairs"}) || !b.does(server{peer: peer{key: "gonet"}}, work{key: "proxy64"}) {
		t.Error("what failed is asked again, or what did not fail is not")
	}
}

func TestAMissSaysWhenTheLoadWasTheLimit(t *testing.T) {
	for _, c := range []struct {
		serving, loading float64
		want             string
	}{
		{0.60, 0.95, "down4, messages_per_second best missed, but the load was the limit: go by the CPU"},
		{0.99, 0.95, "down4, messages_per_second best missed"},
		{0.60, 0.50, "down4, messages_per_second best missed"},
	} {
		b := made(map[string]map[string][]sample{"down4": {
			"levee": {{rate: 150, cpu: 1, serving: c.serving, loading: c.loading}}, "nginx": {{rate: 100, cpu: 4}},
		}})
		if got := words(b, b.suites[1]); !slices.Equal(got, []string{c.want, "down4, cpu_us_per_message best held"}) {
			t.Errorf("got %q; want %q", got, c.want)
		}
	}
}

// TestEverySuiteKnowsWhatItNames: a bar about a work or a server that does not exist would be left out in silence.
func TestEverySuiteKnowsWhatItNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range suites {
		works, peers := workKeys([]suite{s}), peerKeys([]suite{s})
		knows := func(u unit) bool {
			return !slices.ContainsFunc(strings.Split(u.of, ","), func(key string) bool { return !slices.Contains(peers, key) })
		}
		for _, key := range works {
			if seen[key] {
				t.Errorf("%s: two works, or a suite and a work, have the key %q", s.key, key)
			}
			seen[key] = true
		}
		for _, w := range s.works {
			if w.only != "" && !slices.Contains(peers, w.only) || (w.backend != "") != (len(s.backends) > 0) ||
				w.backend != "" && !slices.ContainsFunc(s.backends, func(p peer) bool { return p.key == w.backend }) {
				t.Errorf("%+v", w)
			}
			if l, err := w.load("127.0.0.1:1", 1); err != nil || l.Check() != nil {
				t.Errorf("%s: %v, %v", w.key, err, l.Check())
			}
		}
		for _, u := range s.units {
			if !knows(u) {
				t.Errorf("%+v", u)
			}
		}
		for _, r := range s.bars {
			if !slices.Contains(works, r.work) || !slices.Contains(peers, r.server) || r.against.of != "" && !knows(r.against) {
				t.Errorf("%+v", r)
			}
			if (r.atLeast > 0) == (r.atMost > 0) {
				t.Errorf("%+v: one bound", r)
			}
		}
		for _, p := range s.panels {
			if !slices.Contains(works, p.work) {
				t.Errorf("%+v", p)
			}
		}
	}
}

func TestPlotIsWellFormedWhateverWasMeasured(t *testing.T) {
	for _, samples := range []map[string]map[string][]sample{
		nil,
		{"echo64": {"levee": {{rate: 0}}}},
		{"echo64": {"levee": {{rate: 12345}}, "c": {{rate: 23456}}}, "idle": {"levee": {{memory: 0.4}}}, "churn": {"c": {{cpu: 25}}}},
		{"proxy64": {"levee": {{rate: 12345}}}, "down4": {"nginx": {{cpu: 400}}}},
	} {
		b := made(samples)
		for _, s := range b.suites {
			plot := b.plot(s)
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
}

func TestTheResultsOfASuiteAreItsOwn(t *testing.T) {
	b := made(map[string]map[string][]sample{"echo64": {"levee": {{rate: 12345}}}, "proxy64": {"levee": {{rate: 678}}}})
	for i, want := range []string{"12345", "678"} {
		text, err := json.Marshal(b.result(b.suites[i]))
		if err != nil {
			t.Fatal(err)
		}
		if other := []string{"678", "12345"}[i]; !strings.Contains(string(text), want) || strings.Contains(string(text), other) {
			t.Errorf("%s", text)
		}
	}
}

func TestChooseTakesWhatTheListsName(t *testing.T) {
	for _, c := range []struct{ only, peers, want string }{
		{"echo64", "", "echo: echo64; c tokio gonet netpoll gnet levee sequential"},
		{"echo64,proxy64", "levee", "echo: echo64; levee | proxy: proxy64; levee"},
		{"", "nginx", "proxy: proxy64 proxy500 proxy16k down4 down64 up4 up64 proxychurn pairs pairs9000; nginx | tls: handshake resume tls64 tlsdown tlsup tlsidle sniff; nginx"},
		{"proxy", "tokio,c", "proxy: proxy64 proxy500 proxy16k down4 down64 up4 up64 proxychurn pairs pairs9000; tokio"},
	} {
		chosen, err := choose(suites, c.only, c.peers)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range chosen {
			works := workKeys([]suite{*s})[1:]
			got = append(got, s.key+": "+strings.Join(works, " ")+"; "+strings.Join(peerKeys([]suite{*s}), " "))
		}
		if strings.Join(got, " | ") != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	for want, lists := range map[string][2]string{`--only: "x"`: {"echo64,x", ""}, `--peers: "x"`: {"", "c,x"}, "none of these": {"echo64", "nginx"}} {
		if _, err := choose(suites, lists[0], lists[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want %q", err, want)
		}
	}
	if len(suites[0].works) < 5 || len(suites[1].peers) < 5 {
		t.Error("choosing has changed the table")
	}
}
