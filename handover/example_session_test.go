package handover_test

import (
	"context"
	"encoding/json"

	"github.com/levee-net/levee"
)

type session struct{ User string }

func serve(ctx context.Context, c *levee.Conn) error {
	var s session
	if saved := c.Saved(); saved != nil {
		if err := json.Unmarshal(saved, &s); err != nil {
			return err
		}
	}
	c.MovesWith(func() ([]byte, error) { return json.Marshal(&s) })
	for c.Next() {
		// read a request, answer it
	}
	return nil
}

// A handler that goes on in the next process, of which docs/guides/upgrade.md tells.
func Example_session() {
	srv := &levee.Server{Handler: levee.HandlerFunc(serve)}
	_ = srv.ListenAndServe // with the listeners that package handover gives it
	// Output:
}
