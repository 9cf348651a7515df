package limit_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/limit"
)

var echoing = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
	_, err := io.Copy(c, c)
	return err
})

func serve(t *testing.T, srv *levee.Server, l net.Listener) *levee.Server {
	t.Helper()
	srv.Logger = slog.New(slog.DiscardHandler)
	returned := make(chan struct{})
	go func() { // ends with Close
		defer close(returned)
		_ = srv.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-returned
	})
	return srv
}

// from connects as a client behind a proxy.
func from(t *testing.T, l *leveetest.Listener, addr string) *leveetest.Conn {
	t.Helper()
	c, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	family := "TCP4 " + addr + " 10.0.0.1"
	if netip.MustParseAddr(addr).Is6() {
		family = "TCP6 " + addr + " 2001:db8::ffff"
	}
	_, _ = fmt.Fprintf(c, "PROXY %s 40000 443\r\n", family)
	return c
}

func isServed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatalf("not served: %v", err)
	}
}

func isTurnedAway(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

var proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}

func TestAServersClientsAreThoseBehindItsProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := &limit.Scope{Name: "public", Clients: []*limit.Clients{{Limits: limit.Limits{Connections: 2}}}}
		srv := serve(t, &levee.Server{Handler: echoing, ProxyFrom: proxies, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
		first := from(t, l, "198.51.100.1")
		isServed(t, first)
		isServed(t, from(t, l, "198.51.100.1"))
		isTurnedAway(t, from(t, l, "198.51.100.1"))
		isServed(t, from(t, l, "198.51.100.2"))
		isServed(t, from(t, l, "2001:db8::1"))
		first.Close()
		synctest.Wait()
		isServed(t, from(t, l, "198.51.100.1"))
		synctest.Wait()
		if n := srv.Stats().Closed[levee.Limited]; n != 1 {
			t.Errorf("%d ended as limited", n)
		}
		_ = srv.Close()
		synctest.Wait()
		if stats := s.Stats(); stats.Open != 0 || stats.Clients[0].Used != 0 {
			t.Errorf("after the end: %+v", stats)
		}
	})
}

func TestWhoIsBannedIsRefusedAtTheDoorAndEndedInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		var srv *levee.Server
		gate := new(limit.Gate)
		gate.Bans = &limit.Bans{Changed: func(limit.Ban) {
			for _, c := range srv.Conns() {
				if err := gate.Denies(c.ClientAddr().Addr()); err != nil {
					c.Forbid(err)
				}
			}
		}}
		srv = serve(t, &levee.Server{Handler: echoing, ProxyFrom: proxies, Gate: gate}, l)
		bad, good := from(t, l, "198.51.100.1"), from(t, l, "203.0.113.1")
		isServed(t, bad)
		isServed(t, good)
		if err := gate.Bans.Ban(netip.MustParsePrefix("198.51.100.0/24"), time.Hour, "spam"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := bad.Read(make([]byte, 1)); err == nil {
			t.Error("a connection of a client that is banned goes on")
		}
		isServed(t, good)
		isTurnedAway(t, from(t, l, "198.51.100.7"))
		synctest.Wait()
		if stats := srv.Stats(); stats.Closed[levee.Policy] != 1 || stats.Closed[levee.Denied] != 1 {
			t.Errorf("%v", stats.Closed)
		}
		time.Sleep(time.Hour) // virtual time
		isServed(t, from(t, l, "198.51.100.7"))
	})
}

func TestFailedHandshakesBan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca := leveetest.NewCA(t)
		bans := &limit.Bans{Refusals: 3}
		srv := serve(t, &levee.Server{Handler: echoing, TLSConfig: ca.ServerConfig("example.com"), ProxyFrom: proxies, Gate: &limit.Gate{Bans: bans}}, l)
		for range 3 {
			c := from(t, l, "198.51.100.1")
			_, _ = c.Write([]byte("SSH-2.0-client\r\n"))
			_, _ = io.Copy(io.Discard, c)
			synctest.Wait()
			// Until the server has stopped waiting for the client's end.
			time.Sleep(time.Second) // virtual time
		}
		isTurnedAway(t, from(t, l, "198.51.100.1"))
		synctest.Wait()
		if stats := srv.Stats(); stats.Closed[levee.TLSFailed] != 3 || stats.Closed[levee.Denied] != 1 {
			t.Errorf("%v", stats.Closed)
		}
	})
}

