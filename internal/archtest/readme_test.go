package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestREADMEShowsTheProgramsThatAreCompiled: the README's program is examples/echo, to the letter, and what it shows
// after that are lines of examples/lines.
func TestREADMEShowsTheProgramsThatAreCompiled(t *testing.T) {
	readme := read(t, "README.md")
	_, program, _ := strings.Cut(read(t, "examples", "echo", "main.go"), "\n") // its doc comment
	shown, rest := goBlock(readme)
	if shown != program {
		t.Errorf("README.md shows\n%s\nexamples/echo/main.go is\n%s", shown, program)
	}
	shown, rest = goBlock(rest)
	if shown == "" || strings.Contains(rest, "```go") {
		t.Error("README.md has other programs than the two that are looked at here")
	}
	left := read(t, "examples", "lines", "main.go")
	for line := range strings.Lines(shown) {
		found := false
		if _, left, found = strings.Cut(left, line); !found {
			t.Errorf("README.md shows %q, which examples/lines/main.go has not, or not there", line)
		}
	}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{repository}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// goBlock returns a text's first block of Go, and what follows it.
func goBlock(text string) (block, rest string) {
	_, rest, _ = strings.Cut(text, "```go\n")
	block, rest, _ = strings.Cut(rest, "```")
	return block, rest
}
