package levee

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A Server accepts TCP and Unix socket connections and runs a Handler for each.
//
// The zero value of every field but Handler is a safe default; a negative
// duration or count means no limit. The fields are read when serving begins, or
// when a method is first called, and must not be changed after that; levee never
// writes to them. For others to take their place see [Server.Reconfigure]. A Server
// must not be copied, and once shut down it cannot be used again.
type Server struct {
	// Name names the server in logs and metrics. It may be empty.
	Name string

	// Handler serves the connections. If it is a [Router] it is asked for the
	// real handler within the arrival deadline. It must not be nil.
	Handler Handler

	// Route is what [Conn.Route] returns for a connection that no Router has called
	// [Conn.SetRoute] for. It may be empty.
	Route string

	// TLSConfig makes every connection begin with a TLS handshake, within the
	// arrival deadline. It needs a certificate, by whichever of its fields.
	TLSConfig *tls.Config

	// AllowPlaintext, with a TLSConfig, serves a connection in plaintext if its
	// first byte is not that of a TLS handshake (22, RFC 8446 section 5.1). The
	// client has to speak first then.
	AllowPlaintext bool

	// ProxyFrom lists the sources, as address prefixes, that must begin every
	// connection with a PROXY protocol header, version 1 or 2. Their header's
	// source is the connection's client address. When it is not empty, a
	// connection from any other source that begins with such a header is ended
	// with reason proxy_header_refused. When empty, the protocol is unknown. The
	// peer of a Unix socket has no address and cannot be listed.
	ProxyFrom []netip.Prefix

	// Gate is asked about every connection before anything is spent on it, and at the
	// stages of its arrival. It may be nil.
	Gate Gate

	// MaxConns is how many connections may be open at once. At that number the
	// server stops accepting, and newcomers wait in the kernel's queue. Where that has
	// been half full for a second, and the system tells, those who have waited longest are
	// turned away, with reason overloaded, until it is a quarter full. Zero
	// means what [DefaultMaxConns] returns: nearly the process's limit of open files;
	// or less than half of that if Handler is a [Joiner], whose connections take two
	// files each. A Joiner that a Router chooses does not show: give a figure then.
	MaxConns int

	// MaxArrivals is how many connections may be arriving at once: accepted, but without
	// a handler yet, with a goroutine each for PROXY header, TLS handshake and routing.
	// Beyond that the newest are turned away, with reason overloaded. Zero means 16,384:
	// about as many TLS handshakes as a processor makes in 10 seconds, so that more would
	// come to nothing. Those that go to an event loop at once do not count.
	MaxArrivals int

	// ArrivalTimeout is how long a connection may take from accept until its
	// handler is chosen: PROXY header, first bytes, TLS handshake and routing
	// together. It is absolute, no byte extends it. Zero means 10 seconds.
	ArrivalTimeout time.Duration

	// ProxyHeaderTimeout and SniffTimeout are the parts of ArrivalTimeout that
	// may go to the PROXY header, and to waiting for the first bytes where they
	// decide between TLS and plaintext or between routes. Zero means 5 seconds.
	ProxyHeaderTimeout time.Duration
	SniffTimeout       time.Duration

	// MaxHandshakes is how many TLS handshakes may be computed at the same time. The
	// others wait, within ArrivalTimeout: a flood of them leaves the processors to
	// the connections that are there. One that waits for its client does not count,
	// nor one whose callback in a tls.Config waits by [WaitOutside].
	// Zero means one less than GOMAXPROCS, but at least one: it is left to the connections that are there.
	MaxHandshakes int

	// IdleTimeout is how long a connection may go without a byte in either
	// direction while its handler waits for one. While it also writes,
	// WriteStallTimeout is in force instead. Zero means 5 minutes, and 1 hour for
	// connections that a [Joiner] joins to others: it is for the ends of those to say
	// when they have had enough.
	IdleTimeout time.Duration

	// HalfClosedTimeout takes the place of IdleTimeout once the server has
	// closed its own side ([Conn.CloseWrite]), or either end of a joined connection
	// its. Zero means 1 minute.
	HalfClosedTimeout time.Duration

	// WriteStallTimeout is how long a write, or a copy to the peer, may be blocked
	// without the peer taking any of its bytes. A slow reader is not a stalled one.
	// The check is made four times as often, so a stall may last a quarter longer.
	// What has gone into the kernel's send buffer is no longer watched: that is
	// what IdleTimeout and keep-alive are for. Zero means 30 seconds.
	WriteStallTimeout time.Duration

	// MessageTimeout is how long a message for a [Stepper] may take from its first byte to
	// its last. No byte of it extends that: a client that sends a message slower and slower has
	// no foothold. A time in which the connection has to wait for a [Pacer], or for its client to
	// take a reply, has it begin anew; and so has a pause ([PauseReads]), at its beginning and its end:
	// a message is not kept through one that lasts longer. Zero means 1 minute; a service whose messages are large, or whose clients are
	// slow, needs more.
	MessageTimeout time.Duration

	// MaxLifetime is the age at which a connection is asked to leave; it is cut
	// when it has not done so DrainTimeout later. Each connection's own is
	// drawn from ±10 % around it, so that those that came together do not all
	// come back together. Zero or less means no limit.
	MaxLifetime time.Duration

	// DrainTimeout is how long connections may take to leave when the context
	// of ListenAndServe or Serve ends; those left are cut. Zero means 25
	// seconds, which fits into the 30 that container platforms give.
	DrainTimeout time.Duration

	// DrainSpread is how long [Server.Shutdown] takes to ask the connections to leave, each at a moment of its own, so
	// that their clients do not all come back at the same instant. It is at most half of the time that they have.
	// Zero means a millisecond for each connection beyond the first 1,000, and at most a fifth of that time; negative
	// asks all at once.
	DrainSpread time.Duration

	// StepBudget is how long a [Stepper]'s Step may hold up the other connections of
	// its event loop, before the loop goes on without it. It is looked at as often,
	// so a Step may hold them up for twice as long. Zero means 1 ms; with no limit
	// a Step that blocks holds up all of its loop.
	StepBudget time.Duration

	// GoroutinePerConn serves every connection in a goroutine of its own, also one
	// that an event loop could run. It is for finding out whether a problem comes
	// from there, and changes nothing elsewhere than on Linux.
	GoroutinePerConn bool

	// Trace is told of everything that happens. It may be nil.
	Trace *Trace

	// Logger gets what an operator must see even without a Trace: failing
	// accepts and panics, at a bounded rate. Nil means slog.Default().
	Logger *slog.Logger

	inForce    atomic.Pointer[settings]
	files      int       // descriptors from there on are left to others; 0 if none are
	epoch      time.Time // what clock counts from
	handshakes turnstile
	loops      loopSet
	lobby      lobby // of those who are turned away slowly
	arriving   atomic.Int64
	slow       atomic.Int64 // Steps that outlived StepBudget
	pressing   pressing
	routes     routeNames
	acceptLog  complaints
	panicLog   complaints

	quiet time.Duration // of a joined connection that is to leave; zero is reactor.QuietTime

	once  sync.Once
	slots slots         // one per open connection
	gone  chan struct{} // closed when nobody can come any more and the last has left

	pauses acceptPauses

	mu        sync.Mutex
	state     state
	doors     map[*door]struct{}
	acceptors int
	stopping  chan struct{} // closed when accepting is to stop
	conns     map[uint64]*Conn
	coming    map[uint64]struct{} // ids of those that were adopted and have not begun
	base      context.Context     // of Serve: the parent of those of connections that were adopted; nil before
	lag       lagWindow
	left      tally // of the connections that have ended
	before    tally // of those that had when it stopped accepting
	leaving   int   // ended, but their Closed hook is still running
}

