package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levee-net/levee"
)

// TestCallsAndRequestsShareAPort, and a call that is under way when the server is told to leave is finished.
func TestCallsAndRequestsShareAPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	begun, finish := make(chan struct{}, 1), make(chan struct{}, 1)
	srv := newServer(grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, call grpc.UnaryHandler) (any, error) {
		begun <- struct{}{}
		<-finish
		return call(ctx, request)
	})))
	draining := make(chan struct{}, 10)
	srv.Trace = &levee.Trace{Draining: func(*levee.Conn) { draining <- struct{}{} }}
	served := make(chan error, 1)
	ctx, leave := context.WithCancel(t.Context())
	go func() { served <- srv.Serve(ctx, listener) }()

	if body := get(t, "http://"+address+"/"); body != "this port speaks gRPC, too\n" {
		t.Errorf("a request is answered %q", body)
	}

	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answered := make(chan error, 1)
	go func() {
		answer, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err == nil && answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("the status is %v", answer.Status)
		}
		answered <- err
	}()
	<-begun
	leave()
	<-draining
	finish <- struct{}{}
	if err := <-answered; err != nil {
		t.Errorf("the call that was under way: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
