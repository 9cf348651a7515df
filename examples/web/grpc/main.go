// Command grpc serves gRPC, here its health service, and plain HTTP on one port. A grpc.Server is an http.Handler, so its calls
// are finished when the server is told to leave, and its clients are told to go elsewhere (GOAWAY).
//
//	cd examples/web && go run ./grpc
//	curl http://127.0.0.1:7000/
//	grpcurl -plaintext 127.0.0.1:7000 grpc.health.v1.Health/Check
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/httpserve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	if err := newServer(grpc.NewServer()).ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer(rpc *grpc.Server) *levee.Server {
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer()) // in the place of a service of yours
	reflection.Register(rpc)
	web := http.NewServeMux()
	web.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "this port speaks gRPC, too")
	})
	return &levee.Server{Handler: httpserve.Handler(&http.Server{Handler: both(rpc, web)})}
}

// both tells calls from requests by what gRPC says they all have.
func both(rpc, web http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			rpc.ServeHTTP(w, r)
			return
		}
		web.ServeHTTP(w, r)
	})
}
