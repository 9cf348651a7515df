// Command lines answers each line in capitals, from an event loop.
package main

import (
	"bytes"
	"context"
	"log"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := &levee.Server{Handler: frame.Handler(frame.Lines(64<<10), shout)}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func shout(w *frame.Writer, line []byte) error {
	return w.Write(bytes.ToUpper(line)) // it may block: other connections do not notice
}
