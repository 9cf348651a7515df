package main

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestAServerThatIsGoneIsPassedOver: no client notices, whichever is tried first.
func TestAServerThatIsGoneIsPassedOver(t *testing.T) {
	well, gone, front := listen(t), listen(t), listen(t)
	gone.Close()
	leveetest.Serve(t, &levee.Server{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.WriteString(c, "welcome")
		return err
	})}, well)
	pool, err := newPool(gone.Addr().String(), well.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, newServer(pool), front)
	for range 4 {
		client, err := net.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(client); string(answer) != "welcome" || err != nil {
			t.Errorf("got %q, %v", answer, err)
		}
		client.Close()
	}
}
