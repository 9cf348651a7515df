//go:build linux

package reactor

import (
	"runtime/debug"
	"sync"
	"time"
)

// A lane runs the calls of connections that are known to be slow, each in a
// goroutine of its own. How many at once follows what they do: calls that burn
// processor time starve the loops, which have to share with them, so there are
// no more of them than processors to spare; calls that wait for something cost
// nobody anything, so more are let in. The watchdog tells the two apart: where it
// is on time itself, there is processor time to spare.
type lane struct {
	base int // permits that there always are

	mu      sync.Mutex
	permits int
	running int
	queue   []job
}

// A job is a call to make.
type job struct {
	conn *Conn
	in   []byte
	seen int
}

// submit runs the connection's next step, as soon as there is a permit.
func (n *lane) submit(j job) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running >= n.permits {
		n.queue = append(n.queue, j)
		return
	}
	n.running++
	go n.work(j) // ends when the queue is empty
}

// work makes calls until there are none, or fewer permits than calls.
func (n *lane) work(j job) {
	defer func() {
		if j.conn != nil { // runtime.Goexit in a step: somebody else has to go on
			if next, ok := n.next(); ok {
				go n.work(next)
			}
		}
	}()
	for {
		stepAside(j)
		next, ok := n.next()
		if !ok {
			j.conn = nil
			return
		}
		j = next
	}
}

// next gives the permit back, or takes another job for it.
func (n *lane) next() (job, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.permits > n.base {
		n.permits-- // they were let in because others waited; each may be the last
	}
	if len(n.queue) == 0 || n.running > n.permits {
		n.running--
		return job{}, false
	}
	return n.popLocked(), true
}

func (n *lane) popLocked() job {
	j := n.queue[0]
	n.queue[0] = job{} // it holds memory
	n.queue = n.queue[1:]
	return j
}

// widen lets more calls in if some wait though there is processor time to spare.
func (n *lane) widen() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) == 0 {
		return
	}
	n.permits += 1 + n.permits/4
	for n.running < n.permits && len(n.queue) > 0 {
		n.running++
		go n.work(n.popLocked())
	}
}

// waits reports whether there are calls that wait for a permit.
func (n *lane) waits() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.queue) > 0
}

// stepAside makes a call outside of its loop and sends what it says there.
func stepAside(j job) {
	c, began := j.conn, time.Now()
	b := new(back)
	returned := false
	defer func() {
		if !returned {
			b = &back{err: &PanicError{Value: recover(), Stack: debug.Stack()}}
		}
		if b.took = time.Since(began); b.took < c.loop.reactor.budget {
			c.loop.post(message{op: opBack, conn: c, back: b})
			return
		}
		giveBack(c, b, func() {
			c.owner.Slow()
			c.owner.Slowed(b.took)
		})
	}()
	b.n, b.reply, b.err = c.owner.Step(j.in, j.seen, nil)
	b.rest = j.in[b.n:]
	returned = true
}

// giveBack sends to its loop what a slow call has to say, once its owner has been
// told. A panic there is as one in the call.
func giveBack(c *Conn, b *back, tell func()) {
	told := false
	defer func() {
		if !told {
			b = &back{err: &PanicError{Value: recover(), Stack: debug.Stack()}, took: b.took}
		}
		c.loop.post(message{op: opBack, conn: c, back: b})
	}()
	tell()
	told = true
}
