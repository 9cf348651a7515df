// Command netstring answers each netstring with its length, from an event loop: 5:hello, comes back as 1:5,. Its codec is the one
// of docs/extending.md.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := &levee.Server{Handler: frame.Handler(netstring{64 << 10}, measure)}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func measure(w *frame.Writer, message []byte) error {
	return w.Write(strconv.AppendInt(nil, int64(len(message)), 10))
}

// A netstring is a length in decimal, a colon, so many bytes and a comma (https://cr.yp.to/proto/netstrings.txt).
type netstring struct{ max int }

var errNoNetstring = errors.New("not a netstring")

func (n netstring) Decode(b []byte) (message []byte, size int, err error) {
	digits, rest, complete := bytes.Cut(b, []byte(":"))
	if len(digits) > 9 {
		return nil, 0, errNoNetstring // before it is read as a number
	}
	if !complete {
		return nil, 0, nil // the rest is on its way
	}
	length, err := strconv.ParseUint(string(digits), 10, 32)
	if err != nil {
		return nil, 0, errNoNetstring
	}
	if length > uint64(n.max) {
		return nil, 0, fmt.Errorf("a netstring of %d bytes, where %d are the most", length, n.max)
	}
	if uint64(len(rest)) <= length {
		return nil, 0, nil
	}
	if rest[length] != ',' {
		return nil, 0, errNoNetstring
	}
	return rest[:length], len(digits) + 1 + int(length) + 1, nil
}

func (n netstring) Append(dst, message []byte) ([]byte, error) {
	if len(message) > n.max {
		return dst, fmt.Errorf("a netstring of %d bytes, where %d are the most", len(message), n.max)
	}
	dst = strconv.AppendInt(dst, int64(len(message)), 10)
	dst = append(append(dst, ':'), message...)
	return append(dst, ','), nil
}

func (n netstring) Max() int { return n.max + 11 } // nine digits, a colon, a comma
