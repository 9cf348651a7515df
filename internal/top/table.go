package top

import (
	"cmp"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/levee-net/levee/internal/admin"
)

// A column is what is told of each T.
type column[T any] struct {
	title string
	width int  // cells, which some more are added to where it grows and there is room
	rank  int  // those with the highest are left out first
	right bool // aligned, as numbers are
	grows bool
	cell  func(T) string
}

// A grid is a table before it is known how much room there is.
type grid struct {
	titles []string
	widths []int
	ranks  []int
	right  []bool
	grows  []bool
	rows   [][]string
}

func tabulate[T any](columns []column[T], of []T) *grid {
	g := new(grid)
	for _, c := range columns {
		g.titles = append(g.titles, c.title)
		g.widths = append(g.widths, c.width)
		g.ranks = append(g.ranks, c.rank)
		g.right = append(g.right, c.right)
		g.grows = append(g.grows, c.grows)
	}
	for _, t := range of {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(t))
		}
		g.rows = append(g.rows, row)
	}
	return g
}

// need is the width of a column's longest text.
func (g *grid) need(column int) int {
	need := ansi.StringWidth(g.titles[column])
	for _, row := range g.rows {
		need = max(need, ansi.StringWidth(row[column]))
	}
	return need
}

// fit returns the widths of the columns in so many cells; zero leaves one out.
func (g *grid) fit(cells int) []int {
	order := make([]int, len(g.titles))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(g.ranks[a], g.ranks[b]) })
	widths := make([]int, len(order))
	left := cells + 1 // there is no gap before the first
	for _, i := range order {
		if left < 1+g.widths[i] {
			break // what matters less may be narrower, and yet
		}
		widths[i] = g.widths[i]
		left -= 1 + g.widths[i]
	}
	for _, i := range order {
		if more := min(left, g.need(i)-widths[i]); widths[i] > 0 && g.grows[i] && more > 0 {
			widths[i] += more
			left -= more
		}
	}
	return widths
}

// lines returns the titles, and each row, with columns of these widths.
func (g *grid) lines(widths []int, gap, cut string) (titles string, rows []string) {
	text := func(row []string) string {
		var cells []string
		for i, w := range widths {
			if w > 0 {
				cells = append(cells, pad(row[i], w, g.right[i], cut))
			}
		}
		return strings.Join(cells, gap)
	}
	for _, row := range g.rows {
		rows = append(rows, text(row))
	}
	return text(g.titles), rows
}

// write writes all of it, however wide that is. Columns that say nothing are left out.
func (g *grid) write(out io.Writer) {
	widths := make([]int, len(g.titles))
	for i := range widths {
		if slices.ContainsFunc(g.rows, func(row []string) bool { return row[i] != "" }) {
			widths[i] = g.need(i)
		}
	}
	titles, rows := g.lines(widths, "  ", "")
	for _, text := range append([]string{titles}, rows...) {
		_, _ = io.WriteString(out, strings.TrimRight(text, " ")+"\n") // out keeps what went wrong, if anybody asks
	}
}

// A flow is how fast a connection's bytes move, in both directions together.
type flow struct {
	at    time.Time // when it was counted last
	moved int64     // bytes, then
	rate  float64   // bytes a second, as far as it is known
	known bool
}

// next is the flow as of another look; one that is too near says nothing new.
func (f flow) next(c *admin.Connection, at time.Time, near time.Duration) flow {
	moved, d := c.In+c.Out, at.Sub(f.at)
	switch {
	case f.at.IsZero():
		return flow{at: at, moved: moved}
	case d <= 0 || d < near:
		return f
	}
	return flow{at: at, moved: moved, rate: max(0, float64(moved-f.moved)/d.Seconds()), known: true}
}

