package dashboard_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/admin/dashboard"
)

// budget is what the page may weigh in all, in bytes as they are: nothing is compressed on its way.
const budget = 200_000

func get(t *testing.T, path string) *http.Response {
	t.Helper()
	mux := http.NewServeMux()
	dashboard.New().Routes(mux)
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
	return answer.Result()
}

func body(t *testing.T, path string) string {
	t.Helper()
	answer := get(t, path)
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", path, answer.StatusCode, err)
	}
	return string(text)
}

func source(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(path.Join("assets", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	linked   = regexp.MustCompile(`(?:src|href)="([^"#]+)"`)
	imported = regexp.MustCompile(`(?m)^import .* from "\./([^"]+)";$`)
)

// loaded follows the page to every file that a browser fetches for it.
func loaded(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{"/": body(t, "/")}
	var follow func(name string)
	follow = func(name string) {
		if files[name] != "" {
			return
		}
		files[name] = body(t, name)
		for _, found := range imported.FindAllStringSubmatch(files[name], -1) {
			follow(path.Join(path.Dir(name), found[1]))
		}
	}
	for _, found := range linked.FindAllStringSubmatch(files["/"], -1) {
		if strings.HasPrefix(found[1], "dashboard/") {
			follow("/" + found[1])
		}
	}
	return files
}

func TestEverythingThatThePageLoadsIsInTheBinaryAndIsAllThatIs(t *testing.T) {
	files := loaded(t)
	there, err := fs.ReadDir(os.DirFS("assets"), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range there {
		switch name := f.Name(); name {
		case "index.html", "uplot.LICENSE", "uplot.txt":
		default:
			found := false
			for at := range files {
				found = found || path.Base(at) == name
			}
			if !found {
				t.Errorf("nothing loads %s", name)
			}
		}
	}
	if len(files) < 8 {
		t.Errorf("only %d files were found", len(files))
	}
}

func TestThePageWeighsLittle(t *testing.T) {
	sum := 0
	for name, text := range loaded(t) {
		t.Logf("%6d  %s", len(text), name)
		sum += len(text)
	}
	if sum > budget {
		t.Errorf("the page weighs %d bytes, of %d that it may", sum, budget)
	}
}

func TestThePageMayLoadNothingElseAndRunsNoInlineScript(t *testing.T) {
	h := get(t, "/").Header
	for name, want := range map[string]string{
		"Content-Type":               "text/html; charset=utf-8",
		"X-Content-Type-Options":     "nosniff",
		"Referrer-Policy":            "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin",
		"Cache-Control":              "no-cache",
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	page := source(t, "index.html")
	for _, no := range []string{`<script>`, `<style`, ` style="`, `<iframe`, `javascript:`} {
		if strings.Contains(page, no) {
			t.Errorf("the page has %s", no)
		}
	}
	if found := regexp.MustCompile(`\son[a-z]+="`).FindString(page); found != "" {
		t.Errorf("the page has a handler in its markup: %s", found)
	}
}

// What strangers wrote is shown: the name that they asked for, the error of a handshake. None of it may become markup.
func TestOurScriptsMakeNoMarkupOfText(t *testing.T) {
	markup := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTMLUnsafe|\beval\(|new Function`)
	if !markup.MatchString(`a.innerHTML = b`) {
		t.Fatal("the expression finds nothing")
	}
	for name, text := range loaded(t) {
		if base := path.Base(name); path.Ext(base) == ".js" && !strings.HasPrefix(base, "uplot") {
			if found := markup.FindString(text); found != "" {
				t.Errorf("%s has %s", base, found)
			}
		}
	}
}

func TestNothingNamesAnotherHost(t *testing.T) {
	elsewhere := regexp.MustCompile(`(?:https?:)?//[a-z0-9-]+\.[a-z]{2,}`)
	known := regexp.MustCompile(`http://www\.w3\.org/2000/svg|https://github\.com/leeoniya/uPlot`) // a name space; a comment
	for name, text := range loaded(t) {
		if found := elsewhere.FindString(known.ReplaceAllString(text, "")); found != "" {
			t.Errorf("%s names %s", name, found)
		}
	}
}

func TestFilesMayBeKeptForGoodAndThePageMayNot(t *testing.T) {
	for name := range loaded(t) {
		if name == "/" {
			continue
		}
		h := get(t, name).Header
		if got := h.Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
			t.Errorf("%s: Cache-Control is %q", name, got)
		}
		kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
		want := map[string]string{".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}[path.Ext(name)]
		if kind != want || err != nil {
			t.Errorf("%s: is %q, want %q", name, kind, want)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: a browser may guess what it is", name)
		}
	}
}

func TestOtherPathsAreNotThere(t *testing.T) {
	real := ""
	for name := range loaded(t) {
		if path.Base(name) == "dashboard.js" {
			real = name
		}
	}
	for _, name := range []string{"/dashboard/", "/dashboard/0123456789ab/dashboard.js", path.Dir(real) + "/../dashboard.go", path.Dir(real) + "/none.js", path.Dir(real) + "/", "/index.html"} {
		answer := get(t, name)
		if answer.StatusCode == http.StatusOK || strings.Contains(answer.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: status %d, Cache-Control %q", name, answer.StatusCode, answer.Header.Get("Cache-Control"))
		}
	}
}

func TestUPlotIsAsItsNoteSays(t *testing.T) {
	note := source(t, "uplot.txt")
	sums := regexp.MustCompile(`(?m)^ +([0-9a-f]{64})  (\S+)$`).FindAllStringSubmatch(note, -1)
	if len(sums) != 3 {
		t.Fatalf("the note has %d sums", len(sums))
	}
	for _, s := range sums {
		sum := sha256.Sum256([]byte(source(t, s[2])))
		if got := hex.EncodeToString(sum[:]); got != s[1] {
			t.Errorf("%s: is %s, and the note says %s", s[2], got, s[1])
		}
	}
}
