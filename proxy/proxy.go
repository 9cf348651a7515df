// Package proxy joins each connection of a levee server to one that it makes for it:
//
//	srv := &levee.Server{Handler: proxy.To("10.0.0.7:5432")}
//	err := srv.ListenAndServe(ctx, "127.0.0.1:5432")
//
// With package upstream behind it there are several servers to choose from, that come,
// go and flake:
//
//	pool := &upstream.Pool{Name: "postgres"}
//	front := &proxy.Proxy{Dial: pool.Join, Resume: pool.Rejoin}
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
	// by what c says of itself, but not read from it; [levee.Conn.SetTarget] is how to tell
	// where that is. An error ends c with reason
	// upstream_unavailable. It must not be nil.
	Dial func(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error)

	// Header is the PROXY header that the upstream gets.
	Header Header

	// TraceParent, if not nil, returns what the upstream is told that its connection is a part
	// of: with Header V2, in a TLV of type [levee.TraceParentTLV]. Package telemetry/spans has
	// one.
	TraceParent func(c *levee.Conn) levee.TraceParent

	// Meet, if not nil, deals with each upstream before c is joined to it. It is for servers
	// that speak first, to a client that has heard their part already: of clients that begin
	// TLS by a command, as [github.com/levee-net/levee/route.MeetSMTP] says. It takes what
	// is not for the client from upstream, and not a byte more; from c it may read only if
	// a Router has looked at that, and is bound by nothing but ctx. An error ends both.
	Meet func(ctx context.Context, c *levee.Conn, upstream net.Conn) error

	// MeetTimeout is how long Meet may take, after which its ctx ends. Zero means 10
	// seconds; negative means no limit.
	MeetTimeout time.Duration

	// Resume, if not nil, is told of a connection that another process has joined: whoever keeps
	// account of those that Dial makes has to count it too. It returns what Dial would have, but
	// without a Conn, or an error to have the connection stay in that process. It must
	// not block. Nil keeps no account.
	Resume func(c *levee.Conn) (levee.Upstream, error)
}

var _ levee.Rejoiner = (*Proxy)(nil)

// ServeTCP is levee.ServeJoined.
func (p *Proxy) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, p)
}

// Join dials.
func (p *Proxy) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	var parent levee.TraceParent
	if p.TraceParent != nil {
		parent = p.TraceParent(c)
	}
	header, err := p.Header.with(c, parent)
	if err != nil {
		return levee.Upstream{}, err
	}
	u, err := p.Dial(ctx, c, header)
	if err != nil || u.Conn == nil || p.Meet == nil {
		return u, err
	}
	if err := p.meet(ctx, c, u.Conn); err != nil {
		_ = u.Conn.Close()
		if u.Ended != nil {
			u.Ended(levee.UpstreamEnd{Reason: levee.UpstreamUnavailable, Err: err})
		}
		return levee.Upstream{}, err
	}
	return u, nil
}

// Rejoin is told of a connection that another process has joined.
func (p *Proxy) Rejoin(c *levee.Conn) (levee.Upstream, error) {
	if p.Resume == nil {
		return levee.Upstream{}, nil
	}
	return p.Resume(c)
}

// meetTimeout is what dialling has at most, too: some servers keep strangers waiting for
// their greeting, to see whether those wait for it.
const meetTimeout = 10 * time.Second

// meet meets the upstream in time.
func (p *Proxy) meet(ctx context.Context, c *levee.Conn, upstream net.Conn) error {
	limit := p.MeetTimeout
	if limit == 0 {
		limit = meetTimeout
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if err := p.Meet(ctx, c, upstream); err != nil {
		return fmt.Errorf("meet: %w", err)
	}
	return nil
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
	target := &levee.Target{Server: address}
	return &Proxy{Dial: func(ctx context.Context, c *levee.Conn, header []byte) (levee.Upstream, error) {
		c.SetTarget(target, 1)
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
