package top

import (
	"slices"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/levee-net/levee/internal/admin"
)

const longestTyped = 200 // bytes of a filter

// key takes a key.
func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	}
	switch m.mode {
	case filtering:
		return m.keyFiltering(k)
	case confirming:
		return m.keyConfirming(k)
	case detailed:
		return m.keyDetailed(k)
	default:
		return m.keyBrowsing(k)
	}
}

func (m *model) keyBrowsing(k tea.KeyPressMsg) tea.Cmd {
	switch key := k.String(); key {
	case "q":
		return tea.Quit
	case "1", "2", "3":
		return m.turnTo(page(key[0] - '1'))
	case "tab", "right":
		return m.turnTo((m.page + 1) % pages)
	case "shift+tab", "left":
		return m.turnTo((m.page + pages - 1) % pages)
	case "up", "down", "pgup", "pgdown", "space", "home", "g", "end", "G":
		return m.move(key)
	case "p":
		m.paused = !m.paused
		return m.look()
	case "d":
		m.wantDrain()
	case "s", "S", "r", "/", "k", "enter", "esc":
		if m.page == connectionsPage {
			return m.keyConnections(key)
		}
	}
	return nil
}

// keyConnections takes a key that is about connections.
func (m *model) keyConnections(key string) tea.Cmd {
	switch key {
	case "s":
		return m.sortBy(1)
	case "S":
		return m.sortBy(len(sorts) - 1)
	case "r":
		if text, reversed := strings.CutPrefix(m.query.Sort, "-"); reversed {
			m.query.Sort = text
		} else {
			m.query.Sort = "-" + m.query.Sort
		}
		return m.restart()
	case "/":
		m.mode, m.typed = filtering, filterText(m.query)
	case "k":
		m.wantKill()
	case "enter":
		if m.connection() != nil {
			m.mode = detailed
		}
	case "esc":
		if filterText(m.query) != "" {
			m.query = admin.Query{Sort: m.query.Sort}
			return m.restart()
		}
	}
	return nil
}

func (m *model) turnTo(p page) tea.Cmd {
	if p == m.page {
		return nil
	}
	m.page = p
	return m.restart()
}

// sortBy goes on by so many sorts.
func (m *model) sortBy(steps int) tea.Cmd {
	now := strings.TrimPrefix(m.query.Sort, "-")
	i := 0
	for j := range sorts {
		if sorts[j].key == now {
			i = j
		}
	}
	next := sorts[(i+steps)%len(sorts)]
	m.query.Sort = next.key
	if next.largest {
		m.query.Sort = "-" + next.key
	}
	return m.restart()
}

// move moves the cursor, to another page too.
func (m *model) move(key string) tea.Cmd {
	last, pageful := m.rows()-1, m.room()
	switch key {
	case "up":
		if m.cursor == 0 && len(m.before) > 0 {
			m.back()
			return m.look()
		}
		m.moveTo(m.cursor - 1)
	case "down":
		if m.cursor >= last {
			return m.forward()
		}
		m.moveTo(m.cursor + 1)
	case "pgup":
		if m.page == connectionsPage && len(m.before) > 0 {
			m.back()
			m.cursor = 0
			return m.look()
		}
		m.moveTo(m.cursor - pageful)
	case "pgdown", "space":
		if m.page == connectionsPage {
			return m.forward()
		}
		m.moveTo(m.cursor + pageful)
	case "home", "g":
		if len(m.before) > 0 {
			m.after, m.before, m.cursor, m.chosen = "", nil, 0, 0
			return m.look()
		}
		m.moveTo(0)
	case "end", "G":
		m.moveTo(last)
	}
	return nil
}

func (m *model) keyFiltering(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "esc":
		m.mode = browsing
	case "ctrl+u":
		m.typed = ""
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(m.typed)
		m.typed = m.typed[:len(m.typed)-size]
	case "enter":
		q, err := parseFilter(m.typed)
		if err != nil {
			m.say(err.Error())
			return nil
		}
		q.Sort = m.query.Sort
		m.mode, m.query, m.note = browsing, q, ""
		return m.restart()
	default:
		m.write(k.Key().Text)
	}
	return nil
}

// write adds to what is typed, as long as there is room.
func (m *model) write(text string) {
	if text = Plain(text); len(m.typed)+len(text) <= longestTyped {
		m.typed += text
	}
}

// keyConfirming does it for a yes alone: any other key may have been meant for something else.
func (m *model) keyConfirming(k tea.KeyPressMsg) tea.Cmd {
	m.mode = browsing
	if !slices.Contains([]string{"y", "Y"}, k.String()) {
		m.say("nothing was done")
		return nil
	}
	return m.do(m.intent)
}

func (m *model) keyDetailed(k tea.KeyPressMsg) tea.Cmd {
	switch key := k.String(); key {
	case "q", "esc", "enter":
		m.mode = browsing
	case "k":
		m.wantKill()
	case "up", "down":
		return m.move(key)
	}
	return nil
}
