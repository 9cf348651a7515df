package levee

import (
	"context"
	"errors"
	"net"
	"sync"
)

// A Listener is a Handler that passes its connections on to a server that takes
// a net.Listener, such as one for gRPC or SSH. The connections arrive with
// levee's limits, TLS, metrics and deadlines in force, as [*Conn]:
//
//	l := levee.NewListener(addr)
//	go grpcServer.Serve(l)
//	srv := &levee.Server{Handler: l}
//
// It does not make the other server drain: stop that gracefully when you shut
// down, as its idle connections will not leave by themselves. For an
// http.Server package httpserve does so.
type Listener struct {
	addr   net.Addr
	conns  chan *Conn
	once   sync.Once
	closed chan struct{}
}

// NewListener returns a Listener whose Addr is addr, which may be nil.
func NewListener(addr net.Addr) *Listener {
	if addr == nil {
		addr = noAddr{}
	}
	return &Listener{addr: addr, conns: make(chan *Conn), closed: make(chan struct{})}
}

// ErrListenerClosed is what ServeTCP returns when the Listener has been closed.
var ErrListenerClosed = errors.New("levee: the server behind the listener is closed")

// ServeTCP passes c to Accept and waits until it has been closed.
func (l *Listener) ServeTCP(ctx context.Context, c *Conn) error {
	select {
	case l.conns <- c:
	case <-l.closed:
		return ErrListenerClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	<-ctx.Done() // closing c ends its context
	return nil
}

// Accept waits for a connection. It returns net.ErrClosed after Close.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
	}
}

// Close ends Accept. Connections that it returned live on.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the address given to NewListener.
func (l *Listener) Addr() net.Addr { return l.addr }

type noAddr struct{}

func (noAddr) Network() string { return "levee" }
func (noAddr) String() string  { return "levee" }
