package levee

import (
	"context"
	"slices"
)

// A Handler serves one connection, from after its arrival to its end.
//
// ServeTCP runs in a goroutine of its own and may block wherever it likes.
// When it returns, the connection is closed; a nil error means that all went
// well. It must not use the connection after it has returned. A panic in it
// ends its own connection and nothing else.
//
// The context ends, with the reason as its cause, when the connection does:
// when it is killed, cut at the drain deadline, reaped by a timeout, or closed
// by the handler itself. A polite request to leave does not end it; for that
// see [Conn.Next] and [Conn.Draining].
type Handler interface {
	ServeTCP(ctx context.Context, c *Conn) error
}

// HandlerFunc is a function that is a [Handler].
type HandlerFunc func(ctx context.Context, c *Conn) error

// ServeTCP calls f(ctx, c).
func (f HandlerFunc) ServeTCP(ctx context.Context, c *Conn) error { return f(ctx, c) }

// A Router is a Handler that only decides which other Handler serves the
// connection, usually after a look at its first bytes ([Conn.Peek]).
//
// Route runs within the arrival deadline, so a silent stranger cannot hold it.
// When it returns an error the connection ends with reason no_route, or with
// the reason that made a Peek in it fail, or with that of a [*Refusal] that it wraps. The handler it returns may itself be
// a Router.
//
// The ServeTCP of a Router is for callers that do not know Router, such as a
// middleware: it routes and serves in one.
type Router interface {
	Handler
	Route(ctx context.Context, c *Conn) (Handler, error)
}

// Middleware wraps a Handler into another one. It never wraps the connection. If what
// it returns is no [Stepper], event loops cannot serve it.
type Middleware func(Handler) Handler

// Chain wraps h so that the first middleware is the outermost: a connection
// passes them from left to right.
func Chain(h Handler, middleware ...Middleware) Handler {
	for _, wrap := range slices.Backward(middleware) {
		h = wrap(h)
	}
	return h
}
