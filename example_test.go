package levee_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// An echo server, complete. Ctrl-C lets the requests under way finish.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	srv := &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		buffer := make([]byte, 4096)
		for c.Next() { // here the connection may be asked to leave
			n, err := c.Read(buffer)
			if err != nil {
				return err
			}
			if _, err := c.Write(buffer[:n]); err != nil {
				return err
			}
		}
		return nil
	})}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Print(err)
	}
}

// Serve takes any listener: here a network in memory, on which a test needs no
// port.
func ExampleServer_Serve() {
	greet := func(_ context.Context, c *levee.Conn) error {
		name, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c, "Hello, %s!\n", strings.TrimSpace(name))
		return err
	}
	srv := &levee.Server{Handler: levee.HandlerFunc(greet)}
	ctx, stop := context.WithCancel(context.Background())
	listener := leveetest.Listen()
	served := make(chan error)
	go func() { served <- srv.Serve(ctx, listener) }()

	client, _ := listener.Dial(ctx)
	fmt.Fprintln(client, "stranger")
	answer, _ := io.ReadAll(client)
	fmt.Print(string(answer))

	stop() // a graceful shutdown
	fmt.Println(<-served)
	// Output:
	// Hello, stranger!
	// <nil>
}

// A session that goes on in another process when the server's binary is replaced: what it knows of the client moves along.
func ExampleConn_MovesWith() {
	adding := func(_ context.Context, c *levee.Conn) error {
		sum, _ := strconv.Atoi(string(c.Saved())) // 0 for one that has not moved
		c.MovesWith(func() ([]byte, error) { return []byte(strconv.Itoa(sum)), nil })
		r := bufio.NewReader(c)
		for r.Buffered() > 0 || c.Next() { // where it may move there is nothing in r that would be left behind
			line, err := r.ReadString('\n')
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				return err
			}
			sum += n
			if _, err := fmt.Fprintln(c, sum); err != nil {
				return err
			}
		}
		return nil // the client has closed, or the connection has moved, or is to leave
	}
	srv := &levee.Server{Handler: levee.HandlerFunc(adding)}
	listener := leveetest.Listen()
	go srv.Serve(context.Background(), listener)
	defer srv.Close()

	client, _ := listener.Dial(context.Background())
	fmt.Fprint(client, "1\n2\n")
	answers := bufio.NewScanner(client)
	for range 2 {
		answers.Scan()
		fmt.Println(answers.Text())
	}
	// Output:
	// 1
	// 3
}

// Stop gracefully, but not for ever.
func ExampleServer_Shutdown() {
	busy := make(chan struct{})
	srv := &levee.Server{Handler: levee.HandlerFunc(func(ctx context.Context, _ *levee.Conn) error {
		close(busy)
		<-ctx.Done() // stays until it is cut
		return nil
	})}
	listener := leveetest.Listen()
	go srv.Serve(context.Background(), listener)
	listener.Dial(context.Background())
	<-busy

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := srv.Shutdown(ctx)
	var cut *levee.DrainError
	fmt.Println(errors.As(err, &cut), err)
	// Output: true levee: 1 connection cut at the drain deadline
}

// A middleware sees the connection before the handler and its end after; it
// never wraps the connection.
func ExampleChain() {
	logged := func(next levee.Handler) levee.Handler {
		return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			err := next.ServeTCP(ctx, c)
			read, written := c.Traffic()
			fmt.Printf("%v: %d bytes in, %d out, %v\n", c.ClientAddr().Addr(), read, written, err)
			return err
		})
	}
	limited := func(next levee.Handler) levee.Handler {
		return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			c.SetReadDeadline(time.Now().Add(time.Minute)) // for the whole request
			return next.ServeTCP(ctx, c)
		})
	}
	hello := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.WriteString(c, "hello\n")
		return err
	})
	serveOne(&levee.Server{Handler: levee.Chain(hello, logged, limited)}, "")
	// Output:
	// 127.0.0.1: 0 bytes in, 6 out, <nil>
	// hello
}

// byFirstByte is a Router: binary clients begin with a zero byte.
type byFirstByte struct{ text, binary levee.Handler }

func (r byFirstByte) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) {
	first, err := c.Peek(1)
	switch {
	case err != nil:
		return nil, err
	case first[0] == 0:
		return r.binary, nil
	}
	return r.text, nil
}

func (r byFirstByte) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, err := r.Route(ctx, c)
	if err != nil {
		return err
	}
	return h.ServeTCP(ctx, c)
}

// A Router picks the handler by a look at the first bytes.
func ExampleRouter() {
	says := func(what string) levee.Handler {
		return levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.WriteString(c, what)
			return err
		})
	}
	srv := &levee.Server{Handler: byFirstByte{text: says("text\n"), binary: says("binary\n")}}
	serveOne(srv, "\x00\x01")
	// Output: binary
}

// A Trace is told of everything; what it leaves nil costs nothing.
func ExampleTrace() {
	srv := &levee.Server{
		Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.Copy(c, c)
			return err
		}),
		Trace: &levee.Trace{
			Accepted: func(c *levee.Conn) { fmt.Println("accepted") },
			Closed: func(c *levee.Conn, end levee.End) {
				fmt.Printf("closed: %v, %d bytes read\n", end.Reason, end.Read)
			},
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	serveOne(srv, "hello\n")
	// Output:
	// accepted
	// closed: client_closed, 6 bytes read
	// hello
}

// An http.Server on levee: with its limits, its PROXY header and its counts.
func ExampleListener() {
	behind := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", r.Host)
	})}
	handed := levee.NewListener(nil)
	go behind.Serve(handed)
	serveOne(&levee.Server{Handler: handed}, "GET / HTTP/1.0\r\nHost: levee\r\n\r\n")
	behind.Shutdown(context.Background())
	// Output:
	// HTTP/1.0 200 OK
	// Date: now
	// Content-Length: 17
	// Content-Type: text/plain; charset=utf-8
	//
	// hello from levee
}

// serveOne serves one client, who sends a request and reads until the end, and
// prints what the client got.
func serveOne(srv *levee.Server, request string) {
	ctx, stop := context.WithCancel(context.Background())
	listener := leveetest.Listen()
	served := make(chan error)
	go func() { served <- srv.Serve(ctx, net.Listener(listener)) }()

	client, _ := listener.Dial(ctx)
	io.WriteString(client, request)
	client.CloseWrite()
	answer, _ := io.ReadAll(client)
	client.Close()
	stop()
	<-served
	for line := range strings.Lines(string(answer)) {
		if strings.HasPrefix(line, "Date: ") {
			line = "Date: now\n"
		}
		fmt.Println(strings.TrimRight(line, "\r\n"))
	}
}
