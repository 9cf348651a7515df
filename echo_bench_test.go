package levee_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/levee-net/levee"
)

// The same echo, on a bare listener and on a levee.Server with every default on.
// Compare them side by side: go test -bench Echo -count 10, or make bench.
func BenchmarkEcho(b *testing.B) {
	for _, server := range []struct {
		name  string
		serve func(net.Listener) (stop func())
	}{
		{"net", serveBare},
		{"levee", serveLevee},
	} {
		b.Run(server.name, func(b *testing.B) { benchmarkEcho(b, server.serve) })
	}
}

const echoClients = 64

func benchmarkEcho(b *testing.B, serve func(net.Listener) func()) {
	l, err := levee.Listen(b.Context(), "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	stop := serve(l)
	defer stop()
	var clients sync.WaitGroup
	b.ReportAllocs()
	b.SetBytes(64)
	b.ResetTimer()
	for range echoClients {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		clients.Go(func() {
			defer c.Close()
			var message [64]byte
			for range b.N/echoClients + 1 {
				if _, err := c.Write(message[:]); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, message[:]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// echo is the plainest echo there is; both servers run it.
func echo(c net.Conn) error {
	buffer := make([]byte, 4096)
	for {
		n, err := c.Read(buffer)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return err
		}
	}
}

func serveBare(l net.Listener) func() {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = echo(c)
			}()
		}
	}()
	return func() { _ = l.Close() }
}

func serveLevee(l net.Listener) func() {
	srv := &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error { return echo(c) })}
	go func() { _ = srv.Serve(context.Background(), l) }()
	return func() { _ = srv.Close() }
}
