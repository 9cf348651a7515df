package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

// ErrUnavailable is what a [*DialError] is, for errors.Is, unless the caller gave up.
var ErrUnavailable = errors.New("no server available")

// A DialError tells why a Dial has brought no connection.
//
//	upstream postgres: no server available: 10.0.0.7:5432: connection refused; 10.0.0.8:5432: breaker open
type DialError struct {
	Pool  string
	Tries []Try // in order, then the servers that were not even tried, the first few of them
	Err   error // what ended it: the context's cause, for example, or that the retry budget is used up
	gone  bool  // the caller gave up
}

// A Try is what became of one try, or why there was none.
type Try struct {
	Server string
	Err    error
}

// Error returns one line.
func (e *DialError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "upstream %s: ", e.Pool)
	if e.gone {
		fmt.Fprintf(&b, "gave up: %v", e.Err)
	} else {
		b.WriteString(ErrUnavailable.Error())
	}
	separator := ": "
	for _, try := range e.Tries {
		fmt.Fprintf(&b, "%s%s: %v", separator, try.Server, try.Err)
		separator = "; "
	}
	if !e.gone && !e.saysItself() {
		fmt.Fprintf(&b, "%s%v", separator, e.Err)
	}
	return b.String()
}

// saysItself reports whether the tries tell why there were no more of them.
func (e *DialError) saysItself() bool {
	return (e.Err == errNone || e.Err == errTriedOut) && len(e.Tries) > 0
}

// Unwrap returns ErrUnavailable unless the caller gave up, what ended the Dial, and
// the error of each try.
func (e *DialError) Unwrap() []error {
	errs := make([]error, 0, 2+len(e.Tries))
	if !e.gone {
		errs = append(errs, ErrUnavailable)
	}
	errs = append(errs, e.Err)
	for _, try := range e.Tries {
		errs = append(errs, try.Err)
	}
	return errs
}

// Reasons why a server was not tried.
var (
	errBreakerOpen = errors.New("breaker open")
	errProbed      = errors.New("breaker half-open, others are probing")
	errDown        = errors.New("down")
	errDrained     = errors.New("drained")
	errFull        = errors.New("as many connections as it may have")
	errNoServers   = errors.New("no servers are known")
)

const reasonsTold = 8 // servers that were not tried, in an error: it is one line

// fail returns the error of a Dial that err has ended.
func (d *dialling) fail(err error) error {
	p := d.pool
	failure := &DialError{Pool: p.Name, Tries: d.tries, Err: err, gone: whyEnded(d.ctx) != nil}
	if failure.gone {
		p.counts.gaveUp.Add(1)
		return failure
	}
	p.counts.refused.Add(1)
	members := p.lineup.Load().members
	if len(members) == 0 {
		failure.Err = errNoServers
	}
	told := 0
	for _, m := range members {
		if told == reasonsTold {
			break
		}
		if slices.ContainsFunc(d.tries, func(t Try) bool { return t.Server == m.name }) {
			continue
		}
		if reason := m.obstacle(); reason != nil {
			failure.Tries = append(failure.Tries, Try{Server: m.name, Err: reason})
			told++
		}
	}
	return failure
}

// obstacle returns what speaks against a new connection, or nil.
func (m *member) obstacle() error {
	switch {
	case m.drained.Load():
		return errDrained
	case m.breaker.State() == breaker.Open:
		return errBreakerOpen
	case !m.breaker.Ready():
		return errProbed
	case m.down.Load():
		if _, err := m.verdict(); err != nil {
			return fmt.Errorf("%w: %w", errDown, err)
		}
		return errDown
	case m.full():
		return errFull
	}
	return nil
}

// A FailureKind is why a connection could not be had from a server, for metrics.
type FailureKind uint8

// The kinds of failures.
const (
	Refused     FailureKind = iota // there is nobody listening
	TimedOut                       // by DialTimeout, HandshakeTimeout, TotalTimeout or the system
	Unreachable                    // no route
	Reset                          // closed or reset before it was of any use
	Lookup                         // its name could not be looked up
	Handshake                      // TLS failed
	Local                          // this machine's trouble: file descriptors, ports, memory
	GaveUp                         // the caller did
	Other

	failureKinds
)

var failureWords = [failureKinds]string{
	Refused:     "refused",
	TimedOut:    "timed_out",
	Unreachable: "unreachable",
	Reset:       "reset",
	Lookup:      "lookup",
	Handshake:   "handshake",
	Local:       "local",
	GaveUp:      "gave_up",
	Other:       "other",
}

// String returns the kind's word, such as "timed_out".
func (k FailureKind) String() string {
	if k < failureKinds {
		return failureWords[k]
	}
	return fmt.Sprintf("FailureKind(%d)", uint8(k))
}

// FailureKinds returns all kinds there are.
func FailureKinds() []FailureKind {
	kinds := make([]FailureKind, failureKinds)
	for i := range kinds {
		kinds[i] = FailureKind(i)
	}
	return kinds
}

// A handshakeError is told from one of the network below it.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// kindOf sorts an error of open.
func kindOf(err error) FailureKind {
	_, handshake := errors.AsType[*handshakeError](err)
	_, lookup := errors.AsType[*net.DNSError](err)
	switch {
	case isOneOf(err, localErrors):
		return Local
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isOneOf(err, timeoutErrors):
		return TimedOut
	case handshake:
		return Handshake
	case lookup:
		return Lookup
	case isOneOf(err, refusedErrors):
		return Refused
	case isOneOf(err, unreachableErrors):
		return Unreachable
	case endedByPeer(err):
		return Reset
	default:
		return Other
	}
}

// endedByPeer reports whether an error of a read or a write says that the other side has
// closed or reset the connection.
func endedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isOneOf(err, resetErrors) || isAlert(err)
}

// isAlert reports whether the other side ended a TLS connection by an alert, such as one
// about the client's certificate, which in TLS 1.3 comes after the handshake. crypto/tls
// gives it no other mark than this.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

func isOneOf(err error, errnos []syscall.Errno) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(errnos, errno)
}

// plain takes the dress of package net off an error: who dialled what is said around it.
func plain(err error) error {
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
