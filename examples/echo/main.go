// Command echo is the program in the README.
package main

import (
	"context"
	"io"
	"log"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := &levee.Server{Handler: levee.HandlerFunc(echo)}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil { // returns when all have left
		log.Fatal(err)
	}
}

func echo(_ context.Context, c *levee.Conn) error {
	buffer := make([]byte, 4096)
	for c.Next() { // false at end of stream, when idle for too long, and when asked to leave
		n, err := c.Read(buffer)
		if err == nil {
			_, err = c.Write(buffer[:n])
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}
