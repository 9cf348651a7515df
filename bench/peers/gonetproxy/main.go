// Command gonetproxy is the proxy that everybody writes first: a goroutine for each
// direction of a connection with io.Copy in it, and no deadline, limit or count. Given a
// certificate and its key, it ends TLS by crypto/tls.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, serve(os.Args[1], os.Args[2:]))
	os.Exit(1)
}

func serve(backend string, files []string) error {
	var secure *tls.Config
	if len(files) > 0 {
		pair, err := tls.LoadX509KeyPair(files[0], files[1])
		if err != nil {
			return err
		}
		secure = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false) // as in every peer
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("Listening on %s\n", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if secure != nil {
			go proxy(tls.Server(c, secure), backend)
			continue
		}
		go proxy(c.(*net.TCPConn), backend)
	}
}

// A side is a connection that can be closed by half. A handshake is left to its first read.
type side interface {
	net.Conn
	CloseWrite() error
}

func proxy(client side, backend string) {
	defer client.Close()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	c, err := dialer.DialContext(context.Background(), "tcp", backend)
	if err != nil {
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	answered := make(chan struct{})
	go func() { // ends with the server's last byte, or with the connections
		defer close(answered)
		forward(client, server)
	}()
	forward(server, client)
	<-answered
}

// forward copies until there is no more; a direction that failed ends the other too.
func forward(to, from side) {
	if _, err := io.Copy(to, from); err == nil {
		_ = to.CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}
