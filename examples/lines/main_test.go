package main

import (
	"io"
	"net"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// TestEachLineIsAnsweredInCapitals: on a real socket, which an event loop serves where there are such.
func TestEachLineIsAnsweredInCapitals(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, &levee.Server{Handler: frame.Handler(frame.Lines(64<<10), shout)}, listener)
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "one\ntwo\r\n\n")
	client.(*net.TCPConn).CloseWrite()
	if answer, err := io.ReadAll(client); err != nil || string(answer) != "ONE\nTWO\n\n" {
		t.Errorf("got %q, %v", answer, err)
	}
}
