package levee_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

const v2Signature = "\r\n\r\n\x00\r\nQUIT\n"

// v2 builds a header of version 2: command and family, then the length and what
// it is the length of.
func v2(command, family byte, addresses string) string {
	header := append([]byte(v2Signature), command, family)
	return string(binary.BigEndian.AppendUint16(header, uint16(len(addresses)))) + addresses
}

const (
	v4Addresses   = "\xc6\x33\x64\x07\xc6\x33\x64\x08\x12\x67\x00\x50"
	v6Addresses   = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x12\x67\x00\x50"
	v4InV6        = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x08\x12\x67\x00\x50"
	proxyAddress  = "10.0.0.1:4000"
	clientAddress = "198.51.100.7:4711"
)

var fromProxy = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}

var goodHeaders = []struct{ name, header, client string }{
	{"v1 TCP4", "PROXY TCP4 198.51.100.7 198.51.100.8 4711 80\r\n", clientAddress},
	{"v1 TCP6", "PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n", "[2001:db8::1]:4711"},
	{"v1 TCP6 at its longest", "PROXY TCP6 2001:0db8:ffff:ffff:ffff:ffff:ffff:ffff 2001:0db8:ffff:ffff:ffff:ffff:ffff:fffe 65535 65535\r\n", "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	{"v1 TCP6, IPv4-mapped", "PROXY TCP6 ::ffff:198.51.100.7 ::ffff:198.51.100.8 4711 80\r\n", clientAddress},
	{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", proxyAddress},
	{"v1 UNKNOWN with addresses", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", proxyAddress},
	{"v2 IPv4", v2(0x21, 0x11, v4Addresses), clientAddress},
	{"v2 IPv6", v2(0x21, 0x21, v6Addresses), "[2001:db8::1]:4711"},
	{"v2 IPv6, IPv4-mapped", v2(0x21, 0x21, v4InV6), clientAddress},
	{"v2 IPv4 with TLVs", v2(0x21, 0x11, v4Addresses+"\x04\x00\x03\x00\x00\x00\x02\x00\x05a.net"), clientAddress},
	{"v2 IPv4 with 4,000 bytes of TLVs", v2(0x21, 0x11, v4Addresses+"\x04\x0f\x9d"+strings.Repeat("\x00", 3997)), clientAddress},
	{"v2 unix", v2(0x21, 0x31, strings.Repeat("/var/run\x00", 24)), proxyAddress},
	{"v2 UDP over IPv4", v2(0x21, 0x12, v4Addresses), proxyAddress},
	{"v2 LOCAL", v2(0x20, 0x00, ""), proxyAddress},
	{"v2 LOCAL with addresses", v2(0x20, 0x11, v4Addresses), proxyAddress},
	{"v2 LOCAL with something", v2(0x20, 0x00, "something"), proxyAddress},
}

// report is a handler's account of who it met and what that sent.
type account struct {
	client  netip.AddrPort
	remote  string
	peer    string
	traced  bool
	message string
	err     error
}

// accounts starts a server that requires headers from 10.0.0.0/8.
func accounts(t testing.TB, l net.Listener) (met <-chan account, ends <-chan levee.End) {
	t.Helper()
	ch := make(chan account, 10_000)
	traced := make(chan *levee.Conn, 10_000)
	ends = stage(t, &levee.Server{
		ProxyFrom: fromProxy,
		Trace:     &levee.Trace{ProxyHeader: func(c *levee.Conn) { traced <- c }},
		Handler: does(func(c *levee.Conn) error {
			a := account{client: c.ClientAddr(), remote: c.RemoteAddr().String(), peer: c.PeerAddr().String()}
			select {
			case told := <-traced:
				a.traced = told == c && c.ClientAddr() == a.client
			default:
			}
			message, err := io.ReadAll(c)
			a.message, a.err = string(message), err
			ch <- a
			return err
		}),
	}, l)
	return ch, ends
}

// dialAs connects from that address.
func dialAs(t testing.TB, l *leveetest.Listener, from string) *leveetest.Conn {
	t.Helper()
	c, err := l.DialFrom(context.Background(), netip.MustParseAddrPort(from))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestProxyHeaderTellsTheClient(t *testing.T) {
	for _, good := range goodHeaders {
		for segment, name := range map[int]string{0: "in one segment with the request", 1: "byte by byte"} {
			t.Run(good.name+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := leveetest.Listen()
					met, ends := accounts(t, leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: segment}}))
					client := dialAs(t, l, proxyAddress)
					send(t, client, good.header+"hello, world")
					client.CloseWrite()
					got := <-met
					if got.client.String() != good.client || got.remote != good.client || got.peer != proxyAddress {
						t.Errorf("ClientAddr %v, RemoteAddr %v, PeerAddr %v; want %v from %v", got.client, got.remote, got.peer, good.client, proxyAddress)
					}
					if got.message != "hello, world" || got.err != nil || !got.traced {
						t.Errorf("%q, %v came behind the header, traced: %t", got.message, got.err, got.traced)
					}
					end := expectReason(t, ends, levee.ClientClosed)
					if end.Read != int64(len(good.header)+len("hello, world")) {
						t.Errorf("%d bytes were counted", end.Read)
					}
				})
			})
		}
	}
}

