// Command sni serves several names on one port. TLS for shout.localhost ends here; for db.localhost it passes through to the server
// of the argument, which alone has its key. Who asks for another name, or for none, is refused.
//
//	go run ./examples/sni 127.0.0.1:5433
//	openssl s_client -quiet -connect 127.0.0.1:7000 -servername shout.localhost
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/route"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: sni ADDRESS-OF-DB")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)       // a second signal does not wait for the connections
	ca, err := certs.DevelopmentCA("") // in memory; certs.Files and certs/acme are for the real ones
	if err != nil {
		log.Fatal(err)
	}
	srv := newServer(ca.ServerConfig(), os.Args[1])
	if err := srv.ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer(config *tls.Config, db string) *levee.Server {
	router := &route.Router{
		TLS:        config,
		RequireTLS: true,
		Routes: []route.Route{
			{Name: "shout", Match: route.SNI("shout.localhost"), Handler: frame.Handler(frame.Lines(64<<10), shout)},
			{Name: "db", Match: route.SNI("db.localhost", "*.db.localhost"), Handler: proxy.To(db), Passthrough: true},
		},
	}
	// Connections that are joined to others take two files each, which a Router does not show.
	return &levee.Server{Handler: router, MaxConns: levee.JoinedConns(levee.DefaultMaxConns())}
}

func shout(w *frame.Writer, line []byte) error { return w.Write(bytes.ToUpper(line)) }
