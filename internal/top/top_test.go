package top

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/levee-net/levee/internal/admin"
)

var sizes = []struct{ width, height int }{{80, 24}, {120, 40}}

// busy lets a few seconds pass, in which things happen.
func (d *desk) busy() {
	for i := range 30 {
		d.levee.status.Totals.Accepted += int64(100 + 90*i%700)
		d.levee.status.Totals.In += int64(1e6 * (1 + i%7))
		d.levee.status.Totals.Out += int64(5e6 * (1 + i%5))
		d.levee.status.Process.CPU += 0.34
		for j := range d.levee.connections {
			d.levee.connections[j].Out += int64(j * 1000)
		}
		d.look()
	}
}

func TestWhatAScreenShows(t *testing.T) {
	for _, size := range sizes {
		name := func(what string) string { return fmt.Sprintf("%s-%dx%d", what, size.width, size.height) }
		t.Run(name("connections"), func(t *testing.T) {
			d := sit(t, newFake(), size.width, size.height)
			d.busy()
			d.golden(name("connections"))
			d.press("enter")
			d.golden(name("details"))
		})
		t.Run(name("upstreams"), func(t *testing.T) {
			d := sit(t, newFake(), size.width, size.height)
			d.press("2", "down")
			d.golden(name("upstreams"))
		})
		t.Run(name("listeners"), func(t *testing.T) {
			d := sit(t, newFake(), size.width, size.height)
			d.press("3")
			d.golden(name("listeners"))
		})
		t.Run(name("nobody"), func(t *testing.T) {
			levee := newFake()
			levee.connections, levee.upstreams = nil, nil
			d := sit(t, levee, size.width, size.height)
			d.golden(name("nobody"))
			d.press("2")
			d.shows("there are no upstreams")
		})
		t.Run(name("many"), func(t *testing.T) {
			d := sit(t, crowded(9000), size.width, size.height)
			d.press("pgdown", "pgdown", "down")
			d.golden(name("many"))
		})
		t.Run(name("draining"), func(t *testing.T) {
			levee := newFake()
			levee.status.State, levee.status.Ready = "draining", false
			levee.status.Drain = &admin.Drain{Since: began.Add(2 * time.Hour), Until: began.Add(2*time.Hour + 25*time.Second), Left: 3}
			levee.overload = admin.Overload{Mode: "on", Pressure: "high", TurnedAway: 0.25, Cause: "memory", Load: map[string]float64{"memory": 0.97}}
			d := sit(t, levee, size.width, size.height)
			d.golden(name("draining"))
		})
		t.Run(name("gone"), func(t *testing.T) {
			d := sit(t, newFake(), size.width, size.height)
			d.levee.gone = errors.New("no levee answers at 127.0.0.1:9180: connect: connection refused; is it running?")
			d.look()
			d.look()
			d.golden(name("gone"))
		})
		t.Run(name("hostile"), func(t *testing.T) {
			d := sit(t, hostile(), size.width, size.height)
			d.golden(name("hostile"))
		})
	}
}

// crowded has so many connections.
func crowded(n int) *fake {
	levee := newFake()
	levee.connections = nil
	for i := range n {
		levee.connections = append(levee.connections, admin.Connection{
			ID: uint64(i + 1), Listener: "public", Client: fmt.Sprintf("10.0.%d.%d:4000", i/256, i%256), Accepted: began,
			Phase: "serving", Route: "echo", Out: int64(n-i) * 1000, In: int64(i),
		})
	}
	levee.status.Totals.Active = int64(n)
	return levee
}

const nasty = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202eevil\u200b\x00\xff"

// hostile has nothing but what strangers and broken servers could say.
func hostile() *fake {
	levee := newFake()
	levee.status.Version, levee.status.State = nasty, nasty
	levee.status.Generation.Problem, levee.status.Generation.File = nasty+strings.Repeat("long ", 100), nasty
	levee.status.Totals.Closed = map[string]int64{nasty: 7}
	levee.status.Totals.Refused = map[string]int64{nasty: 7}
	levee.overload = admin.Overload{Mode: nasty, Pressure: nasty, Cause: nasty, Load: map[string]float64{nasty: math.Inf(1)}}
	for i := range levee.connections {
		c := &levee.connections[i]
		c.Client, c.Peer, c.Local, c.Listener, c.Phase, c.Engine = nasty, nasty, nasty, nasty, nasty, nasty
		c.SNI, c.ALPN, c.Identity, c.TLS = nasty, nasty, strings.Repeat("宽", 300)+nasty, nasty
		c.Route, c.Upstream, c.Server, c.Idle, c.In, c.Out, c.Waits = nasty, nasty, nasty, math.NaN(), -1, math.MaxInt64, math.MinInt64
	}
	l := &levee.listeners[0]
	l.Name, l.Addresses, l.TLS, l.State, l.Closed = nasty, []string{nasty, nasty}, nasty, nasty, map[string]int64{nasty: 1}
	u := &levee.upstreams[0]
	u.Name, u.Balance = nasty, nasty
	for i := range u.Servers {
		u.Servers[i].Name, u.Servers[i].Problem, u.Servers[i].Breaker, u.Servers[i].Latency = nasty, nasty, nasty, math.NaN()
	}
	return levee
}

