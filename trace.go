package levee

import (
	"net"
	"time"
)

// Trace is a set of hooks into the life of connections, in the manner of
// net/http/httptrace. Every hook may be nil; new ones may be added without
// breaking anybody. What they are called with is in hand when they run, so they
// cost nothing when nil.
//
// Hooks run with no lock held, for many connections at once. They run in what serves
// the connection: its goroutine, or on an event loop as a part of a Step, whose
// Server.StepBudget Accepted and Serving share. But Adopted and Moved run in the goroutine that calls Begin and Moved; Draining runs in the goroutine
// that asks: the caller's of Drain, a timer's, or at a Shutdown one for all
// connections; Sample in the goroutine that closes; and AcceptFailed and Refused in the acceptor's, where runtime.Goexit is not
// allowed. They should be quick: the connection waits. A panic in one ends that
// connection only.
type Trace struct {
	// Accepted is called first, before a byte has been read.
	Accepted func(c *Conn)

	// Adopted is called instead, of a connection that has come from another process: see
	// [Adopted.Begin]. None of the hooks before Draining is called of it any more.
	Adopted func(c *Conn)

	// AcceptFailed is called when a listener's Accept returned an error that
	// is not its end, or nearly all files are open. The next try comes after the given
	// pause, or sooner where one of these is closed.
	AcceptFailed func(l net.Listener, err error, pause time.Duration)

	// Refused is called when a connection was turned away at the door. It is the only hook
	// that is told of it: such a connection was never accepted. At a flood it is called for
	// all of them, so it should do next to nothing. Nothing must be done with c any more
	// than to ask it.
	Refused func(c *Conn, r *Refusal)

	// ProxyHeader is called once a PROXY header has been read, and
	// [Conn.ClientAddr] is the client's.
	ProxyHeader func(c *Conn)

	// Handshake is called after the TLS handshake, with the time that it took
	// and its error.
	Handshake func(c *Conn, took time.Duration, err error)

	// Serving is called when the arrival is over and h is about to serve.
	Serving func(c *Conn, h Handler)

	// Draining is called when the connection is first asked to leave.
	Draining func(c *Conn)

	// SlowStep is called when a [Stepper]'s Step, of a connection that event loops
	// serve, has returned after more than Server.StepBudget, with how long it took.
	SlowStep func(c *Conn, took time.Duration)

	// Panicked is called when a panic was caught. The stack is the text of
	// runtime/debug.Stack.
	Panicked func(c *Conn, value any, stack []byte)

	// Sample is called when the connection's socket is about to be closed, and says whether
	// the kernel is to be asked about it: then End has the TCP that it tells of. That is a system
	// call and an allocation, so at a flood few should be chosen. It is called by whoever
	// closes the connection, at most once, before Closed, and not for those that are
	// refused at the door; it must do nothing else than to decide.
	Sample func(c *Conn) bool

	// Moved is called last, instead of Closed, of a connection that is another process's by now: see
	// [Parcel.Moved]. It has left the server's counts.
	Moved func(c *Conn)

	// Closed is called last, after the socket has been closed and the
	// connection has left the server's counts.
	Closed func(c *Conn, end End)
}

// End is how a connection ended.
type End struct {
	// Reason is ReasonNone for a connection that has moved to another process, which a [Pass] is told of
	// as well: it has not ended.
	Reason CloseReason
	// Err is what the handler returned, or what failed in the arrival, or else the cause that the
	// connection was ended with, as by Conn.Kill. It may be nil, and it may hold bytes that a stranger
	// chose: quote it.
	Err error
	// Duration is the time from accept to the close of the socket.
	Duration time.Duration
	// Read and Written count bytes on the wire, TLS and PROXY header included.
	Read, Written int64
	// TCP is what the kernel knew at last of a connection that Trace.Sample has chosen. It is nil
	// for any other, and for what is not TCP on Linux.
	TCP *TCPInfo
}

// Traces joins several traces into one that calls them in order. Nil ones are
// skipped.
func Traces(traces ...*Trace) *Trace {
	var joined Trace
	for _, t := range traces {
		if t == nil {
			continue
		}
		joined = Trace{
			Accepted:     both1(joined.Accepted, t.Accepted),
			Adopted:      both1(joined.Adopted, t.Adopted),
			AcceptFailed: both3(joined.AcceptFailed, t.AcceptFailed),
			Refused:      both2(joined.Refused, t.Refused),
			ProxyHeader:  both1(joined.ProxyHeader, t.ProxyHeader),
			Handshake:    both3(joined.Handshake, t.Handshake),
			Serving:      both2(joined.Serving, t.Serving),
			Draining:     both1(joined.Draining, t.Draining),
			SlowStep:     both2(joined.SlowStep, t.SlowStep),
			Sample:       anyOf(joined.Sample, t.Sample),
			Panicked:     both3(joined.Panicked, t.Panicked),
			Moved:        both1(joined.Moved, t.Moved),
			Closed:       both2(joined.Closed, t.Closed),
		}
	}
	return &joined
}

func both1[A any](f, g func(A)) func(A) {
	if f == nil || g == nil {
		return either(f, g, f == nil)
	}
	return func(a A) { f(a); g(a) }
}

func both2[A, B any](f, g func(A, B)) func(A, B) {
	if f == nil || g == nil {
		return either(f, g, f == nil)
	}
	return func(a A, b B) { f(a, b); g(a, b) }
}

func both3[A, B, C any](f, g func(A, B, C)) func(A, B, C) {
	if f == nil || g == nil {
		return either(f, g, f == nil)
	}
	return func(a A, b B, c C) { f(a, b, c); g(a, b, c) }
}

// anyOf asks both, as each may count what it is asked.
func anyOf(f, g func(*Conn) bool) func(*Conn) bool {
	if f == nil || g == nil {
		return either(f, g, f == nil)
	}
	return func(c *Conn) bool {
		first, second := f(c), g(c)
		return first || second
	}
}

func either[F any](f, g F, second bool) F {
	if second {
		return g
	}
	return f
}
