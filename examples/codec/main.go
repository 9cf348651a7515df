// Command codec speaks netstrings (https://cr.yp.to/proto/netstrings.txt), which package frame does not know: a protocol of
// one's own is a Codec of three methods. It answers each message backwards.
//
//	go run ./examples/codec
//	printf '5:hello,3:you,' | nc -N 127.0.0.1 7000      # 5:olleh,3:uoy,
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	srv := &levee.Server{Handler: frame.Handler(netstrings(64<<10), backwards)}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func backwards(w *frame.Writer, message []byte) error {
	slices.Reverse(message) // it is ours until we return
	return w.Write(message)
}

// netstrings is the codec for netstrings of at most so many bytes.
type netstrings int

// digits is how many of them a length may have.
func (n netstrings) digits() int { return len(strconv.Itoa(int(n))) }

// Max includes the length, the colon and the comma.
func (n netstrings) Max() int { return n.digits() + 1 + int(n) + 1 }

// Decode finds the first netstring in b. What it says of the beginning of one it never takes back: the length is refused
// as soon as it shows, before what it announces has come.
func (n netstrings) Decode(b []byte) (message []byte, taken int, err error) {
	colon := bytes.IndexByte(b[:min(len(b), n.digits()+1)], ':')
	length := b
	if colon >= 0 {
		length = b[:colon]
	}
	size := 0
	for _, digit := range length[:min(len(length), n.digits()+1)] {
		if digit < '0' || digit > '9' {
			return nil, 0, fmt.Errorf("length: %w", frame.ErrMalformed)
		}
		size = 10*size + int(digit-'0')
	}
	switch end := colon + 1 + size; {
	case colon == 0, len(length) > 1 && length[0] == '0':
		return nil, 0, fmt.Errorf("length: %w", frame.ErrMalformed)
	case size > int(n), len(length) > n.digits():
		return nil, 0, frame.ErrTooLarge
	case colon < 0, len(b) <= end:
		return nil, 0, nil // wait for more
	case b[end] != ',':
		return nil, 0, fmt.Errorf("no comma: %w", frame.ErrMalformed)
	default:
		return b[colon+1 : end], end + 1, nil
	}
}

// Append appends a netstring to dst.
func (n netstrings) Append(dst, message []byte) ([]byte, error) {
	if len(message) > int(n) {
		return dst, frame.ErrTooLarge
	}
	dst = strconv.AppendInt(dst, int64(len(message)), 10)
	dst = append(dst, ':')
	dst = append(dst, message...)
	return append(dst, ','), nil
}
