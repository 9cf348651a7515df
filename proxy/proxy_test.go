package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/proxy"
)

// serve serves on a listener until the test is over.
func serve(t *testing.T, srv *levee.Server, l net.Listener) {
	t.Helper()
	leveetest.CheckLeaks(t)
	srv.Logger = slog.New(slog.DiscardHandler)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_ = srv.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-returned
	})
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := levee.Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// front serves p, and returns what connects a client to it and accepts its upstream.
func front(t *testing.T, srv *levee.Server, upstream net.Listener) func() (client, server net.Conn) {
	l := listen(t, "127.0.0.1:0")
	serve(t, srv, l)
	return func() (client, server net.Conn) {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if upstream == nil {
			return client, nil
		}
		return client, accept(t, upstream)
	}
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestToJoinsToOneServer(t *testing.T) {
	for name, address := range map[string]func(t *testing.T, upstream net.Listener) string{
		"an address": func(_ *testing.T, l net.Listener) string { return l.Addr().String() },
		"a name": func(_ *testing.T, l net.Listener) string {
			return strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)
		},
		"a Unix socket": func(_ *testing.T, l net.Listener) string { return "unix:" + l.Addr().String() },
	} {
		t.Run(name, func(t *testing.T) {
			at := "127.0.0.1:0"
			if name == "a Unix socket" {
				at = "unix:" + filepath.Join(t.TempDir(), "s")
			}
			upstream := listen(t, at)
			client, server := front(t, &levee.Server{Handler: proxy.To(address(t, upstream))}, upstream)()
			for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
				if _, err := io.WriteString(from, "hello"); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 5)
				if _, err := io.ReadFull(to, got); err != nil || string(got) != "hello" {
					t.Errorf("read %q, %v", got, err)
				}
			}
		})
	}
}

func TestAServerThatIsNotThereIsUnavailable(t *testing.T) {
	upstream := listen(t, "127.0.0.1:0")
	upstream.Close()
	ends := make(chan levee.End, 1)
	trace := &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }}
	client, _ := front(t, &levee.Server{Handler: proxy.To(upstream.Addr().String()), Trace: trace}, nil)()
	_, _ = io.WriteString(client, "anybody?")
	if got, err := io.ReadAll(client); len(got) > 0 || err != nil {
		t.Errorf("the client read %q, %v; want EOF", got, err)
	}
	if end := <-ends; end.Reason != levee.UpstreamUnavailable || end.Err == nil {
		t.Errorf("it ended as %v, %v", end.Reason, end.Err)
	}
}

// headed accepts a connection that begins with a PROXY header.
func headed(t *testing.T, server net.Conn) *proxyproto.Header {
	t.Helper()
	header, err := proxyproto.Read(bufio.NewReader(server))
	if err != nil {
		t.Fatal(err)
	}
	return header
}

func TestHeadersTellTheServerWhoItsClientIs(t *testing.T) {
	for version, header := range map[byte]proxy.Header{1: proxy.V1, 2: proxy.V2} {
		upstream := listen(t, "127.0.0.1:0")
		p := proxy.To(upstream.Addr().String())
		p.Header = header
		client, server := front(t, &levee.Server{Handler: p}, upstream)()
		got := headed(t, server)
		if got.Version != version || got.Command != proxyproto.PROXY ||
			got.SourceAddr.String() != client.LocalAddr().String() || got.DestinationAddr.String() != client.RemoteAddr().String() {
			t.Errorf("v%d: %+v, want from %v to %v", version, got, client.LocalAddr(), client.RemoteAddr())
		}
	}
}

// What a client says through a proxy before this one is passed on.
func TestHeadersPassOnTheClientOfAHeader(t *testing.T) {
	upstream := listen(t, "127.0.0.1:0")
	p := proxy.To(upstream.Addr().String())
	p.Header = proxy.V2
	from := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	l := listen(t, "127.0.0.1:0")
	serve(t, &levee.Server{Handler: p, ProxyFrom: from}, l)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, _ = io.WriteString(client, "PROXY TCP6 2001:db8::7 2001:db8::1 4711 5432\r\nhello")
	server := accept(t, upstream)
	r := bufio.NewReader(server)
	got, err := proxyproto.Read(r)
	if err != nil || got.SourceAddr.String() != "[2001:db8::7]:4711" {
		t.Fatalf("%+v, %v", got, err)
	}
	rest := make([]byte, 5)
	if _, err := io.ReadFull(r, rest); err != nil || string(rest) != "hello" {
		t.Errorf("after it came %q, %v", rest, err)
	}
}

