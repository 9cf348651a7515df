// Package route chooses a handler by how a connection begins: one port can then
// serve several protocols, and several names over TLS.
//
//	srv := &levee.Server{
//		Handler: &route.Router{
//			TLS: config, // what routes terminate TLS with that do not say otherwise
//			Routes: []route.Route{
//				{Match: route.SNI("db.example.com"), Handler: database, Passthrough: true},
//				{Match: route.HTTP, Handler: httpserve.Handler(web)},
//				{Match: route.SSH, Handler: ssh},
//			},
//		},
//	}
//
// Protocols that begin TLS by a command have a [Dialogue], and where the server speaks
// first a function for proxy.Proxy.Meet, which deals with the upstream's part of it:
//
//	front := proxy.To("10.0.0.7:25")
//	front.Meet = route.MeetSMTP
//	router := &route.Router{StartTLS: route.SMTPTLS("mx.example.com"), TLS: config, Routes: []route.Route{{Handler: front}}}
//
// Its secret is how to decide from a stream that arrives in pieces: a matcher
// says yes, no, or that it has not seen enough, and the first route in order that
// says yes is taken, however the bytes were cut. It is one decision that holds: who
// serves a connection, whether its TLS is terminated and with what cannot be made to
// differ by anything that a client sends.
package route

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"github.com/levee-net/levee"
)

// A Route is a handler and the connections that it is for.
type Route struct {
	// Match tells which. Nil matches every connection.
	Match Matcher

	// Handler serves them.
	Handler levee.Handler

	// Refuse ends them instead, with [ErrRefused]; in TLS with an alert, and before a
	// handshake if the match can tell by the client's hello.
	Refuse bool

	// TLS is what TLS is terminated with. Routes share a configuration, and with it what
	// it demands of clients, if theirs is the same pointer. A route that has one is not for
	// connections in plaintext. Nil is the Router's.
	TLS *tls.Config

	// Passthrough leaves TLS to the handler: it reads what came over the wire, from
	// the client's hello on.
	Passthrough bool

	// Name names the route in errors, and in what its connections tell; see
	// [levee.Conn.SetRoute]. It may be empty.
	Name string
}

// A Router is a levee.Handler that passes each connection to the first of its
// routes that matches. Routes must not be changed while it is in use.
//
// A connection in plaintext is shown to the routes without a configuration of their own as
// its bytes come in: the first in order that says Yes has it, once all before it have
// said No. A stream that ends while a matcher still wants more does not match it.
//
// A connection that begins as TLS does, with the byte 22, is shown to them once the
// client's hello is complete. The first route that does not say No decides what becomes
// of it:
//
//   - TLS is terminated with the route's configuration, or the router's. Then the routes
//     are gone through once more, on what TLS carries, but only those that terminate it
//     with that same configuration: one with another, which may demand more of its clients,
//     is not to be had that way. The server name stays what the hello asked for, and the
//     handshake has to agree.
//   - With Passthrough, or where neither has a configuration, nothing more will be known:
//     More is a No, and after a Yes the handler gets the connection as it came, from the
//     hello on.
//
// A connection whose TLS [levee.Server.TLSConfig] has terminated, or an outer router, is
// for the routes that have no configuration, or the server's, and no Passthrough.
//
// A router that terminates TLS or requires it waits for a first byte, to tell TLS from
// plaintext. Any other waits only as long as a route needs more to decide: where none
// looks at bytes, a server may speak first. All of it, the handshake included, has at most
// the server's SniffTimeout. A connection is refused as soon as all routes have said No, in
// TLS with an alert.
//
// Once a byte has been looked at, a PROXY header is refused unless the route has asked for
// it, by a Prefix that contains its signature ("PROXY " or the 12 bytes of version 2): a
// handler that believes such headers from the server must not be given a client's. Bytes
// that may become one, a P or an empty line, are held back until it is clear.
type Router struct {
	Routes []Route

	// TLS is for the routes that have no configuration of their own. Without RequireTLS
	// they are for connections in plaintext as well.
	TLS *tls.Config

	// RequireTLS refuses connections in plaintext at their first byte.
	RequireTLS bool

	// StartTLS talks to clients that begin TLS by a command, before anything else is
	// looked at: [SMTPTLS], [IMAPTLS], [MySQLTLS], [LDAPTLS], [PostgresTLS] or one's own.
	// Nil is for clients that begin with their hello.
	StartTLS Dialogue
}

// A Dialogue is what a protocol says in plaintext until TLS begins. It reports true when
// what comes next has to be the client's hello, and false to have the connection routed as
// it is: then it has read nothing that the handler would have to see.
//
// Where TLS is required, the connection will be refused in plaintext: so the dialogue may
// tell the client in the protocol's words, and return [ErrPlaintext]. It has, with all
// else that a router does, the server's SniffTimeout, and must bound what it reads.
type Dialogue func(ctx context.Context, c *levee.Conn, required bool) (startTLS bool, err error)

