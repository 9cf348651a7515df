package levee

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// adopt is Adopt. What it does is an arrival's part, for one that has arrived.
func (s *Server) adopt(data []byte, sockets []int) (*Adopted, error) {
	r, err := readRecord(data)
	if err == nil {
		err = r.check(sockets)
	}
	if err == nil {
		err = s.expect(r.ID)
	}
	if err != nil {
		closeAll(sockets)
		return nil, err
	}
	c := s.comer(&r, sockets[0])
	crate, err := c.comeIn(&r, sockets)
	if err != nil {
		switch st := c.stream.Load(); {
		case st != nil:
			_ = st.wire.raw.Close()
		case c.looped.bare >= 0:
			closeAll(sockets)
		}
		s.forget(c)
		return nil, err
	}
	return &Adopted{conn: c, crate: crate, from: r}, nil
}

func closeAll(sockets []int) {
	slices.Sort(sockets)
	for _, fd := range slices.Compact(sockets) {
		_ = unix.Close(fd)
	}
}

// check readies the sockets, and has the record know which they are.
func (r *record) check(sockets []int) error {
	if len(sockets) != r.sockets() {
		return fmt.Errorf("%d sockets, want %d", len(sockets), r.sockets())
	}
	for i, fd := range sockets {
		if slices.Contains(sockets[:i], fd) {
			return fmt.Errorf("socket %d is there twice", fd)
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil || kind != unix.SOCK_STREAM {
			return fmt.Errorf("descriptor %d is not a stream's socket", fd)
		}
		domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN) // fails for no socket
		r.uneven = r.uneven || domain == unix.AF_UNIX
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// expect takes note that a connection comes.
func (s *Server) expect(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, comes := s.coming[id]
	switch {
	case s.state == closed || s.desertedLocked():
		return ErrServerClosed
	case comes || s.conns[id] != nil:
		return fmt.Errorf("a connection has id %d already", id)
	}
	s.coming[id] = struct{}{}
	return nil
}

// forget is the end of a connection that comes no more.
func (s *Server) forget(c *Conn) {
	c.giveBack(End{})
	s.slots.free()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.coming, c.id)
	s.closeIfGoneLocked()
}

// comer returns the connection of a record, whose client has the socket.
func (s *Server) comer(r *record, socket int) *Conn {
	SkipIDs(r.ID)
	s.slots.seize()
	s.mu.Lock()
	base := s.base
	s.mu.Unlock()
	if base == nil {
		base = context.Background()
	}
	c := new(Conn)
	c.init(s, r.address(r.Local), r.address(r.Peer))
	c.looped.bare = int32(socket) //nolint:gosec // descriptors are small
	c.looped.by = &service{base: base}
	r.tell(c)
	return c
}

// comeIn has the server's Gate, Router and handler go on with a connection.
func (c *Conn) comeIn(r *record, sockets []int) (crate, error) {
	if r.Next != nil { // first, as the Gate may set a pace
		if err := c.takeStream(r); err != nil {
			return nil, err
		}
	}
	if err := c.readmit(); err != nil {
		return nil, err
	}
	h, err := c.reroute()
	switch {
	case err != nil:
		return nil, err
	case r.Next != nil:
		return c.recall(h)
	case r.Loop.Far != nil:
		return c.rejoin(h, r, sockets)
	}
	return c.restore(h, r, sockets)
}

// takeStream gives the connection a stream that knows what the one before did.
func (c *Conn) takeStream(r *record) error {
	s, err := c.streamOfBare()
	if err != nil {
		return err
	}
	s.wire.read.Store(max(0, r.Next.Read))
	s.wire.written.Store(max(0, r.Next.Written))
	s.wire.held.fill(r.Next.Ahead)
	s.wire.hasBeenSilent(within(r.Next.Silent))
	c.needMover().saved = r.State
	return nil
}

// readmit asks the Gate.
func (c *Conn) readmit() error {
	gate, ok := c.set.gate.(Readmitter)
	if !ok {
		return nil
	}
	return c.consult("Readmit", func() error {
		if pass := gate.Readmit(c); pass != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.pass = pass
		}
		return nil
	})
}

// consult calls a method of the user's, whose panic is an error.
func (c *Conn) consult(name string, call func() error) error {
	err := fmt.Errorf("%s has panicked", name)
	c.server.guard(c, func() { err = call() })
	return err
}

