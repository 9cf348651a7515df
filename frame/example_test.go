package frame_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"net"
	"strconv"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// A server that shouts back, and a client of it.
func Example() {
	srv := &levee.Server{
		Handler: frame.Handler(frame.Lines(64<<10), func(w *frame.Writer, line []byte) error {
			if string(line) == "quit" {
				return frame.ErrClose
			}
			return w.Write(bytes.ToUpper(line))
		}),
	}
	listener := leveetest.Listen() // levee.Listen(ctx, "127.0.0.1:7000") outside of a test
	go func() { _ = srv.Serve(context.Background(), listener) }()
	defer srv.Close()

	conn, err := listener.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "hello\nworld\nquit\n")

	replies := frame.NewReader(conn, frame.Lines(64<<10))
	for {
		reply, err := replies.Read()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s\n", reply)
	}
	// Output:
	// HELLO
	// WORLD
	// EOF
}

// A small part of memcached's protocol: commands are lines, and a value is not one
// of its replies' lines but stands between them.
func ExampleHandler() {
	values := map[string]string{"greeting": "hello\r\nworld"}
	handler := frame.Handler(frame.CRLFLines(2048), func(w *frame.Writer, line []byte) error {
		command, key, _ := bytes.Cut(line, []byte(" "))
		switch string(command) {
		case "get":
			if value, ok := values[string(key)]; ok {
				w.WriteRaw(fmt.Appendf(nil, "VALUE %s 0 %d\r\n%s\r\n", key, len(value), value))
			}
			return w.Write([]byte("END"))
		case "quit":
			return frame.ErrClose
		}
		return w.Write([]byte("ERROR"))
	})

	fmt.Printf("%q\n", converse(handler, "get greeting\r\nget nothing\r\nset\r\nquit\r\n"))
	// Output: "VALUE greeting 0 12\r\nhello\r\nworld\r\nEND\r\nEND\r\nERROR\r\n"
}

// converse sends a handler a stream and returns what it answers.
func converse(h levee.Handler, stream string) []byte {
	listener := leveetest.Listen()
	srv := &levee.Server{Handler: h}
	go func() { _ = srv.Serve(context.Background(), listener) }()
	defer srv.Close()
	conn, err := listener.Dial(context.Background())
	if err != nil {
		return nil
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(stream))
	_ = conn.CloseWrite()
	var replies bytes.Buffer
	_, _ = replies.ReadFrom(conn)
	return replies.Bytes()
}

// netstrings is the codec for D. J. Bernstein's netstrings: "5:hello,".
type netstrings struct{ max int }

func (c netstrings) Max() int { return len(strconv.Itoa(c.max)) + len(":,") + c.max }

func (c netstrings) Decode(b []byte) (message []byte, n int, err error) {
	digits, rest, found := bytes.Cut(b, []byte(":"))
	if !found {
		return nil, 0, nil // incomplete; Max bounds for how long
	}
	length, err := strconv.ParseUint(string(digits), 10, 31)
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("%w: its length is %q", frame.ErrMalformed, digits)
	case length > uint64(c.max): // before anything else is done with it
		return nil, 0, fmt.Errorf("%w: %d bytes", frame.ErrTooLarge, length)
	case uint64(len(rest)) <= length:
		return nil, 0, nil
	case rest[length] != ',':
		return nil, 0, fmt.Errorf("%w: no comma after %d bytes", frame.ErrMalformed, length)
	}
	return rest[:length:length], len(digits) + len(":,") + int(length), nil
}

func (c netstrings) Append(dst, message []byte) ([]byte, error) {
	if len(message) > c.max {
		return dst, fmt.Errorf("%w: %d bytes", frame.ErrTooLarge, len(message))
	}
	return fmt.Appendf(dst, "%d:%s,", len(message), message), nil
}

// A protocol of one's own needs a codec of three methods; here, netstrings.
func ExampleCodec() {
	handler := frame.Handler(netstrings{max: 999}, func(w *frame.Writer, message []byte) error {
		return w.Write(bytes.ToUpper(message))
	})
	fmt.Printf("%s\n", converse(handler, "5:hello,6:world!,"))
	// Output: 5:HELLO,6:WORLD!,
}

func ExampleLines() {
	show(frame.Lines(64<<10), "hello")
	// Output: "hello\n"
}

func ExampleCRLFLines() {
	show(frame.CRLFLines(512), "PING")
	// Output: "PING\r\n"
}

func ExampleDelimited() {
	show(frame.Delimited([]byte{0}, 64<<10), "hello")
	// Output: "hello\x00"
}

func ExampleFixed() {
	show(frame.Fixed(5), "hello")
	// Output: "hello"
}

func ExampleUint8() {
	show(frame.Uint8(255), "hello")
	// Output: "\x05hello"
}

func ExampleUint16() {
	show(frame.Uint16(binary.LittleEndian, 4096), "hello")
	// Output: "\x05\x00hello"
}

func ExampleUint32() {
	show(frame.Uint32(binary.BigEndian, 1<<20), "hello")
	// Output: "\x00\x00\x00\x05hello"
}

func ExampleUint64() {
	show(frame.Uint64(binary.BigEndian, 1<<20), "hello")
	// Output: "\x00\x00\x00\x00\x00\x00\x00\x05hello"
}

func ExampleVarint() {
	show(frame.Varint(1<<20), "hello")
	// Output: "\x05hello"
}

// show prints a message as the codec puts it on the wire.
func show(codec frame.Codec, message string) {
	encoded, err := codec.Append(nil, []byte(message))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q\n", encoded)
}

// A client sends two requests in one packet and reads the replies.
func ExampleReader() {
	client, server := net.Pipe()
	go func() { // stands for the server
		requests := frame.NewReader(server, frame.Varint(1<<20))
		for {
			request, err := requests.Read()
			if err != nil {
				return
			}
			_ = frame.Write(server, frame.Varint(1<<20), bytes.ToUpper(request))
		}
	}()
	go func() { _ = frame.Write(client, frame.Varint(1<<20), []byte("hello"), []byte("world")) }()

	replies := frame.NewReader(client, frame.Varint(1<<20))
	for range 2 {
		reply, err := replies.Read()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", reply)
	}
	_ = client.Close()
	// Output:
	// HELLO
	// WORLD
}