func connectionColumns(now time.Time, flows map[uint64]flow) []column[admin.Connection] {
	type c = admin.Connection
	columns := []column[c]{
		{title: "ID", width: 7, rank: 0, right: true, grows: true, cell: func(c c) string { return number0(c.ID) }},
		{title: "CLIENT", width: 21, rank: 1, grows: true, cell: func(c c) string { return Plain(c.Client) }},
		{title: "LISTENER", width: 8, rank: 8, grows: true, cell: func(c c) string { return Plain(c.Listener) }},
		{title: "PHASE", width: 8, rank: 9, cell: func(c c) string { return Plain(c.Phase) }},
		{title: "TO", width: 16, rank: 7, grows: true, cell: destination},
		{title: "SNI", width: 20, rank: 10, grows: true, cell: func(c c) string { return Plain(c.SNI) }},
		{title: "TLS", width: 7, rank: 11, cell: func(c c) string { return Plain(c.TLS) }},
		{title: "IDENTITY", width: 16, rank: 12, grows: true, cell: func(c c) string { return Plain(c.Identity) }},
		{title: "WAITS", width: 5, rank: 13, right: true, cell: func(c c) string { return short(float64(c.Waits)) }},
		{title: "ENGINE", width: 9, rank: 14, cell: func(c c) string { return Plain(c.Engine) }},
		{title: "GEN", width: 3, rank: 15, right: true, cell: func(c c) string { return number(c.Generation) }},
		{title: "IN", width: 5, rank: 3, right: true, cell: func(c c) string { return short(float64(c.In)) }},
		{title: "OUT", width: 5, rank: 2, right: true, cell: func(c c) string { return short(float64(c.Out)) }},
	}
	if flows != nil {
		columns = append(columns, column[c]{title: "BYTES/S", width: 7, rank: 4, right: true, cell: func(c c) string {
			if f := flows[c.ID]; f.known {
				return short(f.rate)
			}
			return ""
		}})
	}
	return append(columns,
		column[c]{title: "AGE", width: 4, rank: 5, right: true, cell: func(c c) string { return since(c.Accepted, now) }},
		column[c]{title: "IDLE", width: 4, rank: 6, right: true, cell: idle},
	)
}

func number0(id uint64) string { return strings.ReplaceAll(number(int64(id&(1<<63-1))), ",", "") }

// destination says who serves a connection, as far as that is decided.
func destination(c admin.Connection) string {
	switch {
	case c.Server != "":
		return Plain(c.Server + " of " + c.Upstream) // so that what is cut off is said elsewhere too
	case c.Upstream != "":
		return Plain(c.Upstream)
	case c.Route == "" && c.Phase == "arriving":
		return "(arriving)"
	}
	return Plain(c.Route)
}

func idle(c admin.Connection) string {
	if c.Idle < 0 {
		return "-"
	}
	return ago(time.Duration(c.Idle * float64(time.Second)))
}

// A member is a server with the upstream that it is of.
type member struct {
	of *admin.Upstream
	admin.UpstreamServer
}

// members returns the servers of all upstreams.
func members(all []admin.Upstream) (list []member) {
	for i := range all {
		for _, s := range all[i].Servers {
			list = append(list, member{&all[i], s})
		}
	}
	return list
}

