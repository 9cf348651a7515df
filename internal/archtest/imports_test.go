package archtest

import (
	"cmp"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module     = "github.com/levee-net/levee"
	repository = "../.." // where the tests run, go test stands in this package's folder
)

func TestImportsFollowTheHouseRule(t *testing.T) {
	files := sourceFiles(t)
	if !slices.ContainsFunc(files, func(f file) bool { return f.name == "internal/archtest/imports_test.go" }) {
		t.Fatalf("the search among %d Go files missed this one", len(files))
	}
	for _, v := range violations(files, rooms, heavyDependencies, rootMayLink) {
		t.Error(v)
	}
}

// A program that speaks a protocol of its own over TCP should not carry an HTTP server: that is 1.5 MB more in a TLS
// server of 7 MB (Go 1.26), and every vulnerability report of net/http would be about it. httpserve is for who wants one.
func TestRootDoesNotLinkNetHTTP(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			list := exec.CommandContext(t.Context(), "go", "list", "-deps",
				"-f", "{{.ImportPath}}{{range .Imports}} {{.}}{{end}}", ".")
			list.Dir = repository
			list.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
			out, err := list.Output()
			if err != nil {
				t.Fatalf("%v: %v%s", list, err, stderrOf(err))
			}
			for line := range strings.Lines(string(out)) {
				importer, imports, _ := strings.Cut(strings.TrimSpace(line), " ")
				if slices.Contains(strings.Fields(imports), "net/http") {
					t.Errorf("the root package links net/http through %s", importer)
				}
			}
		})
	}
}

func stderrOf(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "\n" + string(exit.Stderr)
	}
	return ""
}

// A file is what the rule needs to know of a Go source file.
type file struct {
	name    string // slash-separated, from the repository's root
	kind    fileKind
	imports []imported
}

type imported struct {
	path string
	line int
}

type fileKind int

const (
	code         fileKind = iota
	internalTest          // package foo, in foo_test.go
	externalTest          // package foo_test
)

// sourceFiles reads the imports of every Go file in the repository, for all operating systems and nested modules alike:
// go list would see one of each.
func sourceFiles(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(repository, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != repository && isIgnoredByGo(entry.Name()):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		f, err := readFile(name)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func isIgnoredByGo(dir string) bool {
	return dir == "testdata" || strings.HasPrefix(dir, ".") || strings.HasPrefix(dir, "_")
}

func readFile(name string) (file, error) {
	positions := token.NewFileSet()
	syntax, err := parser.ParseFile(positions, name, nil, parser.ImportsOnly)
	if err != nil {
		return file{}, err
	}
	relative, err := filepath.Rel(repository, name)
	if err != nil {
		return file{}, err
	}
	f := file{name: filepath.ToSlash(relative)}
	if strings.HasSuffix(name, "_test.go") {
		f.kind = internalTest
		if strings.HasSuffix(syntax.Name.Name, "_test") {
			f.kind = externalTest
		}
	}
	for _, spec := range syntax.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports = append(f.imports, imported{target, positions.Position(spec.Pos()).Line})
	}
	return f, nil
}

// violations holds every import of every file against the rule and returns one sentence for each that breaks it.
func violations(files []file, rooms []room, heavy []dependency, rootMayLink []string) []string {
	var found []string
	var strange []string // folders that are in no room; one complaint each is enough
	for _, f := range files {
		from, known := roomOf(path.Dir(f.name), rooms)
		if !known {
			if dir := path.Dir(f.name); !slices.Contains(strange, dir) {
				strange = append(strange, dir)
				found = append(found, dir+" is in no known room: give it a line, with its role, in the table of "+
					"internal/archtest/rooms_test.go")
			}
			continue
		}
		for _, i := range f.imports {
			why := objection(from, f.kind, i.path, rooms, heavy, rootMayLink)
			if why != "" {
				found = append(found, fmt.Sprintf("%s:%d: %s may not import %s: %s", f.name, i.line, from, i.path, why))
			}
		}
	}
	return found
}

// objection says why a file of that kind in that room may not import target, or nothing if it may.
func objection(from room, kind fileKind, target string, rooms []room, heavy []dependency, rootMayLink []string) string {
	if within(target, module) {
		to, known := roomOf(cmp.Or(strings.TrimPrefix(strings.TrimPrefix(target, module), "/"), "."), rooms)
		if !known {
			return "" // its own files are complained about
		}
		return objectionToRoom(from, kind, to)
	}
	if isStandard(target) {
		return ""
	}
	for _, d := range heavy {
		if within(target, d.path) && !slices.Contains(d.rooms, from.dir) {
			return d.why + fmt.Sprintf(" (allowed in %s)", strings.Join(d.rooms, ", "))
		}
	}
	if from.role == &heart && kind == code && !slices.ContainsFunc(rootMayLink, func(p string) bool { return within(target, p) }) {
		return fmt.Sprintf("every user of the library links it; the root gets by on the standard library and %s",
			strings.Join(rootMayLink, ", "))
	}
	return ""
}

func objectionToRoom(from room, kind fileKind, to room) string {
	switch {
	case from.dir == to.dir:
		return ""
	case to.role == &bench && kind == code:
		return "leveetest is for tests"
	case to.role == &bench && from.role == &heart && kind == internalTest:
		return "leveetest imports the root, so this is a cycle; move the test into package levee_test"
	case to.role == &bench:
		return ""
	case from.role == &heart && kind == externalTest && to.isPublic():
		return ""
	case within(from.dir, to.dir):
		return "" // a room inside another one is an extension of it
	case from.role.mayImport(to):
		return ""
	}
	return from.role.why
}

func (r room) String() string {
	if r.dir == "." {
		return "the root package"
	}
	return r.dir
}

// roomOf finds the innermost room that the folder lies in. The root package has no folders below it: they are rooms.
func roomOf(dir string, rooms []room) (innermost room, known bool) {
	for _, r := range rooms {
		if (r.dir == dir || r.dir != "." && within(dir, r.dir)) && len(r.dir) > len(innermost.dir) {
			innermost, known = r, true
		}
	}
	return innermost, known
}

// within reports whether an import path is the given one or lies below it.
func within(p, root string) bool {
	return p == root || strings.HasPrefix(p, root+"/")
}

// isStandard reports whether the path is the standard library's: others begin with a host name.
func isStandard(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return !strings.Contains(first, ".")
}
