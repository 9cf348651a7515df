package proxy_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/proxy"
)

// greeter is a service to stand before.
func greeter(ctx context.Context) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	srv := &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.WriteString(c, "hello from behind\n")
		return err
	})}
	go srv.Serve(ctx, l) // until ctx ends
	return l.Addr().String()
}

// visit reads all that a server has to say.
func visit(l net.Listener) {
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	fmt.Print(string(said), err, "\n")
}

func ExampleTo() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	srv := &levee.Server{Handler: proxy.To(greeter(ctx))}
	go srv.Serve(ctx, l) // until ctx ends
	visit(l)
	// Output:
	// hello from behind
	// <nil>
}

func ExamplePostgresRest() {
	answered := []byte("C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I")
	begun := []byte("C\x00\x00\x00\x0aBEGIN\x00Z\x00\x00\x00\x05T")
	fmt.Println(proxy.PostgresRest(answered, answered) == levee.AtRest, proxy.PostgresRest(begun, begun) == levee.NotAtRest)

	var dialer net.Dialer
	database := &proxy.Proxy{Dial: func(ctx context.Context, _ *levee.Conn, _ []byte) (levee.Upstream, error) {
		conn, err := dialer.DialContext(ctx, "tcp", "10.0.0.7:5432")
		return levee.Upstream{Conn: conn, Rest: proxy.PostgresRest}, err
	}}
	srv := &levee.Server{Handler: database}
	_ = srv.Shutdown(context.Background()) // asks who is there to leave between two transactions
	// Output:
	// true true
}
