package top

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/levee-net/levee/internal/admin"
)

var update = flag.Bool("update", false, "write what is seen now into testdata")

// began is when the levee of these tests did.
var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A fake is a levee of which the test says what it is like.
type fake struct {
	mu          sync.Mutex
	status      admin.Status
	overload    admin.Overload
	listeners   []admin.Listener
	upstreams   []admin.Upstream
	connections []admin.Connection
	gone        error
	queries     []admin.Query // for connections, as they came
	killed      []uint64
	drained     []string
	looks       int
	looked      func(looks int)
	panics      int // at that look, if at any
}

func newFake() *fake {
	return &fake{
		status: admin.Status{
			Version: "v1.2.3", PID: 42, Started: began, State: "serving", Ready: true,
			Generation: admin.Generation{Number: 4, Since: began.Add(time.Hour)},
			Totals: admin.Totals{
				Active: 3, Arriving: 1, Accepted: 12_345, In: 12e9, Out: 340e9,
				Closed:  map[string]int64{"client_closed": 12_000, "idle_timeout": 300, "handler_error": 2},
				Refused: map[string]int64{"overloaded": 40},
			},
			Process: admin.Process{Goroutines: 31, Memory: 48e6, MemoryMax: 512e6, Files: 27, FilesMax: 20_000, CPU: 90, LoopLag: 0.0012},
		},
		overload: admin.Overload{Mode: "on", Pressure: "none", Load: map[string]float64{"files": 0.01, "memory": 0.09, "scheduler": 0.2, "arriving": 0}},
		listeners: []admin.Listener{
			{Name: "public", Addresses: []string{"0.0.0.0:5432", "[::]:5432"}, TLS: "required", State: "serving", Active: 3, Max: 10_000, Accepted: 12_345, In: 12e9, Out: 340e9, Closed: map[string]int64{"client_closed": 12_000}, Refused: map[string]int64{"overloaded": 40}, QueueLimit: 4096},
		},
		upstreams: []admin.Upstream{{Name: "postgres", Balance: "p2c", Servers: []admin.UpstreamServer{
			{Name: "10.0.0.7:5432", Healthy: true, Breaker: "closed", Active: 2, Latency: 0.0004, Dials: 9000, Sent: 12e9, Received: 340e9, Checked: began.Add(2 * time.Hour)},
			{Name: "10.0.0.8:5432", Problem: "connect: connection refused", Breaker: "open", Failures: map[string]int64{"refused": 12}, Dials: 12, Checked: began.Add(2 * time.Hour)},
		}}},
		connections: []admin.Connection{
			{ID: 12_001, Listener: "public", Generation: 4, Client: "192.0.2.17:50312", Local: "198.51.100.1:5432", Accepted: began.Add(90 * time.Minute), Phase: "serving", Engine: "loop", TLS: "TLS 1.3", SNI: "db.example.com", Route: "db", Upstream: "postgres", Server: "10.0.0.7:5432", In: 1234, Out: 98_765_432, Idle: 0.2},
			{ID: 12_300, Listener: "public", Generation: 4, Client: "[2001:db8:1234:5678:9abc:def0:1234:5678]:50312", Accepted: began.Add(119 * time.Minute), Phase: "serving", Engine: "goroutine", TLS: "TLS 1.3", SNI: "db.example.com", Route: "db", Upstream: "postgres", Server: "10.0.0.8:5432", In: 999, Out: 1000, Idle: 42},
			{ID: 12_345, Listener: "public", Generation: 4, Client: "203.0.113.9:1025", Accepted: began.Add(2 * time.Hour), Phase: "arriving", Engine: "goroutine", Idle: -1},
		},
	}
}

func (f *fake) Status(context.Context) (admin.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	if f.looks == f.panics {
		panic("what nobody expects")
	}
	if f.looked != nil {
		f.looked(f.looks)
	}
	return f.status, f.gone
}

func (f *fake) Overload(context.Context) (admin.Overload, error) { return f.overload, nil }

func (f *fake) Listeners(context.Context) ([]admin.Listener, error) { return f.listeners, nil }

func (f *fake) Upstreams(context.Context) ([]admin.Upstream, error) { return f.upstreams, nil }

