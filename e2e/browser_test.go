package e2e

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A page is one in a real browser.
type page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	console  []string
	requests []string
}

// browse opens a page in Chromium. What its console says, other than that levee could not be reached, fails the test, and
// so does a request to another host.
func browse(t *testing.T, address string) *page {
	t.Helper()
	need(t, "chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.UserDataDir(t.TempDir()))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it has none for root
	}
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	p := &page{t: t, ctx: ctx}
	p.do(chromedp.EmulateViewport(1440, 900))
	if err := chromedp.Listen(ctx, p.note); err != nil {
		t.Fatal(err)
	}
	messages := chromedp.Console(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			p.mu.Lock()
			p.console = append(p.console, m.String())
			p.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		stop()
		reading.Wait()
		p.judge(address)
	})
	p.do(chromedp.Navigate(address))
	return p
}

func (p *page) note(event any) {
	if sent, ok := event.(*network.EventRequestWillBeSent); ok {
		p.mu.Lock()
		p.requests = append(p.requests, sent.Request.URL)
		p.mu.Unlock()
	}
}

func (p *page) judge(address string) {
	own, err := url.Parse(address)
	if err != nil {
		p.t.Error(err)
	}
	if len(p.requests) == 0 {
		p.t.Error("no request was seen")
	}
	for _, r := range p.requests {
		if u, err := url.Parse(r); err != nil || u.Scheme != "data" && u.Host != own.Host {
			p.t.Errorf("the page asked %s", r)
		}
	}
	for _, m := range p.console {
		if !strings.Contains(m, "net::ERR_") { // there is nobody at the other end: tests see to that
			p.t.Errorf("the console says: %s", m)
		}
	}
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for _, a := range actions {
		if err := chromedp.Do(p.ctx, a); err != nil {
			p.t.Fatal(err)
		}
	}
}

func result[T any](p *page, a chromedp.Action[T]) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, a)
	if err != nil {
		p.t.Fatal(err)
	}
	return value
}

// evaluate returns what an expression is on the page, promises awaited.
func evaluate[T any](p *page, expression string) T {
	p.t.Helper()
	return result(p, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// text is that of the first element that a selector finds, and nothing if there is none.
func (p *page) text(selector string) string {
	p.t.Helper()
	quoted, err := json.Marshal(selector)
	if err != nil {
		p.t.Fatal(err)
	}
	return evaluate[string](p, `document.querySelector(`+string(quoted)+`)?.textContent ?? ""`)
}

func (p *page) press(keys string) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// tabTo goes from control to control, as who has no mouse does, until one matches the selector.
func (p *page) tabTo(selector string) {
	p.t.Helper()
	quoted, err := json.Marshal(selector)
	if err != nil {
		p.t.Fatal(err)
	}
	for range 60 {
		p.press(kb.Tab)
		if evaluate[bool](p, `document.activeElement.matches(`+string(quoted)+`)`) {
			return
		}
	}
	p.t.Fatalf("the tab key does not lead to %s", selector)
}

// scheme has the page think that its reader likes it light or dark.
func (p *page) scheme(name string) {
	p.t.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// picture keeps a picture of the page where go test -artifacts keeps such.
func (p *page) picture(t *testing.T, name string) (png []byte) {
	t.Helper()
	evaluate[int](p, `new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(1))))`) // it is drawn
	png = result(p, chromedp.CaptureScreenshot())
	file := filepath.Join(t.ArtifactDir(), name+".png")
	if err := os.WriteFile(file, png, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Log(file)
	return png
}

// A control is what a screen reader says of something that can be used.
type control struct{ role, name string }

func (p *page) controls() (all []control) {
	p.t.Helper()
	tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		p.t.Fatal(err)
	}
	word := func(v *accessibility.Value) (text string) {
		if v != nil {
			_ = json.Unmarshal(v.Value, &text)
		}
		return text
	}
	for _, node := range tree.Nodes {
		switch role := word(node.Role); role {
		case "button", "link", "textbox", "searchbox", "combobox", "region", "dialog", "meter", "image", "table", "progressbar", "DisclosureTriangle":
			if !node.Ignored {
				all = append(all, control{role, strings.TrimSpace(word(node.Name))})
			}
		}
	}
	return all
}
