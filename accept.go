package levee

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	firstPause = 5 * time.Millisecond // after a failed accept, doubling: net/http's figures
	lastPause  = time.Second

	sweepPause = 5 * time.Millisecond // how long the accept queue must stay empty to count as served
	sweepLimit = time.Second          // for those who come while a server drains
)

// acceptorsPerListener: accepting itself is serialised by the door, what follows
// (making the connection ready, starting its goroutine) is not. One acceptor
// keeps up with a few cores; more help from there on.
func acceptorsPerListener() int { return min(4, 1+runtime.GOMAXPROCS(0)/8) }

// A door is a listener with its acceptors.
type door struct {
	server    *Server
	listener  net.Listener
	ctx       context.Context // parent of every connection's
	call      *serveCall
	stop      chan struct{} // closed when accepting is to stop
	stopped   bool          // it is; guarded by server.mu
	acceptors int           // guarded by server.mu

	handedOver bool // who waits here is another's to serve; the same

	turn  turn          // of the acceptor that is in next
	bare  *bareListener // takes connections as bare sockets; nil if that was never wanted, or cannot be; the turn's
	hung  bool          // it has been tried; the turn's
	pause time.Duration // after the last failure, 0 after a success; the turn's
	crowd crowd         // the turn's
	files fileGauge     // the turn's
}

// accept lets connections in until the server stops or the listener is closed.
func (d *door) accept() {
	defer d.leave()
	for {
		c := d.next()
		if c == nil {
			return
		}
		d.server.welcome(c)
	}
}

// next waits for the next connection and a slot for it. It returns nil when the
// server stops or the listener is closed. Nothing else ends it: a full table of
// open files, a lack of memory and the like pass.
func (d *door) next() *Conn {
	d.turn.take()
	defer d.turn.give()
	s := d.server
	for d.awaitRoom() {
		c, err := d.takeWithFile()
		if err == nil {
			d.pause = 0
			if !c.passDoor() {
				continue
			}
			return d.admit(c)
		}
		select {
		case <-d.stop:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			d.fail(err)
			return nil
		}
		d.pause = min(max(2*d.pause, firstPause), lastPause)
		if !s.acceptFailed(d.listener, err, d.pause, d.stop) {
			return nil
		}
	}
	return nil
}

// take waits for the next connection.
func (d *door) take() (*Conn, error) {
	for d.server.inForce.Load().takesBare() && d.hangBare() {
		if c, err := d.bare.accept(); err != errNotBare {
			return c, err
		}
	}
	raw, err := d.listener.Accept()
	if err != nil {
		return nil, err
	}
	return newStreamConn(d.ctx, d.server, raw), nil
}

// errNotBare is of a bareListener whose connections need an arrival now.
var errNotBare = errors.New("not as bare sockets")

// hangBare reports whether the door can take connections as bare sockets.
func (d *door) hangBare() bool {
	if !d.hung {
		d.hung = true
		d.bare = d.server.takeBare(d.ctx, d.listener)
	}
	return d.bare != nil
}

// stopLocked has the acceptors notice that they are to stop.
func (d *door) stopLocked() {
	if d.stopped {
		return
	}
	d.stopped = true
	close(d.stop)
	wake, ok := d.listener.(interface{ SetDeadline(time.Time) error })
	if !ok || wake.SetDeadline(longAgo) != nil {
		_ = d.listener.Close()
	}
}

// admit waits for a slot: another door may have taken the one that there was. So
// at the cap each door but one may have a connection in hand that is not served
// yet.
func (d *door) admit(c *Conn) *Conn {
	if d.awaitSlot(d.server.gone) {
		return c
	}
	c.shutOut()
	return nil
}

// fail has Serve return. The first failure of all its listeners is enough.
func (d *door) fail(err error) {
	select {
	case d.call.failed <- fmt.Errorf("accept on %s: %w", d.listener.Addr(), err):
	default:
	}
}

