package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/leveetest"
)

// TestBothVersionsAreSpoken: by what the client offers in its handshake.
func TestBothVersionsAreSpoken(t *testing.T) {
	ca, err := certs.DevelopmentCA("")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, newServer(ca), listener)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // whose the certificate is, is not what is tested
			ForceAttemptHTTP2: proto == "HTTP/2.0",
		}
		t.Cleanup(transport.CloseIdleConnections)
		answer, err := (&http.Client{Transport: transport}).Get("https://" + listener.Addr().String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "hello 127.0.0.1, this is "+proto+" on connection ") {
			t.Errorf("got %q, %v, want %s", body, err, proto)
		}
	}
}