// state is how far a server is in its life.
type state int

const (
	serving state = iota
	draining
	closed
)

// ErrServerClosed is returned by Serve and ListenAndServe after a call to
// Shutdown or Close.
var ErrServerClosed = errors.New("levee: server closed")

// A DrainError says that not every connection left before the drain deadline.
type DrainError struct {
	Cut int // how many had to be cut
}

// Error returns a sentence such as "levee: 3 connections cut at the drain deadline".
func (e *DrainError) Error() string {
	if e.Cut == 1 {
		return "levee: 1 connection cut at the drain deadline"
	}
	return fmt.Sprintf("levee: %d connections cut at the drain deadline", e.Cut)
}

// Is reports whether target is context.DeadlineExceeded.
func (e *DrainError) Is(target error) bool { return target == context.DeadlineExceeded }

// ListenAndServe listens on the addresses (see [Listen]) and serves until ctx
// ends; then it drains as [Server.Shutdown] does, for up to DrainTimeout.
//
// It returns nil when every connection left in its own time, a [*DrainError]
// when some had to be cut, [ErrServerClosed] when Shutdown or Close was called,
// and what went wrong when an address could not be listened on.
func (s *Server) ListenAndServe(ctx context.Context, addresses ...string) error {
	listeners := make([]net.Listener, 0, len(addresses))
	for _, address := range addresses {
		l, err := Listen(ctx, address)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	return s.Serve(ctx, listeners...)
}

// Serve is ListenAndServe on listeners that are already there. It owns them from
// now on and closes them. Any net.Listener will do; with net's own the server
// can also serve the connections that wait in the kernel's queue when it shuts
// down. It may be called several times, for more listeners; the end of any
// call's ctx shuts the whole server down.
//
// When somebody else closes one of the listeners, Serve closes the others and
// returns an error. The connections and the event loops go on, until Shutdown or
// Close, which is owed also when there are none.
//
// Of ctx only the end and the values count: the context that handlers see has
// its values, and outlives it until their connection ends.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	call := &serveCall{failed: make(chan error, 1), over: make(chan struct{})}
	if err := s.start(ctx, listeners, call); err != nil {
		return abandon(listeners, err)
	}
	select {
	case <-ctx.Done():
		// The context's values still count; its end has had its effect.
		ctx = context.WithoutCancel(ctx)
		if limit := s.inForce.Load().limits.drain; limit >= 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return s.Shutdown(ctx)
	case err := <-call.failed:
		return abandon(listeners, err)
	case <-call.over:
		select {
		case err := <-call.failed: // was first
			return abandon(listeners, err)
		default:
		}
		if !s.isStopping() {
			return nil
		}
	case <-s.stopping:
	}
	<-s.gone
	s.awaitLoops()
	return ErrServerClosed
}

