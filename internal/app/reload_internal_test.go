package app

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/leveetest"
)

// A listener that came with the third configuration has only seen those since.
func TestAConnectionIsOfTheConfigurationThatLetItIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{server: &levee.Server{Handler: handlers.Echo}, born: 3}
		door := leveetest.Listen()
		go func() { _ = l.server.Serve(context.Background(), door) }() // ends with Close
		defer l.server.Close()
		for want := 3; want < 6; want++ {
			c, err := door.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for _, open := range l.server.Conns() {
				if got := l.generationOf(open); got != want {
					t.Errorf("it is of generation %d, want %d", got, want)
				}
			}
			c.Close()
			synctest.Wait()
			if _, err := l.server.Reconfigure(&levee.Server{Handler: handlers.Discard}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
