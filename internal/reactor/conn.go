//go:build linux

package reactor

import "sync/atomic"

// A Conn is a connection's state. It is meant to be embedded in its owner. The
// zero value is ready for Reactor.Adopt, or Join; once it has been adopted it cannot be
// used for another. Its methods may be called when Adopt has returned, and do
// nothing once the connection has ended.
type Conn struct {
	owner  Owner
	limits *Limits
	loop   *loop
	peer   *Conn                // that it is joined with; nil if it has an owner that steps
	rest   *rest                // bytes that wait; nil for most
	pace   atomic.Pointer[pace] // what it is kept to; nil for most

	read, written atomic.Int64
	active        int64 // clock when a byte last moved

	fd    int32
	gen   uint32        // tells its events from those of an earlier connection with the same fd
	users atomic.Uint32 // of the socket, beside the loop; see Control
	state state
	quick uint8 // calls in a row that the lane found quick; of one of a pair, fresh, narrow or wide
	dear  uint8 // how often what one read takes is halved, as it costs so much to open

	next, prev *Conn // in the wheel
	due        int64 // the wheel's tick at which to look

	held atomic.Int64 // bytes; see Held
}

// rest are a connection's bytes that wait for something.
type rest struct {
	in      []byte          // for the rest of their message
	out     []byte          // for the peer to take them
	pipe    *pipe           // in which more wait for it; nil if out does
	began   int64           // clock when the first byte of the message came that waits; 0 if none does
	since   int64           // clock when the peer last took some, or the goodbye began
	queue   uint32          // bytes that the kernel held for the peer when last asked
	shown   bool            // in has been, to a step that consumed none of it
	cause   Cause           // of the end, while the goodbye lasts
	refusal error           // why the connection ends once it has
	dropped int             // bytes that came during the goodbye
	pack    func(*Snapshot) // who gets the connection when its call is over
	packed  *packed         // nil unless it is
}

// owes reports whether bytes wait for the peer.
func (c *Conn) owes() bool { return c.rest != nil && (len(c.rest.out) > 0 || c.rest.pipe != nil) }

func (c *Conn) needRest() *rest {
	if c.rest == nil {
		c.rest = new(rest)
	}
	return c.rest
}

// weigh counts what c holds, whenever that has changed.
func (c *Conn) weigh() {
	n := 0
	if r := c.rest; r != nil {
		n = cap(r.in) + cap(r.out)
		if r.pipe != nil {
			n += r.pipe.held
		}
	}
	c.held.Store(int64(n))
}

// Held returns how many bytes of memory hold what has come and waits for the rest of its
// message, or for the peer to take it; of a pair those of both. What waits in a call that is
// under way is among them, and what crypto/tls keeps is not. It may be called from any goroutine.
func (c *Conn) Held() int {
	n := c.held.Load()
	if c.peer != nil {
		n += c.peer.held.Load()
	}
	return int(n)
}

// messageOver notes that what waits for the rest of its message is another message from now on.
func (c *Conn) messageOver() {
	if c.rest != nil {
		c.rest.began = 0
	}
}

// dropRest lets go of a rest in which nothing is left.
func (c *Conn) dropRest() {
	if len(c.rest.in) == 0 && len(c.rest.out) == 0 {
		c.rest = nil
	}
}

type state uint16

const (
	readable state = 1 << iota // the kernel may have bytes
	uneven                     // a read may stop short of what it has: at urgent data, before the end of the stream
	ended                      // the end of stream has been read
	away                       // a call outlived its budget and has the connection
	slow                       // calls go through the lane
	proven                     // a call has returned in time
	queued                     // in the loop's list of those that have more to read
	paused
	leaving
	killed
	refused // ends when the reply has been written
	parting // says goodbye: only what comes is read, and dropped
	told    // its peer's end of stream has been passed on to it
	broken  // its socket has failed
	sealed  // the owner is a Sealer
	gone    // closed, or packed
)

func (c *Conn) is(s state) bool { return c.state&s != 0 }
func (c *Conn) set(s state)     { c.state |= s }
func (c *Conn) clear(s state)   { c.state &^= s }

// Traffic returns the bytes read and written. It may be called from any goroutine.
func (c *Conn) Traffic() (read, written int64) { return c.read.Load(), c.written.Load() }

// SetTraffic has Traffic go on from the bytes that were counted before, among them
// those that Adopt is given. It must be called before Adopt.
func (c *Conn) SetTraffic(read, written int64) {
	c.read.Store(read)
	c.written.Store(written)
}

// MayLast has Options.Lasting told of the connection if it lasts. It must be called before
// Join.
func (c *Conn) MayLast() { c.set(young) }

// Leave asks the connection to leave: once all that has arrived is answered, at
// once if nothing has. It may be called from any goroutine, and more than once.
func (c *Conn) Leave() { c.loop.post(message{op: opLeave, conn: c}) }

// Kill closes the connection. It may be called from any goroutine, and more than
// once. A call that is under way is not interrupted.
func (c *Conn) Kill() { c.loop.post(message{op: opKill, conn: c}) }

// Pause stops reading until Resume. What waits for the peer is still written.
// A paused connection is never idle, and neither leaves nor sees the peer's end. But a message
// that waits for its rest has Limits.Message anew, and no longer than that.
func (c *Conn) Pause() { c.loop.post(message{op: opPause, conn: c}) }

// Resume ends a Pause.
func (c *Conn) Resume() { c.loop.post(message{op: opResume, conn: c}) }

// A View is what Inspect shows of a connection.
type View struct {
	In, Out       int // bytes that wait for the rest of their message, and for the peer
	Read, Written int64
	Idle          int64 // nanoseconds since a byte last moved
	Away, Slow    bool
	Paused        bool
}

// Inspect calls f with the connection's state, on its loop, unless it has ended. f
// must be quick, and must not panic.
func (c *Conn) Inspect(f func(View)) { c.loop.post(message{op: opInspect, conn: c, inspect: f}) }