func TestVersion2TellsWhatTLSAgreedOn(t *testing.T) {
	upstream := listen(t, "127.0.0.1:0")
	p := proxy.To(upstream.Addr().String())
	p.Header = proxy.V2
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("db.example.com")
	config.ClientAuth, config.ClientCAs, config.NextProtos = tls.VerifyClientCertIfGiven, ca.Pool(), []string{"postgresql"}
	dial := front(t, &levee.Server{Handler: p, TLSConfig: config}, nil)
	for _, introduced := range []bool{false, true} {
		raw, _ := dial()
		own := ca.ClientConfig("db.example.com")
		own.NextProtos = []string{"postgresql"}
		if introduced {
			own.Certificates = []tls.Certificate{ca.ClientCertificate("alice")}
		}
		client := tls.Client(raw, own)
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		tlvs, err := headed(t, accept(t, upstream)).TLVs()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[proxyproto.PP2Type]string)
		for _, tlv := range tlvs {
			values[tlv.Type] = string(tlv.Value)
		}
		if values[proxyproto.PP2_TYPE_AUTHORITY] != "db.example.com" || values[proxyproto.PP2_TYPE_ALPN] != "postgresql" {
			t.Errorf("TLVs: %q", values)
		}
		ssl, ok := tlvparse.FindSSL(tlvs)
		version, _ := ssl.SSLVersion()
		cipher, _ := ssl.SSLCipher()
		if !ok || !ssl.ClientSSL() || version != "TLSv1.3" || cipher != tls.CipherSuiteName(client.ConnectionState().CipherSuite) {
			t.Errorf("TLS: %+v, %s, %s", ssl, version, cipher)
		}
		name, named := ssl.ClientCN()
		if named != introduced || introduced && name != "alice" || ssl.Verified() != introduced || ssl.ClientCertConn() != introduced {
			t.Errorf("with a certificate %t: named %q, verified %t", introduced, name, ssl.Verified())
		}
	}
}

// What a client asks for is anything at all, and is not passed on if it is no name.
func TestAnAuthorityIsAName(t *testing.T) {
	upstream := listen(t, "127.0.0.1:0")
	p := proxy.To(upstream.Addr().String())
	p.Header = proxy.V2
	dial := front(t, &levee.Server{Handler: p, TLSConfig: leveetest.NewCA(t).ServerConfig("localhost")}, nil)
	long := strings.Repeat("a23456789.", 25)
	for name, passed := range map[string]bool{
		"db_1.Example-2.com": true, long + "54321": true,
		long + "654321": false, strings.Repeat("x", 60_000): false,
		"db\nexample": false, "db example": false, "d\x00b": false, "b\xfccher.de": false, "<script>": false,
	} {
		raw, _ := dial()
		client := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		tlvs, err := headed(t, accept(t, upstream)).TLVs()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, tlv := range tlvs {
			if tlv.Type == proxyproto.PP2_TYPE_AUTHORITY {
				got = string(tlv.Value)
			}
		}
		if want := map[bool]string{true: name}[passed]; got != want {
			t.Errorf("%.20q is passed on as %.20q", name, got)
		}
	}
}

func TestUniqueIDsAreUnique(t *testing.T) {
	upstream := listen(t, "127.0.0.1:0")
	p := proxy.To(upstream.Addr().String())
	p.Header = proxy.V2
	dial := front(t, &levee.Server{Handler: p}, upstream)
	seen := make(map[string]bool)
	for range 5 {
		_, server := dial()
		tlvs, err := headed(t, server).TLVs()
		if err != nil {
			t.Fatal(err)
		}
		for _, tlv := range tlvs {
			if tlv.Type == proxyproto.PP2_TYPE_UNIQUE_ID {
				seen[string(tlv.Value)] = true
			}
		}
	}
	if len(seen) != 5 {
		t.Errorf("5 connections have %d ids", len(seen))
	}
}

