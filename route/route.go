// Package route chooses a handler by how a connection begins: one port can then
// serve several protocols.
//
//	srv := &levee.Server{
//		Handler: &route.Router{Routes: []route.Route{
//			{Match: route.HTTP, Handler: httpserve.Handler(web)},
//			{Handler: echo}, // no Match: everything else
//		}},
//	}
//
// Its secret is how to decide from a stream that arrives in pieces: a matcher
// says yes, no, or that it has not seen enough, and the first route in order that
// says yes is taken, however the bytes were cut.
package route

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/levee-net/levee"
)

// A Verdict is what a Matcher makes of the bytes it has been shown.
type Verdict uint8

// The verdicts.
const (
	No   Verdict = iota // whatever follows
	Yes                 // whatever follows
	More                // cannot tell yet
)

// A Matcher looks at a connection and its first bytes, which may be none yet.
// Once it has said Yes or No for some bytes it must say the same for those and
// any that follow. It must not keep the bytes, nor read from the connection.
type Matcher func(c *levee.Conn, first []byte) Verdict

// A Route is a handler and the connections that it is for.
type Route struct {
	Match   Matcher // nil matches every connection
	Handler levee.Handler
}

// A Router is a levee.Handler that passes each connection to the first of its
// routes that matches. Routes must not be changed while it is in use.
//
// It waits for the client's bytes only as long as a route needs them to decide,
// and at most for the server's SniffTimeout. A stream that ends while a matcher
// still wants more does not match it.
type Router struct {
	Routes []Route
}

// ErrNoMatch is returned when no route is for the connection.
var ErrNoMatch = errors.New("no route matches")

// Route returns the handler for c.
func (r *Router) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) {
	first, over := []byte(nil), false
	for {
		h, undecided := r.choose(c, first, over)
		if h != nil {
			return h, nil
		}
		if !undecided {
			return nil, ErrNoMatch
		}
		seen, err := c.Peek(max(c.Buffered(), len(first)+1))
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			over = true // what there is has to do
		case err != nil:
			return nil, err
		}
		first = seen
	}
}

// choose returns the first route's handler that matches, and whether a route
// before it has yet to see more. Once it is over, More is a No.
func (r *Router) choose(c *levee.Conn, first []byte, over bool) (h levee.Handler, undecided bool) {
	for _, route := range r.Routes {
		verdict := Yes
		if route.Match != nil {
			verdict = route.Match(c, first)
		}
		switch {
		case verdict == Yes:
			return route.Handler, false
		case verdict == More && !over:
			return nil, true
		}
	}
	return nil, false
}

// ServeTCP routes and serves, for callers that do not know levee.Router.
func (r *Router) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, err := r.Route(ctx, c)
	if err != nil {
		return err
	}
	return h.ServeTCP(ctx, c)
}
