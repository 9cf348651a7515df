package frame_test

import (
	"testing"

	"github.com/levee-net/levee/frame"
)

func TestAStatelessHandlerStepsAsItDidAndSavesNothing(t *testing.T) {
	echoes := frame.Handler(frame.Lines(64), func(w *frame.Writer, line []byte) error { return w.Write(line) })
	h := frame.Stateless(echoes)
	n, reply, err := h.Step(nil, []byte("one\ntwo\nthr"), 0, nil)
	if n != len("one\ntwo\n") || string(reply) != "one\ntwo\n" || err != nil {
		t.Errorf("took %d bytes, replied %q, %v", n, reply, err)
	}
	if state, err := h.Save(nil); state != nil || err != nil {
		t.Errorf("saved %q, %v", state, err)
	}
	if err := h.Restore(nil, nil); err != nil {
		t.Error(err)
	}
}
