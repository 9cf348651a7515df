package frame

import (
	"io"

	"github.com/levee-net/levee"
)

// A stepper is a handler that can be handed a connection's bytes, see [Handler].
type stepper interface {
	Step(c *levee.Conn, in, out []byte) (n int, reply []byte, err error)
	Ready(in []byte, seen int) bool
}

// serveSteps is ServeTCP for a stepper: it reads, steps and writes until either side
// has had enough. Between messages it waits with no buffer.
func serveSteps(c *levee.Conn, s stepper) error {
	for c.Next() {
		err := answer(c, s)
		if err == io.EOF { // bare, it is the end in good order
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answer reads and answers until it has nothing in its hands.
func answer(c *levee.Conn, s stepper) error {
	var in inbox
	defer in.release()
	for {
		seen := len(in.unread())
		if err := in.fill(c); err != nil {
			return err
		}
		if seen > 0 && !s.Ready(in.unread(), seen) {
			continue
		}
		if err := stepAll(c, s, &in); err != nil || len(in.unread()) == 0 {
			return err
		}
	}
}

// stepAll answers all whole messages that there are, in one write unless their
// replies are too large for that.
func stepAll(c *levee.Conn, s stepper, in *inbox) error {
	out := takeBuffer(smallBuffer)
	defer giveBuffer(out)
	for len(in.unread()) > 0 {
		n, reply, err := s.Step(c, in.unread(), out.bytes[:0])
		in.discard(n)
		out.bytes = reply // it may have grown
		if len(reply) > 0 {
			if _, err := c.Write(reply); err != nil {
				return err
			}
		}
		if err != nil || n == 0 {
			return err
		}
	}
	return nil
}
