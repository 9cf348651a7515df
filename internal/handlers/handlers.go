// Package handlers has the handlers that come with the binary: echo, discard and
// hello.
package handlers

import (
	"context"
	"fmt"
	"net/http"

	"github.com/levee-net/levee"
)

// Echo sends back what it reads.
var Echo levee.Handler = &bytewise{named: "echo", answer: func(in []byte) (reply []byte) { return in }}

// Discard throws away what it reads.
var Discard levee.Handler = &bytewise{named: "discard", answer: func([]byte) (reply []byte) { return nil }}

// A named handler has nothing to tell of a connection but which handler it is: a route may have another one in the process that
// the connection moves to.
type named string

// Save returns the name.
func (n named) Save(*levee.Conn) (state []byte, err error) { return []byte(n), nil }

// Restore refuses another's.
func (n named) Restore(_ *levee.Conn, state []byte) error {
	if string(state) != string(n) {
		return fmt.Errorf("it was served by handler %q, and the route has %q now", state, string(n))
	}
	return nil
}

// A bytewise handler is one to whom every byte is a message.
type bytewise struct {
	named
	answer func(in []byte) (reply []byte)
}

func (b *bytewise) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, b) }

func (b *bytewise) Step(_ *levee.Conn, in []byte, _ int, _ []byte) (n int, reply []byte, err error) {
	return len(in), b.answer(in), nil
}

// Hello greets every HTTP request.
var Hello http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff") // it is plain text whatever it looks like
	security := "in plaintext"
	if r.TLS != nil {
		security = "over TLS"
	}
	fmt.Fprintf(w, "Hello from levee, %s.\n", security)
})
