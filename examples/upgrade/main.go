//go:build unix

// Command upgrade can be replaced while it serves: the next binary goes on with its port and with its live connections, and
// with what it knows of them. Here that is how many lines each has sent.
//
//	go build -o /tmp/upgrade ./examples/upgrade && /tmp/upgrade
//	nc 127.0.0.1 7000                 # say something now and then
//	go build -o /tmp/next ./examples/upgrade && mv /tmp/next /tmp/upgrade
//	kill -USR2 $(pgrep -o -x upgrade)    # some seconds later another process answers
//
// Processes are replaced on Linux; elsewhere an upgrade fails, is logged, and changes nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/handover"
)

func main() {
	address := "127.0.0.1:7000"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)

	process, err := handover.Begin() // early: it takes what the process before this one has given
	if err != nil {
		log.Fatal(err)
	}
	srv := &levee.Server{Name: "counter", Handler: levee.HandlerFunc(count)} // the next one knows it by its name
	if err := process.ListenAndServe(ctx, upgrade, srv, address); err != nil {
		log.Fatal(err)
	}
}

// count numbers the lines of a connection, in whichever processes they come.
func count(ctx context.Context, c *levee.Conn) error {
	n, _ := strconv.Atoi(string(c.Saved())) // what the process before has saved; nothing of a new connection
	c.MovesWith(func() ([]byte, error) { return strconv.AppendInt(nil, int64(n), 10), nil })

	lines := frame.NewReader(c, frame.Lines(1<<10))
	for lines.Buffered() > 0 || c.Next() { // in Next it may move: the reader holds nothing then that would be left behind
		line, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n++
		if _, err := fmt.Fprintf(c, "process %d, line %d: %s\n", os.Getpid(), n, line); err != nil {
			return err
		}
	}
	return context.Cause(ctx) // nil, unless somebody has ended the connection, or it has moved
}
