package levee

import (
	"context"
	"errors"
	"runtime"
	"slices"
)

// Pass returns what the connection holds of the server's Gate, or nil.
func (c *Conn) Pass() Pass {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pass
}

// AtEnd has f called once, after the connection has ended and its socket has been closed, or it has moved
// to another process: to give back what a [Router] has taken for it. If that has been, it is called at once.
// Those that are called later are called first.
func (c *Conn) AtEnd(f func()) {
	c.mu.Lock()
	late := c.departed
	if !late {
		x := c.extraLocked()
		x.atEnd = append(x.atEnd, f)
	}
	c.mu.Unlock()
	if late {
		f()
	}
}

// giveBack has what was taken for the connection, whose socket is closed, given back.
func (c *Conn) giveBack(end End) {
	defer c.set.letGo()
	c.hasArrived()
	c.mu.Lock()
	c.departed = true
	pass, x := c.pass, c.extra
	c.mu.Unlock()
	if pass != nil {
		defer c.server.guard(c, func() { pass.Leave(c, end) })
	}
	if x == nil {
		return
	}
	for _, f := range slices.Backward(x.atEnd) {
		c.server.guard(c, f)
	}
}

// passDoor turns a connection away that has just been accepted, if it may not come in.
func (c *Conn) passDoor() bool {
	if c.set.gate != nil && !c.passGate() { // first: whoever comes too often is not to crowd out the others
		return false
	}
	if r := c.server.turnsAway(c); r != nil {
		c.refuse(r)
		return false
	}
	return c.mayArrive()
}

// tooManyArrive refuses those for whom there is no room on the way to a handler.
var tooManyArrive = &Refusal{Reason: Overloaded, Cause: errors.New("too many connections are arriving")}

// mayArrive makes a connection one of those that are arriving, if it needs a goroutine for
// that. Where there are too many, some may be about to be through: they get their chance.
func (c *Conn) mayArrive() bool {
	if c.beginsOnLoop() && !c.mustWait() {
		return true
	}
	s := c.server
	c.arriving = true
	n, most := s.arriving.Add(1), int64(c.set.limits.arrivals)
	if n > most && most > 0 {
		runtime.Gosched()
		if s.arriving.Load() > most {
			c.hasArrived()
			c.refuse(tooManyArrive)
			return false
		}
	}
	return true
}

// hasArrived takes the connection out of those that are arriving.
func (c *Conn) hasArrived() {
	if c.arriving {
		c.arriving = false
		c.server.arriving.Add(-1)
	}
}

// passGate asks the Gate.
func (c *Conn) passGate() bool {
	refusal, asked := c.askGate()
	switch {
	case !asked: // it panicked
		c.closeAtDoor(Reset)
		c.giveBack(c.endingNow(HandlerPanic, c.end.Load()))
		return false
	case refusal != nil:
		c.refuse(refusal)
		return false
	}
	return true
}

// askGate reports not asked if the Gate panicked.
func (c *Conn) askGate() (refusal *Refusal, asked bool) {
	c.server.guard(c, func() {
		var pass Pass
		if pass, refusal = c.set.gate.Admit(c); pass != nil && refusal == nil {
			c.mu.Lock()
			c.pass = pass
			c.mu.Unlock()
			if !c.comesByProxy() {
				refusal = pass.Reach(c, StageClient)
			}
		}
		asked = true
	})
	return refusal, asked
}

// refuse turns a connection away at the door.
func (c *Conn) refuse(r *Refusal) {
	s, reason := c.server, r.reason()
	s.mu.Lock()
	s.left.refused[reason]++
	s.mu.Unlock()
	c.ends(reason, r)
	if r.Manner != Slowly || !s.lobby.keep(c, r) {
		c.closeAtDoor(r.Manner)
		c.giveBack(c.endingNow(reason, r))
	}
	if hook := s.trace().Refused; hook != nil {
		s.guard(c, func() { hook(c, r) })
	}
}

// shutOut closes a connection that a server has no use for any more before it begins.
func (c *Conn) shutOut() {
	c.ends(ServerClosed, nil)
	c.closeAtDoor(Politely)
	c.giveBack(c.endingNow(ServerClosed, nil))
}

// closeAtDoor closes the socket of a connection that has not begun.
func (c *Conn) closeAtDoor(how Manner) {
	s := c.stream.Load()
	switch {
	case s == nil && how == Politely:
		c.looped.discard()
	case s == nil:
		c.looped.reset()
	default:
		if how != Politely {
			s.reset()
		}
		_ = s.wire.Close()
	}
}

// endingNow is the end of a connection that has moved no byte.
func (c *Conn) endingNow(reason CloseReason, err error) End {
	return End{Reason: reason, Err: err, Duration: c.server.clock() - c.accepted}
}

// reach asks the Gate about a connection that has come to a stage of its arrival.
func (c *Conn) reach(at Stage) error {
	if c.set.gate == nil {
		return nil
	}
	if pass := c.Pass(); pass != nil {
		if r := pass.Reach(c, at); r != nil {
			return r
		}
	}
	return nil
}

// mustWait reports whether the Gate has somebody to ask before the connection begins.
func (c *Conn) mustWait() bool {
	if c.set.gate == nil {
		return false
	}
	_, waits := c.Pass().(Waiter)
	return waits
}

// awaitGate waits while the Gate asks somebody else. A request to leave does not shorten
// that: the client may have sent a request already, which is to be served.
func (c *Conn) awaitGate() error {
	waiter, ok := c.Pass().(Waiter)
	if !ok {
		return nil
	}
	ctx, done := c.arrivalContext()
	defer done()
	refusal := waiter.Await(ctx, c)
	switch {
	case c.end.Load() != nil:
		return c.end.Load()
	case refusal != nil:
		c.ends(refusal.reason(), refusal)
		return refusal
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return c.cut(ArrivalTimeout, nil)
	}
	return nil
}

// arrivalContext returns a context that ends with the arrival's deadline, and what to call
// when it is not needed any more.
func (c *Conn) arrivalContext() (ctx context.Context, done func()) {
	ctx = c.ownContext()
	cancel := func() {}
	if limit := c.set.limits.arrival; limit > 0 {
		ctx, cancel = context.WithDeadline(ctx, c.Accepted().Add(limit))
	}
	return ctx, func() {
		cancel()
		if c.stream.Load() == nil {
			c.dropContext()
		}
	}
}

// dropContext ends a context that the connection's handler does not see.
func (c *Conn) dropContext() {
	c.mu.Lock()
	cancel := c.cancel
	c.cancel = nil
	c.mu.Unlock()
	cancel(nil)
}
