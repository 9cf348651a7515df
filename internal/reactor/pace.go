//go:build linux

package reactor

import (
	"container/heap"
	"time"
)

// A Pacer keeps bytes to a rate; see levee's. The loops call it, and others: its methods
// must be quick, must not block, and must not panic.
type Pacer interface {
	Chunk() int
	Spend(n int) time.Duration
}

// A pace is what a connection is kept to. Bytes are paid for when they have been moved, and
// what has not been paid keeps the connection from being read. Nothing that has been read is
// held back, and nothing is held meanwhile.
type pace struct {
	conn *Conn
	in   Pacer // of what is read from it; nil for none
	out  Pacer // of what is written to it in answer; of the near one of a pair: what is read from the far one

	until int64 // clock when it is read again; 0 if it may be read now
	place int   // in the loop's waits, which it is in when until is set
}

// SetPace keeps what is read from the connection to in, and what is written to it to out.
// Nil is no limit. It must be called before Adopt or Join, or in the first Step.
func (c *Conn) SetPace(in, out Pacer) {
	if in == nil && out == nil {
		c.pace.Store(nil)
		return
	}
	c.pace.Store(&pace{conn: c, in: in, out: out})
}

// Paced returns what SetPace was given.
func (c *Conn) Paced() (in, out Pacer) {
	if p := c.pace.Load(); p != nil {
		return p.in, p.out
	}
	return nil, nil
}

// sharePace has the far one of a pair kept to what goes out to c, the near one.
func (c *Conn) sharePace() {
	if p := c.pace.Load(); p != nil {
		c.peer.SetPace(p.out, nil)
		c.SetPace(p.in, nil)
	}
}

// waits reports whether the connection is not read as it has to wait for a Pacer.
func (c *Conn) waits() bool {
	p := c.pace.Load()
	return p != nil && p.until != 0
}

// chunk returns how many of n bytes may be read at once.
func (c *Conn) chunk(n int) int {
	p := c.pace.Load()
	if p == nil {
		return n
	}
	if p.in != nil {
		n = min(n, p.in.Chunk())
	}
	if p.out != nil {
		n = min(n, p.out.Chunk()) // what answers it may be as long
	}
	return max(n, 1)
}

// spendIn pays for n bytes that were read from c.
func (l *loop) spendIn(c *Conn, n int) {
	if p := c.pace.Load(); p != nil && p.in != nil {
		l.await(p, p.in.Spend(n))
	}
}

// spendOut pays for n bytes that were written to c.
func (l *loop) spendOut(c *Conn, n int) {
	if p := c.pace.Load(); p != nil && p.out != nil && n > 0 {
		l.await(p, p.out.Spend(n))
	}
}

// await has c not read for so long.
func (l *loop) await(p *pace, d time.Duration) {
	until := l.now + int64(d)
	if d < LeastWait || until <= p.until || p.conn.is(gone) {
		return // of two Pacers the slower one counts
	}
	waiting := p.until != 0
	p.until = until
	if waiting {
		heap.Fix(&l.waits, p.place)
		return
	}
	heap.Push(&l.waits, p)
}

// forgetWait takes a connection out of those that wait.
func (l *loop) forgetWait(c *Conn) {
	if c.waits() {
		p := c.pace.Load()
		heap.Remove(&l.waits, p.place)
		p.until = 0
	}
}

// stopPacing has a connection read to its end, as its client has reset it: what it owes would have it
// keep its place, in a server that is full perhaps, for as long as that takes.
func (l *loop) stopPacing(c *Conn) {
	l.forgetWait(c)
	c.pace.Store(nil)
}

// goOn reads on from those whose wait is over.
func (l *loop) goOn() bool {
	for len(l.waits) > 0 && l.waits[0].until <= l.now {
		p := heap.Pop(&l.waits).(*pace)
		p.until = 0
		c := p.conn
		if c.peer != nil {
			l.touch(c.near())
		} else {
			c.active = l.now
			l.resumeMessage(c)
		}
		if !l.pump(c) {
			return false
		}
	}
	return true
}

// waits are the paces that wait, the first of which has the least time to: a heap. They need to
// be told apart more finely than the wheel does.
type waits []*pace

// next returns the clock at which the first is over, 0 if there is none.
func (w waits) next() int64 {
	if len(w) == 0 {
		return 0
	}
	return w[0].until
}

func (w waits) Len() int           { return len(w) }
func (w waits) Less(i, j int) bool { return w[i].until < w[j].until }

func (w waits) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].place, w[j].place = i, j
}

// Push is heap's.
func (w *waits) Push(x any) {
	p := x.(*pace)
	p.place = len(*w)
	*w = append(*w, p)
}

// Pop is heap's.
func (w *waits) Pop() any {
	last := len(*w) - 1
	p := (*w)[last]
	(*w)[last] = nil // it holds memory
	*w = (*w)[:last]
	return p
}
