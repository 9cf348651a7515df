package top

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// A glass is a terminal's other end, which reads what is written there.
type glass struct {
	ours, theirs *os.File
	mu           sync.Mutex
	text         bytes.Buffer
	read         sync.WaitGroup
}

func newGlass(t *testing.T) *glass {
	t.Helper()
	g := new(glass)
	var err error
	if g.ours, g.theirs, err = pty.Open(); err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(g.ours, &pty.Winsize{Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	g.read.Go(func() { _, _ = io.Copy(g, g.ours) }) // ends when nobody has it open
	t.Cleanup(func() { g.close() })
	return g
}

func (g *glass) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(p)
}

// close returns all that was written.
func (g *glass) close() string {
	_ = g.theirs.Close()
	g.read.Wait()
	_ = g.ours.Close()
	return g.text.String()
}

// on runs it on a terminal until it has looked a few times, or panics.
func on(t *testing.T, levee *fake, environ ...string) (screen string, err error) {
	t.Helper()
	g := newGlass(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	levee.looked = func(n int) {
		if n == 4 {
			cancel()
		}
	}
	err = Run(ctx, levee, Terminal{Input: g.theirs, Output: g.theirs, Environ: environ, Every: 30 * time.Millisecond})
	return g.close(), err
}

func TestTheTerminalIsLeftAsItWas(t *testing.T) {
	for _, panics := range []int{0, 3} { // at the third look there is something on the screen
		levee := newFake()
		levee.panics = panics
		text, err := on(t, levee, "TERM=xterm-256color")
		if (err != nil) != (panics > 0) {
			t.Errorf("panic %v: %v", panics, err)
		}
		if !strings.Contains(text, "192.0.2.17") {
			t.Errorf("nothing was shown: %q", text)
		}
		for on, off := range map[string]string{"\x1b[?1049h": "\x1b[?1049l", "\x1b[?25l": "\x1b[?25h", "\x1b[?2004h": "\x1b[?2004l"} { // other screen, cursor, paste
			if i, j := strings.LastIndex(text, on), strings.LastIndex(text, off); i > j || (i < 0 && on == "\x1b[?1049h") {
				t.Errorf("panic %v: %q at %d, and %q at %d of %q", panics, on, i, off, j, text)
			}
		}
	}
}

func TestWithoutColourThereIsNone(t *testing.T) {
	coloured := func(text string) bool {
		return strings.Contains(text, "[31m") || strings.Contains(text, "[33m") || strings.Contains(text, "[36m")
	}
	text, err := on(t, newFake(), "TERM=xterm-256color", "NO_COLOR=1")
	if coloured(text) || err != nil {
		t.Errorf("%v %q", err, text)
	}
	if text, _ := on(t, newFake(), "TERM=xterm-256color"); !coloured(text) {
		t.Errorf("this test sees no colour where there should be some: %q", text)
	}
}