// secure shakes hands over a new connection.
func secure(t *testing.T, l *leveetest.Listener, addr string, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(from(t, l, addr), config)
	if err := c.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{'x'}); err != nil {
		return nil, err
	}
	_, err := c.Read(make([]byte, 1))
	return c, err
}

func TestClientsByCertificateAreWhoTheyProveToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca := leveetest.NewCA(t)
		config := ca.ServerConfig("example.com")
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, ca.Pool()
		s := &limit.Scope{Name: "public", Clients: []*limit.Clients{{By: limit.ByCertificate, Limits: limit.Limits{Connections: 1}}}}
		srv := serve(t, &levee.Server{Handler: echoing, TLSConfig: config, ProxyFrom: proxies, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
		as := func(name string) *tls.Config {
			config := ca.ClientConfig("example.com")
			if name != "" {
				config.Certificates = []tls.Certificate{ca.ClientCertificate(name)}
			}
			return config
		}
		for i, c := range []struct {
			name, addr string
			comesIn    bool
		}{
			{"alice", "198.51.100.1", true},
			{"alice", "198.51.100.2", false}, // wherever she is, and with another certificate
			{"bob", "198.51.100.1", true},
			{"", "198.51.100.1", true}, // by address, as nobody was before
			{"", "198.51.100.1", false},
			{"", "2001:db8::1", true},
			{"", "2001:db8::2", false},
		} {
			if _, err := secure(t, l, c.addr, as(c.name)); (err == nil) != c.comesIn {
				t.Errorf("%d, %q from %s: %v", i, c.name, c.addr, err)
			}
		}
		// Until the server has stopped waiting for the clients' ends.
		time.Sleep(time.Second) // virtual time
		if n := srv.Stats().Closed[levee.Limited]; n != 3 {
			t.Errorf("%d ended as limited: %v", n, srv.Stats().Closed)
		}
	})
}

// A certificate that nobody has vouched for would be as many clients as one likes.
func TestACertificateThatIsNotVerifiedIsNoIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca, stranger := leveetest.NewCA(t), leveetest.NewCA(t)
		config := ca.ServerConfig("example.com")
		config.ClientAuth = tls.RequireAnyClientCert
		s := &limit.Scope{Clients: []*limit.Clients{{By: limit.ByCertificate, Limits: limit.Limits{Connections: 1}}}}
		serve(t, &levee.Server{Handler: echoing, TLSConfig: config, ProxyFrom: proxies, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
		for i, name := range []string{"a", "b", "c"} {
			client := ca.ClientConfig("example.com")
			client.Certificates = []tls.Certificate{stranger.ClientCertificate(name)}
			if _, err := secure(t, l, "198.51.100.1", client); (err == nil) != (i == 0) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestClientsByServerNameAreTheNamesThatAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca := leveetest.NewCA(t)
		c := &limit.Clients{
			Name: "name", By: limit.ByServerName, Limits: limit.Limits{Connections: 1},
			Known: func(name string) bool { return name == "a.example.com" || name == "b.example.com" },
		}
		s := &limit.Scope{Name: "public", Clients: []*limit.Clients{c}}
		serve(t, &levee.Server{Handler: echoing, TLSConfig: ca.ServerConfig("a.example.com", "b.example.com", "c.example.com", "d.example.com"), ProxyFrom: proxies, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
		for i, c := range []struct {
			name    string
			comesIn bool
		}{
			{"a.example.com", true},
			{"A.Example.Com", false},
			{"b.example.com", true},
			{"c.example.com", true},
			{"d.example.com", false}, // as unknown as c
		} {
			if _, err := secure(t, l, "198.51.100.1", ca.ClientConfig(c.name)); (err == nil) != c.comesIn {
				t.Errorf("%d, %s: %v", i, c.name, err)
			}
		}
	})
}

func TestHandshakesAreRefusedBeforeTheyAreComputed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca := leveetest.NewCA(t)
		var computed atomic.Int32
		config := ca.ServerConfig("example.com")
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			computed.Add(1)
			return nil, nil
		}
		s := &limit.Scope{Clients: []*limit.Clients{{Limits: limit.Limits{Handshakes: limit.Rate{PerSecond: 1, Burst: 2}}}}}
		serve(t, &levee.Server{Handler: echoing, TLSConfig: config, ProxyFrom: proxies, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
		for i := range 5 {
			if _, err := secure(t, l, "198.51.100.1", ca.ClientConfig("example.com")); (err == nil) != (i < 2) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if n := computed.Load(); n != 2 {
			t.Errorf("%d handshakes were computed", n)
		}
	})
}

func TestARouteHasLimitsOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		whole := &limit.Scope{Name: "public", Limits: limit.Limits{Connections: 10}}
		route := &limit.Scope{Name: "database", Limits: limit.Limits{Connections: 2}, Clients: []*limit.Clients{{Limits: limit.Limits{Connections: 1}}}}
		gate := &limit.Gate{Scopes: []*limit.Scope{whole}, Bans: &limit.Bans{Refusals: 2}}
		ended := make(chan levee.End, 10)
		srv := serve(t, &levee.Server{
			Handler: gate.Route(route, echoing), ProxyFrom: proxies, Gate: gate,
			Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ended <- end }},
		}, l)
		first := from(t, l, "198.51.100.1")
		isServed(t, first)
		isTurnedAway(t, from(t, l, "198.51.100.1"))
		end := <-ended
		refusal, ok := errors.AsType[*levee.Refusal](end.Err)
		if !ok || end.Reason != levee.Limited || refusal.Cause.Error() != "limit database.client.connections" {
			t.Errorf("%v: %v", end.Reason, end.Err)
		}
		isServed(t, from(t, l, "198.51.100.2"))
		isTurnedAway(t, from(t, l, "198.51.100.3"))
		first.Close()
		synctest.Wait()
		if open := route.Stats().Open; open != 1 {
			t.Errorf("%d open on the route", open)
		}
		isServed(t, from(t, l, "198.51.100.1"))
		isTurnedAway(t, from(t, l, "198.51.100.1")) // a second refusal of its own
		isTurnedAway(t, from(t, l, "198.51.100.1"))
		synctest.Wait()
		if n := gate.Bans.Stats().Made; n != 1 {
			t.Errorf("%d bans", n)
		}
		if open := whole.Stats().Open; open != 2 {
			t.Errorf("%d open in all", open)
		}
		_ = srv.Close()
		synctest.Wait()
		if open := route.Stats().Open + whole.Stats().Open; open != 0 {
			t.Errorf("%d open after the end", open)
		}
	})
}

func TestARoutesLimitsNeedNoGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		route := &limit.Scope{Limits: limit.Limits{Connections: 1}, Connection: limit.Bandwidth{Up: 1e6}}
		serve(t, &levee.Server{Handler: (*limit.Gate)(nil).Route(route, echoing), ProxyFrom: proxies}, l)
		c := from(t, l, "198.51.100.1")
		isServed(t, c)
		isTurnedAway(t, from(t, l, "198.51.100.1"))
		c.Close()
		synctest.Wait()
		isServed(t, from(t, l, "198.51.100.1"))
	})
}

// counted is a Shared that refuses nobody and counts what is open.
type counted struct{ open, asked atomic.Int64 }

func (c *counted) Claim(_ context.Context, claims []limit.Claim) (int, error) {
	c.asked.Add(1)
	c.open.Add(int64(len(claims)))
	return -1, nil
}
func (c *counted) Release(claims []limit.Claim) { c.open.Add(-int64(len(claims))) }

func TestOtherMachinesAreAskedByGatesRoutesAndIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		ca := leveetest.NewCA(t)
		config := ca.ServerConfig("example.com")
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
		shared := new(counted)
		limits := limit.Limits{Connections: 10, Shared: true}
		gate := &limit.Gate{Shared: shared, Scopes: []*limit.Scope{{Limits: limits, Clients: []*limit.Clients{{Limits: limits}, {Name: "identity", By: limit.ByCertificate, Limits: limits}}}}}
		serve(t, &levee.Server{Handler: gate.Route(&limit.Scope{Name: "route", Limits: limits}, echoing), TLSConfig: config, ProxyFrom: proxies, Gate: gate}, l)
		client := ca.ClientConfig("example.com")
		client.Certificates = []tls.Certificate{ca.ClientCertificate("alice")}
		c, err := secure(t, l, "198.51.100.1", client)
		if err != nil {
			t.Fatal(err)
		}
		if asked, open := shared.asked.Load(), shared.open.Load(); asked != 3 || open != 4 {
			t.Errorf("asked %d times; %d open; want 3 and 4", asked, open)
		}
		c.Close()
		synctest.Wait()
		if open := shared.open.Load(); open != 0 {
			t.Errorf("%d open after the end", open)
		}
	})
}

// listen listens on loopback, where the kernel and the event loops have a part in it.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// steps echoes on event loops.
type steps struct{}

func (steps) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, steps{}) }

