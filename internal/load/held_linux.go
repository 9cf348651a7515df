package load

import (
	"context"

	"golang.org/x/sys/unix"
)

// Held is connections that are open and idle, after one message there and back on
// each.
type Held struct{ engine *engine }

// Hold opens the Connections of the load and leaves them at that.
func (l Load) Hold(ctx context.Context) (*Held, error) {
	l.Duration = 1 // of no meaning here
	l, err := l.checked()
	if err != nil {
		return nil, err
	}
	e, err := newEngine(l)
	if err != nil {
		return nil, err
	}
	if err := e.open(ctx); err != nil {
		e.close()
		return nil, err
	}
	e.held = true
	return &Held{e}, nil
}

// Leave waits until the server has closed every connection, closing this end of
// each as it goes.
func (h *Held) Leave(ctx context.Context) error {
	for h.engine.left < h.engine.Connections {
		if err := h.engine.turn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close resets what is still open.
func (h *Held) Close() { h.engine.close() }

func (e *engine) leave(c *client) {
	_ = unix.Close(c.fd)
	c.fd = -1
	e.left++
}
