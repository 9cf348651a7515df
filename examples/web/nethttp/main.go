// Command nethttp serves a net/http handler, in HTTP/1.1 and HTTP/2 over TLS, with what levee brings: a limit for each client,
// decided before a handshake, one deadline for all of an arrival, and answers that are finished when it is told to leave.
//
//	cd examples/web && go run ./nethttp
//	curl -k https://127.0.0.1:7000/
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/httpserve"
	"github.com/levee-net/levee/limit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)       // a second signal does not wait for the connections
	ca, err := certs.DevelopmentCA("") // in memory; certs.Files and certs/acme are for the real ones
	if err != nil {
		log.Fatal(err)
	}
	if err := newServer(ca).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer(ca *certs.CA) *levee.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", hello)
	each := limit.Limits{Connections: 100, Rate: limit.Rate{PerSecond: 50, Burst: 100}}
	tls := &certs.Server{GetCertificate: ca.GetCertificate, ALPN: []string{"h2", "http/1.1"}}
	return &levee.Server{
		Handler:   httpserve.Handler(&http.Server{Handler: mux}), // its timeouts and limits hold, too
		TLSConfig: tls.Config(),
		Gate:      &limit.Gate{Scopes: []*limit.Scope{{Name: "web", Clients: []*limit.Clients{{Limits: each}}}}},
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	c := httpserve.Conn(r) // the connection that the request has come on
	fmt.Fprintf(w, "hello %v, this is %s on connection %d\n", c.ClientAddr().Addr(), r.Proto, c.ID())
}
