package top

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

const (
	mostAsked  = 1000
	around     = 10 // lines: a line about the state and five below it, pages, titles, what is to be said, keys
	widestView = 60 // cells of a sparkline
	wordsRoom  = 50 // cells that what stands before it has at least
)

// Colours say nothing that words do not say too.
const (
	plain   = "\x1b[m"
	bold    = "\x1b[1m"
	faint   = "\x1b[2m"
	reverse = "\x1b[7m"
	red     = "\x1b[31m"
	yellow  = "\x1b[33m"
	cyan    = "\x1b[36m"
)

func styled(style, text string) string {
	if style == "" || text == "" {
		return text
	}
	return style + text + plain
}

// room is how many rows the table has, and no more than a levee tells of at once.
func (m *model) room() int { return max(1, min(m.height-around, mostAsked)) }

// View draws the screen.
func (m *model) View() tea.View {
	v := tea.NewView(m.draw())
	v.AltScreen = true
	v.DisableBracketedPasteMode = m.mode != filtering
	return v
}

// draw returns the lines of the screen.
func (m *model) draw() string {
	lines := append(m.header(), m.pagesLine())
	if m.mode == detailed || (m.mode == confirming && m.intent.detailed) {
		lines = append(lines, m.detail()...)
	} else {
		lines = append(lines, m.table()...)
	}
	for len(lines) < m.height-2 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, m.height-2)], m.message(), styled(faint, m.help()))
	return strings.Join(lines[max(0, len(lines)-m.height):], "\n")
}

func (m *model) header() []string {
	s := &m.last.snapshot
	if m.last.at.IsZero() {
		lines := make([]string, 6)
		lines[0] = line(styled(bold, "levee"), Plain(m.address), m.width, m.chars.cut)
		return lines
	}
	address := Plain(m.address)
	room := m.width - len(address) - 2
	if room < m.width/2 {
		address, room = "", m.width
	}
	lines := []string{line(m.stateLine(room), address, m.width, m.chars.cut)}
	sparks := map[string]history{"connections": m.fresh, "traffic": m.moved}
	cells := min(widestView, m.width-wordsRoom)
	for _, w := range summary(&s.Status, &s.Overload, m.speeds) {
		label := styled(faint, pad(w.label, labelWidth, false, m.chars.cut))
		spark, room := "", m.width-labelWidth
		if h, has := sparks[w.label]; has && cells >= 8 {
			spark, room = styled(cyan, h.spark(cells, m.chars.levels)), room-cells-1
		}
		text := fitting(w.parts, "  ", max(0, room), m.chars.cut)
		if w.label == "overload" && s.Overload.Pressure != "none" && s.Overload.Pressure != "" {
			text = styled(yellow, text)
		}
		lines = append(lines, line(label+text, spark, m.width, m.chars.cut))
	}
	return lines
}

// stateLine is about the levee as a whole, in so many cells.
func (m *model) stateLine(room int) string {
	s := &m.last.snapshot.Status
	words, style := stateWords(s, m.now), bold
	switch {
	case m.gone != nil:
		words[1], style = "gone", bold+red
	case s.Drain != nil || !s.Ready:
		style += yellow
	}
	return styled(style, fitting(words, "  ", room, m.chars.cut))
}

// pagesLine names the pages, and says which part of which order there is to see.
func (m *model) pagesLine() string {
	var names []string
	for p := range pages {
		name := fmt.Sprintf("%d %s", p+1, p)
		if p == m.page {
			name = styled(reverse, "["+name+"]")
		} else {
			name = " " + name + " "
		}
		names = append(names, name)
	}
	left := strings.Join(names, "")
	var right []string
	if m.paused {
		right = append(right, "PAUSED")
	}
	if m.page == connectionsPage {
		right = append(right, m.orderWords()...)
	}
	room := m.width - ansi.StringWidth(left) - 2
	for len(right) > 1 && ansi.StringWidth(strings.Join(right, "  ")) > room {
		right = right[:len(right)-1]
	}
	return line(left, ansi.Truncate(strings.Join(right, "  "), max(0, room), m.chars.cut), m.width, m.chars.cut)
}

func (m *model) orderWords() []string {
	key, reversed := strings.CutPrefix(m.query.Sort, "-")
	if key == "accepted" {
		key, reversed = "age", !reversed // whoever was accepted first is oldest
	}
	arrow := m.chars.up
	if reversed {
		arrow = m.chars.down
	}
	words := []string{"by " + key + " " + arrow}
	c := &m.last.snapshot.Connections
	if filter := filterText(m.query); filter != "" {
		words = append(words, fmt.Sprintf("%s of %s", number(c.Matching), number(c.Total)))
	}
	if c.Next != "" || len(m.before) > 0 {
		room := m.room()
		words = append(words, fmt.Sprintf("page %s of %s", number(len(m.before)+1), number((c.Matching+room-1)/room)))
	}
	if filter := filterText(m.query); filter != "" {
		words = append(words, Plain(filter))
	}
	return words
}

