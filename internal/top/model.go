package top

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/levee-net/levee/internal/admin"
)

// A page is what the table shows.
type page int

const (
	connectionsPage page = iota
	upstreamsPage
	listenersPage
	pages
)

func (p page) String() string { return [...]string{"connections", "upstreams", "listeners"}[p] }

// A mode is what keys are for.
type mode int

const (
	browsing   mode = iota
	filtering       // a filter is being written
	confirming      // something awaits a yes
	detailed        // all about the chosen connection
)

// sorts are what connections can be sorted by, and whether the largest then come first.
var sorts = []struct {
	key     string
	largest bool
}{{"out", true}, {"in", true}, {"idle", true}, {"accepted", false}, {"id", false}, {"client", false}}

// A question is what a look is for. Looks are one at a time; what an answer was for tells whether it still is wanted.
type question struct {
	page  page
	query admin.Query // of connections
}

// A seen is the answer to a question.
type seen struct {
	question question
	at       time.Time
	snapshot Snapshot // Status and Overload, and what the page shows
	gone     error    // no levee answers
	refused  error    // it answers, but not what the page shows
}

// A moment is when to look again. Only that which was set last counts.
type moment int

// A done is what became of something that whoever looks had done.
type done struct {
	text string
	err  error
}

// An intent is something to be confirmed.
type intent struct {
	detailed bool // it was wanted among the details
	text     string
	do       func(context.Context) (text string, err error)
}

// A model is a screen: what has been seen, and what whoever looks has chosen. It is only ever used by one goroutine; what
// is asked is asked by others, with copies.
type model struct {
	ctx     context.Context
	levee   Levee
	address string
	every   time.Duration
	chars   charset
	clock   func() time.Time
	crash   error // why it ended, if it was a panic
	later   func(time.Duration, tea.Msg) tea.Cmd

	width, height int

	// What is wanted.
	page   page
	query  admin.Query // filter and order
	after  string      // the cursor of the page
	before []string    // those of the pages before it
	paused bool

	// What has been seen.
	now    time.Time
	last   seen // the last that was answered
	gone   error
	since  time.Time // when it went
	base   base      // what speeds are counted from
	speeds *speeds   // nil until there were two looks
	flows  map[uint64]flow
	fresh  history // new connections
	moved  history // bytes

	asking bool // a look is under way
	hurry  bool // another is to follow it at once
	moment moment

	// What whoever looks is at.
	mode   mode
	cursor int    // the chosen row
	first  int    // the first that shows, of pages that have it all
	chosen uint64 // the connection of that row
	typed  string
	intent intent
	note   string // what came of the last thing to do
	noted  time.Time
}

const (
	noteTime   = 8 * time.Second // to read it
	remembered = 5               // looks without a connection, until it is forgotten how much of it had moved
)

func newModel(ctx context.Context, levee Levee, t Terminal) *model {
	return &model{
		ctx: ctx, levee: levee, address: t.Address, every: t.Every, chars: charsetOf(t.Environ), clock: time.Now, later: after,
		width: 80, height: 24, now: time.Now(),
		query: admin.Query{Sort: busiest}, asking: true, // Init looks
	}
}

func after(d time.Duration, msg tea.Msg) tea.Cmd {
	return tea.Tick(d, func(time.Time) tea.Msg { return msg })
}

// Init looks for the first time.
func (m *model) Init() tea.Cmd { return m.ask() }