func TestBadProxyHeaderEndsTheConnection(t *testing.T) {
	for _, bad := range []struct {
		name, sends string
		reason      levee.CloseReason
	}{
		{"no header", "GET / HTTP/1.1\r\n\r\n", levee.ProxyHeaderInvalid},
		{"TLS instead", "\x16\x03\x01\x02\x00\x01\x00", levee.ProxyHeaderInvalid},
		{"a short message instead", "hi\n", levee.ProxyHeaderInvalid},
		{"one byte instead", "x", levee.ProxyHeaderInvalid},
		{"nothing", "", levee.ClientAborted},
		{"v1 that breaks off", "PROXY TCP4 198.51.100.7", levee.ClientAborted},
		{"v1 that breaks off at once", "PRO", levee.ClientAborted},
		{"v2 that breaks off in its signature", v2Signature[:5], levee.ClientAborted},
		{"v2 that breaks off in its length", v2Signature + "\x21\x11\x00", levee.ClientAborted},
		{"v2 that breaks off in its addresses", v2(0x21, 0x11, v4Addresses)[:20], levee.ClientAborted},
		{"v1 with a lower-case word", "proxy TCP4 198.51.100.7 198.51.100.8 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 without a space", "PROXY\r\n", levee.ProxyHeaderInvalid},
		{"v1 without a family", "PROXY \r\n", levee.ProxyHeaderInvalid},
		{"v1 of another family", "PROXY UDP4 198.51.100.7 198.51.100.8 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 without CR", "PROXY TCP4 198.51.100.7 198.51.100.8 4711 80\n", levee.ProxyHeaderInvalid},
		{"v1 with two spaces", "PROXY  TCP4 198.51.100.7 198.51.100.8 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a field too many", "PROXY TCP4 198.51.100.7 198.51.100.8 4711 80 1\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a field too few", "PROXY TCP4 198.51.100.7 198.51.100.8 4711\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a port too high", "PROXY TCP4 198.51.100.7 198.51.100.8 65536 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a signed port", "PROXY TCP4 198.51.100.7 198.51.100.8 +80 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a leading zero", "PROXY TCP4 198.51.100.07 198.51.100.8 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with IPv6 in TCP4", "PROXY TCP4 2001:db8::1 2001:db8::2 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a name", "PROXY TCP4 localhost 198.51.100.8 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 with a zone", "PROXY TCP6 fe80::1%eth0 fe80::2 4711 80\r\n", levee.ProxyHeaderInvalid},
		{"v1 that is too long", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", levee.ProxyHeaderInvalid},
		{"v1 without an end", "PROXY UNKNOWN " + strings.Repeat("x", 9000), levee.ProxyHeaderInvalid},
		{"v2 with another last byte", v2Signature[:11] + "\r\x21\x11\x00\x0c" + v4Addresses, levee.ProxyHeaderInvalid},
		{"v2 of version 1", v2(0x11, 0x11, v4Addresses), levee.ProxyHeaderInvalid},
		{"v2 with another command", v2(0x22, 0x11, v4Addresses), levee.ProxyHeaderInvalid},
		{"v2 of another family", v2(0x21, 0x41, v4Addresses), levee.ProxyHeaderInvalid},
		{"v2 of another transport", v2(0x21, 0x13, v4Addresses), levee.ProxyHeaderInvalid},
		{"v2 PROXY of no family", v2(0x21, 0x00, ""), levee.ProxyHeaderInvalid},
		{"v2 with addresses that are too short", v2(0x21, 0x21, v4Addresses), levee.ProxyHeaderInvalid},
		{"v2 of 64 KiB", v2(0x21, 0x11, strings.Repeat("x", 65535)), levee.ProxyHeaderInvalid},
	} {
		for segment, name := range map[int]string{0: "in one segment", 1: "byte by byte"} {
			t.Run(bad.name+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := leveetest.Network{Buffer: -1}.Listen()
					met, ends := accounts(t, leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: segment}}))
					client := dialAs(t, l, proxyAddress)
					send(t, client, bad.sends)
					client.CloseWrite()
					end := expectReason(t, ends, bad.reason)
					if end.Err == nil || end.Duration > time.Second {
						t.Errorf("it ended after %v with %v", end.Duration, end.Err)
					}
					if len(met) > 0 {
						t.Error("the handler was called")
					}
				})
			})
		}
	}
}

