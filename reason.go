package levee

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
)

// A CloseReason says why a connection ended. Every connection ends with exactly
// one, and its word is the same in logs, metrics and tests. The set is
// closed: strangers cannot add to it, so it is safe as a metric label.
//
// The words are built as who, phase or cause: client_… is the peer's doing,
// handler_… the service's, upstream_… what it was joined to, the rest levee's own.
type CloseReason uint8

// The reasons, in the order in which a connection may meet them.
const (
	// ReasonNone is the zero value: the connection has not ended. It may have moved to another process.
	ReasonNone CloseReason = iota

	// Limited: it was one too many, or came too soon, for a limit of the Server.Gate's.
	// Like the two that follow it counts in Stats.Refused at the door, and in Stats.Closed
	// at every later stage.
	Limited
	// Denied: the Server.Gate does not let its client in at all.
	Denied
	// Overloaded: the server had no room for it, and would rather say so than have it wait.
	Overloaded

	// ClientAborted: the peer left before the connection was set up (a port
	// scan, a TCP health check, a client that gave up).
	ClientAborted
	// ArrivalTimeout: PROXY header, first bytes, TLS handshake or routing took
	// longer than Server.ArrivalTimeout, ProxyHeaderTimeout or SniffTimeout.
	ArrivalTimeout
	// ProxyHeaderInvalid: a source that must send a PROXY header sent
	// something else, or a malformed one.
	ProxyHeaderInvalid
	// ProxyHeaderRefused: a source outside Server.ProxyFrom sent a PROXY header.
	ProxyHeaderRefused
	// TLSFailed: the TLS handshake failed, or the first bytes were not TLS.
	TLSFailed
	// NoRoute: the Router found no handler for the connection.
	NoRoute

	// ClientClosed: the peer closed its side and the handler finished.
	ClientClosed
	// ClientReset: the peer reset the connection.
	ClientReset
	// NetworkError: the network lost the peer (keep-alive or retransmission
	// timed out, no route to host).
	NetworkError
	// HandlerClosed: the handler returned nil, or closed the connection, while
	// the peer was still there.
	HandlerClosed
	// HandlerError: the handler returned an error of its own.
	HandlerError
	// HandlerPanic: the handler, a hook or a TLS callback panicked.
	HandlerPanic

	// UpstreamUnavailable: the Joiner had nothing to join the connection to.
	UpstreamUnavailable
	// UpstreamClosed: the connection's upstream closed its side first, and the peer
	// then closed its own.
	UpstreamClosed
	// UpstreamReset: the upstream reset the connection.
	UpstreamReset
	// UpstreamFailed: the network lost the upstream, or its TLS broke.
	UpstreamFailed
	// UpstreamStalled: bytes were pending for the upstream and it took none of them
	// for Server.WriteStallTimeout.
	UpstreamStalled

	// IdleTimeout: no byte in either direction for Server.IdleTimeout.
	IdleTimeout
	// MessageTimeout: a message had begun and was not complete within
	// Server.MessageTimeout.
	MessageTimeout
	// HalfClosedTimeout: the server had closed its side and the peer sent
	// nothing for Server.HalfClosedTimeout; or one side of a joined connection had,
	// and from the other nothing came.
	HalfClosedTimeout
	// WriteStalled: bytes were pending and the peer took none of them for
	// Server.WriteStallTimeout.
	WriteStalled
	// LifetimeExpired: the connection reached Server.MaxLifetime.
	LifetimeExpired

	// Drained: the connection was asked to leave, by Server.Shutdown or
	// Conn.Drain, and left in its own time.
	Drained
	// DrainTimeout: the connection was still there at the drain deadline and
	// was cut.
	DrainTimeout
	// Killed: Conn.Kill ended the connection.
	Killed
	// Policy: Conn.Forbid ended the connection, which would not be let in any more.
	Policy
	// ServerClosed: Server.Close ended the connection.
	ServerClosed

	reasonCount
)