// Update takes in what has happened.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	m.now = m.clock()
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.settle()
		return m, m.look()
	case moment:
		if msg == m.moment && !m.paused {
			return m, m.look()
		}
	case seen:
		return m, m.take(&msg)
	case crashed:
		m.crash = msg.err
		return m, tea.Quit
	case done:
		m.say(msg.text)
		if msg.err != nil {
			m.say(msg.err.Error())
		}
		return m, m.look()
	case tea.PasteMsg:
		if m.mode == filtering {
			m.write(msg.Content)
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

func (m *model) say(note string) { m.note, m.noted = Plain(note), m.now }

// look asks at once, or as soon as there is an answer to what is being asked.
func (m *model) look() tea.Cmd {
	if m.asking {
		m.hurry = true
		return nil
	}
	m.asking, m.hurry = true, false
	return m.ask()
}

// question is what there is to ask.
func (m *model) question() question {
	q := question{page: m.page}
	if m.page == connectionsPage {
		q.query = m.query
		q.query.After, q.query.Limit = m.after, m.room()
	}
	return q
}

// ask returns what asks, elsewhere.
func (m *model) ask() tea.Cmd {
	q, ctx, levee, clock := m.question(), m.ctx, m.levee, m.clock
	return guarded(func() tea.Msg {
		s := seen{question: q}
		s.snapshot.Status, s.gone = levee.Status(ctx)
		s.at = clock()
		if s.gone != nil {
			return s
		}
		if s.snapshot.Overload, s.refused = levee.Overload(ctx); s.refused != nil {
			return s
		}
		switch q.page {
		case connectionsPage:
			s.snapshot.Connections, s.refused = levee.Connections(ctx, q.query)
		case upstreamsPage:
			s.snapshot.Upstreams, s.refused = levee.Upstreams(ctx)
		case listenersPage:
			s.snapshot.Listeners, s.refused = levee.Listeners(ctx)
		}
		return s
	})
}

// crashed ends top, with the terminal as it was.
type crashed struct{ err error }

// guarded has a panic in a command end top in good order: what bubbletea does then, it does beside its reader.
func guarded(ask tea.Cmd) tea.Cmd {
	return func() (msg tea.Msg) {
		defer func() {
			if v := recover(); v != nil {
				msg = crashed{fmt.Errorf("top: panic: %v\n%s", v, debug.Stack())}
			}
		}()
		return ask()
	}
}

// take takes in an answer, and returns what asks the next.
func (m *model) take(s *seen) tea.Cmd {
	m.asking = false
	if s.gone != nil {
		if m.gone == nil {
			m.since = m.now
		}
		m.gone = s.gone
		return m.next()
	}
	m.gone = nil
	m.measure(s)
	if s.question != m.question() { // something else is wanted by now
		m.last.at, m.last.snapshot.Status, m.last.snapshot.Overload = s.at, s.snapshot.Status, s.snapshot.Overload
		return m.look()
	}
	empty := len(s.snapshot.Connections.Connections) == 0
	if m.page == connectionsPage && s.refused == nil && empty && len(m.before) > 0 { // those of this page have ended
		m.back()
		return m.look()
	}
	m.last = *s
	m.settle()
	return m.next()
}

// next looks again when it is time.
func (m *model) next() tea.Cmd {
	if m.hurry {
		return m.look()
	}
	m.moment++
	return m.later(m.every, m.moment)
}

// A base is a look that later ones are compared to.
type base struct {
	at     time.Time
	status admin.Status
}

// measure compares an answer to one before it. Looks in quick succession, as keys bring them about, are too near to each
// other for that.
func (m *model) measure(s *seen) {
	is := &s.snapshot
	d := s.at.Sub(m.base.at)
	v, ok := between(&m.base.status, &is.Status, d)
	if !ok {
		m.speeds, m.flows, m.fresh, m.moved = nil, nil, nil, nil
		m.base = base{s.at, is.Status}
	}
	if ok && d >= m.every/2 {
		m.speeds = &v
		m.fresh.add(v.accepted)
		m.moved.add(v.in + v.out)
		m.base = base{s.at, is.Status}
	}
	if s.question.page != connectionsPage || s.refused != nil {
		return
	}
	flows := make(map[uint64]flow, len(is.Connections.Connections))
	for id, f := range m.flows {
		if s.at.Sub(f.at) < remembered*m.every { // it may be back on the page by the next look
			flows[id] = f
		}
	}
	for i := range is.Connections.Connections {
		c := &is.Connections.Connections[i]
		flows[c.ID] = m.flows[c.ID].next(c, s.at, m.every/2)
	}
	m.flows = flows
}

// rows is how many there are in the table.
func (m *model) rows() int {
	s := &m.last.snapshot
	switch m.page {
	case upstreamsPage:
		return len(members(s.Upstreams))
	case listenersPage:
		return len(s.Listeners)
	}
	return len(s.Connections.Connections)
}

// settle puts the cursor on the connection that it was on, or at least on a row.
func (m *model) settle() {
	shown := m.last.snapshot.Connections.Connections
	if m.page == connectionsPage && m.chosen != 0 {
		if i := slices.IndexFunc(shown, func(c admin.Connection) bool { return c.ID == m.chosen }); i >= 0 {
			m.cursor = i
		}
	}
	m.moveTo(m.cursor)
}

// moveTo chooses a row.
func (m *model) moveTo(row int) {
	m.cursor = max(0, min(row, m.rows()-1))
	m.chosen = 0
	if c := m.connection(); c != nil {
		m.chosen = c.ID
	}
	m.first = max(0, min(m.first, m.cursor), m.cursor-m.room()+1)
	if m.page == connectionsPage {
		m.first = 0
	}
}

// connection is the chosen one, or nil.
func (m *model) connection() *admin.Connection {
	if shown := m.last.snapshot.Connections.Connections; m.page == connectionsPage && m.cursor < len(shown) {
		return &shown[m.cursor]
	}
	return nil
}

// forward turns to the next page of connections, if there is one.
func (m *model) forward() tea.Cmd {
	next := m.last.snapshot.Connections.Next
	if m.page != connectionsPage || next == "" || m.last.question != m.question() {
		return nil
	}
	m.before = append(m.before, m.after)
	m.after, m.cursor, m.chosen = next, 0, 0
	return m.look()
}

func (m *model) back() {
	m.after = m.before[len(m.before)-1]
	m.before = m.before[:len(m.before)-1]
	m.cursor, m.chosen = m.room(), 0 // the last
}

// restart looks at another table from its beginning.
func (m *model) restart() tea.Cmd {
	m.after, m.before, m.cursor, m.first, m.chosen, m.flows = "", nil, 0, 0, 0, nil
	m.last.snapshot.Connections, m.last.snapshot.Upstreams, m.last.snapshot.Listeners = admin.Connections{}, nil, nil
	m.last.question, m.last.refused = question{page: pages}, nil
	return m.look()
}

// do has something done, elsewhere.
func (m *model) do(i intent) tea.Cmd {
	ctx := m.ctx
	return guarded(func() tea.Msg {
		text, err := i.do(ctx)
		return done{text, err}
	})
}

func (m *model) confirm(i intent) { m.mode, m.intent = confirming, i }

// wantKill asks whether the chosen connection is to end.
func (m *model) wantKill() {
	c := m.connection()
	if c == nil {
		m.say("there is no connection to kill")
		return
	}
	id, levee := c.ID, m.levee
	m.confirm(intent{
		detailed: m.mode == detailed,
		text:     fmt.Sprintf("kill connection %d of %s?", id, Plain(c.Client)),
		do: func(ctx context.Context) (string, error) {
			return fmt.Sprintf("connection %d was killed", id), levee.Kill(ctx, id)
		},
	})
}

// wantDrain asks whether the chosen server is to get no new connections, or again.
func (m *model) wantDrain() {
	all := members(m.last.snapshot.Upstreams)
	if m.page != upstreamsPage || m.cursor >= len(all) {
		return
	}
	chosen, levee := all[m.cursor], m.levee
	upstream, server, drain := chosen.of.Name, chosen.Name, !chosen.Drained
	text, after := "let new connections go to %s of %s again?", "%s of %s gets new connections again"
	if drain {
		text, after = "send no new connections to %s of %s?", "%s of %s gets no new connections"
	}
	m.confirm(intent{
		text: fmt.Sprintf(text, Plain(server), Plain(upstream)),
		do: func(ctx context.Context) (string, error) {
			return fmt.Sprintf(after, server, upstream), levee.DrainServer(ctx, upstream, server, drain)
		},
	})
}
