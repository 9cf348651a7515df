package main

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// TestWhatIsSentComesBack, also to a client that has closed its own side.
func TestWhatIsSentComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := leveetest.Listen()
		leveetest.Serve(t, &levee.Server{Handler: levee.HandlerFunc(echo)}, network)
		client, err := network.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		io.WriteString(client, "hello, ")
		io.WriteString(client, "world")
		client.CloseWrite()
		if answer, err := io.ReadAll(client); err != nil || string(answer) != "hello, world" {
			t.Errorf("got %q, %v", answer, err)
		}
	})
}