func TestLocalHeadersSpeakForTheProxyItself(t *testing.T) {
	for header, want := range map[proxy.Header]string{
		proxy.NoHeader: "",
		proxy.V1:       "PROXY UNKNOWN\r\n",
		proxy.V2:       "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
	} {
		if got := header.Local(); !bytes.Equal(got, []byte(want)) {
			t.Errorf("%d: %q, want %q", header, got, want)
		}
	}
}

func TestParseHeaderKnowsItsWords(t *testing.T) {
	for word, want := range map[string]proxy.Header{"": proxy.NoHeader, "v1": proxy.V1, "v2": proxy.V2} {
		if got, err := proxy.ParseHeader(word); got != want || err != nil {
			t.Errorf("%q: %v, %v", word, got, err)
		}
	}
	if _, err := proxy.ParseHeader("v3"); err == nil {
		t.Error("v3 is accepted")
	}
}

func TestTheErrorOfDialIsTheConnections(t *testing.T) {
	full := errors.New("full")
	ends := make(chan levee.End, 1)
	srv := &levee.Server{
		Handler: &proxy.Proxy{Dial: func(context.Context, *levee.Conn, []byte) (levee.Upstream, error) { return levee.Upstream{}, full }},
		Trace:   &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }},
	}
	front(t, srv, nil)()
	if end := <-ends; end.Reason != levee.UpstreamUnavailable || !errors.Is(end.Err, full) {
		t.Errorf("it ended as %v, %v", end.Reason, end.Err)
	}
}

// greeting is what a server says that speaks first.
const greeting = "220 hi\r\n"

// swallow takes it, and no byte more.
func swallow(_ context.Context, _ *levee.Conn, upstream net.Conn) error {
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(upstream, got); err != nil || string(got) != greeting {
		return fmt.Errorf("greeted with %q: %w", got, err)
	}
	return nil
}

func TestMeetTakesWhatIsNotForTheClient(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, perConn := range []bool{false, true} {
		for _, secure := range []bool{false, true} {
			upstream := listen(t, "127.0.0.1:0")
			p := proxy.To(upstream.Addr().String())
			p.Header, p.Meet = proxy.V1, swallow
			srv := &levee.Server{Handler: p, GoroutinePerConn: perConn}
			if secure {
				srv.TLSConfig = ca.ServerConfig("localhost")
			}
			client, _ := front(t, srv, nil)()
			if secure {
				sealed := tls.Client(client, ca.ClientConfig("localhost"))
				if err := sealed.Handshake(); err != nil {
					t.Fatal(err)
				}
				client = sealed
			}
			server := accept(t, upstream)
			_, _ = io.WriteString(server, greeting+"and ")
			_, _ = io.WriteString(client, "hello")
			r := bufio.NewReader(server)
			if _, err := proxyproto.Read(r); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello" {
				t.Errorf("the server read %q, %v", got, err)
			}
			_, _ = io.WriteString(server, "welcome")
			server.Close()
			if got, err := io.ReadAll(client); string(got) != "and welcome" || err != nil {
				t.Errorf("a goroutine each %t, TLS %t: the client read %q, %v", perConn, secure, got, err)
			}
		}
	}
}

// met serves a Proxy with Meet in memory, and returns how its connection ended and what its
// Dial was told. The client leaves if it is to.
func met(t *testing.T, p proxy.Proxy, leaves bool) (end levee.End, told []levee.UpstreamEnd) {
	t.Helper()
	far, server := leveetest.Pipe()
	defer server.Close()
	p.Dial = func(context.Context, *levee.Conn, []byte) (levee.Upstream, error) {
		return levee.Upstream{Conn: far, Ended: func(end levee.UpstreamEnd) { told = append(told, end) }}, nil
	}
	ends := make(chan levee.End, 1)
	srv := &levee.Server{Handler: &p, Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }}}
	l := leveetest.Listen()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(context.Background(), l)
	}()
	client, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if leaves {
		client.Close()
	}
	end = <-ends
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("the upstream is not closed")
	}
	_ = srv.Close()
	<-served
	return end, told
}

