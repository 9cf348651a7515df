package leveetest

import (
	"context"
	"net"
	"testing"
)

// Serve has a server, such as a levee.Server, serve the listeners until the test ends, and then has it leave: the end of
// Serve's context has it drain. The test fails if Serve returns an error, as it does when a connection had to be cut.
//
// What the test registers with t.Cleanup after it, such as the close of its clients, is done before the server leaves.
// A test that shuts the server down itself has to call Serve itself.
func Serve(t testing.TB, server interface {
	Serve(ctx context.Context, listeners ...net.Listener) error
}, listeners ...net.Listener,
) {
	t.Helper()
	ctx, leave := context.WithCancel(context.Background()) // t.Context ends before what is registered with t.Cleanup
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listeners...) }()
	t.Cleanup(func() {
		leave()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}
