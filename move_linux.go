package levee

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/reactor"
)

// A packing is a call of Pack.
type packing struct {
	came chan packed // has room for all

	mu   sync.Mutex
	over bool // nobody waits any more
}

// A packed connection is one that was asked for: it has a crate, if it is to be had.
type packed struct {
	conn  *Conn
	crate crate
	loop  *reactor.Snapshot // of one on an event loop
	next  *nextRecord       // of one in a goroutine
	state []byte            // of that
}

func (s *Server) pack(ctx context.Context, conns []*Conn) (parcels []*Parcel) {
	p := &packing{came: make(chan packed, len(conns))}
	asked := 0
	for _, c := range conns { // all of them first: they are had together
		if c.server == s && c.packFor(p) {
			asked++
		}
	}
	for ; asked > 0; asked-- {
		select {
		case one := <-p.came:
			parcels = one.seal(parcels)
		case <-ctx.Done():
			p.giveUp()
			for len(p.came) > 0 {
				parcels = (<-p.came).seal(parcels)
			}
			return parcels
		}
	}
	return parcels
}

// deliver has Pack know of a connection. If it waits no more the connection goes on.
func (p *packing) deliver(one packed) {
	p.mu.Lock()
	over := p.over
	if !over {
		p.came <- one
	}
	p.mu.Unlock()
	if over && one.crate != nil {
		one.crate.goOn()
	}
}

func (p *packing) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
}

func (p *packing) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// seal makes a Parcel of a connection that is to be had, or has it go on.
func (one packed) seal(parcels []*Parcel) []*Parcel {
	if one.crate == nil {
		return parcels
	}
	data, err := one.data()
	if err != nil {
		one.crate.goOn()
		return parcels
	}
	p := &Parcel{conn: one.conn, data: data, crate: one.crate}
	switch crate := one.crate.(type) {
	case *loopCrate:
		p.sockets = one.conn.looped.Sockets()
	case *nextCrate:
		p.sockets = []int{crate.fd}
	}
	return append(parcels, p)
}

// data returns what is to be told of the connection. An error has it stay.
func (one packed) data() (data []byte, err error) {
	c := one.conn
	if reason, _ := c.asked(); c.over() || reason != ReasonNone {
		return nil, errStays
	}
	r := recordOf(c)
	r.Loop, r.Next, r.State = one.loop, one.next, one.state
	if r.Loop != nil {
		if o, ok := c.looped.Owner().(*overheardPair); ok {
			r.Heard = o.save()
		}
	}
	if m, ok := c.stepper().(Movable); ok && r.Loop != nil && r.Loop.Far == nil {
		err = errStays // if it panics
		c.server.guard(c, func() { r.State, err = m.Save(c) })
		if err != nil {
			return nil, err
		}
	}
	return json.Marshal(&r)
}

// packFor has the connection delivered when it is to be had, or when it is not; it reports false if it is
// known not to be.
func (c *Conn) packFor(p *packing) bool {
	if reason, _ := c.asked(); c.over() || reason != ReasonNone {
		return false
	}
	switch onLoop, s := c.place(); {
	case onLoop:
		return c.packOnLoop(p)
	case s != nil:
		return s.packInNext(p)
	}
	return false
}

func (c *Conn) packOnLoop(p *packing) bool {
	l := &c.looped
	if _, ok := c.stepper().(Movable); !ok && l.state.Load()&rejoins == 0 {
		return false
	}
	return l.Pack(func(s *reactor.Snapshot) {
		one := packed{conn: c, loop: s}
		if s != nil {
			one.crate = &loopCrate{c, s.Near.EndedFirst}
		}
		p.deliver(one)
	})
}

// stepper returns what an event loop steps the connection by, nil if none does.
func (c *Conn) stepper() Stepper {
	if c.looped.by == nil {
		return nil
	}
	return c.looped.by.stepper
}

// A loopCrate has a connection that was on an event loop, or comes to one.
type loopCrate struct {
	conn       *Conn
	endedFirst bool // of a pair: the client has ended its stream, and the upstream had not
}

func (k *loopCrate) goOn() { k.conn.looped.Unpack() }

