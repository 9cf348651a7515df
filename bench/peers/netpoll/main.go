// Command netpoll is an echo on CloudWeGo's event loops, with no deadline, limit or
// count.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/cloudwego/netpoll"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // as in every peer
	socket, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listener, err := netpoll.ConvertListener(socket)
	if err != nil {
		return err
	}
	loop, err := netpoll.NewEventLoop(echo)
	if err != nil {
		return err
	}
	fmt.Printf("Listening on %s\n", socket.Addr())
	return loop.Serve(listener)
}

// echo hands what has come to the writer without a copy.
func echo(_ context.Context, c netpoll.Connection) error {
	reader, writer := c.Reader(), c.Writer()
	bytes, err := reader.Next(reader.Len())
	if err != nil {
		return err
	}
	if _, err := writer.WriteBinary(bytes); err != nil {
		return err
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return reader.Release()
}
