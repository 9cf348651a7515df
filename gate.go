package levee

import (
	"context"
	"time"
)

// A Gate decides whom a server takes on. limit.Gate is one.
//
// It is asked by the goroutines that accept, one connection after the other: it must
// not block, nor call runtime.Goexit, and what it does holds up everybody who waits. Its
// methods, and those of its passes, are called from several goroutines. A panic in one of
// them ends the connection that it was about, and nothing else.
type Gate interface {
	// Admit is asked about a connection that has just been accepted, before a
	// goroutine or a handshake is spent on it. It returns what the connection holds of
	// the gate, or why it is turned away. A nil Pass holds nothing, and is asked
	// nothing more.
	Admit(c *Conn) (Pass, *Refusal)
}

// A Pass is what a connection that was let in holds of its [Gate].
type Pass interface {
	// Reach is asked when the connection has come to a stage, and may refuse it there.
	// Of those that Server.ProxyFrom does not list it is asked for StageClient where
	// Admit is, and must not block.
	Reach(c *Conn, at Stage) *Refusal

	// Leave gives back what the connection holds. It is called once, also for a
	// connection that Reach has refused, when its socket has been closed; and with ReasonNone when
	// the connection has moved to another process, whose [Readmitter] holds for it by now. It must not
	// block: event loops call it.
	Leave(c *Conn, end End)
}

// A Waiter is a Pass that has to ask somebody else, as one does that several machines
// share a limit by.
type Waiter interface {
	Pass

	// Await is asked once, after StageClient was reached and before a byte is read, in a
	// goroutine of the connection's own. ctx ends with the arrival's deadline, and when
	// the connection ends. It should decide much sooner.
	Await(ctx context.Context, c *Conn) *Refusal
}

// A Stage is a point in a connection's arrival at which more is known of it.
type Stage uint8

// The stages, in the order in which a connection meets them.
const (
	// StageClient: [Conn.ClientAddr] is the client's. That is when it is accepted, still before a
	// goroutine is spent; or once the PROXY header has been read, of those that must send one.
	StageClient Stage = iota + 1
	// StageHandshake: the client has begun a TLS handshake, which is not computed yet.
	StageHandshake
	// StageSecured: the handshake is done, and [Conn.TLS] says what it agreed on.
	StageSecured
)

// A Refusal says why a connection is turned away, and how. It may be shared by many.
//
// As an error of a [Router] it ends the connection with that reason, also when it is
// wrapped.
type Refusal struct {
	// Reason is Limited, Denied or Overloaded. Anything else is taken for Denied.
	Reason CloseReason
	// Cause says more, for logs. It may be nil.
	Cause error
	// Manner is how the connection is closed at the door. One that is refused at a later
	// stage is closed by a reset, whatever it says, unless TLS has begun.
	Manner Manner
	// Delay is how long the client is kept waiting with [Slowly]. Zero means 5 seconds.
	Delay time.Duration
}

// Error returns a sentence such as "refused: limited".
func (r *Refusal) Error() string {
	if r.Cause != nil {
		return "refused: " + r.reason().String() + ": " + r.Cause.Error()
	}
	return "refused: " + r.reason().String()
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

func (r *Refusal) reason() CloseReason {
	if r.Reason.isRefusal() {
		return r.Reason
	}
	return Denied
}

// A Manner is a way to turn somebody away.
type Manner uint8

// The ways to turn somebody away.
const (
	// Reset has the kernel send a reset and forget the connection: nothing is cheaper.
	Reset Manner = iota
	// Politely closes the connection, whose client sees an end of stream. The kernel keeps its
	// address for a minute (TIME_WAIT).
	Politely
	// Slowly keeps it waiting first, which slows down a client that would come back at once. It costs
	// an open file; no more than 1,024 of a server's, and a sixteenth of those that the process
	// may have open, beyond which it is a reset.
	Slowly
)
