// Command gonet is the echo that everybody writes first: a bare listener and a
// goroutine for each connection, with no deadline, limit or count.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

const bufferSize = 16 << 10 // the largest message of any work

func main() {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // as in every peer
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("Listening on %s\n", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go echo(c)
	}
}

func echo(c net.Conn) {
	defer c.Close()
	buffer := make([]byte, bufferSize)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}