var reasonWords = [reasonCount]string{
	ReasonNone:          "none",
	Limited:             "limited",
	Denied:              "denied",
	Overloaded:          "overloaded",
	ClientAborted:       "client_aborted",
	ArrivalTimeout:      "arrival_timeout",
	ProxyHeaderInvalid:  "proxy_header_invalid",
	ProxyHeaderRefused:  "proxy_header_refused",
	TLSFailed:           "tls_failed",
	NoRoute:             "no_route",
	ClientClosed:        "client_closed",
	ClientReset:         "client_reset",
	NetworkError:        "network_error",
	HandlerClosed:       "handler_closed",
	HandlerError:        "handler_error",
	HandlerPanic:        "handler_panic",
	UpstreamUnavailable: "upstream_unavailable",
	UpstreamClosed:      "upstream_closed",
	UpstreamReset:       "upstream_reset",
	UpstreamFailed:      "upstream_failed",
	UpstreamStalled:     "upstream_stalled",
	IdleTimeout:         "idle_timeout",
	MessageTimeout:      "message_timeout",
	HalfClosedTimeout:   "half_closed_timeout",
	WriteStalled:        "write_stalled",
	LifetimeExpired:     "lifetime_expired",
	Drained:             "drained",
	DrainTimeout:        "drain_timeout",
	Killed:              "killed",
	Policy:              "policy",
	ServerClosed:        "server_closed",
}

// IsAbnormal reports whether an end for that reason is more than the usual coming and going: somebody's mistake, an
// attack, or a fault. A flight recorder keeps it, a span of it is an error. Clients that leave, in whatever way, are usual, and
// so is what levee has been asked to do to a connection that is quiet, old or to leave.
func (r CloseReason) IsAbnormal() bool {
	switch r {
	case ReasonNone, ClientAborted, ClientClosed, ClientReset, HandlerClosed, UpstreamClosed, IdleTimeout, LifetimeExpired, Drained, ServerClosed:
		return false
	}
	return true
}

// String returns the reason's word, such as "idle_timeout".
func (r CloseReason) String() string {
	if r < reasonCount {
		return reasonWords[r]
	}
	return fmt.Sprintf("CloseReason(%d)", uint8(r))
}

// CloseReasons returns every reason a connection can end with, in a fixed
// order: what a metric needs to show a zero before the first event.
func CloseReasons() []CloseReason {
	all := make([]CloseReason, 0, reasonCount-1)
	for r := ReasonNone + 1; r < reasonCount; r++ {
		all = append(all, r)
	}
	return all
}

// refusals are the reasons that somebody may be turned away for at the door.
var refusals = [...]CloseReason{Limited, Denied, Overloaded}

// isRefusal reports whether r is one of them.
func (r CloseReason) isRefusal() bool { return slices.Contains(refusals[:], r) }

// A CloseError is what I/O on a connection returns, and what the cause of its
// context is, once levee has ended it, or with ReasonNone has moved it to another process. It matches net.ErrClosed, and
// os.ErrDeadlineExceeded when the reason is one of time, and whatever cause
// [Conn.Kill] was given.
type CloseError struct {
	Reason CloseReason
	Cause  error // nil unless someone gave one
}

// Error returns a sentence such as "connection ended: idle_timeout".
func (e *CloseError) Error() string {
	if e.Reason == ReasonNone {
		return "connection moved to another process"
	}
	if e.Cause != nil {
		return "connection ended: " + e.Reason.String() + ": " + e.Cause.Error()
	}
	return "connection ended: " + e.Reason.String()
}

// Unwrap returns the cause.
func (e *CloseError) Unwrap() error { return e.Cause }

// Is reports whether target is net.ErrClosed, or os.ErrDeadlineExceeded and
// the reason a timeout.
func (e *CloseError) Is(target error) bool {
	return target == net.ErrClosed || target == os.ErrDeadlineExceeded && e.Timeout()
}

// Timeout reports whether time ran out, as net.Error wants it.
func (e *CloseError) Timeout() bool {
	switch e.Reason {
	case ArrivalTimeout, IdleTimeout, HalfClosedTimeout, MessageTimeout, WriteStalled, UpstreamStalled, LifetimeExpired, DrainTimeout:
		return true
	}
	return false
}

// Temporary is always false: an ended connection stays ended.
func (e *CloseError) Temporary() bool { return false }

// reasonOf tells what the network did, by a socket's error: ReasonNone if it had
// no part in it.
func reasonOf(err error) CloseReason {
	errno, _ := errors.AsType[syscall.Errno](err)
	switch errno {
	case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.ENOTCONN: // the last is shutdown(2)'s word for it
		return ClientReset
	case syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN:
		return NetworkError
	}
	return ReasonNone
}

// isEOF reports whether err is an end of stream, be it in the middle of something.
func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
