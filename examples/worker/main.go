// Command worker works for its clients for a long time: a line with a number has it do so many pieces. Told to leave it finishes
// the piece under way, says how far it has come, and only then leaves; so a deploy costs nobody a result.
//
//	go run ./examples/worker
//	printf '20\n' | nc 127.0.0.1 7000      # and then Ctrl-C in the first terminal
//
// Any one client can be told to leave, too: type its number, which its first answer says, into the first terminal.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := newServer()
	go obey(srv, os.Stdin)
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer() *levee.Server {
	return &levee.Server{Handler: levee.HandlerFunc(serve), DrainTimeout: 10 * time.Second}
}

var errAsked = errors.New("the operator has asked it to")

// obey tells connections to leave, by their numbers.
func obey(srv *levee.Server, operator io.Reader) {
	for orders := bufio.NewScanner(operator); orders.Scan(); {
		id, _ := strconv.ParseUint(strings.TrimSpace(orders.Text()), 10, 64)
		if c := srv.Conn(id); c != nil {
			c.Drain(errAsked) // c.Kill would not wait for the piece
		}
	}
}

func serve(ctx context.Context, c *levee.Conn) error {
	jobs := frame.NewReader(c, frame.Lines(20))
	for jobs.Buffered() > 0 || c.Next() { // between two jobs it leaves at once
		line, err := jobs.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		pieces, err := strconv.Atoi(string(line))
		if err != nil || pieces < 1 || pieces > 1000 {
			fmt.Fprintln(c, "a number from 1 to 1000, please")
			continue
		}
		if err := work(ctx, c, pieces); err != nil {
			return err
		}
	}
	return nil
}

// work looks between two pieces whether it is to leave.
func work(ctx context.Context, c *levee.Conn, pieces int) error {
	for i := range pieces {
		select {
		case <-c.Draining():
			_, err := fmt.Fprintf(c, "stopped after %d of %d\n", i, pieces)
			return err
		default:
		}
		if err := piece(ctx); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c, "client %d: %d of %d\n", c.ID(), i+1, pieces); err != nil {
			return err
		}
	}
	return nil
}

// piece takes a second, unless the connection ends: the client is gone, or was killed, or has been here for too long.
func piece(ctx context.Context) error {
	select {
	case <-time.After(time.Second):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
