package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestServeSaysWhatItLacks(t *testing.T) {
	l := leveetest.Listen()
	for want, srv := range map[string]*levee.Server{
		"Handler is nil":          {},
		"no address to listen on": {Handler: echoing},
	} {
		listeners := []net.Listener{l}
		if srv.Handler != nil {
			listeners = nil
		}
		if err := srv.Serve(t.Context(), listeners...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Serve returned %v, want %s", err, want)
		}
		if err := srv.ListenAndServe(t.Context()); err == nil {
			t.Error("ListenAndServe listens nowhere")
		}
	}
	if _, err := l.Dial(t.Context()); err == nil {
		t.Error("Serve owns its listener, and left it open")
	}
}

func TestEndlessDurationsAreNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const endless = time.Duration(math.MaxInt64)
		l := leveetest.Listen()
		s := serve(t, &levee.Server{
			Handler:            answering,
			ArrivalTimeout:     endless,
			ProxyHeaderTimeout: endless,
			SniffTimeout:       endless,
			IdleTimeout:        endless,
			HalfClosedTimeout:  endless,
			MessageTimeout:     endless,
			WriteStallTimeout:  endless,
			MaxLifetime:        endless,
			DrainTimeout:       endless,
		}, l)
		for range 10 { // the lifetime's jitter may go either way
			c := dial(t, l)
			if err := exchange(c, "hello\n"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1000 * time.Hour) // virtual time
			if err := exchange(c, "still there\n"); err != nil {
				t.Fatal(err)
			}
		}
		s.end()
		if err := s.result(); err != nil {
			t.Error(err)
		}
	})
}

// What a metrics endpoint and an admin API do from the start.
func TestServerMayBeAskedBeforeItServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{Handler: answering}
		var curious sync.WaitGroup
		for range 4 {
			curious.Go(func() {
				for range 100 {
					checkStats(t, srv.Stats(), 0, nil)
					if srv.Conn(1) != nil || len(srv.Conns()) != 0 {
						t.Error("connections, before anybody has dialled")
					}
				}
			})
		}
		serve(t, srv, leveetest.Listen())
		curious.Wait()
	})
}

func TestIDsAreUniqueInTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := make(map[uint64]bool)
		for range 2 {
			l := leveetest.Listen()
			calls := make(chan handed, 1)
			s := serve(t, &levee.Server{Handler: telling(calls)}, l)
			for range 3 {
				dial(t, l)
				c := (<-calls).c
				if seen[c.ID()] || c.ID() == 0 || s.Conn(c.ID()) != c || c.Server() != s.Server {
					t.Errorf("connection %d", c.ID())
				}
				seen[c.ID()] = true
			}
		}
	})
}

func TestMiddlewareRunsFromLeftToRight(t *testing.T) {
	var order []string
	named := func(name string) levee.Middleware {
		return func(next levee.Handler) levee.Handler {
			return handle(func(ctx context.Context, c *levee.Conn) error {
				order = append(order, name)
				defer func() { order = append(order, "/"+name) }()
				return next.ServeTCP(ctx, c)
			})
		}
	}
	h := levee.Chain(handle(func(context.Context, *levee.Conn) error {
		order = append(order, "handler")
		return nil
	}), named("a"), named("b"))
	if err := h.ServeTCP(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, " "); got != "a b handler /b /a" {
		t.Errorf("%s", got)
	}
}

func TestTLSThatCouldOnlyFailIsRefused(t *testing.T) {
	for _, s := range []*levee.Server{
		{Handler: echoing, TLSConfig: &tls.Config{}},
		{Handler: echoing, AllowPlaintext: true},
	} {
		l := leveetest.Listen()
		if err := s.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "TLSConfig") {
			t.Errorf("Serve: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener was left open: %v", err)
		}
	}
}
