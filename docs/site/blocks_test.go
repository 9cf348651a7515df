package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/yuin/goldmark/ast"
)

// A block is code on a page, with the comment in front of it, which says how it is tested:
//
//	<!-- from FILE -->           Go: lines of that file, in that order, which is compiled
//	<!-- tested by TestA, … -->  what these tests do
//	<!-- run by FILE -->         a script takes it from the page
//	<!-- not run: REASON -->     nobody runs it, because
//
// What is typed in a ```console on a page that e2e plays (newGuide) needs none, nor does a configuration: it is checked here.
type block struct {
	page     *page
	language string
	text     string
	comment  string
}

func (b *block) String() string {
	first, _, _ := strings.Cut(b.text, "\n")
	return fmt.Sprintf("%s: ```%s %s", b.page.source, b.language, first)
}

func blocksOf(t *testing.T) (all []*block) {
	t.Helper()
	for _, p := range pagesOf(t).pages {
		for node := range p.nodes() {
			if n, indented := node.(*ast.CodeBlock); indented {
				t.Errorf("%s: an indented block does not say what it is; use a fence: %s", p.source, lines(n, p.text))
			}
			n, ok := node.(*ast.FencedCodeBlock)
			if !ok {
				continue
			}
			b := &block{page: p, language: string(n.Language(p.text)), text: string(lines(n, p.text))}
			if before, ok := n.PreviousSibling().(*ast.HTMLBlock); ok {
				b.comment = strings.TrimSpace(string(lines(before, p.text)))
			}
			all = append(all, b)
		}
	}
	if len(all) < 80 {
		t.Errorf("only %d blocks were seen", len(all))
	}
	return all
}

var how = regexp.MustCompile(`^<!-- (from|tested by|run by|not run:) (.+) -->$`)

func TestEveryBlockSaysHowItIsTested(t *testing.T) {
	played := playedPages(t)
	tests := testsByName(t)
	for _, b := range blocksOf(t) {
		m := how.FindStringSubmatch(b.comment)
		if m != nil && m[1] == "tested by" {
			for name := range strings.SplitSeq(m[2], ", ") {
				if tests[name] == nil {
					t.Errorf("%v: there is no %s", b, name)
				}
			}
		}
		if m != nil && m[1] == "run by" && !strings.Contains(read(t, m[2]), b.page.source) {
			t.Errorf("%v: %s takes nothing from %s", b, m[2], b.page.source)
		}
		switch b.language {
		case "text", "json", "yaml", "ini":
		case "go":
			if m == nil || m[1] != "from" {
				t.Errorf("%v: which file is it from?", b)
			}
		case "console":
			if m == nil && !slices.Contains(played, filepath.Base(b.page.source)) {
				t.Errorf("%v: nobody types this", b)
			}
		case "sh":
			if m == nil {
				t.Errorf("%v: who runs it, or why does nobody?", b)
			}
		default:
			t.Errorf("%v: a language that nobody knows how to test", b)
		}
	}
}

// playedPages are those that e2e types.
func playedPages(t *testing.T) (all []string) {
	t.Helper()
	for _, texts := range testFiles(t, "e2e") {
		for _, m := range regexp.MustCompile(`newGuide\(t, "(?:\.\./)?([\w.-]+\.md)"`).FindAllStringSubmatch(texts, -1) {
			all = append(all, m[1])
		}
	}
	if len(all) < 8 {
		t.Errorf("only %v are played", all)
	}
	return all
}