// reroute follows Rerouters until one names a handler that is no Router.
func (c *Conn) reroute() (h Handler, err error) {
	for h = c.set.handler; ; {
		if _, ok := h.(Router); !ok {
			break
		}
		router, ok := h.(Rerouter)
		if !ok {
			return nil, fmt.Errorf("a %T cannot tell which handler route %q has", h, c.Route())
		}
		err := c.consult("Reroute", func() error {
			h, err = router.Reroute(c)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if h == nil {
		return nil, errNoHandler
	}
	return h, nil
}

// restore has a Movable go on with the connection.
func (c *Conn) restore(h Handler, r *record, sockets []int) (crate, error) {
	m, ok := h.(Movable)
	loops := c.server.eventLoops()
	if !ok || loops == nil {
		return nil, cannotGoOn(h)
	}
	if err := c.consult("Restore", func() error { return m.Restore(c, r.State) }); err != nil {
		return nil, err
	}
	limits := &c.set.onLoops.stepped
	if r.uneven {
		limits = &c.set.onLoops.steppedUnix
	}
	c.looped.by = &service{stepper: m}
	if c.life.at[firstByte].Load() == 0 {
		c.looped.state.Store(unserved)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	loops.Restore(&c.looped.Conn, nil, sockets, r.Loop, (*stepping)(c), limits)
	c.loopHasItLocked()
	return &loopCrate{c, r.Loop.Near.EndedFirst}, nil
}

// rejoin has a Rejoiner go on with the connection.
func (c *Conn) rejoin(h Handler, r *record, sockets []int) (crate, error) {
	j, ok := h.(Rejoiner)
	loops := c.server.eventLoops()
	if !ok || loops == nil {
		return nil, cannotGoOn(h)
	}
	var u Upstream
	err := c.consult("Rejoin", func() (err error) {
		u, err = j.Rejoin(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	p := c.newPair(u)
	if o, ok := p.(*overheardPair); ok && r.Heard != nil {
		o.restore(r.Heard)
	}
	limits := &c.set.onLoops.joined
	if r.uneven {
		limits = &c.set.onLoops.joinedUnix
	}
	c.looped.state.Store(rejoins)
	c.mu.Lock()
	defer c.mu.Unlock()
	loops.Restore(&c.looped.Conn, &p.itself().far, sockets, r.Loop, p, limits)
	c.loopHasItLocked()
	return &loopCrate{c, r.Loop.Near.EndedFirst}, nil
}

// recall has a handler called anew for the connection.
func (c *Conn) recall(h Handler) (crate, error) {
	if _, ok := h.(Joiner); ok {
		return nil, cannotGoOn(h) // it would join it to another upstream
	}
	return &recallCrate{c, h}, nil
}

func cannotGoOn(h Handler) error { return fmt.Errorf("a %T cannot go on with it", h) }

// A recallCrate has a connection whose handler is to be called anew.
type recallCrate struct {
	conn    *Conn
	handler Handler
}

func (k *recallCrate) goOn() { go k.conn.liveBy(k.serve) } // ends when the handler returns

func (k *recallCrate) serve() (moved bool, err error) {
	return false, k.handler.ServeTCP(k.conn.stream.Load().context(), k.conn)
}

func (k *recallCrate) letGo() { _ = k.conn.stream.Load().wire.raw.Close() }

func (a *Adopted) begin() {
	c, s := a.conn, a.conn.server
	read, written := a.from.traffic()
	s.mu.Lock()
	delete(s.coming, c.id)
	s.conns[c.id] = c
	s.left.adopted++
	s.left.read -= read // that was another process's
	s.left.written -= written
	state := s.state
	s.mu.Unlock()
	if hook := s.trace().Adopted; hook != nil {
		s.guard(c, func() { hook(c) })
	}
	c.introduceDraining()
	c.goOnAgeing(a.from.Lifetime)
	switch state {
	case draining:
		c.askToLeave(Drained, nil)
	case closed:
		_ = c.cut(ServerClosed, nil)
	}
	a.crate.goOn()
}

// goOnAgeing limits what is left of the connection's lifetime.
func (c *Conn) goOnAgeing(left time.Duration) {
	most := c.set.limits.lifetime
	if most <= 0 || left <= 0 {
		c.limitLifetime()
		return
	}
	c.limitLifetimeTo(min(left, most+most/10))
}

func (a *Adopted) drop() {
	a.crate.letGo()
	a.conn.server.forget(a.conn)
}
