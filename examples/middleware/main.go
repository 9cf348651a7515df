// Command middleware puts three things around a handler: a log line for each connection, a password, and a warning of slow answers.
//
//	go run ./examples/middleware
//	printf 'sesame\none\ntwo\n' | nc -N 127.0.0.1 7000
//
// A middleware wraps the handler, never the connection. One that wraps ServeTCP has its connections served by goroutines; one that
// wraps Step leaves a handler of package frame on its event loop.
package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	if err := newServer(slog.Default()).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer(logger *slog.Logger) *levee.Server {
	shout := frame.Handler(frame.Lines(1<<10), func(w *frame.Writer, line []byte) error { return w.Write(bytes.ToUpper(line)) })
	// A connection passes them from left to right. For the sake of the first two it has a goroutine; behind timed alone it would have none.
	return &levee.Server{Handler: levee.Chain(shout, logged(logger), password("sesame"), timed(logger, time.Second))}
}

// logged writes a line when a connection has been served.
func logged(logger *slog.Logger) levee.Middleware {
	return func(next levee.Handler) levee.Handler {
		return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			err := next.ServeTCP(ctx, c)
			read, written := c.Traffic()
			logger.Info("served", "client", c.ClientAddr(), "took", c.Age(), "read", read, "written", written, "err", err)
			return err
		})
	}
}

var errPassword = errors.New("wrong password")

// password lets in who says it in the first line, within some seconds.
func password(want string) levee.Middleware {
	line := []byte(want + "\n")
	return func(next levee.Handler) levee.Handler {
		return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			got := make([]byte, len(line)) // and not a byte more: the rest is for the next
			if _, err := io.ReadFull(c, got); err != nil {
				return fmt.Errorf("read the password: %w", err)
			}
			if subtle.ConstantTimeCompare(got, line) != 1 {
				return errPassword
			}
			_ = c.SetReadDeadline(time.Time{})
			return next.ServeTCP(ctx, c)
		})
	}
}

// timed warns of messages whose answers take too long. What it wraps stays a Stepper if it is one.
func timed(logger *slog.Logger, most time.Duration) levee.Middleware {
	return func(next levee.Handler) levee.Handler {
		stepper, ok := next.(levee.Stepper)
		if !ok {
			return next
		}
		return &timedStepper{stepper, logger, most}
	}
}

type timedStepper struct {
	next   levee.Stepper
	logger *slog.Logger
	most   time.Duration
}

// Step measures the other's.
func (s *timedStepper) Step(c *levee.Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	start := time.Now()
	n, reply, err = s.next.Step(c, in, seen, out)
	if took := time.Since(start); took > s.most {
		s.logger.Warn("slow", "client", c.ClientAddr(), "bytes", n, "took", took)
	}
	return n, reply, err
}

// ServeTCP is for where there is no event loop, such as behind a middleware that hides Step.
func (s *timedStepper) ServeTCP(_ context.Context, c *levee.Conn) error {
	return levee.ServeSteps(c, s)
}
