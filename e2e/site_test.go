package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestTheSiteIsReadAndSearchedFromAFolder: without a server, a network or a mouse.
func TestTheSiteIsReadAndSearchedFromAFolder(t *testing.T) {
	t.Parallel()
	need(t, "chromium")
	out := filepath.Join(t.TempDir(), "site")
	if text, err := exec.CommandContext(t.Context(), "go", "run", "-C", "../docs/site", ".", "-out", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	p := browse(t, "file://"+out+"/index.html")
	for _, c := range p.controls() {
		if c.name == "" && c.role != "table" { // those stand under a heading
			t.Errorf("a %s has no name", c.role)
		}
	}
	p.picture(t, "index")

	p.press("/")
	if !evaluate[bool](p, `document.activeElement.id === "query"`) {
		t.Fatal("the search is not where / leads")
	}
	p.press("idle_timeout")
	eventually(t, "something is found", func() bool { return evaluate[int](p, `document.querySelectorAll("#found [role=option]").length`) > 0 })
	if got := p.text("#found [aria-selected=true]"); !strings.Contains(got, "idle_timeout") {
		t.Errorf("first there is %q", got)
	}
	p.picture(t, "search")
	p.press(kb.ArrowDown)
	p.press(kb.ArrowUp)
	target := evaluate[string](p, `document.querySelector("#found [aria-selected=true] a").href`)
	p.press(kb.Enter)
	eventually(t, "the page is there", func() bool {
		return evaluate[string](p, `document.readyState + " " + location.href`) == "complete "+target
	})

	p.press("/")
	p.press("zzzzqqqq")
	eventually(t, "it says that there is nothing", func() bool { return strings.HasPrefix(p.text("#found"), "Nothing") })
	p.press(kb.Escape)
	if !evaluate[bool](p, `document.getElementById("found").hidden`) {
		t.Error("Escape does not put away what was found")
	}

	before := evaluate[string](p, `getComputedStyle(document.body).backgroundColor`)
	evaluate[any](p, `document.getElementById("light").click()`)
	if after := evaluate[string](p, `getComputedStyle(document.body).backgroundColor`); before == after {
		t.Errorf("light and dark are %s", before)
	}
	p.picture(t, "other-light")

	p.do(chromedp.EmulateViewport(390, 844))
	for _, page := range []string{"index", "reference/configuration", "production-checklist", "guides/library", "comparison"} {
		p.do(chromedp.Navigate("file://" + out + "/" + page + ".html"))
		if wide := evaluate[int](p, `document.documentElement.scrollWidth`); wide > 390 {
			t.Errorf("%s is %d wide on a telephone of 390", page, wide)
		}
		p.picture(t, "phone-"+strings.ReplaceAll(page, "/", "-"))
	}
	evaluate[any](p, `document.getElementById("menu").click()`)
	if !evaluate[bool](p, `document.getElementById("chapters").checkVisibility()`) {
		t.Error("the menu does not show the pages")
	}
}