// table returns the titles and the rows that show.
func (m *model) table() []string {
	s := &m.last.snapshot
	var g *grid
	styles := make(map[int]string) // of rows
	switch m.page {
	case upstreamsPage:
		all := members(s.Upstreams)
		g = tabulate(memberColumns(m.now), all)
		for i := range all {
			if all[i].state() != "healthy" {
				styles[i] = yellow
			}
		}
	case listenersPage:
		g = tabulate(listenerColumns(), s.Listeners)
	default:
		flows := m.flows
		if flows == nil {
			flows = map[uint64]flow{}
		}
		g = tabulate(connectionColumns(m.now, flows), s.Connections.Connections)
	}
	titles, rows := g.lines(g.fit(m.width-2), " ", m.chars.cut)
	lines := []string{styled(bold, pad("  "+titles, m.width, false, ""))}
	if len(rows) == 0 {
		return append(lines, "  "+m.nothing())
	}
	first := min(m.first, len(rows))
	for i, row := range rows[first:min(len(rows), first+m.room())] {
		i += first
		mark, style := "  ", styles[i]
		if i == m.cursor {
			mark, style = "> ", style+reverse
		}
		if m.gone != nil {
			style += faint
		}
		lines = append(lines, styled(style, pad(mark+row, m.width, false, "")))
	}
	return lines
}

// nothing says why the table is empty.
func (m *model) nothing() string {
	switch {
	case m.last.question.page != m.page || m.last.at.IsZero():
		return "asking" + m.chars.cut
	case m.last.refused != nil:
		return ansi.Truncate(Plain(m.last.refused.Error()), max(0, m.width-2), m.chars.cut)
	case m.page == connectionsPage && filterText(m.query) != "":
		return "no connection is like that; esc shows all"
	case m.page == upstreamsPage:
		return "there are no upstreams"
	}
	return "there are no " + m.page.String()
}

// detail is all about the chosen connection.
func (m *model) detail() []string {
	c := m.connection()
	if c == nil {
		return []string{"", "  it is not here any more"}
	}
	moving := ""
	if f := m.flows[c.ID]; f.known {
		moving = size(f.rate) + "/s"
	}
	all := []struct{ name, value string }{
		{"connection", number0(c.ID)},
		{"client", c.Client},
		{"peer", c.Peer},
		{"local", c.Local},
		{"listener", fmt.Sprintf("%s, generation %d", c.Listener, c.Generation)},
		{"phase", c.Phase + ", engine " + c.Engine},
		{"accepted", c.Accepted.Format(time.RFC3339) + ", " + since(c.Accepted, m.now) + " ago"},
		{"bytes", fmt.Sprintf("%s in, %s out, %s wait", number(c.In), number(c.Out), number(c.Waits))},
		{"moving", moving},
		{"idle", idle(*c)},
		{"tls", strings.TrimSpace(c.TLS + " " + c.ALPN)},
		{"server name", c.SNI},
		{"identity", c.Identity},
		{"route", c.Route},
		{"upstream", strings.TrimSpace(c.Upstream + " " + c.Server)},
	}
	lines := []string{""}
	for _, a := range all {
		if a.value != "" {
			lines = append(lines, "  "+styled(faint, pad(a.name, labelWidth, false, ""))+ansi.Truncate(Plain(a.value), max(0, m.width-labelWidth-2), m.chars.cut))
		}
	}
	return lines
}

// message is the line that asks something, or says what is wrong or was done.
func (m *model) message() string {
	style, text := "", ""
	switch note := m.note != "" && m.now.Sub(m.noted) < noteTime; {
	case m.mode == filtering && note:
		style, text = yellow, m.note
	case m.mode == filtering:
		return ansi.TruncateLeft("filter: "+m.typed, max(0, ansi.StringWidth("filter: "+m.typed)+1-m.width), "") + styled(reverse, " ")
	case m.mode == confirming:
		style, text = bold+yellow, m.intent.text+" y yes, any other key no"
	case m.gone != nil:
		style, text = bold+red, fmt.Sprintf("gone for %s, asking again: %s", ago(m.now.Sub(m.since)), Plain(m.gone.Error()))
	case note:
		text = m.note
	case m.rows() > 0 && m.last.refused != nil:
		style, text = yellow, Plain(m.last.refused.Error())
	case m.problem() != "":
		style, text = yellow, m.problem()
	default:
		style, text = yellow, trouble(&m.last.snapshot.Status, m.now)
	}
	return styled(style, ansi.Truncate(text, m.width, m.chars.cut))
}

// problem is that of the chosen server, for which there may be no room in the table.
func (m *model) problem() string {
	if all := members(m.last.snapshot.Upstreams); m.page == upstreamsPage && m.cursor < len(all) {
		return Plain(all[m.cursor].Problem)
	}
	return ""
}

// help names the keys, the most important first.
func (m *model) help() string {
	keys := []string{"q quit", "up/down choose", "p pause"}
	switch {
	case m.mode == filtering:
		keys = []string{"enter apply", "esc leave it", "ctrl-u clear", "such as: 10.0.0.0/8 listener=main phase=serving"}
	case m.mode == confirming:
		keys = []string{"y yes", "n no"}
	case m.mode == detailed:
		keys = []string{"esc back", "k kill", "up/down another"}
	case m.page == connectionsPage:
		keys = []string{"q quit", "k kill", "/ filter", "s sort", "r reverse", "enter details"}
		if m.last.snapshot.Connections.Next != "" || len(m.before) > 0 {
			keys = append(keys, "pgup/dn more")
		}
		keys = append(keys, "p pause")
	case m.page == upstreamsPage:
		keys = []string{"q quit", "up/down choose", "d drain or undrain the server", "p pause"}
	}
	return fitting(keys, "  ", m.width, m.chars.cut)
}
