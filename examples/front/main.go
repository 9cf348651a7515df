// Command front stands before the servers of its arguments: it spreads connections over
// them, checks that they are well, and tries another one when one does not answer.
//
//	go run ./examples/front 10.0.0.7:5432 10.0.0.8:5432
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/upstream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	pool := &upstream.Pool{Name: "servers", Balance: upstream.LeastConnections}
	servers := make([]upstream.Server, len(os.Args)-1)
	for i, address := range os.Args[1:] {
		servers[i] = upstream.Server{Addresses: []string{address}}
	}
	if err := pool.Update(servers); err != nil {
		log.Fatal(err)
	}
	go func() { _ = pool.Run(ctx) }() // the health checks, until ctx ends
	srv := &levee.Server{Handler: &proxy.Proxy{Dial: through(pool)}}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

// through returns a dial function whose connections are the pool's.
func through(pool *upstream.Pool) func(context.Context, *levee.Conn, []byte) (levee.Upstream, error) {
	return func(ctx context.Context, _ *levee.Conn, header []byte) (levee.Upstream, error) {
		conn, err := pool.Dial(ctx, upstream.Request{First: header})
		if err != nil {
			return levee.Upstream{}, err
		}
		ended := func(end levee.UpstreamEnd) { // the pool counts, and its breaker learns
			conn.Ended(upstream.End{
				Sent:        end.Sent,
				Received:    end.Received,
				ByServer:    end.Reason == levee.UpstreamClosed || end.Reason == levee.UpstreamReset,
				ClientFirst: end.ClientFirst,
				Err:         end.Err,
			})
		}
		return levee.Upstream{Conn: conn.Conn, Ended: ended}, nil
	}
}