func (steps) Step(_ *levee.Conn, in []byte, _ int, out []byte) (n int, reply []byte, err error) {
	return len(in), append(out, in...), nil
}

func TestAFloodOnRealSocketsIsHeldToTheLimit(t *testing.T) {
	for name, h := range map[string]levee.Handler{"goroutines": echoing, "loops": steps{}} {
		t.Run(name, func(t *testing.T) {
			const most, workers, each = 20, 8, 100
			l := listen(t)
			s := &limit.Scope{Name: "public", Clients: []*limit.Clients{{Limits: limit.Limits{Connections: most}}}}
			srv := serve(t, &levee.Server{Handler: h, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
			var (
				wg         sync.WaitGroup
				served     atomic.Int64
				mu         sync.Mutex
				keep       []net.Conn
				turnedAway atomic.Int64
			)
			for range workers {
				wg.Go(func() {
					for range each {
						c, err := net.Dial("tcp", l.Addr().String())
						if err != nil {
							turnedAway.Add(1)
							continue
						}
						_ = c.SetDeadline(time.Now().Add(20 * time.Second))
						_, _ = c.Write([]byte{'x'})
						if _, err := c.Read(make([]byte, 1)); err != nil {
							turnedAway.Add(1)
							c.Close()
							continue
						}
						served.Add(1)
						mu.Lock()
						keep = append(keep, c)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if n := served.Load(); n != most {
				t.Errorf("%d were served; want %d", n, most)
			}
			if n := turnedAway.Load(); n != workers*each-most {
				t.Errorf("%d were turned away", n)
			}
			for _, c := range keep { // they have not noticed
				isServed(t, c)
				c.Close()
			}
			over := func(stats limit.ScopeStats) bool {
				return srv.Stats().Active == 0 && stats.Open == 0 && stats.Clients[0].Used == 0
			}
			for until := time.Now().Add(10 * time.Second); !over(s.Stats()); {
				if time.Now().After(until) {
					t.Fatalf("after the end: %+v", s.Stats())
				}
				time.Sleep(time.Millisecond) //nolint:forbidigo // sockets, not virtual time
			}
		})
	}
}

func TestBandwidthOnRealSocketsIsSharedByAClientsConnections(t *testing.T) {
	for name, h := range map[string]levee.Handler{"goroutines": echoing, "loops": steps{}} {
		t.Run(name, func(t *testing.T) {
			const perSecond, size, connections = 2 << 20, 1 << 20, 2
			l := listen(t)
			s := &limit.Scope{Clients: []*limit.Clients{{Limits: limit.Limits{Bandwidth: limit.Bandwidth{Up: perSecond}}}}}
			serve(t, &levee.Server{Handler: h, Gate: &limit.Gate{Scopes: []*limit.Scope{s}}}, l)
			begin := time.Now()
			var wg sync.WaitGroup
			for range connections {
				wg.Go(func() {
					c, err := net.Dial("tcp", l.Addr().String())
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					go func() { // ends with what it writes
						_, _ = c.Write(make([]byte, size))
						_ = c.(*net.TCPConn).CloseWrite()
					}()
					if n, err := io.Copy(io.Discard, c); n != size || err != nil {
						t.Errorf("%d bytes came back, %v", n, err)
					}
				})
			}
			wg.Wait()
			took, want := time.Since(begin), time.Second*connections*size/perSecond
			if took < want*8/10 || took > want*3 { // the machine may be busy
				t.Errorf("took %s; want %s", took, want)
			}
		})
	}
}

func TestARoutesBandwidthIsBesideItsGates(t *testing.T) {
	for _, c := range []struct{ gate, route int64 }{{1e6, 1e5}, {1e5, 1e6}, {1e5, 0}, {0, 1e5}} {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			gate := &limit.Gate{Scopes: []*limit.Scope{{Connection: limit.Bandwidth{Down: c.gate}}}}
			route := &limit.Scope{Connection: limit.Bandwidth{Down: c.route}}
			sending := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
				_, err := c.Write(make([]byte, 1e6))
				return err
			})
			serve(t, &levee.Server{Handler: gate.Route(route, sending), ProxyFrom: proxies, Gate: gate}, l)
			begin := time.Now()
			if n, err := io.Copy(io.Discard, from(t, l, "198.51.100.1")); n != 1e6 || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
			if took := time.Since(begin); took < 9*time.Second || took > 11*time.Second {
				t.Errorf("%+v: a megabyte took %s; want 10s", c, took)
			}
		})
	}
}
