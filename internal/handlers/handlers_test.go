package handlers_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/leveetest"
)

// serve serves h in memory until the test ends; ends tells how each connection did.
func serve(t *testing.T, h levee.Handler) (l *leveetest.Listener, srv *levee.Server, ends chan levee.End) {
	t.Helper()
	l, ends = leveetest.Listen(), make(chan levee.End, 10)
	srv = &levee.Server{Handler: h, Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }}}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return l, srv, ends
}

func dial(t *testing.T, l *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	c, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestEchoSendsBackEveryByteInOrder(t *testing.T) {
	sent := make([]byte, 3<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(sent)
	l, _, ends := serve(t, handlers.Echo)
	c := dial(t, l)
	go func() { // ends with the text, or c
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+int(random.Uint64()%10000))
			c.Write(rest[:n])
			rest = rest[n:]
		}
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if !bytes.Equal(got, sent) || err != nil {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
	if end := <-ends; end.Reason != levee.ClientClosed || end.Err != nil || end.Read != int64(len(sent)) || end.Written != int64(len(sent)) {
		t.Errorf("%+v", end)
	}
}

func TestEchoAnswersEachPieceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, _ := serve(t, handlers.Echo)
		c := dial(t, l)
		for _, piece := range []string{"h", "i\n", "\x00\xff"} {
			io.WriteString(c, piece)
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(c, got); string(got) != piece {
				t.Errorf("%q, %v, want %q", got, err, piece)
			}
		}
	})
}

func TestDiscardTakesEverythingAndSaysNothing(t *testing.T) {
	l, _, ends := serve(t, handlers.Discard)
	c := dial(t, l)
	if n, err := c.Write(make([]byte, 3<<20)); n != 3<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if end := <-ends; end.Reason != levee.ClientClosed || end.Err != nil || end.Read != 3<<20 || end.Written != 0 {
		t.Errorf("%+v", end)
	}
}

func TestIdleConnectionsLeaveWhenAskedAndAfterTheirTime(t *testing.T) {
	for name, h := range map[string]levee.Handler{"echo": handlers.Echo, "discard": handlers.Discard} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, srv, ends := serve(t, h)
				idle := dial(t, l)
				synctest.Wait()
				srv.Conns()[0].Drain(nil)
				if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("%v", err)
				}
				if end := <-ends; end.Reason != levee.Drained {
					t.Errorf("%v", end.Reason)
				}
				dial(t, l)
				time.Sleep(6 * time.Minute) // virtual time
				if end := <-ends; end.Reason != levee.IdleTimeout || end.Duration.Round(time.Second) != 5*time.Minute {
					t.Errorf("%v after %v", end.Reason, end.Duration)
				}
			})
		})
	}
}

func TestEchoToOneThatDoesNotReadStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, ends := serve(t, handlers.Echo)
		c := dial(t, l)
		go c.Write(make([]byte, 16<<20)) // ends with the connection
		if end := <-ends; end.Reason != levee.WriteStalled {
			t.Errorf("%v, %v", end.Reason, end.Err)
		}
	})
}

func TestHelloSaysWhetherItIsOverTLS(t *testing.T) {
	for want, state := range map[string]*tls.ConnectionState{
		"Hello from levee, in plaintext.\n": nil,
		"Hello from levee, over TLS.\n":     {},
	} {
		r, w := httptest.NewRequest("GET", "/any/path?x", nil), httptest.NewRecorder()
		r.TLS = state
		handlers.Hello.ServeHTTP(w, r)
		if w.Code != 200 || w.Body.String() != want || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" ||
			w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
		}
	}
}
