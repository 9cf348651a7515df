package main

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/yuin/goldmark/ast"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// site reads all pages, each of which the contents name.
func pagesOf(t *testing.T) *site {
	t.Helper()
	s, err := readSite()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryLinkOfTheSourcesLeadsSomewhere(t *testing.T) {
	s := pagesOf(t)
	links := 0
	for _, p := range s.pages {
		for node := range p.nodes() {
			var to string
			switch n := node.(type) {
			case *ast.Link:
				to = string(n.Destination)
			case *ast.Image:
				to = string(n.Destination)
			default:
				continue
			}
			links++
			if why := s.astray(p, to); why != "" {
				t.Errorf("%s: %s: %s", p.source, to, why)
			}
		}
	}
	if links < 200 {
		t.Errorf("only %d links were seen", links)
	}
}

// astray says why a link leads nowhere, if it does.
func (s *site) astray(p *page, to string) string {
	if isElsewhere(to) {
		if u, err := url.Parse(to); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return "no address"
		}
		return ""
	}
	file, fragment, _ := strings.Cut(to, "#")
	source := path.Join(path.Dir(p.source), file)
	if file == "" {
		source = p.source
	}
	if _, err := os.Stat(filepath.Join(repository, source)); err != nil {
		return "no such file"
	}
	if target := s.bySource[source]; target != nil && fragment != "" && !slices.Contains(target.ids, fragment) {
		return "no such heading"
	}
	return ""
}

var reference = regexp.MustCompile(`(?:href|src|srcset)="([^"]*)"`)

// What links of the sources have become is looked at as a browser would: file by file.
func TestEveryLinkOfTheSiteLeadsSomewhere(t *testing.T) {
	out := t.TempDir()
	s := pagesOf(t)
	if err := s.write(out); err != nil {
		t.Fatal(err)
	}
	have := func(name string) string {
		text, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	for _, p := range s.pages {
		text := have(p.target)
		for _, m := range reference.FindAllStringSubmatch(text, -1) {
			to := strings.ReplaceAll(m[1], "&amp;", "&")
			if isElsewhere(to) {
				continue
			}
			file, fragment, _ := strings.Cut(to, "#")
			target := path.Join(path.Dir(p.target), file)
			if file == "" {
				target = p.target
			}
			if other := have(target); fragment != "" && !strings.Contains(other, `id="`+fragment+`"`) {
				t.Errorf("%s: %s: no such heading", p.target, to)
			}
		}
		if weight := len(text) + len(have("assets/site.css")) + len(have("assets/site.js")); weight > 200_000 {
			t.Errorf("%s weighs %d bytes with what it loads", p.target, weight)
		}
		if strings.Contains(text, "<!--") {
			t.Errorf("%s has a comment for who writes it", p.target)
		}
	}
	if err := s.write(filepath.Join(repository, "docs")); err == nil {
		t.Error("it takes a folder that is not a site's")
	}
}

func TestTheSearchIsTheOneFromNPM(t *testing.T) {
	sums := regexp.MustCompile(`(?m)^    ([0-9a-f]{64})  (\S+)$`).FindAllStringSubmatch(read(t, "docs/site/assets/minisearch.txt"), -1)
	if len(sums) != 2 {
		t.Fatalf("%d sums", len(sums))
	}
	for _, m := range sums {
		if sum := sha256.Sum256([]byte(read(t, "docs/site/assets/"+m[2]))); hex.EncodeToString(sum[:]) != m[1] {
			t.Errorf("%s is another", m[2])
		}
	}
}

func TestAnchorsAreThoseOfGitHub(t *testing.T) {
	for heading, want := range map[string]string{
		"What moves, and what finishes": "what-moves-and-what-finishes",
		"listeners[].limits":            "listenerslimits",
		"0.9 to 1.04, not 1.2":          "09-to-104-not-12",
		"`levee` — a word":              "levee--a-word",
		"…":                             "section",
	} {
		if got := anchor(strings.ReplaceAll(heading, "`", "")); got != want {
			t.Errorf("%s: %s, want %s", heading, got, want)
		}
	}
}

// What is read has a contrast of 4.5 at least, as WCAG 2 asks, in light and in dark.
func TestEverythingCanBeRead(t *testing.T) {
	css := read(t, "docs/site/assets/site.css")
	schemes := regexp.MustCompile(`(?s):root[^{]*\{(.*?)\n\}`).FindAllStringSubmatch(css, 2)
	colour := regexp.MustCompile(`--([\w-]+): #([0-9a-f]{6});`)
	for i, scheme := range schemes {
		is := make(map[string]float64)
		for _, m := range colour.FindAllStringSubmatch(scheme[1], -1) {
			is[m[1]] = luminance(t, m[2])
		}
		for _, pair := range [][2]string{
			{"text", "ground"},
			{"text", "side"},
			{"text", "here"},
			{"text", "found"},
			{"soft", "ground"},
			{"soft", "side"},
			{"soft", "here"},
			{"soft", "code"},
			{"soft", "found"},
			{"link", "ground"},
			{"link", "here"},
			{"c-word", "code"},
			{"c-string", "code"},
			{"c-name", "code"},
			{"c-number", "code"},
			{"c-comment", "code"},
		} {
			light, dark := max(is[pair[0]], is[pair[1]]), min(is[pair[0]], is[pair[1]])
			if ratio := (light + 0.05) / (dark + 0.05); ratio < 4.5 {
				t.Errorf("scheme %d: %s on %s: %.2f", i, pair[0], pair[1], ratio)
			}
		}
	}
	if len(schemes) != 2 {
		t.Errorf("%d schemes", len(schemes))
	}
}

// luminance is WCAG's of a colour.
func luminance(t *testing.T, hexadecimal string) (l float64) {
	t.Helper()
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(hexadecimal[2*i:2*i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		v := float64(n) / 255
		if v <= 0.03928 {
			l += weight * v / 12.92
		} else {
			l += weight * math.Pow((v+0.055)/1.055, 2.4)
		}
	}
	return l
}
