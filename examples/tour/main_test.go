package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/leveetest"
)

func TestTourIsAServerForProduction(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := newServer(registry)
	listener := leveetest.Listen()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, listener) }()
	conn, err := listener.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(conn, "hello")
	replies := bufio.NewReader(conn)
	if line, err := replies.ReadString('\n'); line != "hello\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}

	admin := operators(srv, registry)
	ask := func(method, path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		admin.ServeHTTP(answer, httptest.NewRequestWithContext(ctx, method, path, http.NoBody))
		return answer
	}
	if text := ask(http.MethodGet, "/metrics").Body.String(); !strings.Contains(text, `levee_connections_active{listener="tour"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
	if code := ask(http.MethodDelete, "/connections/0").Code; code != http.StatusNotFound {
		t.Errorf("a connection that is not there: %d", code)
	}
	if code := ask(http.MethodDelete, fmt.Sprint("/connections/", srv.Conns()[0].ID())).Code; code != http.StatusOK {
		t.Errorf("%d", code)
	}
	if left, err := io.ReadAll(replies); len(left) > 0 || err != nil {
		t.Errorf("the connection that was asked to leave: %q, %v", left, err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