func (k *loopCrate) letGo() {
	c := k.conn
	c.looped.Discard()
	if o, ok := c.looped.Owner().(owner); ok {
		c.tellEnded(o.itself().ended, UpstreamEnd{ClientFirst: k.endedFirst}) // its bytes are counted where it ends, all of them
	}
}

// packInNext has a connection delivered whose handler waits in Next, or comes to.
func (s *stream) packInNext(p *packing) bool {
	m := s.conn.itsMover()
	if m == nil || s.conn.isSecured() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return false
	}
	if m.asked != nil {
		m.asked.deliver(packed{conn: s.conn}) // who asks last gets it: the one before may wait no more
	}
	m.asked = p
	s.wire.want()
	return true
}

// want interrupts the wait for a next request, as askToLeave does.
func (w *wire) want() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted.Store(true)
	if w.waiting.Load() {
		_ = w.armReadLocked()
	}
}

// take returns who has asked for the connection, nil if nobody has.
func (m *mover) take(w *wire) (p *packing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.wanted.Store(false)
	p, m.asked = m.asked, nil
	return p
}

// stepAside has the connection, which is between two requests, wait for what becomes of it. The error says that it has moved.
func (c *Conn) stepAside() error {
	m, s := c.itsMover(), c.stream.Load()
	p := m.take(&s.wire)
	if p == nil || p.isOver() {
		return nil
	}
	one := packed{conn: c}
	delivered := false
	defer func() { // also if save panics
		if !delivered {
			p.deliver(packed{conn: c})
		}
	}()
	crate := s.packNow(m, &one)
	if crate == nil {
		return nil
	}
	one.crate = crate
	delivered = true
	p.deliver(one)
	if <-crate.moved {
		m.moved, m.end = true, crate.end
		return c.end.Load()
	}
	return nil
}

// packNow returns nil if the connection cannot move.
func (s *stream) packNow(m *mover, one *packed) *nextCrate {
	w := &s.wire
	sock, ok := w.socket()
	if !ok || s.arriving || s.conn.over() || w.leaving.Load() || w.shut.Load() || w.screening.Load() || w.turn.taken() || m.save == nil {
		return nil
	}
	if held, err := w.alreadyHeld(); held && err != nil {
		return nil // which Next is to tell
	}
	var err error
	if one.state, err = m.save(); err != nil {
		return nil
	}
	fd := duplicate(sock)
	if fd < 0 {
		return nil
	}
	one.next = &nextRecord{Read: w.read.Load(), Written: w.written.Load(), Ahead: w.held.bytes(), Silent: w.silentFor()}
	return &nextCrate{stream: s, fd: fd, moved: make(chan bool, 1)}
}

// silentFor returns how long the peer has been waited for, since a byte last moved.
func (w *wire) silentFor() time.Duration {
	if w.moved.Load() != w.read.Load()+w.written.Load()+1 {
		return 0
	}
	return time.Duration(w.waited.Load())
}

// hasBeenSilent has the wait for the peer have begun so long ago.
func (w *wire) hasBeenSilent(since time.Duration) {
	w.wroteAt.Store(int64(w.clock() - since))
	w.moved.Store(w.read.Load() + w.written.Load() + 1)
	w.waited.Store(int64(since))
}

// A nextCrate has a connection whose handler is in Next.
type nextCrate struct {
	stream *stream
	fd     int       // the socket's, for the other process
	moved  chan bool // has room for the verdict
	end    End       // once it has moved
}

func (k *nextCrate) goOn() {
	_ = unix.Close(k.fd)
	k.moved <- false
}

func (k *nextCrate) letGo() {
	s := k.stream
	s.conn.cancelContext(&CloseError{})
	_ = unix.Close(k.fd)
	_ = s.wire.raw.Close()
	k.end = s.conn.strikeOff(End{}) // at once; the rest is for its goroutine, when the handler has returned
	k.moved <- true
}

// leavesElsewhere is the end of the goroutine of a connection that might have moved, and reports whether it has.
func (c *Conn) leavesElsewhere() bool {
	m, s := c.itsMover(), c.stream.Load()
	if m == nil || s == nil {
		return false
	}
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	if p := m.take(&s.wire); p != nil {
		p.deliver(packed{conn: c})
	}
	if !m.moved {
		return false
	}
	s.release()
	c.bidFarewell(m.end)
	return true
}
