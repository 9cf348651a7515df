package levee

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/levee-net/levee/internal/inbox"
)

// A Stepper is a Handler that can be handed a connection's bytes instead of reading
// them. A connection in plaintext, over TCP or a Unix socket, then runs on an event
// loop (on Linux, and unless [Server.GoroutinePerConn] is set): it has no goroutine,
// no buffer while it is idle, and Step is called inline. Any other connection gets
// ServeTCP, which is usually one line, [ServeSteps], and behaves the same.
//
// What hides it, such as a [Middleware] that returns a HandlerFunc, has its
// connections served by goroutines; so has a source that a Server.ProxyFrom does not
// list, and a net.Conn that is not net's own. A type that embeds a Stepper to do
// more has to have a Step of its own, not only a ServeTCP.
//
// Package frame makes Steppers of functions from message to reply; to write one by
// hand is for protocols that do not fit that.
//
// A Step that takes longer than [Server.StepBudget] holds nobody up: it goes on as a
// goroutine of its own, and the other connections of its loop are served by
// another. It may therefore block, though its own client waits.
type Stepper interface {
	Handler

	// Step takes whole messages from the beginning of in, which is never empty, as
	// many as it likes, and says how many bytes they were and what to write in
	// reply: what it has appended to out, or a part of in. An n of 0 without an
	// error means that in holds no whole message; Step is called again when more
	// bytes have come, with those in front, and seen says how many of them it has
	// been shown before. An n above 0 has it called again with the rest of in, once
	// the reply is on its way: where replies are large, it should stop early. So a
	// client that does not read its replies is not read from either.
	//
	// What has come of a message is kept until the rest has, for [Server.MessageTimeout] at
	// most. It is Step that has to refuse messages that are too long.
	//
	// An error ends the connection once the reply has been written: in good order
	// if it is a bare io.EOF, and with reason handler_error otherwise. Asked to leave, a
	// connection does so when everything that has arrived has been taken; at the
	// end of the stream what has not been is an io.ErrUnexpectedEOF.
	//
	// Step keeps neither in nor out, and changes no bytes of in but those it takes. It
	// is called for many connections at once, and for each by any goroutine, one
	// call at a time. The connection is there to be asked, or ended: reading and
	// writing are not Step's, and fail. The reply of a Step that has ended it, by
	// Close or Kill, is not written; to end after a reply is what io.EOF is for.
	Step(c *Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error)
}

// errStepped is what reading and writing says where a Stepper or a Joiner is served.
var errStepped = errors.New("levee: the bytes of a connection that is stepped or joined are not to be read or written")

// ServeSteps is ServeTCP for a Stepper: it reads, steps and writes until either side has
// had enough. Between messages it waits without a buffer.
func ServeSteps(c *Conn, h Stepper) error {
	s, err := c.bytes()
	if err != nil {
		return err
	}
	s.stepped.Store(true)
	defer s.stepped.Store(false)
	for err == nil {
		if err = s.awaitNext(); err == nil {
			err = s.answer(h)
		}
	}
	if err == io.EOF || err == errAskedToLeave || c.over() { // in good order, or not for the handler to report
		return nil
	}
	return err
}

// answer reads and answers until it has nothing in its hands.
func (s *stream) answer(h Stepper) error {
	var in inbox.Inbox
	defer in.Release()
	defer s.wire.endMessage()
	for seen := 0; ; {
		if err := in.Fill(s); err == io.EOF {
			return nil // awaitNext will say so too
		} else if err != nil {
			return err
		}
		had := len(in.Unread())
		if err := s.stepAll(h, &in, seen); err != nil || len(in.Unread()) == 0 {
			return err
		}
		if seen == 0 || len(in.Unread()) < had {
			s.wire.beginMessage()
		}
		seen = len(in.Unread())
	}
}

// stepAll answers all whole messages that there are.
func (s *stream) stepAll(h Stepper, in *inbox.Inbox, seen int) error {
	out := inbox.Take(len(in.Unread()))
	defer inbox.Give(out)
	for len(in.Unread()) > 0 {
		if s.conn.over() {
			return net.ErrClosed
		}
		n, reply, err := h.Step(s.conn, in.Unread(), seen, out.Bytes[:0])
		checkStep(n, len(in.Unread()))
		if len(reply) > 0 {
			if _, err := s.write(reply); err != nil {
				return err
			}
		}
		in.Discard(n) // only now: the reply may have been part of it
		if err != nil || n == 0 {
			return err
		}
		seen = 0
	}
	return nil
}

// checkStep keeps a handler's mistake its own.
func checkStep(n, bytes int) {
	if n < 0 || n > bytes {
		panic(fmt.Sprintf("levee: Step has taken %d bytes of %d", n, bytes))
	}
}
