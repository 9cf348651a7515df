// Package levee is to TCP what net/http's Server is to HTTP: a developer with a
// protocol of their own writes a Handler, and everything that a server in
// production needs around it is there and on.
//
//	package main
//
//	import (
//		"bytes"
//		"context"
//		"log"
//		"os/signal"
//		"syscall"
//
//		"github.com/levee-net/levee"
//	)
//
//	func main() {
//		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
//		context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
//		srv := &levee.Server{Handler: levee.HandlerFunc(shout)}
//		if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
//			log.Fatal(err)
//		}
//	}
//
//	func shout(_ context.Context, c *levee.Conn) error {
//		buffer := make([]byte, 4096)
//		for c.Next() {
//			n, err := c.Read(buffer)
//			if err != nil {
//				return err
//			}
//			if _, err := c.Write(bytes.ToUpper(buffer[:n])); err != nil {
//				return err
//			}
//		}
//		return nil
//	}
//
// Package frame has handlers for messages instead of bytes. They are what is
// fastest, too: see [Stepper].
//
// # A connection's life
//
// A connection arrives, is served and leaves:
//
//	accept → PROXY header → TLS → route → Handler.ServeTCP → close
//
// All that happens in a goroutine of its own. But where the handler is a [Stepper]
// and the connection in plaintext, an event loop takes it over after its arrival,
// and calls Stepper.Step for what comes.
//
// Its arrival, up to the choice of its handler, stands under one absolute
// deadline. While it is served, deadlines for idleness, for writes that make no
// progress and, if set, for its age are in force beneath the handler's own. A
// panic ends it and no other. However it ends, it ends with one [CloseReason],
// whose word is the same everywhere it shows.
//
// # Leaving
//
// There are two ways to be told to leave. The soft one is for deploys:
// [Server.Shutdown], the end of the context of [Server.ListenAndServe], or
// [Conn.Drain] for one connection. A handler notices it in [Conn.Next], which it
// calls between two requests, or in [Conn.Draining]. The hard one closes the
// socket and ends the handler's context: [Conn.Kill], [Server.Close], or the
// drain deadline.
//
// # Going on in another process
//
// A binary that is replaced need not have its connections leave. [Server.Pack] makes
// parcels of those that can move, and [Server.Adopt] makes connections of them where
// they have come to, byte for byte where they were: package handover does both. What can
// move is served by an event loop, by a [Movable] or a [Rejoiner], or by code
// that calls [Conn.MovesWith].
//
// # What it costs
//
// Deadlines, limits and counts are designed to cost next to nothing while bytes
// flow: a round trip pays for two readings of the clock and two additions, and on
// an event loop for the additions alone. A
// connection that waits in [Conn.Next] holds no buffer, and one that an event loop
// serves neither that nor a goroutine.
package levee
