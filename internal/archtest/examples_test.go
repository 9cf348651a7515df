package archtest

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryExampleIsListedAndRun: each has its line in examples/README.md, and a test.
func TestEveryExampleIsListedAndRun(t *testing.T) {
	listed := read(t, "examples", "README.md")
	var programs []string
	for _, pattern := range []string{"examples/*/main.go", "examples/web/*/main.go"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, found...)
	}
	if len(programs) < 15 {
		t.Errorf("there are %d examples only: %v", len(programs), programs)
	}
	for _, program := range programs {
		dir := filepath.Dir(program)
		name, _ := filepath.Rel(filepath.Join(repository, "examples"), dir)
		if !strings.Contains(listed, "| ["+filepath.ToSlash(name)+"](") {
			t.Errorf("examples/README.md does not list %s", name)
		}
		if tests, _ := filepath.Glob(filepath.Join(dir, "*_test.go")); len(tests) == 0 {
			t.Errorf("%s has no test", name)
		}
	}
}
