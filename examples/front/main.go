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
	pool, err := newPool(os.Args[1:]...)
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = pool.Run(ctx) }() // the health checks, until ctx ends
	if err := newServer(pool).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newPool(addresses ...string) (*upstream.Pool, error) {
	pool := &upstream.Pool{Name: "servers", Balance: upstream.LeastConnections}
	servers := make([]upstream.Server, len(addresses))
	for i, address := range addresses {
		servers[i] = upstream.Server{Addresses: []string{address}}
	}
	return pool, pool.Update(servers)
}

func newServer(pool *upstream.Pool) *levee.Server {
	return &levee.Server{Handler: &proxy.Proxy{Dial: pool.Join}}
}
