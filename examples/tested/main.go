// Command tested is a guessing game; what it shows are its tests, in main_test.go: a network in memory, virtual time,
// connections that are cut into pieces and break, a check for leaks, and an attack on a real socket.
//
//	go test ./examples/tested
//	go run ./examples/tested
//	nc 127.0.0.1 7000
package main

import (
	"context"
	"log"
	"math/rand/v2"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	if err := newServer(rand.IntN(100)).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

// newServer leaves the number to its caller, so that a test can know it.
func newServer(number int) *levee.Server {
	return &levee.Server{
		Handler: frame.Handler(frame.Lines(20), func(w *frame.Writer, line []byte) error {
			guess, err := strconv.Atoi(string(line))
			switch {
			case err != nil:
				return w.Write([]byte("a number, please"))
			case guess < number:
				return w.Write([]byte("more"))
			case guess > number:
				return w.Write([]byte("less"))
			}
			_ = w.Write([]byte("yes"))
			return frame.ErrClose
		}),
		IdleTimeout:    time.Minute,
		MessageTimeout: 10 * time.Second,
	}
}
