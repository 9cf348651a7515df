//go:build linux

package reactor

import "time"

// A wheel finds the connections whose time has come, at a cost that does not
// depend on how many there are. It is coarse and forgetful: it looks at a
// connection at or before its deadline, and the loop then says when to look
// again. So a byte that moves costs it nothing.
type wheel struct {
	tick  int64 // up to which it has looked
	slots [wheelSlots]*Conn
	count int
	least int64 // no slot before this tick is in use
	due   *Conn // found and not yet taken, linked by next
}

const (
	wheelTick  = int64(10 * time.Millisecond)
	wheelSlots = 4096 // 41 s; who is due later is looked at on the way
)

// put has the wheel look at c when the clock says at, or before.
func (w *wheel) put(c *Conn, at int64) {
	due := min(max((at+wheelTick-1)/wheelTick, w.tick+1), w.tick+wheelSlots-1)
	if c.due != nowhere && c.due <= due {
		return // it is looked at before that anyway
	}
	w.remove(c)
	c.due = due
	head := &w.slots[c.due%wheelSlots]
	c.prev, c.next = nil, *head
	if *head != nil {
		(*head).prev = c
	}
	*head = c
	if w.count == 0 || c.due < w.least {
		w.least = c.due
	}
	w.count++
}

// What due is for a connection that is in no slot.
const (
	nowhere = 0  // tick 0 is over when the wheel starts
	found   = -1 // in the list of those that are due, before any tick
)

// remove takes c out, if it is in a slot.
func (w *wheel) remove(c *Conn) {
	if c.due <= nowhere {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		w.slots[c.due%wheelSlots] = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev, c.due = nil, nil, nowhere
	w.count--
}

// advance looks at everything up to now.
func (w *wheel) advance(now int64) {
	to := now / wheelTick
	if w.count == 0 {
		w.tick = max(w.tick, to)
		return
	}
	for w.tick < to {
		w.tick++
		slot := &w.slots[w.tick%wheelSlots]
		for c := *slot; c != nil; c = *slot {
			w.remove(c)
			c.due, c.next, w.due = found, w.due, c
		}
	}
}

// pop returns a connection that advance has found, nil if there is none left.
func (w *wheel) pop() *Conn {
	c := w.due
	if c != nil {
		w.due, c.next, c.due = c.next, nil, nowhere
	}
	return c
}

// next returns the clock at which there may be something to look at, 0 if there is
// nothing in it.
func (w *wheel) next() int64 {
	if w.count == 0 {
		return 0
	}
	w.least = max(w.least, w.tick+1)
	for w.slots[w.least%wheelSlots] == nil {
		w.least++
	}
	return w.least * wheelTick
}
