package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/levee-net/levee/upstream"
)

// Two servers, of which one has gone: nobody who dials the pool notices.
func Example() {
	well, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer well.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	gone.Close()
	go func() {
		for {
			c, err := well.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "welcome\n")
			c.Close()
		}
	}()

	pool := &upstream.Pool{Name: "greeter", Balance: upstream.LeastConnections}
	err = pool.Update([]upstream.Server{
		{Name: "gone", Addresses: []string{gone.Addr().String()}},
		{Name: "well", Addresses: []string{well.Addr().String()}},
	})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go pool.Run(ctx) // active health checks

	for range 3 {
		server, err := pool.Dial(ctx, upstream.Request{})
		if errors.Is(err, upstream.ErrUnavailable) {
			fmt.Println(err)
			continue
		}
		greeting, _ := io.ReadAll(server)
		server.Close()
		fmt.Printf("%s: %s", server.Server(), greeting)
	}
	// Output:
	// well: welcome
	// well: welcome
	// well: welcome
}