// abandon closes the listeners of a call of Serve that ends with an error.
func abandon(listeners []net.Listener, err error) error {
	for _, l := range listeners {
		_ = l.Close()
	}
	return err
}

// StopListening has the server accept no more on a listener that Serve was given, serve those
// who wait in its queue, and close it. The connections go on, and so do the server's other
// listeners. A call of Serve returns nil when that has become of all of its listeners. It
// reports whether the listener was one of the server's.
func (s *Server) StopListening(l net.Listener) bool { return s.stopDoor(l, false) }

// HandOver has the server accept no more on a listener that Serve was given, and close it, but leaves
// those who wait in the socket's queue to somebody else who accepts from it: another process, or another
// server (see [FileListener]). Else it is as [Server.StopListening].
func (s *Server) HandOver(l net.Listener) bool { return s.stopDoor(l, true) }

// stopDoor has no more accepted on a listener, and reports whether it is one of the server's.
func (s *Server) stopDoor(l net.Listener, handedOver bool) bool {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.doors {
		if d.listener == l {
			d.handedOver = d.handedOver || handedOver
			d.stopLocked()
			return true
		}
	}
	return false
}

// A serveCall is a call of Serve.
type serveCall struct {
	failed chan error    // has room for one
	doors  int           // guarded by the server's mu
	over   chan struct{} // closed when there are none any more
}

// start registers the listeners and starts their acceptors.
func (s *Server) start(ctx context.Context, listeners []net.Listener, call *serveCall) error {
	if err := s.check(); err != nil {
		return err
	}
	if len(listeners) == 0 {
		return errors.New("levee: no address to listen on")
	}
	s.init()
	base := context.WithoutCancel(ctx)
	doors := make([]*door, len(listeners))
	for i, l := range listeners {
		doors[i] = &door{server: s, listener: l, ctx: base, call: call, stop: make(chan struct{}), acceptors: acceptorsPerListener()}
		if s.inForce.Load().takesBare() {
			doors[i].hangBare() // now, so that no connection waits for event loops to begin
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != serving {
		return ErrServerClosed
	}
	s.base = base
	call.doors = len(doors)
	for _, door := range doors {
		l := door.listener
		_, longest := queueOf(l)
		door.crowd.counted = longest > 0
		s.doors[door] = struct{}{}
		for range door.acceptors {
			s.acceptors++
			go door.accept() // ends when door.stop is closed, or the listener is
		}
	}
	return nil
}

// checkTLS refuses what could only fail every handshake, as crypto/tls's Listen does.
func (s *Server) checkTLS() error {
	c := s.TLSConfig
	switch {
	case c == nil && s.AllowPlaintext:
		return errors.New("levee: Server.AllowPlaintext without a TLSConfig: all is plaintext then, drop it")
	case c != nil && len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil:
		return errors.New("levee: Server.TLSConfig has neither Certificates nor GetCertificate nor GetConfigForClient")
	}
	return nil
}

// init readies what the zero Server lacks.
func (s *Server) init() {
	s.once.Do(func() {
		first := s.newSettings(1)
		s.inForce.Store(first)
		s.slots.resize(first.limits.conns)
		s.handshakes.resize(first.limits.handshakes)
		s.files = filesForAll(openFilesLimit())
		s.epoch = time.Now()
		s.pressing.newcomers.init(lookEvery)
		s.pressing.standing.init(50 * lookEvery)
		s.lobby.room = lobbyRoom(openFilesLimit())
		s.gone = make(chan struct{})
		s.stopping = make(chan struct{})
		s.doors = make(map[*door]struct{})
		s.conns = make(map[uint64]*Conn)
		s.coming = make(map[uint64]struct{})
	})
}

// clock is the time since the server's start, from the monotonic clock.
func (s *Server) clock() time.Duration { return time.Since(s.epoch) }

// trace returns a Trace that is never nil.
func (s *Server) trace() *Trace {
	if s.Trace == nil {
		return &noTrace
	}
	return s.Trace
}

var noTrace Trace

// Conn returns the open connection with that id, or nil.
func (s *Server) Conn(id uint64) *Conn {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[id]
}

// Conns returns the connections that are open now, in no order.
func (s *Server) Conns() []*Conn {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Conn, 0, len(s.conns))
	for _, c := range s.conns {
		all = append(all, c)
	}
	return all
}