func TestProxyHeaderFromUnlistedSourceIsRefused(t *testing.T) {
	for _, good := range goodHeaders {
		for segment, name := range map[int]string{0: "in one segment", 1: "byte by byte"} {
			t.Run(good.name+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := leveetest.Listen()
					met, ends := accounts(t, leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: segment}}))
					client := dialAs(t, l, "192.0.2.1:4000")
					send(t, client, good.header+"hello, world")
					end := expectReason(t, ends, levee.ProxyHeaderRefused)
					if end.Duration != 0 {
						t.Errorf("it took %v", end.Duration)
					}
					got := <-met
					if got.client.String() != "192.0.2.1:4000" || got.traced {
						t.Errorf("ClientAddr was %v, traced: %t", got.client, got.traced)
					}
					if reasonOf(got.err) != levee.ProxyHeaderRefused || strings.HasPrefix(got.message, "PROXY ") || strings.HasPrefix(got.message, v2Signature) {
						t.Errorf("the handler read %q, %v", got.message, got.err)
					}
				})
			})
		}
	}
}

// Whatever the handler does first with the connection.
func TestRefusedProxyHeaderIsSeenByEveryWayToRead(t *testing.T) {
	for name, wait := range waysToWait {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				ends := stage(t, &levee.Server{ProxyFrom: fromProxy, Handler: does(func(c *levee.Conn) error {
					var err error
					for err == nil { // a single byte is no header yet
						err = wait(c)
					}
					if reasonOf(err) != levee.ProxyHeaderRefused {
						t.Errorf("%v", err)
					}
					return err
				})}, l)
				send(t, dialAs(t, l, "192.0.2.1:4000"), goodHeaders[0].header)
				expectReason(t, ends, levee.ProxyHeaderRefused)
			})
		})
	}
}

// They must be answered before anything else comes: a peer that waits for its
// answer would wait for ever.
func TestBytesThatBeginLikeAProxyHeaderPassAtOnce(t *testing.T) {
	for _, message := range []string{
		"P", "PROX", "PROXY", "PROX\n", "PROXYx", "PRO\r\n", "\r", "\r\n", "\r\n\r\n", "\r\n\r\n\x00\r\nQUIT", "\r\n\r\n\x00\r\nQUIT\r", "x", "proxy ",
	} {
		for _, segment := range []int{0, 1} {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				ends := stage(t, &levee.Server{ProxyFrom: fromProxy, Handler: echoing},
					leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: segment}}))
				client := dialAs(t, l, "192.0.2.1:4000")
				start := time.Now()
				send(t, client, message)
				want(t, client, message)
				if took := time.Since(start); took > 0 {
					t.Errorf("%q took %v", message, took)
				}
				send(t, client, "and more, PROXY and all")
				want(t, client, "and more, PROXY and all")
				client.CloseWrite()
				expectReason(t, ends, levee.ClientClosed)
			})
		}
	}
}