// bare is what is left of a screen without its own styles.
func bare(screen string) string {
	for _, style := range []string{plain, bold, faint, reverse, red, yellow, cyan} {
		screen = strings.ReplaceAll(screen, style, "")
	}
	return screen
}

func TestNothingOfAStrangerControlsTheTerminal(t *testing.T) {
	controls := func(text string) bool {
		return strings.ContainsFunc(text, func(c rune) bool { return c != '\n' && string(c) != Plain(string(c)) })
	}
	d := sit(t, hostile(), 100, 30)
	d.m.address = nasty
	see := func(where string) {
		t.Helper()
		if text := bare(d.m.draw()); controls(text) {
			t.Errorf("%s: %q", where, text)
		}
	}
	see("connections")
	for _, key := range []string{"enter", "esc", "k", "n", "2", "d", "n", "3", "1"} {
		d.press(key)
		see(key)
	}
	_, _ = d.m.Update(done{nasty, errors.New(nasty)})
	see("a note")
	_, _ = d.m.Update(seen{gone: errors.New(nasty)})
	see("gone")
	d.press("/")
	_, _ = d.m.Update(tea.PasteMsg{Content: nasty})
	see("a filter")
	d.press("enter")
	see("a filter that is none")

	s, err := Once(t.Context(), hostile(), admin.Query{Limit: 9})
	var text bytes.Buffer
	s.write(&text, began)
	if controls(text.String()) || err != nil {
		t.Errorf("%v %q", err, text.String())
	}
}

// TestAScreenOfAnySizeIsFilledAndNotMore also is about widths that nobody has.
func TestAScreenOfAnySizeIsFilledAndNotMore(t *testing.T) {
	for _, levee := range []*fake{newFake(), hostile()} {
		for _, p := range []string{"1", "2", "3"} {
			d := sit(t, levee, 80, 24)
			d.press(p)
			d.busy()
			for size := range 150 {
				d.fills(size, 24)
				d.fills(80, size/3)
			}
		}
	}
}

func (d *desk) fills(width, height int) {
	d.Helper()
	_, cmd := d.m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	d.run(cmd)
	lines := strings.Split(d.m.draw(), "\n")
	if len(lines) > max(height, 1) {
		d.Fatalf("%dx%d: %d lines", width, height, len(lines))
	}
	for _, l := range lines {
		if ansi.StringWidth(l) > width {
			d.Fatalf("%dx%d: %d cells: %q", width, height, ansi.StringWidth(l), l)
		}
	}
}

func TestItAsksForNoMoreConnectionsThanShow(t *testing.T) {
	d := sit(t, crowded(9000), 80, 24)
	d.press("pgdown", "down", "s", "r", "end", "down", "down", "home")
	_, cmd := d.m.Update(tea.WindowSizeMsg{Width: 80, Height: 50})
	d.run(cmd)
	for i, q := range d.levee.queries {
		if want := 24 - around; q.Limit != want && (q.Limit != 50-around || i < len(d.levee.queries)-1) {
			t.Errorf("it asked for %d, where %d have room", q.Limit, want)
		}
	}
	if rows := d.m.rows(); rows != 50-around {
		t.Errorf("%d rows on the larger screen", rows)
	}
}

