package levee

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// A Parcel is a connection on its way to another process: its sockets, and what is to be known
// of it. While it is one nothing is read from it or written to it, and neither idleness nor a stall nor a message of its
// is timed. What is asked of it meanwhile, such as to leave, or Kill, is done when it goes on here, and not if it has moved.
// It ends by Unpack or Moved: the first call of either counts. They may be called from any goroutine.
type Parcel struct {
	conn    *Conn
	data    []byte
	sockets []int
	crate   crate
	end     sync.Once
}

// A crate holds a connection that is on its way, or has come and not begun.
type crate interface {
	goOn()  // here
	letGo() // another process has it: its sockets are closed
}

// Conn returns the connection.
func (p *Parcel) Conn() *Conn { return p.conn }

// Data returns what [Server.Adopt] is to be given of the connection. It holds bytes of the
// client's: it is nobody else's to see. It must not be changed.
func (p *Parcel) Data() []byte { return p.data }

// Sockets returns the descriptors of its sockets: the client's, and that of the upstream of one that
// is joined. They are the parcel's: the other process has to be given copies (SCM_RIGHTS makes such).
func (p *Parcel) Sockets() []int { return p.sockets }

// Unpack has the connection go on here, as if nothing had happened.
func (p *Parcel) Unpack() { p.end.Do(p.crate.goOn) }

// Moved says that the connection is another process's now. Its sockets are closed here, which
// tells the client nothing, and it leaves the server's counts for Stats.Moved: it has not ended, and
// Trace.Closed is not called, but Trace.Moved. What it has held of a [Gate], a [Router] or an [Upstream]
// is given back.
func (p *Parcel) Moved() {
	p.end.Do(func() {
		p.conn.end.CompareAndSwap(nil, &CloseError{})
		p.crate.letGo()
		if onLoop, _ := p.conn.place(); onLoop { // else its goroutine has to depart
			p.conn.departAs(End{})
		}
	})
}

// Pack takes connections of the server's out of its hands, for another process to go on with. It
// returns those that can move, and waits for them until ctx ends; the others, and those that
// could not be had until then, go on as before. It may be called from several goroutines: of those that wait for the same connection
// the last gets it.
//
// What can move is what event loops serve in plaintext: a connection of a [Stepper] that is [Movable],
// between two Steps, and one that a [Rejoiner] has joined to an upstream in plaintext; and in a goroutine
// the connection of a handler that has called [Conn.MovesWith], while it waits in [Conn.Next]. Who was asked to leave does
// not move, nor one of a pair of which either side has failed.
//
// Elsewhere than on Linux nothing can move.
func (s *Server) Pack(ctx context.Context, conns ...*Conn) []*Parcel {
	s.init()
	return s.pack(ctx, conns)
}

// Adopt makes a connection of the data and the sockets of a [Parcel] of another process's, be its levee older or
// newer. The sockets are the server's, also after an error. The connection's settings are those in force, and the
// server's Gate, Router and handler are asked to go on with it ([Readmitter], [Rerouter], [Movable], [Rejoiner]); its id,
// its story, its counts and what it waits for are as they were. There is room for it even if the server is full, and under
// pressure: it was let in once.
//
// Nothing is read from it or written to it before Begin, and until then it is not among the server's connections.
// The server may have begun to serve or not, but must not have come to its end.
//
// To be able to go on with an id, a process has to know before it accepts connections of its own which ids the other
// has given: see [SkipIDs]. An id that an open connection of the server's has is an error.
//
// Elsewhere than on Linux the error is [errors.ErrUnsupported].
func (s *Server) Adopt(data []byte, sockets []int) (*Adopted, error) {
	s.init()
	a, err := s.adopt(data, sockets)
	if err != nil {
		return nil, fmt.Errorf("levee: adopt: %w", err)
	}
	return a, nil
}

// An Adopted is a connection that has come from another process, and has not begun. It ends by Begin or
// Drop: the first call of either counts. A server is not at its end before that.
type Adopted struct {
	conn  *Conn
	crate crate
	from  record
	end   sync.Once
}

// Conn returns the connection.
func (a *Adopted) Conn() *Conn { return a.conn }

// Begin has the server serve the connection. It counts in Stats.Adopted now, and Trace.Adopted is called. If the
// server drains the connection is asked to leave, and if it was closed it ends with reason server_closed.
func (a *Adopted) Begin() { a.end.Do(a.begin) }