func TestServerThatSpeaksFirstIsNotHeldUpByScreening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		stage(t, &levee.Server{ProxyFrom: fromProxy, Handler: does(func(c *levee.Conn) error {
			send(t, c, "220 ready\r\n")
			return echo(c)
		})}, l)
		client := dialAs(t, l, "192.0.2.1:4000")
		start := time.Now()
		want(t, client, "220 ready\r\n")
		if took := time.Since(start); took > 0 {
			t.Errorf("the greeting took %v", took)
		}
	})
}

func TestProxyProtocolIsNeverGuessed(t *testing.T) {
	for _, good := range goodHeaders {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			stage(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
				if c.ClientAddr().String() != proxyAddress {
					t.Errorf("ClientAddr is %v", c.ClientAddr())
				}
				return echo(c)
			})}, l)
			client := dialAs(t, l, proxyAddress)
			send(t, client, good.header)
			want(t, client, good.header)
		})
	}
}

func TestSourcesAreComparedWithoutMappingAndZone(t *testing.T) {
	for _, source := range []struct{ from, listed, reason string }{
		{"[::ffff:10.0.0.1]:4000", "10.0.0.0/8", "client_closed"},
		{"[fe80::1%eth0]:4000", "fe80::/10", "client_closed"},
		{"[2001:db8::1]:4000", "2001:db8::/32", "client_closed"},
		{"[2001:db8::1]:4000", "0.0.0.0/0", "proxy_header_refused"},
		{"10.0.0.1:4000", "::/0", "proxy_header_refused"},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			ends := stage(t, &levee.Server{ProxyFrom: []netip.Prefix{netip.MustParsePrefix(source.listed)}, Handler: echoing}, l)
			client := dialAs(t, l, source.from)
			send(t, client, "PROXY UNKNOWN\r\n")
			client.CloseWrite()
			if end := <-ends; end.Reason.String() != source.reason {
				t.Errorf("from %s with %s listed it ended as %v, want %s", source.from, source.listed, end.Reason, source.reason)
			}
		})
	}
}

func TestProxyHeaderAndClientHelloInOneSegment(t *testing.T) {
	ca := leveetest.NewCA(t)
	for segment, name := range map[int]string{0: "in one segment", 1: "byte by byte"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				ends := stage(t, &levee.Server{
					ProxyFrom: fromProxy,
					TLSConfig: ca.ServerConfig("localhost"),
					Handler: does(func(c *levee.Conn) error {
						if c.ClientAddr().String() != clientAddress || c.TLS() == nil || c.TLS().ServerName != "localhost" {
							t.Errorf("client %v, TLS %+v", c.ClientAddr(), c.TLS())
						}
						return echo(c)
					}),
				}, leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: segment}}))
				segment := &coalescing{Conn: dialAs(t, l, proxyAddress)}
				segment.held.WriteString(goodHeaders[6].header)
				client := tls.Client(letThrough{segment}, ca.ClientConfig("localhost"))
				if err := client.Handshake(); err != nil {
					t.Fatal(err)
				}
				send(t, client, "hello")
				want(t, client, "hello")
				client.Close()
				segment.letGo()
				expectReason(t, ends, levee.ClientClosed)
			})
		})
	}
}

