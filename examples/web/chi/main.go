// Command chi serves a router of another library, and shows it who is connected: chi is only an http.Handler.
//
//	cd examples/web && go run ./chi
//	curl http://127.0.0.1:7000/hello/world
//	curl http://127.0.0.1:7000/connections
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/httpserve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	if err := newServer().ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer() *levee.Server {
	router := chi.NewRouter()
	router.Use(middleware.Recoverer, middleware.Timeout(10*time.Second))
	router.Get("/hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", chi.URLParam(r, "name"))
	})
	router.Get("/connections", connections)
	return &levee.Server{Handler: httpserve.Handler(&http.Server{Handler: router})}
}

// connections lists those of the server that the request has come to.
func connections(w http.ResponseWriter, r *http.Request) {
	for _, c := range httpserve.Conn(r).Server().Conns() {
		fmt.Fprintf(w, "%d\t%v\t%v\n", c.ID(), c.ClientAddr(), c.Age().Round(time.Millisecond))
	}
}