// Drop forgets the connection, which stays the other process's. Its sockets are closed here, which tells the
// client nothing; what was taken for it is given back as by [Parcel.Moved], and neither counts.
func (a *Adopted) Drop() { a.end.Do(a.drop) }

// LastID returns the highest [Conn.ID] in the process so far.
func LastID() uint64 { return lastID.Load() }

// SkipIDs has the connections to come have higher ids than that: a process that adopts those of another
// is to be told LastID of that one, once it accepts no more, before it accepts any itself. An id above 1<<62 is
// ignored.
func SkipIDs(last uint64) {
	if last > mostID {
		return
	}
	for id := lastID.Load(); id < last && !lastID.CompareAndSwap(id, last); {
		id = lastID.Load()
	}
}

// mostID leaves more ids than there will be connections.
const mostID = 1 << 62

// A Movable is a [Stepper] whose connections another process can go on with.
type Movable interface {
	Stepper

	// Save returns what is to be known of a connection beside the bytes that have not been
	// taken: nil for nothing. It is called between two Steps, and no other comes before the connection
	// has moved, or stays. An error has it stay.
	Save(c *Conn) (state []byte, err error)

	// Restore is called in the other process, before its first Step, with what Save has returned. An
	// error has the connection stay where it was. That Step is told that it has seen no byte before.
	Restore(c *Conn, state []byte) error
}

// Stateless is to be embedded in a [Stepper] that knows nothing of a connection between two Steps: it makes
// that a [Movable].
type Stateless struct{}

// Save returns nothing.
func (Stateless) Save(*Conn) (state []byte, err error) { return nil, nil }

// Restore has nothing to restore.
func (Stateless) Restore(*Conn, []byte) error { return nil }

// A Rejoiner is a [Joiner] that can go on with a connection which that of another process had joined.
type Rejoiner interface {
	Joiner

	// Rejoin is told of a connection that is joined already, to the upstream that [Conn.Target] tells of. It
	// returns that as Join does, but without its Conn. It must not
	// block. An error has the connection stay where it was.
	Rejoin(c *Conn) (Upstream, error)
}

// A Rerouter is a [Router] that can tell the handler of a connection which that of another process has routed.
type Rerouter interface {
	Router

	// Reroute returns the handler of the route that [Conn.Route] names. It must not block. An error has the
	// connection stay where it was.
	Reroute(c *Conn) (Handler, error)
}

// A Readmitter is a [Gate] that can count a connection which that of another process has let in. Of a Gate that is none
// such a connection holds nothing.
type Readmitter interface {
	Gate

	// Readmit returns what the connection holds of the gate from now on, as Admit does and after
	// StageClient, but never refuses it. Rates are not charged: it is no newcomer.
	Readmit(c *Conn) Pass
}

// MovesWith has the connection, whose handler is sequential code, move to another process when it waits in
// Next, or is about to. Save is called then, by Next, and returns what [Conn.Saved] returns there, where the handler is called
// anew; the bytes that were read ahead go along, but no deadline that the handler has set, and nothing that it has itself
// read ahead, into a bufio.Reader: that has to be empty then. An error has the connection stay. When it
// has moved, Next returns false, the connection is ended here by a [*CloseError] with ReasonNone, and the handler has to return.
//
// It is for a connection in plaintext over TCP or a Unix socket, to which nobody writes while the handler is in Next; any
// other stays. It must be called by the handler's goroutine.
func (c *Conn) MovesWith(save func() (state []byte, err error)) { c.needMover().save = save }

// Saved returns what the handler of another process has saved of the connection, and nil if it has come from
// none.
func (c *Conn) Saved() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil || c.extra.mover == nil {
		return nil
	}
	return c.extra.mover.saved
}

func (c *Conn) needMover() *mover {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.extraLocked()
	if x.mover == nil {
		x.mover = new(mover)
	}
	return x.mover
}

// itsMover returns nil if the connection has none.
func (c *Conn) itsMover() *mover {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil {
		return nil
	}
	return c.extra.mover
}

// A mover has a connection move whose handler is sequential code.
type mover struct {
	save  func() (state []byte, err error) // nil until the handler gives one; its goroutine's
	saved []byte                           // by the handler of the process before
	moved bool                             // its handler is to return, and has nothing to end; its goroutine's
	end   End                              // what is told then; the same

	mu    sync.Mutex
	asked *packing // by whom; nil if nobody waits
	gone  bool     // the handler has returned
}

var errStays = errors.New("it cannot move")