// Connections pages through them as they are, and filters by listener.
func (f *fake) Connections(_ context.Context, q admin.Query) (page admin.Connections, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, q)
	if q.Route == "refused" {
		return page, errors.New("there is no route \"refused\"")
	}
	all := slices.DeleteFunc(slices.Clone(f.connections), func(c admin.Connection) bool { return q.Listener != "" && c.Listener != q.Listener })
	first := 0
	if q.After != "" {
		fmt.Sscanf(q.After, "after-%d", &first)
	}
	first = min(first, len(all))
	end := min(first+q.Limit, len(all))
	page = admin.Connections{Total: len(f.connections), Matching: len(all), Connections: slices.Clone(all[first:end])}
	if end < len(all) {
		page.Next = fmt.Sprintf("after-%d", end)
	}
	return page, nil
}

func (f *fake) Kill(_ context.Context, id uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.connections)
	f.connections = slices.DeleteFunc(f.connections, func(c admin.Connection) bool { return c.ID == id })
	if len(f.connections) == before {
		return fmt.Errorf("there is no open connection %d", id)
	}
	f.killed = append(f.killed, id)
	return nil
}

func (f *fake) DrainServer(_ context.Context, upstream, server string, drain bool) error {
	f.drained = append(f.drained, fmt.Sprintf("%s %s %v", upstream, server, drain))
	return nil
}

// A desk is a screen with somebody in front of it, without a terminal. Nothing happens there by itself.
type desk struct {
	*testing.T
	m     *model
	levee *fake
	now   time.Time
}

// sit looks once at a levee on a screen of that size.
func sit(t *testing.T, levee *fake, width, height int) *desk {
	t.Helper()
	d := &desk{T: t, levee: levee, now: began.Add(2 * time.Hour)}
	d.m = newModel(t.Context(), levee, Terminal{Address: "127.0.0.1:9180", Every: time.Second, Environ: []string{"LANG=C.UTF-8"}})
	d.m.clock = func() time.Time { return d.now }
	d.m.later = func(time.Duration, tea.Msg) tea.Cmd { return nil } // see look
	d.m.width, d.m.height = width, height
	d.run(d.m.Init())
	return d
}

// run has done what the screen wants done, and lets it know what came of it, until all there is to do is to wait.
func (d *desk) run(cmd tea.Cmd) {
	for cmd != nil {
		_, cmd = d.m.Update(cmd())
	}
}

// look lets a second pass.
func (d *desk) look() {
	d.now = d.now.Add(time.Second)
	_, cmd := d.m.Update(d.m.moment)
	d.run(cmd)
}

// press presses keys, which are named as package tea does, or typed.
func (d *desk) press(keys ...string) {
	d.Helper()
	for _, name := range keys {
		_, cmd := d.m.Update(keyNamed(name))
		d.run(cmd)
	}
}

func keyNamed(name string) tea.KeyPressMsg {
	special := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "up": tea.KeyUp, "down": tea.KeyDown, "pgup": tea.KeyPgUp, "pgdown": tea.KeyPgDown,
		"home": tea.KeyHome, "end": tea.KeyEnd, "tab": tea.KeyTab, "backspace": tea.KeyBackspace,
	}
	if code, is := special[name]; is {
		return tea.KeyPressMsg{Code: code}
	}
	if letter, is := strings.CutPrefix(name, "ctrl+"); is {
		return tea.KeyPressMsg{Code: rune(letter[0]), Mod: tea.ModCtrl}
	}
	return tea.KeyPressMsg{Code: []rune(name)[0], Text: name}
}

// screen is what shows, in plain text.
func (d *desk) screen() string { return ansi.Strip(d.m.draw()) }

// shows fails the test if the text is not on the screen.
func (d *desk) shows(texts ...string) {
	d.Helper()
	for _, text := range texts {
		if !strings.Contains(d.screen(), text) {
			d.Errorf("no %q on\n%s", text, d.screen())
		}
	}
}

// golden compares the screen to the file of that name.
func (d *desk) golden(name string) {
	d.Helper()
	var text strings.Builder
	for l := range strings.Lines(d.screen() + "\n") {
		text.WriteString(strings.TrimRight(l, " \n") + "\n")
	}
	goldenText(d.T, name, text.String())
	if got := strings.Count(d.m.draw(), "\n") + 1; got != d.m.height {
		d.Errorf("it has %d lines, not %d", got, d.m.height)
	}
	for l := range strings.Lines(d.screen()) {
		if w := ansi.StringWidth(strings.TrimSuffix(l, "\n")); w > d.m.width {
			d.Errorf("%d cells: %s", w, l)
		}
	}
}

func goldenText(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s is not what it was; go test -update writes it anew. Now it is\n%s\nand was\n%s", name, text, want)
	}
}
