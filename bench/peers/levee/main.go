// Command levee is an echo on levee's library, with a sequential handler: a
// goroutine for each connection, and all that the zero Server brings.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/levee-net/levee"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := levee.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("Listening on %s\n", l.Addr())
	srv := &levee.Server{Handler: levee.HandlerFunc(echo), DrainSpread: -1} // the bench asks how fast all could leave
	return srv.Serve(ctx, l)
}

const bufferSize = 16 << 10 // the largest message of any work

// A connection that waits in Next holds no buffer.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func echo(_ context.Context, c *levee.Conn) error {
	for c.Next() {
		if err := once(c); err != nil {
			return err
		}
	}
	return nil
}

func once(c *levee.Conn) error {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	n, err := c.Read(buffer[:])
	if err != nil {
		return err
	}
	_, err = c.Write(buffer[:n])
	return err
}