// Route returns one of these, perhaps wrapped, or what went wrong with the connection.
// They end it with reason no_route; a handshake that fails, with tls_failed.
var (
	// ErrNoMatch is returned when no route is for the connection.
	ErrNoMatch = errors.New("no route matches")
	// ErrRefused is returned for a connection whose route refuses it.
	ErrRefused = errors.New("refused")
	// ErrBadHello is returned for a connection that begins as TLS does and goes on otherwise, for
	// one that asks for what cannot be a server's name, and for one whose handshake agreed
	// on another server than its hello asked for.
	ErrBadHello = errors.New("bad TLS hello")
	// ErrPlaintext is returned for a connection in plaintext where TLS is required.
	ErrPlaintext = errors.New("plaintext where TLS is required")
	// ErrProxyHeader is returned for a PROXY header that no route has asked for.
	ErrProxyHeader = errors.New("PROXY header where none is expected")
)

var _ levee.Rerouter = (*Router)(nil)

func badHello(err error) error { return fmt.Errorf("%w: %w", ErrBadHello, err) }

// Route returns the handler for c.
func (r *Router) Route(ctx context.Context, c *levee.Conn) (levee.Handler, error) {
	b := &Beginning{Conn: c}
	if c.TLS() != nil {
		if err := b.begin(c.Server().TLSConfig); err != nil {
			return nil, err
		}
		return r.choose(b)
	}
	required := r.RequireTLS
	if r.StartTLS != nil {
		agreed, err := r.StartTLS(ctx, c, required)
		if err != nil {
			return nil, err
		}
		required = required || agreed
	}
	if required || r.terminates() {
		if err := b.read(); err != nil {
			return nil, err
		}
	}
	switch {
	case !required, b.Sealed():
		return r.choose(b)
	case b.over:
		return nil, io.EOF
	}
	return nil, ErrPlaintext
}

// terminates reports whether any route terminates TLS.
func (r *Router) terminates() bool {
	for i := range r.Routes {
		if r.termination(&r.Routes[i]) != nil {
			return true
		}
	}
	return false
}

// termination returns what the route terminates TLS with, nil if it does not.
func (r *Router) termination(route *Route) *tls.Config {
	switch {
	case route.Passthrough:
		return nil
	case route.TLS != nil:
		return route.TLS
	}
	return r.TLS
}

// choose returns the handler of the first route that matches.
func (r *Router) choose(b *Beginning) (levee.Handler, error) {
	for {
		if b.Sealed() {
			return r.chooseSealed(b)
		}
		route, undecided := r.first(b)
		if route != nil && len(b.First) > 0 && !b.asked {
			switch isProxyHeader(b.First) {
			case Yes:
				return nil, ErrProxyHeader
			case More:
				undecided = !b.over
			}
		}
		switch {
		case undecided:
			if err := b.read(); err != nil {
				return nil, err
			}
		case route == nil:
			return nil, ErrNoMatch
		default:
			return route.serve(b.Conn)
		}
	}
}

// serve returns the handler of the route that has been chosen.
func (route *Route) serve(c *levee.Conn) (levee.Handler, error) {
	c.SetRoute(route.Name)
	if route.Refuse {
		return nil, route.named(ErrRefused)
	}
	return route.Handler, nil
}

// first returns the first route that matches what is not sealed, and whether one before
// it has yet to see more.
func (r *Router) first(b *Beginning) (matching *Route, undecided bool) {
	for i := range r.Routes {
		route := &r.Routes[i]
		if !r.mayServe(route, b) {
			continue
		}
		switch v := route.ask(b); {
		case v == Yes:
			return route, false
		case v == More && !b.over:
			return nil, true
		}
	}
	return nil, false
}

// mayServe reports whether the route is for connections in plaintext or, if this one's TLS
// was terminated, for those that it was terminated for.
func (r *Router) mayServe(route *Route, b *Beginning) bool {
	if !b.open {
		return route.Passthrough || route.TLS == nil
	}
	config := r.termination(route)
	return !route.Passthrough && (config == b.config || config == nil && !b.ours)
}

// ask asks the route's matcher.
func (route *Route) ask(b *Beginning) Verdict {
	b.asked = false
	if route.Match == nil {
		return Yes
	}
	return route.Match(b)
}

// chooseSealed waits for the hello, and has the first route that it is for decide what
// becomes of the connection.
func (r *Router) chooseSealed(b *Beginning) (levee.Handler, error) {
	if err := b.awaitHello(); err != nil {
		return nil, err
	}
	for i := range r.Routes {
		route := &r.Routes[i]
		config := r.termination(route)
		b.over = config == nil // then what TLS carries will never be known
		switch v := route.ask(b); {
		case v == No, v == More && config == nil:
			continue
		case v == Yes && route.Refuse:
			b.alert(alertAccessDenied)
			return route.serve(b.Conn)
		case config == nil:
			return route.serve(b.Conn)
		}
		if err := b.terminate(config); err != nil {
			return nil, route.named(err)
		}
		return r.choose(b)
	}
	b.alert(alertUnrecognizedName)
	return nil, ErrNoMatch
}

// named has the error say which route it is of.
func (route *Route) named(err error) error {
	if route.Name == "" {
		return err
	}
	return &Error{route.Name, err}
}

// An Error is what went wrong with a connection on a route that has a Name.
type Error struct {
	Route string
	Err   error
}

// Error returns a sentence such as "route db: refused".
func (e *Error) Error() string { return fmt.Sprintf("route %s: %v", e.Route, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// ServeTCP routes and serves, for callers that do not know levee.Router.
func (r *Router) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, err := r.Route(ctx, c)
	if err != nil {
		return err
	}
	return h.ServeTCP(ctx, c)
}
