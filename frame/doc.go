// Package frame turns a stream of bytes into messages and back, within bounds.
// A protocol of requests and replies is then one function:
//
//	package main
//
//	import (
//		"bytes"
//		"context"
//		"log"
//		"os"
//		"os/signal"
//		"syscall"
//
//		"github.com/levee-net/levee"
//		"github.com/levee-net/levee/frame"
//	)
//
//	func main() {
//		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//		context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
//		srv := &levee.Server{Handler: frame.Handler(frame.Lines(64<<10), shout)}
//		if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
//			log.Fatal(err)
//		}
//	}
//
//	func shout(w *frame.Writer, line []byte) error {
//		if string(line) == "quit" {
//			return frame.ErrClose
//		}
//		return w.Write(bytes.ToUpper(line))
//	}
//
// Its secret is where one message ends and the next begins, and how much memory
// finding that out may cost. A [Codec] knows the first: there are codecs for lines,
// for messages that end in a delimiter, have a fixed size or follow their length,
// and an interface of three methods for the rest. [Handler] sees to the second.
//
// # What a stranger can make it hold
//
// Every codec has a maximum, and none can be without: what claims to be longer is
// refused when its length is read, what turns out longer when it does. What has
// come of a message is kept until the rest has; the memory for it grows with the
// bytes that have come, not with those announced, to at most twice as many or
// 64 KiB, whichever is more. Replies are collected up to 64 KiB, and the last of
// them beyond that; they are then written before another message is looked at. A
// client that does not read its replies is therefore not read from either, and
// ends by the server's WriteStallTimeout. Between messages a connection holds no
// buffer.
//
// A client that sends a message slower and slower is bounded in time as well: by the
// server's MessageTimeout from the first byte of a message to its last.
package frame