// leave is an acceptor's end. The last one at the door serves who still waits
// there and closes it; the last of all may be what the server's end waited for.
func (d *door) leave() {
	s := d.server
	s.mu.Lock()
	d.acceptors--
	last, ours := d.acceptors == 0, !d.handedOver
	s.mu.Unlock()
	if last && ours {
		d.sweep()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acceptors--
	if last {
		delete(s.doors, d)
		_ = d.listener.Close()
		if d.call.doors--; d.call.doors == 0 {
			close(d.call.over)
		}
	}
	s.closeIfGoneLocked()
}

// sweep serves what still waits in the accept queue: those clients have
// connected already, and closing the listener would reset them. For those who
// are in the queue now it waits, at the cap, until others have left; with those
// who come later it has less patience, or a flood of them would keep a draining
// server open.
func (d *door) sweep() {
	s := d.server
	l, ok := d.listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return
	}
	parked, _ := queueOf(d.listener)
	for giveUp := time.Now().Add(sweepLimit); parked > 0 || time.Now().Before(giveUp); parked-- {
		if parked > 0 && !d.awaitSlot(s.gone) || parked <= 0 && !s.slots.take() {
			return
		}
		_ = l.SetDeadline(time.Now().Add(sweepPause)) // a closed listener says so at Accept
		c, err := d.take()
		if err == nil && c.passDoor() {
			s.welcome(c)
			continue
		}
		s.slots.free()
		if err == nil {
			continue
		}
		switch waiting, _ := queueOf(d.listener); {
		case errors.Is(err, net.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if !s.acceptFailed(d.listener, err, sweepPause, s.gone) {
				return
			}
		case waiting == 0:
			return
		}
	}
}

// queueOf returns how many connections wait in a listener's accept queue, and how
// many may, as far as it can be told: the kernel's in TCP on Linux, and one in
// memory that counts them itself, as leveetest's does.
func queueOf(l net.Listener) (length, limit int) {
	if own, ok := l.(interface{ Queued() int }); ok {
		return own.Queued(), 0
	}
	return kernelQueue(l)
}

// welcome counts a connection in and lets it begin.
func (s *Server) welcome(c *Conn) {
	onLoop := c.beginsOnLoop() && !c.mustWait()
	if onLoop {
		c.mu.Lock() // nobody may use it before its loop has it
	}
	listed, drain := s.list(c)
	if onLoop {
		if listed {
			c.enterLoopLocked()
		}
		c.mu.Unlock()
	}
	if !listed {
		c.shutOut()
		s.slots.free()
		return
	}
	if drain {
		c.askToLeave(Drained, nil)
	}
	if !onLoop {
		go c.live() // ends when the handler returns; Kill cuts what it may wait for
	}
}

// list puts a connection among the server's, unless that is closed.
func (s *Server) list(c *Conn) (listed, drain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == closed {
		return false, false
	}
	s.conns[c.id] = c
	return true, s.state == draining
}

// awaitRoom waits until the cap allows one more connection. It returns false
// when the server stops. It takes no slot: an acceptor whose listener is quiet
// would keep it from the others.
func (d *door) awaitRoom() bool {
	s := d.server
	select {
	case <-d.stop:
		return false
	default:
	}
	if !d.awaitSlot(d.stop) {
		return false
	}
	s.slots.free()
	return true
}

// awaitSlot waits for a slot, and now and then relieves those who wait behind it for too
// long. It returns false if stop is closed first.
func (d *door) awaitSlot(stop <-chan struct{}) bool {
	s := d.server
	slot := s.slots.await()
	if slot == nil {
		return true
	}
	defer s.pauses.begin().end()
	timer := &time.Timer{} // which never fires
	if d.crowd.counted {
		timer = time.NewTimer(d.untilLook())
		defer timer.Stop()
	}
	for {
		select {
		case <-stop:
			s.slots.giveUp(slot)
			return false
		case <-slot:
			return true
		case <-timer.C:
			d.relieve()
			timer.Reset(shedAfter)
		}
	}
}

// acceptPauses count when acceptors let nobody in.
type acceptPauses struct{ begun, open atomic.Int64 }

func (p *acceptPauses) begin() *acceptPauses {
	p.begun.Add(1)
	p.open.Add(1)
	return p
}

func (p *acceptPauses) end() { p.open.Add(-1) }

// acceptFailed tells of a failed accept and pauses. It returns false if stop was
// closed meanwhile.
func (s *Server) acceptFailed(l net.Listener, err error, pause time.Duration, stop <-chan struct{}) bool {
	s.mu.Lock()
	s.left.acceptErrors++
	s.mu.Unlock()
	s.acceptLog.complain(s.Logger, "accept failed", "listener", l.Addr().String(), "err", err, "retry_in", pause)
	if hook := s.trace().AcceptFailed; hook != nil {
		s.guard(nil, func() { hook(l, err, pause) })
	}
	s.lobby.clear() // those who are there are open files
	defer s.pauses.begin().end()
	return pauseFor(pause, stop, lacksFiles(err))
}
