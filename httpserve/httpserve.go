// Package httpserve serves an http.Server's handler on a levee.Server, so that
// it inherits levee's limits, TLS, PROXY protocol, metrics and draining.
//
//	srv := &levee.Server{Handler: httpserve.Handler(&http.Server{Handler: mux})}
//	err := srv.ListenAndServe(ctx, ":8080")
//
// Its secret is which of net/http's connections may leave when they are asked
// to: an idle one at once, unless a request has arrived already; a busy one with
// its answer, which says "Connection: close".
package httpserve

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

// Handler returns a levee.Handler that serves HTTP as s is set up: its handler,
// timeouts, limits and hooks. The settings are copied; s itself is not started
// and need not be shut down. Its Addr, TLSConfig and TLSNextProto have no
// effect, as listening and TLS are levee's.
//
// A request's TLS field and RemoteAddr come from levee: the client's address is
// the one in the PROXY header where there was one. A connection that begins with
// HTTP/2's preface, as one whose ALPN is h2 does, is served HTTP/2; put "h2" into
// the NextProtos of levee's TLSConfig to offer it, or into the ALPN of the certs.Server that makes it.
//
// A handler that hijacks its connection gets the *levee.Conn, and the duty to
// heed its Draining.
func Handler(s *http.Server) levee.Handler {
	h := &handler{}
	h.server = &http.Server{
		Handler:                      dress(s.Handler),
		DisableGeneralOptionsHandler: s.DisableGeneralOptionsHandler,
		ReadTimeout:                  s.ReadTimeout,
		ReadHeaderTimeout:            s.ReadHeaderTimeout,
		WriteTimeout:                 s.WriteTimeout,
		IdleTimeout:                  s.IdleTimeout,
		MaxHeaderBytes:               s.MaxHeaderBytes,
		ConnState:                    follow(s.ConnState),
		ErrorLog:                     s.ErrorLog,
		BaseContext:                  s.BaseContext,
		ConnContext:                  keepConn(s.ConnContext),
		HTTP2:                        s.HTTP2,
		Protocols:                    protocols(s.Protocols),
	}
	return h
}

// protocols adds HTTP/2 by its preface: with TLS already taken off, that is what
// a client that agreed on h2 sends.
func protocols(p *http.Protocols) *http.Protocols {
	if p != nil {
		return p
	}
	p = new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

type handler struct {
	server *http.Server

	mu      sync.Mutex
	inside  int       // connections
	entered *entrance // nil while there are none
}

// ServeTCP serves one connection. It waits for the first request itself, so that
// a connection that says nothing costs net/http nothing and leaves when asked.
func (h *handler) ServeTCP(ctx context.Context, c *levee.Conn) error {
	if first := h.firstRequestTimeout(); first > 0 {
		_ = c.SetReadDeadline(time.Now().Add(first))
	}
	if !c.Next() {
		return nil
	}
	_ = c.SetReadDeadline(time.Time{})
	served := &conn{Conn: c}
	entrance := h.enter()
	defer h.exit()
	select {
	case entrance.conns <- served:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-c.Draining():
		served.leave()
		<-ctx.Done()
	case <-ctx.Done(): // net/http, or who hijacked it, has closed it
	}
	return nil
}

// enter returns where net/http takes connections from. The first to enter starts
// that, and the last to exit ends it, so that nothing is left of a handler that
// is not in use.
func (h *handler) enter() *entrance {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inside++; h.inside == 1 {
		h.entered = &entrance{conns: make(chan net.Conn), closed: make(chan struct{})}
		go h.serve(h.entered)
	}
	return h.entered
}

func (h *handler) serve(e *entrance) { _ = h.server.Serve(e) }

func (h *handler) exit() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inside--; h.inside == 0 {
		close(h.entered.closed)
		h.entered = nil
	}
}

// firstRequestTimeout is what net/http would wait for a request's headers.
func (h *handler) firstRequestTimeout() time.Duration {
	if h.server.ReadHeaderTimeout != 0 {
		return h.server.ReadHeaderTimeout
	}
	return h.server.ReadTimeout
}

// entrance is the listener that net/http accepts from.
type entrance struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (e *entrance) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

func (e *entrance) Close() error   { return nil } // by exit alone
func (e *entrance) Addr() net.Addr { return nowhere{} }

type nowhere struct{}

func (nowhere) Network() string { return "levee" }
func (nowhere) String() string  { return "levee" }

// connKey is the context key of a request's *conn.
type connKey struct{}

// Conn returns the connection that a request came on, or nil if the request did
// not come through this package.
func Conn(r *http.Request) *levee.Conn {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		return c.Conn
	}
	return nil
}

func keepConn(next func(context.Context, net.Conn) context.Context) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, nc net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, nc.(*conn).Conn)
		}
		return context.WithValue(ctx, connKey{}, nc) // last: next may return any context
	}
}
