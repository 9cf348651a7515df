package levee

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	lobbySize = 1024            // those who are kept waiting are open files, and nothing else
	lobbyWait = 5 * time.Second // by default
)

// lobbyRoom is how many may be kept waiting where so many files may be open: few enough
// to leave those alone that are to be served.
func lobbyRoom(files int) int {
	if files <= 0 {
		return lobbySize
	}
	return min(lobbySize, files/16)
}

// A lobby keeps those waiting who are turned away slowly. One timer serves them all.
type lobby struct {
	room int

	mu     sync.Mutex
	guests []guest // by the time until which they wait
	timer  *time.Timer
	closed bool
}

// A guest is a connection that has been refused, but does not know it yet.
type guest struct {
	conn    *Conn
	refusal *Refusal
	until   time.Time
}

// keep keeps a connection waiting, and reports false if there is no room for it.
func (l *lobby) keep(c *Conn, r *Refusal) bool {
	g := guest{c, r, time.Now().Add(cmp.Or(max(0, r.Delay), lobbyWait))}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.guests) >= l.room {
		return false
	}
	at, _ := slices.BinarySearchFunc(l.guests, g, func(a, b guest) int {
		if a.until.After(b.until) {
			return 1
		}
		return -1 // behind those who wait for as long
	})
	l.guests = slices.Insert(l.guests, at, g)
	if at == 0 {
		l.setTimerLocked()
	}
	return true
}

// setTimerLocked sets the timer for the next to go.
func (l *lobby) setTimerLocked() {
	wait := time.Until(l.guests[0].until)
	if l.timer == nil {
		l.timer = time.AfterFunc(wait, l.dismissDue) // stopped by close
		return
	}
	l.timer.Reset(wait)
}

// dismissDue sends those away who have waited for long enough.
func (l *lobby) dismissDue() {
	now := time.Now()
	l.mu.Lock()
	due := 0
	for due < len(l.guests) && !l.guests[due].until.After(now) {
		due++
	}
	gone := slices.Clone(l.guests[:due])
	l.guests = slices.Delete(l.guests, 0, due)
	if len(l.guests) > 0 {
		l.setTimerLocked()
	}
	l.mu.Unlock()
	dismiss(gone)
}

// clear sends all away.
func (l *lobby) clear() {
	l.mu.Lock()
	gone := l.guests
	l.guests = nil
	l.mu.Unlock()
	dismiss(gone)
}

// close sends all away, and lets nobody in any more.
func (l *lobby) close() {
	l.mu.Lock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.clear()
}

func dismiss(guests []guest) {
	for _, g := range guests {
		g.conn.closeAtDoor(Reset)
		g.conn.giveBack(g.conn.endingNow(g.refusal.reason(), g.refusal))
	}
}