// testFiles are the texts of all tests below a folder, by their names from the repository's root.
func testFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(repository, dir), func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && len(entry.Name()) > 2:
			return fs.SkipDir
		case !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(repository, name)
		all[filepath.ToSlash(relative)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// testsByName are the files in which each test stands.
func testsByName(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for file, text := range testFiles(t, ".") {
		for _, m := range declared.FindAllStringSubmatch(text, -1) {
			all[m[1]] = append(all[m[1]], file)
		}
	}
	return all
}

func TestEveryTestThatAPageNamesIsThere(t *testing.T) {
	tests := testsByName(t)
	named := regexp.MustCompile("((?:`Test\\w+`(?:, | and )?)+)(?: in (\\S+_test\\.go))?")
	seen := 0
	for _, p := range pagesOf(t).pages {
		for _, m := range named.FindAllStringSubmatch(string(p.text), -1) {
			for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(m[1], -1) {
				seen++
				switch {
				case p.source == "CONTRIBUTING.md": // an example of a name
				case tests[name] == nil:
					t.Errorf("%s: there is no %s", p.source, name)
				case m[2] != "" && !slices.Contains(tests[name], m[2]):
					t.Errorf("%s: %s stands in %v", p.source, name, tests[name])
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d were seen", seen)
	}
}

// A program on a page is one that is compiled, to the line.
func TestGoOnAPageIsGoThatIsCompiled(t *testing.T) {
	for _, b := range blocksOf(t) {
		m := how.FindStringSubmatch(b.comment)
		if m == nil || m[1] != "from" {
			continue
		}
		left := unindented(read(t, m[2]))
		for line := range strings.Lines(unindented(b.text)) {
			found := false
			if _, left, found = strings.Cut("\n"+left, "\n"+line); !found {
				t.Errorf("%v: %s has not %q, or not there", b, m[2], line)
				break
			}
		}
	}
}

// A configuration on a page that nobody plays is checked, and what is a part of one with the rest beside it.
func TestConfigurationsOnPagesAreSound(t *testing.T) {
	played := playedPages(t)
	for _, b := range blocksOf(t) {
		if b.language != "yaml" || slices.Contains(played, filepath.Base(b.page.source)) {
			continue
		}
		text := b.text
		if !strings.Contains(text, "\nversion:") && !strings.HasPrefix(text, "version:") {
			text = "version: 1\n" + text
		}
		if !strings.Contains(text, "\nlisteners:") {
			to := "handler: echo"
			if m := regexp.MustCompile(`(?m)^upstreams:\n  - name: (\w+)$`).FindStringSubmatch(text); m != nil {
				to = "upstream: " + m[1]
			}
			text += "listeners:\n  - {name: main, listen: [\"127.0.0.1:8080\"], routes: [{" + to + "}]}\n"
		}
		file := filepath.Join(t.TempDir(), "levee.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), built, "check", "-c", file).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s\n%s", b, err, out, text)
		}
	}
}

func TestTheReferenceIsUpToDate(t *testing.T) {
	pages, err := referencePages(t.Context(), built)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range pages {
		if got := read(t, name); got != string(want) {
			t.Errorf("%s is not what levee says of itself; run make reference", name)
		}
	}
}

func TestEveryMetricIsExplained(t *testing.T) {
	name := regexp.MustCompile("`(levee_\\w+)`")
	reading := read(t, "docs/guides/reading.md") + read(t, "docs/guides/tracing.md")
	has := make(map[string]bool)
	for _, m := range name.FindAllStringSubmatch(read(t, "docs/reference/metrics.md"), -1) {
		has[m[1]] = true
		if !strings.Contains(reading, "`"+m[1]+"`") {
			t.Errorf("no guide says what %s means", m[1])
		}
	}
	for _, m := range name.FindAllStringSubmatch(reading, -1) {
		if !has[m[1]] {
			t.Errorf("levee has no %s", m[1])
		}
	}
}

func TestDefaultsAreThoseOfTheSchema(t *testing.T) {
	builtIn := read(t, "internal/config/default.yaml")
	keys := make(map[string]string)
	section, row := regexp.MustCompile(`^#{2,4} (\S+)$`), regexp.MustCompile("^\\| `(\\w+)` \\| .* \\| (?:required)?`?([^`|]*)`? \\| ")
	path := ""
	for line := range strings.Lines(read(t, "docs/reference/configuration.md")) {
		if m := section.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			path = m[1] + "."
		}
		if m := row.FindStringSubmatch(line); m != nil {
			keys[path+m[1]] = strings.TrimSpace(m[2])
		}
	}
	claim := regexp.MustCompile("(?m)^\\| `([\\w.\\[\\]]+)` \\| (\\S+) \\|")
	claims := claim.FindAllStringSubmatch(read(t, "docs/reference/defaults.md"), -1)
	for _, m := range claims {
		want, there := keys[m[1]]
		if want == "" { // it depends on something, and the schema does not say so; the built-in configuration does
			key := m[1][strings.LastIndexByte(m[1], '.')+1:]
			want = regexp.MustCompile(`(?m)^ *` + key + `: ` + regexp.QuoteMeta(m[2]) + `$`).FindString(builtIn)
			want = strings.TrimPrefix(strings.TrimSpace(want), key+": ")
		}
		if !there || want != m[2] {
			t.Errorf("%s: %s, and the schema has %q (%v)", m[1], m[2], want, there)
		}
	}
	if len(claims) < 30 {
		t.Errorf("only %d claims were seen", len(claims))
	}
}

// built is levee of this checkout, once for all tests.
var built string

func TestMain(m *testing.M) {
	path, remove, err := buildLevee(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built = path
	code := m.Run()
	remove()
	os.Exit(code)
}

// unindented is a text without the space in front of its lines: a page shows as much of it as there is reason to.
func unindented(text string) string {
	return regexp.MustCompile(`(?m)^[\t ]+`).ReplaceAllString(text, "")
}
