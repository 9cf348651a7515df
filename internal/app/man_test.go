package app_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/internal/config"
)

func manual(t *testing.T, page string) string {
	t.Helper()
	code, text, stderr := result(t, app.Env{}, "man", page)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	return text
}

// formatted is a page as a terminal shows it, which man must have no complaint of.
func formatted(t *testing.T, page string) string {
	t.Helper()
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("skipped: groff is not installed")
	}
	cmd := exec.Command(groff, "-man", "-Kutf8", "-Tutf8", "-ww", "-rLL=200n", "-P-cbou")
	cmd.Stdin = strings.NewReader(page)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	text, err := cmd.Output()
	if err != nil || complaints.Len() > 0 {
		t.Fatalf("groff: %v\n%s", err, &complaints)
	}
	return strings.NewReplacer("−", "-", "‐", "-").Replace(string(text))
}

func TestManualHasEveryCommandAndFlagOfTheHelp(t *testing.T) {
	page := formatted(t, manual(t, "levee"))
	_, help, _ := result(t, app.Env{}, "--help")
	_, commands, _ := strings.Cut(help, "COMMANDS:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	names := 0
	for line := range strings.Lines(commands) {
		name := strings.TrimSuffix(strings.Fields(line)[0], ",")
		names++
		if !strings.Contains(page, "\n   "+name) {
			t.Errorf("nothing of %s", name)
		}
		_, help, _ := result(t, app.Env{}, "help", name)
		for word := range strings.FieldsSeq(help) {
			if strings.HasPrefix(word, "--") && !strings.Contains(page, strings.Trim(word, ",.;)]")) {
				t.Errorf("%s: nothing of %s", name, word)
			}
		}
	}
	if names < 20 {
		t.Errorf("only %d commands in the help", names)
	}
}

func TestManualOfTheConfigurationHasTheReferenceAsItStands(t *testing.T) {
	page := formatted(t, manual(t, "levee.yaml"))
	for line := range strings.Lines(string(config.DefaultYAML())) {
		if line = strings.TrimSpace(line); !strings.Contains(page, line) {
			t.Errorf("the page has no line %q", line)
		}
	}
}

func TestManualThatThereIsNotIsToldSo(t *testing.T) {
	code, _, stderr := result(t, app.Env{}, "man", "proxy")
	if want := "levee: no manual for \"proxy\": levee or levee.yaml (see levee man --help)\n"; code != 2 || stderr != want {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestCompletionScriptsAreOnesToTheirShells(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("skipped: %s is not installed", shell)
			}
			_, script, _ := result(t, app.Env{}, "completion", shell)
			cmd := exec.Command(shell, "-n")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil || script == "" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