func memberColumns(now time.Time) []column[member] {
	return []column[member]{
		{title: "UPSTREAM", width: 12, rank: 0, grows: true, cell: func(m member) string { return Plain(m.of.Name) }},
		{title: "SERVER", width: 21, rank: 1, grows: true, cell: func(m member) string { return Plain(m.Name) }},
		{title: "STATE", width: 9, rank: 2, cell: member.state},
		{title: "ACTIVE", width: 6, rank: 3, right: true, cell: func(m member) string { return short(float64(m.Active)) }},
		{title: "LATENCY", width: 7, rank: 4, right: true, cell: func(m member) string { return seconds(m.Latency) }},
		{title: "DIALS", width: 5, rank: 5, right: true, cell: func(m member) string { return short(float64(m.Dials)) }},
		{title: "FAILED", width: 6, rank: 6, right: true, cell: func(m member) string { return short(float64(sum(m.Failures))) }},
		{title: "SENT", width: 5, rank: 8, right: true, cell: func(m member) string { return short(float64(m.Sent)) }},
		{title: "RECEIVED", width: 8, rank: 10, right: true, cell: func(m member) string { return short(float64(m.Received)) }},
		{title: "BREAKER", width: 9, rank: 11, cell: func(m member) string { return Plain(m.Breaker) }},
		{title: "QUEUE", width: 5, rank: 12, right: true, cell: func(m member) string { return number(m.of.Queue) }},
		{title: "CHECKED", width: 7, rank: 13, right: true, cell: func(m member) string { return since(m.Checked, now) }},
		{title: "TIER", width: 4, rank: 14, right: true, cell: func(m member) string { return number(m.Tier) }},
		{title: "PROBLEM", width: 16, rank: 9, grows: true, cell: func(m member) string { return Plain(m.Problem) }},
	}
}

// state is what keeps connections from a server, or that nothing does.
func (m member) state() string {
	switch {
	case m.Left:
		return "left"
	case m.Drained:
		return "drained"
	case !m.Healthy:
		return "unhealthy"
	case m.Breaker == "open" || m.Breaker == "half-open":
		return m.Breaker
	}
	return "healthy"
}

func listenerColumns() []column[admin.Listener] {
	type l = admin.Listener
	return []column[l]{
		{title: "LISTENER", width: 10, rank: 0, grows: true, cell: func(l l) string { return Plain(l.Name) }},
		{title: "ADDRESS", width: 21, rank: 1, grows: true, cell: func(l l) string { return Plain(strings.Join(l.Addresses, " ")) }},
		{title: "TLS", width: 11, rank: 8, cell: func(l l) string { return Plain(l.TLS) }},
		{title: "STATE", width: 8, rank: 9, cell: func(l l) string { return Plain(l.State) }},
		{title: "ACTIVE", width: 6, rank: 2, right: true, cell: func(l l) string { return short(float64(l.Active)) }},
		{title: "MAX", width: 5, rank: 3, right: true, cell: func(l l) string { return short(float64(l.Max)) }},
		{title: "ARRIVING", width: 8, rank: 10, right: true, cell: func(l l) string { return short(float64(l.Arriving)) }},
		{title: "ACCEPTED", width: 8, rank: 4, right: true, cell: func(l l) string { return short(float64(l.Accepted)) }},
		{title: "REFUSED", width: 7, rank: 5, right: true, cell: func(l l) string { return short(float64(sum(l.Refused))) }},
		{title: "IN", width: 5, rank: 6, right: true, cell: func(l l) string { return short(float64(l.In)) }},
		{title: "OUT", width: 5, rank: 7, right: true, cell: func(l l) string { return short(float64(l.Out)) }},
		{title: "QUEUE", width: 9, rank: 11, right: true, cell: func(l l) string { return number(l.QueueLength) + "/" + number(l.QueueLimit) }},
		{title: "PANICS", width: 6, rank: 12, right: true, cell: func(l l) string { return short(float64(l.Panics)) }},
		{title: "MOST ENDED BY", width: 20, rank: 13, grows: true, cell: func(l l) string { return most(l.Closed, 1) }},
	}
}

// WriteConnections writes connections as a table.
func WriteConnections(out io.Writer, connections []admin.Connection, now time.Time) {
	tabulate(connectionColumns(now, nil), connections).write(out)
}

// WriteUpstreams writes the servers of upstreams as a table.
func WriteUpstreams(out io.Writer, upstreams []admin.Upstream, now time.Time) {
	tabulate(memberColumns(now), members(upstreams)).write(out)
}

// WriteListeners writes listeners as a table.
func WriteListeners(out io.Writer, listeners []admin.Listener) {
	tabulate(listenerColumns(), listeners).write(out)
}