func TestConnectionsAreLeafedThroughPageByPage(t *testing.T) {
	d := sit(t, crowded(40), 80, 24) // of which 14 have room
	d.shows("> ", "page 1 of 3", "pgup/dn more")
	chosen := func(want uint64) {
		t.Helper()
		if c := d.m.connection(); c == nil || c.ID != want {
			t.Errorf("chosen is %v, not %d", c, want)
		}
	}
	chosen(1)
	d.press("pgdown")
	chosen(15)
	d.press("end")
	chosen(28)
	d.press("down")
	chosen(29)
	d.press("pgdown", "pgdown") // the last page stays
	chosen(29)
	d.shows("page 3")
	d.press("up")
	chosen(28)
	d.press("pgup")
	chosen(1)
	d.press("pgup", "up")
	chosen(1)
	d.press("pgdown", "pgdown", "home")
	chosen(1)

	d.press("pgdown", "pgdown", "end")
	d.levee.connections = d.levee.connections[:20] // those of this page end
	d.look()
	chosen(20)
	d.shows("page 2")
}

func TestTheCursorStaysOnItsConnection(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	d.press("down")
	c := d.levee.connections
	c[0], c[1] = c[1], c[0] // it has become the first
	d.look()
	if d.m.cursor != 0 || d.m.connection().ID != 12_300 {
		t.Errorf("it is on row %d, connection %d", d.m.cursor, d.m.connection().ID)
	}
}

func TestAConnectionIsKilledOnlyByYes(t *testing.T) {
	for _, key := range []string{"n", "enter", "esc", "k", "q", "space", "down"} {
		d := sit(t, newFake(), 80, 24)
		d.press("k")
		d.shows("kill connection 12001 of 192.0.2.17:50312? y yes")
		d.press(key)
		if len(d.levee.killed) != 0 {
			t.Errorf("%s killed", key)
		}
		d.shows("nothing was done")
	}
	d := sit(t, newFake(), 80, 24)
	d.press("k")
	c := d.levee.connections
	c[0], c[2] = c[2], c[0] // while it is asked, another comes to that row
	d.look()
	d.press("y")
	if k := d.levee.killed; len(k) != 1 || k[0] != 12_001 {
		t.Errorf("killed %v", k)
	}
	d.shows("connection 12001 was killed")
	if strings.Contains(d.screen(), "192.0.2.17") {
		t.Errorf("it still shows:\n%s", d.screen())
	}
	d.press("home", "k")
	d.levee.connections = nil // it ends by itself
	d.press("y")
	d.shows("there is no open connection")
}

func TestAServerIsDrainedAndUndrained(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	d.press("2", "d")
	d.shows("send no new connections to 10.0.0.7:5432 of postgres?")
	d.press("y")
	d.shows("10.0.0.7:5432 of postgres gets no new connections")
	d.levee.upstreams[0].Servers[0].Drained = true
	d.look()
	d.shows("drained")
	d.press("d")
	d.shows("let new connections go to 10.0.0.7:5432 of postgres again?")
	d.press("y")
	if got := strings.Join(d.levee.drained, ", "); got != "postgres 10.0.0.7:5432 true, postgres 10.0.0.7:5432 false" {
		t.Error(got)
	}
}

func TestSortsGoRoundAndReverse(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	var asked []string
	d.levee.queries = nil
	d.press("s", "s", "s", "s", "s", "s", "r", "S", "r")
	for _, q := range d.levee.queries {
		asked = append(asked, q.Sort)
	}
	if got, want := strings.Join(asked, " "), "-in -idle accepted id client -out out client -client"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	d.shows("by client ↓")
}

func TestAFilterIsWrittenCorrectedAndCleared(t *testing.T) {
	d := sit(t, newFake(), 100, 24)
	typed := func(text string) {
		for _, c := range text {
			d.press(string(c))
		}
	}
	d.press("/")
	typed("listner=other")
	d.shows("filter: listner=other")
	d.press("enter")
	d.shows(`there is no "listner" to filter by`)
	d.press("ctrl+u")
	typed("listener=otherx")
	d.press("backspace", "enter")
	d.shows("listener=other", "0 of 3", "no connection is like that; esc shows all")
	if q := d.levee.queries[len(d.levee.queries)-1]; q.Listener != "other" || q.Sort != busiest {
		t.Errorf("%+v", q)
	}
	d.press("/") // which has it to be changed
	d.shows("filter: listener=other")
	d.press("esc", "esc")
	d.shows("192.0.2.17")
	d.press("/")
	typed("route=refused")
	d.press("enter")
	d.shows(`there is no route "refused"`)
	d.press("/", "ctrl+c")
}

