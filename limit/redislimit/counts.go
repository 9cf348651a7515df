package redislimit

import (
	"container/list"
	"time"
)

// counts are the open connections of this machine, by key, in the order in which Redis has to
// be told of them.
type counts struct {
	byKey map[string]*count
	order list.List // of *count: those that Redis does not know right come first, then those told long ago
	life  string    // the machine's name in Redis, a new one when that may have forgotten something
}

type count struct {
	key   string
	open  int
	stale bool   // Redis has another number
	life  string // in which Redis was last told; empty if never
	told  time.Time
	place *list.Element
}

func (c *counts) len() int { return len(c.byKey) }

func (c *counts) open(key string) int {
	if n := c.byKey[key]; n != nil {
		return n.open
	}
	return 0
}

// add changes a number that Redis has to be told of.
func (c *counts) add(key string, by int) {
	n := c.byKey[key]
	if n == nil {
		if by <= 0 {
			return // what was never held
		}
		n = c.new(key)
	}
	n.open = max(n.open+by, 0)
	c.spoil(n)
}

// spoil has Redis be told of a number as soon as may be. It knows nothing of one that it was never told.
func (c *counts) spoil(n *count) {
	if n.open == 0 && n.life != c.life {
		c.drop(n)
		return
	}
	n.stale = true
	c.order.MoveToFront(n.place)
}

// granted takes in one more, which Redis counts already. If nobody wants it any more, Redis is to be told.
func (c *counts) granted(key string, wanted bool) {
	n := c.byKey[key]
	if n == nil {
		n = c.new(key)
	}
	if n.life = c.life; !n.stale { // what has changed since Redis was asked has to be told yet
		c.tell(n)
	}
	if wanted {
		n.open++
	} else {
		c.spoil(n)
	}
}

func (c *counts) new(key string) *count {
	if c.byKey == nil {
		c.byKey = make(map[string]*count)
	}
	n := &count{key: key}
	n.place = c.order.PushFront(n)
	c.byKey[key] = n
	return n
}

func (c *counts) drop(n *count) {
	c.order.Remove(n.place)
	delete(c.byKey, n.key)
}

// next returns a number that Redis has to be told of, as one that it has been told, and whether it was told in
// another life before. It returns nil if there is none.
func (c *counts) next(now time.Time, refresh time.Duration) (n *count, again bool) {
	for front := c.order.Front(); front != nil; front = c.order.Front() {
		n = front.Value.(*count)
		switch {
		case n.life != c.life && n.open == 0:
			c.drop(n)
		case n.life != c.life || n.stale || now.Sub(n.told) >= refresh:
			again = n.life != c.life && n.life != ""
			c.tell(n)
			return n, again
		default:
			return nil, false
		}
	}
	return nil, false
}

func (c *counts) tell(n *count) {
	n.stale, n.life, n.told = false, c.life, time.Now()
	c.order.MoveToBack(n.place)
}

// settle forgets a number that Redis has been told is 0, and still is.
func (c *counts) settle(n *count) {
	if n.open == 0 && !n.stale {
		c.drop(n)
	}
}
