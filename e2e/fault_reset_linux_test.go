package e2e

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A server that resets in mid-answer must not look to a TLS client as if it had finished: over
// TLS that is the difference between all and a part of it.
func TestAServersResetIsNoCleanEndForAClientOverTLS(t *testing.T) {
	t.Parallel()
	const clients, request = 2000, 600 << 10
	server := serve(t, listen(t), func(c net.Conn) {
		_, _ = c.Write(make([]byte, 1000)) // the beginning of an answer
		_, _ = io.CopyN(io.Discard, c, 200<<10)
		reset(c) // while levee writes the rest of the request to it
	})
	p := start(t, "serve", "-c", ways(t, way{"main", ", tls: {mode: terminate, development: true}", servers(server) + ", early_close: off"}))
	connect := connector(p.addressOf(0), true)
	var (
		all           sync.WaitGroup
		asked, misled atomic.Int64
	)
	for range 16 {
		all.Go(func() {
			for range clients / 16 {
				c, err := connect()
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				sent := make(chan error, 1)
				go func() { // ends with the connection
					_, err := c.Write(make([]byte, request))
					sent <- err
				}()
				_, err = io.Copy(io.Discard, c)
				// If its write fails, the kernel has told the writer of the reset, and tells the reader of an end.
				if <-sent == nil {
					asked.Add(1)
					if err == nil {
						misled.Add(1) // close_notify has come
					}
				}
				c.(*tls.Conn).NetConn().Close()
			}
		})
	}
	all.Wait()
	if misled.Load() > 0 {
		t.Errorf("%d of %d clients saw a clean end", misled.Load(), asked.Load())
	}
}
