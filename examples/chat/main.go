// Command chat passes on what each client says to all the others. Whoever does not read what
// is said is dropped, and never waited for: each has a queue of bounded length.
//
//	go run ./examples/chat
//	nc 127.0.0.1 7000      # in two terminals
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os/signal"
	"sync"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := &levee.Server{Handler: &room{}}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

const (
	longest  = 1 << 10 // bytes of a line
	patience = 64      // lines that may wait for a member until it is dropped
)

var errSlow = errors.New("does not read what the others say")

// A room is a handler: its members are the connections.
type room struct {
	mu      sync.Mutex
	members map[*levee.Conn]chan []byte // what each has yet to be told
}

// ServeTCP reads what the member says. A second goroutine writes what it is told.
func (r *room) ServeTCP(ctx context.Context, c *levee.Conn) error {
	told := r.enter(c)
	var writing sync.WaitGroup
	writing.Go(func() { tell(c, told) })
	defer writing.Wait() // the connection is not to be used after the handler's return
	defer r.leave(c)

	lines := frame.NewReader(c, frame.Lines(longest))
	for lines.Buffered() > 0 || c.Next() {
		line, err := lines.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		r.say(c, fmt.Appendf(nil, "%v: %s\n", c.ClientAddr(), line))
	}
	return context.Cause(ctx) // such as errSlow; nil if nobody has ended the connection
}

// tell ends when the member has left, or takes nothing any more.
func tell(c *levee.Conn, lines <-chan []byte) {
	for line := range lines {
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

func (r *room) enter(c *levee.Conn) <-chan []byte {
	lines := make(chan []byte, patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members == nil {
		r.members = make(map[*levee.Conn]chan []byte)
	}
	r.members[c] = lines
	return lines
}

func (r *room) leave(c *levee.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.members[c])
	delete(r.members, c)
}

func (r *room) say(from *levee.Conn, line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, lines := range r.members {
		if c == from {
			continue
		}
		select {
		case lines <- line:
		default:
			c.Kill(errSlow) // does not wait; its ServeTCP then leaves
		}
	}
}
