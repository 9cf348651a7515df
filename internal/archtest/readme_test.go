package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestREADMEShowsTheProgramThatIsCompiled: the README's program is examples/echo, to the letter.
func TestREADMEShowsTheProgramThatIsCompiled(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(repository, "examples", "echo", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "```go\n")
	shown, _, _ = strings.Cut(shown, "```")
	_, program2, _ := strings.Cut(string(program), "\n") // its doc comment
	if shown != program2 {
		t.Errorf("README.md shows\n%s\nexamples/echo/main.go is\n%s", shown, program2)
	}
}