func TestAMeetThatFailsEndsBoth(t *testing.T) {
	unwelcome := errors.New("unwelcome")
	synctest.Test(t, func(t *testing.T) {
		end, told := met(t, proxy.Proxy{Meet: func(context.Context, *levee.Conn, net.Conn) error { return unwelcome }}, false)
		if end.Reason != levee.UpstreamUnavailable || !errors.Is(end.Err, unwelcome) {
			t.Errorf("it ended as %v, %v", end.Reason, end.Err)
		}
		if len(told) != 1 || told[0].Reason != levee.UpstreamUnavailable || !errors.Is(told[0].Err, unwelcome) {
			t.Errorf("Ended was told %+v", told)
		}
	})
}

// It is not the upstream that is at fault when its client leaves in the middle.
func TestAClientThatLeavesInMeetHasAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end, _ := met(t, proxy.Proxy{Meet: func(_ context.Context, c *levee.Conn, _ net.Conn) error {
			_, err := c.Read(make([]byte, 1))
			return err
		}}, true)
		if end.Reason != levee.ClientAborted || !errors.Is(end.Err, io.EOF) {
			t.Errorf("it ended as %v, %v", end.Reason, end.Err)
		}
	})
}

func TestMeetHasItsTime(t *testing.T) {
	waits := func(ctx context.Context, _ *levee.Conn, _ net.Conn) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Hour):
			return errors.New("an hour")
		}
	}
	for limit, want := range map[time.Duration]time.Duration{0: 10 * time.Second, time.Second: time.Second, -1: time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			end, _ := met(t, proxy.Proxy{Meet: waits, MeetTimeout: limit}, false)
			if end.Duration.Round(10*time.Millisecond) != want || errors.Is(end.Err, context.DeadlineExceeded) != (limit >= 0) {
				t.Errorf("MeetTimeout %v: it ended after %v with %v", limit, end.Duration, end.Err)
			}
		})
	}
}

func TestVersion2TellsWhatTheConnectionIsAPartOf(t *testing.T) {
	parent, err := levee.ParseTraceParent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		header proxy.Header
		parent levee.TraceParent
	}{{proxy.V2, parent}, {proxy.V2, levee.TraceParent{}}, {proxy.V1, parent}} {
		upstream := listen(t, "127.0.0.1:0")
		p := proxy.To(upstream.Addr().String())
		p.Header, p.TraceParent = test.header, func(*levee.Conn) levee.TraceParent { return test.parent }
		_, server := front(t, &levee.Server{Handler: p}, upstream)()
		tlvs, err := headed(t, server).TLVs()
		if err != nil {
			t.Fatal(err)
		}
		got, want := "", test.parent.String()
		if test.header == proxy.V1 {
			want = "" // it has no room
		}
		for _, tlv := range tlvs {
			if tlv.Type == levee.TraceParentTLV {
				got += string(tlv.Value)
			}
		}
		if got != want {
			t.Errorf("%v: told %q, want %q", test.header, got, want)
		}
	}
}

func TestWhatAnotherProcessHasJoinedIsCounted(t *testing.T) {
	if u, err := (&proxy.Proxy{}).Rejoin(nil); u.Ended != nil || err != nil {
		t.Errorf("without an account: %v", err)
	}
	var told levee.UpstreamEnd
	refused := errors.New("it has gone to another upstream")
	p := &proxy.Proxy{Resume: func(c *levee.Conn) (levee.Upstream, error) {
		if c == nil {
			return levee.Upstream{}, refused
		}
		return levee.Upstream{Ended: func(end levee.UpstreamEnd) { told = end }}, nil
	}}
	if _, err := p.Rejoin(nil); !errors.Is(err, refused) {
		t.Errorf("%v, want %v", err, refused)
	}
	u, err := p.Rejoin(new(levee.Conn))
	if err != nil {
		t.Fatal(err)
	}
	if u.Ended(levee.UpstreamEnd{Sent: 7}); told.Sent != 7 {
		t.Errorf("told of %+v", told)
	}
}
