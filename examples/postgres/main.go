// Command postgres is a front for PostgreSQL: it gives a server that speaks plaintext TLS, checks that it is well by the
// protocol, and when it is to leave lets every client finish its transaction.
//
//	go run ./examples/postgres 127.0.0.1:5432
//	psql 'host=127.0.0.1 port=7000 user=postgres sslmode=require'
package main

import (
	"context"
	"crypto/tls"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/route"
	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/probe"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	pool, err := newPool(os.Args[1:]...)
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = pool.Run(ctx) }()  // the health checks, until ctx ends
	ca, err := certs.DevelopmentCA("") // in memory; certs.Files and certs/acme are for the real ones
	if err != nil {
		log.Fatal(err)
	}
	if err := newServer(pool, ca.ServerConfig()).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newPool(addresses ...string) (*upstream.Pool, error) {
	pool := &upstream.Pool{
		Name:    "postgres",
		Balance: upstream.LeastConnections,
		Health:  upstream.Health{Probe: probe.Postgres("postgres", "postgres")},
	}
	servers := make([]upstream.Server, len(addresses))
	for i, address := range addresses {
		servers[i] = upstream.Server{Addresses: []string{address}}
	}
	return pool, pool.Update(servers)
}

func newServer(pool *upstream.Pool, config *tls.Config) *levee.Server {
	front := &proxy.Proxy{Dial: func(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error) {
		joined, err := pool.Join(ctx, c, header)
		joined.Rest = proxy.PostgresRest // it leaves between two transactions
		return joined, err
	}}
	return &levee.Server{
		Handler: &route.Router{
			StartTLS:   route.PostgresTLS, // who asks for TLS in the protocol's way gets it
			TLS:        config,
			RequireTLS: true,
			Routes:     []route.Route{{Name: "postgres", Handler: front}},
		},
		MaxConns: levee.JoinedConns(levee.DefaultMaxConns()), // two files each, which a Router does not show
	}
}
