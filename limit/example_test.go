package limit_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/limit"
)

// A server that takes on a thousand connections, two from each client.
func Example() {
	public := &limit.Scope{
		Name:   "public",
		Limits: limit.Limits{Connections: 1000},
		Clients: []*limit.Clients{{
			Limits: limit.Limits{Connections: 2, Rate: limit.Rate{PerSecond: 50, Burst: 100}},
		}},
	}
	srv := &levee.Server{
		Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.Copy(c, c)
			return err
		}),
		Gate: &limit.Gate{Scopes: []*limit.Scope{public}},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(context.Background(), l)
	defer srv.Close()

	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			defer c.Close()
			_, _ = c.Write([]byte("hello"))
			_, err = c.Read(make([]byte, 5))
		}
		if err != nil { // a reset, which may come before the dial is done
			fmt.Println("turned away")
			continue
		}
		fmt.Println("served")
	}
	for _, d := range public.Stats().Limits {
		fmt.Printf("%s: %d allowed, %d refused\n", d.Limit, d.Allowed, d.Refused)
	}
	// Output:
	// served
	// served
	// turned away
	// public.connections: 3 allowed, 0 refused
	// public.client.connections: 2 allowed, 1 refused
	// public.client.rate: 2 allowed, 0 refused
}

// Who is on a list, or comes onto it, goes.
func ExampleLists() {
	gate := &limit.Gate{}
	srv := &levee.Server{Gate: gate}
	gate.Lists = &limit.Lists{
		Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Changed: func() {
			for _, c := range srv.Conns() {
				if err := gate.Denies(c.ClientAddr().Addr()); err != nil {
					c.Forbid(err)
				}
			}
		},
	}
	if err := gate.Lists.Load(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(gate.Denies(netip.MustParseAddr("198.51.100.7")))
	fmt.Println(gate.Denies(netip.MustParseAddr("203.0.113.7")))
	// Output:
	// on the deny list
	// <nil>
}

// An operator keeps a network out for an hour.
func ExampleBans() {
	bans := &limit.Bans{Refusals: 100, Within: time.Minute}
	if err := bans.Ban(netip.MustParsePrefix("198.51.100.0/24"), time.Hour, "scrapes the search"); err != nil {
		fmt.Println(err)
		return
	}
	for _, b := range bans.List(10) {
		fmt.Printf("%s: %s\n", b.Prefix, b.Why)
	}
	fmt.Println(bans.Lift(netip.MustParsePrefix("198.51.100.0/24")))
	// Output:
	// 198.51.100.0/24: scrapes the search
	// true
}
