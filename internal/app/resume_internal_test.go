package app

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/upstream"
)

// arrived returns a connection, which ends with the test.
func arrived(t *testing.T) *levee.Conn {
	t.Helper()
	conns, l := make(chan *levee.Conn, 1), leveetest.Listen()
	srv := &levee.Server{Handler: levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		conns <- c
		<-ctx.Done()
		return nil
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }() // ends with Close
	client, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		srv.Close()
		<-served
	})
	return <-conns
}

// However a listener's routes are wrapped, the handler behind them is what can go on with a connection.
func TestRoutesLeadToWhatGoesOnWithConnectionsOfAnotherProcess(t *testing.T) {
	const limits = ", limits: {max_connections: 10}"
	cfg, err := config.Parse("levee.yaml", []byte(`{version: 1, upstreams: [{name: db, servers: ["127.0.0.1:1"]}], listeners: [{name: main, listen: ["127.0.0.1:0"], routes: [`+
		`{name: echo, match: {prefix: e}, handler: echo`+limits+`}, {match: {prefix: d}, upstream: db`+limits+`}, {name: hello, match: {protocol: http}, handler: hello}, {name: none, match: {prefix: x}, refuse: true}, {upstream: db}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	f, err := assemble(cfg, Env{Stderr: t.Output(), lookOnly: true, ConfigDir: func() (string, error) { return t.TempDir(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	now := f.now.Load()
	router := now.servers[0].Handler.(levee.Rerouter)
	for name, want := range map[string]string{
		"echo":      fmt.Sprintf("%T", handlers.Echo),
		"routes[1]": fmt.Sprintf("%T", (*proxy.Proxy)(nil)),
		"hello":     fmt.Sprintf("%T", handlers.HelloPage),
		"none":      "route none: refused",
		"routes[4]": fmt.Sprintf("%T", (*proxy.Proxy)(nil)),
		"gone":      `route "gone": no route matches`,
	} {
		c := arrived(t)
		c.SetRoute(name)
		h, err := router.Reroute(c)
		if helloRouter, ok := h.(levee.Rerouter); ok && err == nil {
			h, err = helloRouter.Reroute(c)
		}
		got := fmt.Sprintf("%T", h)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	open := make(map[string]int64)
	for _, s := range now.limits.scopes {
		open[s.Name] = s.Stats().Open
	}
	if open["main/echo"] != 1 || open["main/routes[1]"] != 1 {
		t.Errorf("routes count %v", open)
	}
}

func TestAConnectionThatWasJoinedElsewhereCountsInItsPool(t *testing.T) {
	b, _ := backendOf(t)
	if err := b.pool.Update(at("10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	active := func() int64 { return b.pool.Stats().Servers[0].Active }
	c := arrived(t)
	for _, to := range []*levee.Target{nil, {Upstream: "web", Server: "10.0.0.1:1"}, {Server: "10.0.0.1:1"}, {Upstream: "db"}} {
		c.SetTarget(to, 2)
		if _, err := b.resume(c); err == nil || !strings.HasPrefix(err.Error(), "upstream db: ") {
			t.Errorf("%+v: %v", to, err)
		}
	}
	c.SetTarget(&levee.Target{Upstream: "db", Server: "10.0.0.1:1"}, 2)
	u, err := b.resume(c)
	if err != nil || active() != 1 || b.users != 1 {
		t.Fatalf("%v; %d active, %d users", err, active(), b.users)
	}
	if s := c.Story(); s.Server != "10.0.0.1:1" || s.Upstream != "db" || s.Tries != 2 {
		t.Errorf("%+v", s)
	}
	u.Ended(levee.UpstreamEnd{Reason: levee.UpstreamClosed, Sent: 5, Received: 6})
	if s := b.pool.Stats().Servers[0]; s.Active != 0 || s.Sent != 5 || s.Received != 6 || b.users != 0 || s.Breaker != upstream.BreakerClosed {
		t.Errorf("%+v; %d users", s, b.users)
	}
}
