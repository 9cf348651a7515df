// Package handlers has the handlers that come with the binary: echo, discard and
// hello.
package handlers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/levee-net/levee"
)

const bufferSize = 32 << 10 // what a connection may hold in one direction, while it holds anything

// The buffers of connections that have bytes in hand.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Echo sends back what it reads.
var Echo levee.Handler = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
	return eachRead(c, func(p []byte) error {
		_, err := c.Write(p)
		return err
	})
})

// Discard throws away what it reads.
var Discard levee.Handler = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
	return eachRead(c, func([]byte) error { return nil })
})

// eachRead passes on what arrives until the client, or the server, has had
// enough. It holds a buffer only while there is something in it.
func eachRead(c *levee.Conn, take func([]byte) error) error {
	for c.Next() {
		buffer := buffers.Get().(*[bufferSize]byte)
		n, err := c.Read(buffer[:])
		if err == nil {
			err = take(buffer[:n])
		}
		buffers.Put(buffer)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Hello greets every HTTP request.
var Hello http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	security := "in plaintext"
	if r.TLS != nil {
		security = "over TLS"
	}
	fmt.Fprintf(w, "Hello from levee, %s.\n", security)
})