func TestALeveeThatComesBackIsSeenAgain(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	d.busy()
	d.shows("new", "cpu 34%")
	d.levee.gone = errors.New("no levee answers")
	d.look()
	for range 6 {
		d.look()
	}
	d.shows("gone for 6s, asking again: no levee answers", "192.0.2.17")
	d.levee.gone = nil
	d.levee.status.PID++ // another
	d.levee.status.Totals = admin.Totals{Active: 1}
	d.look()
	if text := d.screen(); strings.Contains(text, "gone") || !strings.Contains(text, "1 open") || strings.Contains(text, "/s") {
		t.Errorf("rates of two levees:\n%s", text)
	}
	d.look()
	d.shows("0/s new")
}

func TestLooksDoNotOverlapAndOldAnswersDoNotShow(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	_, slow := d.m.Update(d.m.moment)
	answer := slow() // which is on its way
	for _, key := range []string{"2", "3", "s", "1", "2"} {
		if _, cmd := d.m.Update(keyNamed(key)); cmd != nil {
			t.Errorf("%s asks while it is being asked", key)
		}
	}
	_, next := d.m.Update(answer)
	if strings.Contains(d.screen(), "192.0.2.17") || next == nil {
		t.Errorf("what is not wanted any more shows, or what is wanted is not asked for:\n%s", d.screen())
	}
	d.run(next)
	d.shows("connection refused"[:9], "10.0.0.8:5432")
	if _, cmd := d.m.Update(d.m.moment - 1); cmd != nil {
		t.Error("a moment that was for before asks too")
	}
}

func TestAConnectionThatComesAndGoesOnThePageKeepsItsRate(t *testing.T) {
	levee := crowded(20)
	d := sit(t, levee, 80, 24)
	c := levee.connections
	for range 3 {
		for i := range c {
			c[i].Out += 5000
		}
		c[0], c[19] = c[19], c[0] // one that shows, and one that does not
		d.look()
	}
	if f := d.m.flows[c[0].ID]; !f.known || f.rate != 5000 {
		t.Errorf("%+v", f)
	}
	c[0], c[19] = c[19], c[0]
	for range remembered + 1 {
		d.look()
	}
	if len(d.m.flows) != d.m.rows() {
		t.Errorf("%d are remembered, and %d show", len(d.m.flows), d.m.rows())
	}
}

func TestQuickLooksDoNotDisturbTheRates(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	d.busy()
	before, fresh := *d.m.speeds, len(d.m.fresh)
	d.now = d.now.Add(2 * time.Millisecond)
	d.levee.status.Totals.Accepted++ // which would be 500 a second
	d.press("r", "r")
	if *d.m.speeds != before || len(d.m.fresh) != fresh {
		t.Errorf("%+v, before %+v", *d.m.speeds, before)
	}
	d.look()
	if d.m.speeds.accepted > 2 || len(d.m.fresh) != fresh+1 {
		t.Errorf("%+v, %d", *d.m.speeds, len(d.m.fresh))
	}
}

func TestAPauseAsksNothing(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	d.press("p")
	d.shows("PAUSED")
	asked := len(d.levee.queries)
	d.look()
	if len(d.levee.queries) != asked {
		t.Error("it looked")
	}
	d.press("p")
	if len(d.levee.queries) == asked {
		t.Error("it does not go on")
	}
}

func TestKeysThatEndIt(t *testing.T) {
	d := sit(t, newFake(), 80, 24)
	for _, keys := range [][]string{{"q"}, {"ctrl+c"}, {"/", "ctrl+c"}, {"k", "ctrl+c"}, {"esc", "enter", "ctrl+c"}} {
		var last tea.Cmd
		for _, key := range keys {
			_, last = d.m.Update(keyNamed(key))
		}
		if last == nil {
			t.Errorf("%q: nothing", keys)
		} else if _, is := last().(tea.QuitMsg); !is {
			t.Errorf("%q does something else", keys)
		}
	}
	d.press("esc", "esc", "/", "q") // which is a letter here
	d.shows("filter: q")
}

func TestADumbTerminalGetsLines(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	var text bytes.Buffer
	err := Run(ctx, newFake(), Terminal{Output: &text, Environ: []string{"TERM=dumb"}, Every: 100 * time.Millisecond})
	if n := strings.Count(text.String(), "192.0.2.17:50312"); n < 2 || err != nil || strings.Contains(text.String(), "\x1b") {
		t.Errorf("%v, %d looks in %q", err, n, text.String())
	}
}

func TestOneLookAsText(t *testing.T) {
	s, err := Once(t.Context(), newFake(), admin.Query{Sort: busiest, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	s.write(&text, began.Add(2*time.Hour))
	goldenText(t, "once", text.String())
	levee := newFake()
	levee.gone = io.EOF
	if _, err := Once(t.Context(), levee, admin.Query{}); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
