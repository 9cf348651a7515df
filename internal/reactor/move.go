//go:build linux

package reactor

import (
	"time"

	"golang.org/x/sys/unix"
)

// A connection that is packed is in its loop's hands no more: not in its poller, nor in its
// wheel. It is gone, to whatever there still knows it; but its state stands where it was, in its Conn.
// The times in that count from the moment then, and stand still.

// A Snapshot is what is to be known of a connection to go on with it in another process. Its
// names there are those of its fields: they are not to be changed, nor used anew.
type Snapshot struct {
	Near Side
	Far  *Side `json:",omitempty"` // nil unless it is joined
}

// A Side is a connection, or one of a pair.
type Side struct {
	In, Out       []byte        `json:",omitempty"` // that wait for the rest of their message, and for the peer to take them
	Read, Written int64         `json:",omitempty"` // Conn.Traffic
	Silent        time.Duration `json:",omitempty"` // since a byte last moved; of a pair since one last came from there
	Message       time.Duration `json:",omitempty"` // since the first byte of In came; 0 if no message waits for its rest
	Stalled       time.Duration `json:",omitempty"` // since the peer last took some of Out
	Queue         uint32        `json:",omitempty"` // bytes that the kernel held for it then
	Waits         time.Duration `json:",omitempty"` // until it may be read, for a Pacer
	Room          uint8         `json:",omitempty"` // of a pair: Conn.quick
	Uneven        bool          `json:",omitempty"`
	Ended         bool          `json:",omitempty"`
	EndedFirst    bool          `json:",omitempty"`
	Told          bool          `json:",omitempty"`
	Heard         bool          `json:",omitempty"`
	Young         bool          `json:",omitempty"`
}

// packed is what is to be remembered of a connection while it is packed, or of a pair.
type packed struct {
	waits  [2]time.Duration // for a Pacer: what is left
	shares bool             // a pair's pace has yet to be shared
	killed bool             // it was asked to be
}

// Pack takes the connection, and what it is joined with, out of its loop, and calls f with what is
// to be known of it: until Unpack or Discard nothing is read from it or written to it, and none of its time runs.
// What is asked of it meanwhile, Kill too, is done when it is unpacked. Control has the socket as before.
//
// It waits for a call that is under way. f is called with nil if the connection cannot be had: it has ended,
// is about to, or was asked to leave; it is packed, or somebody else has asked while it waited; a Sealer has it, or it is one of a pair that has failed. f must be quick,
// and must not panic; it keeps the snapshot, and must not change it. Pack reports false if f will not be called, after Close.
func (c *Conn) Pack(f func(*Snapshot)) bool {
	return c.loop.post(message{op: opPack, conn: c, pack: f})
}

// Unpack has a connection that is packed go on. It must be called once.
func (c *Conn) Unpack() { c.loop.post(message{op: opUnpack, conn: c}) }

// Discard closes the sockets of a connection that is packed, as another process has copies of
// them: nobody is told. The last Control that is under way closes what it is using.
func (c *Conn) Discard() {
	for _, side := range c.sides() {
		side.giveUp()
	}
}

// Owner returns what Adopt, Join or Restore was given. It may be called once that has returned.
func (c *Conn) Owner() Owner { return c.owner }

// Sockets returns the connection's, and that of the one it is joined with.
func (c *Conn) Sockets() []int {
	var fds []int
	for _, side := range c.sides() {
		fds = append(fds, int(side.fd))
	}
	return fds
}

// Restore makes near a connection that is packed, of a snapshot; and joins it with far if the snapshot is
// one of a pair. The sockets are as for Adopt, and the reactor's from now on. The owner, and the limits, are as for Adopt and Join,
// but no call of Step is without bytes. Where the snapshot makes no sense, neither does what comes of it, and no more.
func (r *Reactor) Restore(near, far *Conn, sockets []int, s *Snapshot, owner Owner, limits *Limits) {
	turn := r.turn.Add(1)
	l := r.loops[turn%uint32(len(r.loops))] //nolint:gosec // there are not so many
	p := &packed{shares: true}
	near.owner = owner
	if s.Far != nil {
		near.peer, far.peer = far, near
		if _, ok := owner.(Overhearer); ok {
			far.dear = overheard
		}
	}
	for i, side := range near.sides() {
		side.fd, side.gen, side.limits, side.loop = int32(sockets[i]), turn, limits, l //nolint:gosec // descriptors are small
		p.waits[i] = s.side(i).restore(side)
	}
	near.needRest().packed = p
}

