package archtest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// homePath is a path that exists on one person's machine only. What stands before it keeps URLs and longer paths out.
var homePath = regexp.MustCompile(`(?m)(?:^|[^\w./~$})-])(/(?:root|home|work|Users)/[\w.-]+)`)

func TestNoFileNamesAPlaceOnSomebodysMachine(t *testing.T) {
	for _, name := range filesInGit(t) {
		content, err := os.ReadFile(filepath.Join(repository, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, but not yet in a commit
		}
		if err != nil {
			t.Fatal(err)
		}
		if isBinary(content) || !mayNameHome(content) {
			continue
		}
		for _, at := range homePath.FindAllSubmatchIndex(content, -1) {
			line := 1 + bytes.Count(content[:at[2]], []byte("\n"))
			t.Errorf("%s:%d: %s is a place on somebody's machine", name, line, content[at[2]:at[3]])
		}
	}
}

// mayNameHome tells at once of most files that homePath, which takes its time, finds nothing there.
func mayNameHome(content []byte) bool {
	for _, folder := range []string{"root", "home", "work", "Users"} {
		if bytes.Contains(content, []byte("/"+folder+"/")) {
			return true
		}
	}
	return false
}

func TestHomePathIsToldFromOtherPaths(t *testing.T) {
	for text, want := range map[string]bool{
		"cd /" + "home/ada/levee":        true,
		"open(\"/" + "Users/ada/x\")":    true,
		"/" + "root/go/bin":              true,
		"https://example.com/home/page":  false,
		"testdata/work/a.yaml":           false,
		"$HOME/root/x":                   false,
		"GET /homepage":                  false,
		"a folder called /" + "home/":    false,
		"WorkingDirectory=/var/lib/work": false,
	} {
		if got := homePath.MatchString(text); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
		if want && !mayNameHome([]byte(text)) {
			t.Errorf("%q would not be looked at", text)
		}
	}
}

// filesInGit lists the files that are in the repository, or will be with the next `git add`.
func filesInGit(t *testing.T) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = repository
	out, err := list.Output()
	if err != nil {
		t.Skipf("this is no git work tree: %v%s", err, stderrOf(err))
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// isBinary is git's own guess: a zero byte early on.
func isBinary(content []byte) bool {
	return bytes.IndexByte(content[:min(len(content), 8000)], 0) >= 0
}