// FuzzProxyHeader feeds bytes, cut at random, to a server that requires a header,
// and the same bytes to go-proxyproto.
func FuzzProxyHeader(f *testing.F) {
	for i, good := range goodHeaders {
		f.Add([]byte(good.header+"request"), uint64(i), i%2 == 0)
	}
	f.Add([]byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n"), uint64(0), true)
	f.Add([]byte("PROXY UNKNOWN \n\r\n"), uint64(7), true)
	f.Add([]byte(v2Signature+"\x21\x11\xff\xff"), uint64(1), true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint64(3), true)

	l := leveetest.Network{Buffer: -1}.Listen()
	met, ends := accounts(f, l)
	f.Fuzz(func(t *testing.T, sent []byte, seed uint64, listed bool) {
		from := proxyAddress
		if !listed {
			from = "192.0.2.1:4000"
		}
		client := dialAs(t, l, from)
		random := rand.New(rand.NewPCG(seed, 0))
		for rest := sent; len(rest) > 0; {
			n := 1 + random.IntN(len(rest))
			if random.IntN(4) == 0 {
				n = 1
			}
			if _, err := client.Write(rest[:n]); err != nil {
				break
			}
			rest = rest[n:]
		}
		client.CloseWrite()
		end := <-ends
		var got *account
		select {
		case a := <-met:
			got = &a
		default:
		}
		if listed {
			checkListed(t, sent, got, end)
		} else {
			checkUnlisted(t, sent, got, end)
		}
	})
}

func checkListed(t *testing.T, sent []byte, got *account, end levee.End) {
	t.Helper()
	reader := bufio.NewReaderSize(bytes.NewReader(sent), len(sent)+16)
	header, err := proxyproto.Read(reader)
	if err != nil {
		if got != nil || end.Reason != levee.ProxyHeaderInvalid && end.Reason != levee.ClientAborted {
			t.Fatalf("go-proxyproto says %v; the connection ended as %v, handler called: %t", err, end.Reason, got != nil)
		}
		return
	}
	if got == nil {
		t.Fatalf("go-proxyproto says %+v; the connection ended as %v: %v", header, end.Reason, end.Err)
	}
	rest, _ := io.ReadAll(reader)
	if got.message != string(rest) || got.err != nil || end.Reason != levee.ClientClosed || end.Read != int64(len(sent)) {
		t.Fatalf("behind the header came %q, %v, want %q; %v after %d bytes", got.message, got.err, rest, end.Reason, end.Read)
	}
	client := netip.MustParseAddrPort(proxyAddress)
	if source, ok := header.SourceAddr.(*net.TCPAddr); ok && header.Command.IsProxy() {
		client = netip.AddrPortFrom(source.AddrPort().Addr().Unmap(), source.AddrPort().Port())
	}
	if got.client != client {
		t.Fatalf("the client is %v, want %v", got.client, client)
	}
}

func checkUnlisted(t *testing.T, sent []byte, got *account, end levee.End) {
	t.Helper()
	if got == nil {
		t.Fatal("the handler was not called")
	}
	refused := bytes.HasPrefix(sent, []byte("PROXY ")) || bytes.HasPrefix(sent, []byte(v2Signature))
	if refused != (end.Reason == levee.ProxyHeaderRefused) || !refused && got.message != string(sent) {
		t.Fatalf("of %q the handler read %q, and the connection ended as %v", sent, got.message, end.Reason)
	}
}

// Garbage in the place of a header is refused by its byte, not when the time for one is up.
func TestWhatIsNoHeaderIsRefusedByTheByteThatShowsIt(t *testing.T) {
	for _, garbage := range []string{"G", "PX", "PROX_", "PROXY_", "\r\r", "\r\n\r\n\x00\r\nQUIT\r", "\x16"} {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			_, ends := accounts(t, l)
			client, err := l.DialFrom(t.Context(), netip.MustParseAddrPort(proxyAddress))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for i := range garbage {
				if synctest.Wait(); len(ends) > 0 {
					t.Errorf("%q: it ended after %d bytes", garbage, i)
				}
				send(t, client, garbage[i:i+1])
			}
			if end := <-ends; end.Reason != levee.ProxyHeaderInvalid || end.Duration != 0 {
				t.Errorf("%q: %v after %v", garbage, end.Reason, end.Duration)
			}
		})
	}
}