// sides returns the connection, and the one it is joined with.
func (c *Conn) sides() []*Conn {
	if c.peer == nil {
		return []*Conn{c}
	}
	return []*Conn{c.near(), c.near().peer}
}

func (s *Snapshot) side(i int) *Side {
	if i == 0 {
		return &s.Near
	}
	return s.Far
}

// packed returns what is remembered of the near one of a pair, or one alone; nil if it is not packed.
func (c *Conn) packed() *packed {
	if c.rest == nil {
		return nil
	}
	return c.rest.packed
}

// mayMove reports whether the connection is one that another process could go on with.
func (c *Conn) mayMove() bool {
	if c.peer == nil {
		return !c.is(gone | away | leaving | killed | refused | parting)
	}
	return !c.is(gone|leaving|sealed|broken) && !c.peer.is(broken)
}

// pack packs a connection as soon as that can be.
func (l *loop) pack(c *Conn, f func(*Snapshot)) {
	if c.peer == nil && c.is(away) {
		if before := c.takePacker(); before != nil {
			before(nil) // who asks last gets it: the one before may wait no more
		}
		c.needRest().pack = f
		return
	}
	if !l.has(c) || !c.mayMove() || !l.emptyPipes(c) {
		f(nil)
		return
	}
	p, s := new(packed), new(Snapshot)
	for i, side := range c.sides() {
		p.waits[i] = l.putAside(side)
		if i > 0 {
			s.Far = new(Side)
		}
		s.side(i).take(side, p.waits[i])
	}
	c.needRest().packed = p
	f(s)
}

// takePacker returns who waits for the call that was under way, nil if nobody does.
func (c *Conn) takePacker() (f func(*Snapshot)) {
	if c.rest != nil {
		f, c.rest.pack = c.rest.pack, nil
	}
	return f
}

// emptyPipes has what waits for either of a pair wait in memory. It reports false if it cannot be read
// from a pipe; none of it is lost then.
func (l *loop) emptyPipes(c *Conn) bool {
	for _, side := range c.sides() {
		if r := side.rest; r != nil && r.pipe != nil {
			var err error
			r.out, err = r.pipe.empty(r.out)
			if err != nil {
				return false
			}
			l.pipes.give(r.pipe)
			r.pipe = nil
			side.weigh()
		}
	}
	return true
}

// empty appends to out what is in the pipe.
func (p *pipe) empty(out []byte) ([]byte, error) {
	for p.held > 0 {
		b := make([]byte, p.held)
		n, err := unix.Read(p.r, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return out, unix.EIO
		}
		out = append(out, b[:n]...)
		p.held -= n
	}
	return out, nil
}

// putAside takes a connection out of the loop. It returns how long it had yet to wait for a Pacer.
func (l *loop) putAside(c *Conn) (waits time.Duration) {
	if c.waits() {
		waits = time.Duration(c.pace.Load().until - l.now)
	}
	_ = l.poller.remove(int(c.fd)) // which closing the socket would not do while another process has it
	l.forget(c)
	c.weigh()
	c.shift(-l.now)
	return waits
}

// shift moves the connection's times.
func (c *Conn) shift(by int64) {
	c.active += by
	if c.rest == nil {
		return
	}
	c.rest.since += by
	if c.rest.began != 0 {
		if c.rest.began += by; c.rest.began == 0 {
			c.rest.began = -1 // 0 is none
		}
	}
}

