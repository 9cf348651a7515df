// Package proxy joins each connection of a levee server to one that it makes for it:
//
//	srv := &levee.Server{Handler: proxy.To("10.0.0.7:5432")}
//	err := srv.ListenAndServe(ctx, "127.0.0.1:5432")
//
// With package upstream behind it there are several servers to choose from, that come,
// go and flake:
//
//	pool := &upstream.Pool{Name: "postgres"}
//	front := &proxy.Proxy{Dial: func(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error) {
//		conn, err := pool.Dial(ctx, upstream.Request{First: header})
//		if err != nil {
//			return levee.Upstream{}, err
//		}
//		return levee.Upstream{Conn: conn.Conn, Ended: …}, nil
//	}}
//
// How the two are joined is the server's to know, see [levee.Joiner]: on an event loop
// inside the kernel where both are plaintext. What this package knows is what the
// upstream is told of the client: the PROXY header.
package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/bare"
)

// A Proxy is a Handler that joins each connection to another. Its fields must not be
// changed once it is in use.
type Proxy struct {
	// Dial connects to what c is to be joined to. Before anything else it has to write
	// header there, and ahead of TLS; header is nil if Header is NoHeader. It may choose
	// by what c says of itself, but not read from it. An error ends c with reason
	// upstream_unavailable. It must not be nil.
	Dial func(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error)

	// Header is the PROXY header that the upstream gets.
	Header Header
}

var _ levee.Joiner = (*Proxy)(nil)

// ServeTCP is levee.ServeJoined.
func (p *Proxy) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, p)
}

// Join dials.
func (p *Proxy) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	header, err := p.Header.Of(c)
	if err != nil {
		return levee.Upstream{}, err
	}
	return p.Dial(ctx, c, header)
}

// dialTimeout is what To gives a connection to come about.
const dialTimeout = 5 * time.Second

// To returns a Proxy to one server, host:port or unix: and a path, which is dialled once
// for each connection, for up to 5 seconds.
func To(address string) *Proxy {
	network, where := "tcp", address
	if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		network, where = "unix", path
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		d := new(net.Dialer)
		d.SetMultipathTCP(false)
		return d.DialContext(ctx, network, where)
	}
	if literal, err := netip.ParseAddrPort(where); err == nil && network == "tcp" {
		dial = func(ctx context.Context) (net.Conn, error) { return bare.Dial(ctx, netip.AddrPort{}, literal) }
	}
	return &Proxy{Dial: func(ctx context.Context, _ *levee.Conn, header []byte) (levee.Upstream, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dial(ctx)
		if err != nil {
			return levee.Upstream{}, err
		}
		if err := write(ctx, conn, header); err != nil {
			_ = conn.Close()
			return levee.Upstream{}, err
		}
		return levee.Upstream{Conn: conn}, nil
	}}
}

// write writes b until ctx ends. It sets no deadline, for which a bare connection would
// have to become one of net's.
func write(ctx context.Context, conn net.Conn, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_, err := conn.Write(b)
	if !unhook() {
		return fmt.Errorf("PROXY header: %w", ctx.Err())
	}
	return err
}
