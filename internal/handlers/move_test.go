package handlers_test

import (
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/handlers"
)

// A route may have another handler in the process that a connection moves to.
func TestAConnectionMovesToNoOtherHandler(t *testing.T) {
	all := map[string]levee.Movable{
		"echo": handlers.Echo.(levee.Movable), "discard": handlers.Discard.(levee.Movable), "hello": handlers.HelloPage,
	}
	for name, from := range all {
		state, err := from.Save(nil)
		if err != nil {
			t.Fatal(err)
		}
		for other, to := range all {
			if err := to.Restore(nil, state); (err == nil) != (name == other) {
				t.Errorf("from %s to %s: %v", name, other, err)
			}
		}
	}
}