// take takes what is to be known of a connection that was put aside.
func (s *Side) take(c *Conn, waits time.Duration) {
	s.Read, s.Written = c.Traffic()
	s.Silent, s.Waits = time.Duration(-c.active), waits
	s.Uneven, s.Ended = c.is(uneven), c.is(ended)
	if r := c.rest; r != nil {
		s.In, s.Out, s.Queue = r.in, r.out, r.queue
		s.Message, s.Stalled = time.Duration(-r.began), time.Duration(-r.since)
	}
	if c.peer == nil {
		return
	}
	s.Room, s.EndedFirst, s.Told = c.quick, c.is(endedFirst), c.is(told)
	if c.owner == nil {
		s.Heard, s.Young = c.is(heard), c.is(young)
	}
}

// restore makes of it what was put aside.
func (s *Side) restore(c *Conn) (waits time.Duration) {
	c.set(gone | s.state(c))
	c.SetTraffic(max(0, s.Read), max(0, s.Written))
	c.active = -ago(s.Silent)
	if len(s.In) > 0 || len(s.Out) > 0 {
		c.rest = &rest{in: s.In, out: s.Out, queue: s.Queue, since: -ago(s.Stalled), began: -ago(s.Message)}
	}
	if c.peer != nil {
		c.quick = min(s.Room, wide)
	}
	c.weigh()
	return time.Duration(ago(s.Waits))
}

func (s *Side) state(c *Conn) (all state) {
	for _, b := range [...]struct {
		is   bool
		bit  state
		pair bool
		far  bool
	}{
		{s.Uneven || c.limits.Uneven, uneven, false, false},
		{s.Ended, ended, false, false},
		{s.EndedFirst, endedFirst, true, false},
		{s.Told, told, true, false},
		{s.Heard, heard, true, true},
		{s.Young, young, true, true},
	} {
		if b.is && (!b.pair || c.peer != nil) && (!b.far || c.owner == nil) {
			all |= b.bit
		}
	}
	return all
}

// ago returns a time that may be, whatever somebody says: a byte may have moved a moment after the
// moment, as who of a pair has sent last is told apart that way.
func ago(d time.Duration) int64 {
	const longest = 100 * 365 * 24 * time.Hour
	return int64(min(max(d, -time.Second), longest))
}

// obeyPacked notes what is asked of a connection that is packed.
func (l *loop) obeyPacked(c *Conn, p *packed, m message) bool {
	switch m.op {
	case opUnpack:
		return l.unpack(c, p)
	case opLeave:
		c.set(leaving)
	case opKill:
		p.killed = true
	case opPause:
		for _, side := range c.sides() {
			side.set(paused)
		}
	case opResume:
		for _, side := range c.sides() {
			side.clear(paused)
		}
	case opPack:
		m.pack(nil)
	}
	return true
}

// unpack goes on with a connection. What has come meanwhile, and that there is room to write, the kernel
// tells of anew when its sockets come into the poller.
func (l *loop) unpack(c *Conn, p *packed) bool {
	c.rest.packed = nil
	if p.shares && c.peer != nil {
		c.sharePace()
	}
	var failed error
	for i, side := range c.sides() {
		side.clear(gone)
		silent := side.active
		l.list(side)
		side.active = silent
		side.shift(l.now)
		side.set(readable)
		if pace := side.pace.Load(); pace != nil {
			l.await(pace, p.waits[i])
		}
		if err := l.poller.add(int(side.fd), side.fd, side.gen); err != nil {
			failed = err
		}
	}
	switch {
	case p.killed:
		return l.kill(c)
	case failed != nil:
		return l.end(c, IOError, failed)
	case c.peer != nil:
		return l.unpackPair(c)
	}
	l.watch(c)
	if c.owes() {
		return true // until the poller says that there is room
	}
	return l.proceed(c)
}

func (l *loop) unpackPair(near *Conn) bool {
	for _, side := range near.sides() {
		if !side.owes() {
			l.discardRest(side)
		}
	}
	l.watchPair(near)
	return l.relay(near) && l.relay(near.peer) && l.leaveInQuiet(near)
}
