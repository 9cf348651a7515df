package load

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Held is connections that are open and idle, after one message there and back on
// each.
type Held struct {
	engine *engine
	twin   *twin // instead, over TLS
	lines  []*line
}

// Hold opens the Connections of the load and leaves them at that.
func (l Load) Hold(ctx context.Context) (*Held, error) {
	l.Duration = 1 // of no meaning here
	l, err := l.checked()
	if err != nil {
		return nil, err
	}
	if l.TLS != nil {
		return l.holdTwin(ctx)
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
	return &Held{engine: e}, nil
}

func (l Load) holdTwin(ctx context.Context) (*Held, error) {
	t := newTwin(l)
	lines, err := t.open(ctx)
	if err != nil {
		t.hangUp(lines)
		return nil, err
	}
	return &Held{twin: t, lines: lines}, nil
}

// Leave waits until the server has closed every connection, closing this end of
// each as it goes.
func (h *Held) Leave(ctx context.Context) error {
	if h.twin != nil {
		return h.leaveTwin(ctx)
	}
	for h.engine.left < h.engine.Connections {
		if err := h.engine.turn(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (h *Held) leaveTwin(ctx context.Context) error {
	interrupt := context.AfterFunc(ctx, func() { h.twin.hangUp(h.lines) })
	defer interrupt()
	for _, c := range h.lines {
		if err := c.listen(func(replyState) error { return errTooMuch }); ctx.Err() == nil && !errors.Is(err, errClosed) {
			return h.twin.failed(c.index, err)
		}
		_ = c.Close()
	}
	return ctx.Err()
}

// Close resets what is still open; over TLS it closes it.
func (h *Held) Close() {
	if h.twin != nil {
		h.twin.hangUp(h.lines)
		return
	}
	h.engine.close()
}

func (e *engine) leave(c *client) {
	_ = unix.Close(c.fd)
	c.fd = -1
	e.left++
}
