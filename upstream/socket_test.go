package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/upstream"
)

// listen serves connections on a real socket until the test ends, and returns its address.
func listen(t testing.TB, network, address string, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

func echo(c net.Conn) { io.Copy(c, c) }

// refusing returns an address on which nobody listens.
func refusing(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func update(t testing.TB, p *upstream.Pool, names ...string) *upstream.Pool {
	t.Helper()
	var servers []upstream.Server
	for _, name := range names {
		servers = append(servers, upstream.Server{Name: name})
	}
	if err := p.Update(servers); err != nil {
		t.Fatal(err)
	}
	return p
}

// exchange sends a word through the pool and returns what comes back.
func exchange(t testing.TB, p *upstream.Pool, word string) string {
	t.Helper()
	c, err := p.Dial(t.Context(), upstream.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, word)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestARealServerAnswers(t *testing.T) {
	leveetest.CheckLeaks(t)
	p := update(t, &upstream.Pool{}, listen(t, "tcp", "127.0.0.1:0", echo), refusing(t))
	for range 10 {
		if got := exchange(t, p, "hello"); got != "hello" {
			t.Errorf("got %q", got)
		}
	}
	c, err := p.Dial(t.Context(), upstream.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.NetConn().(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T", c.NetConn())
	}
}

func TestAUnixSocketAnswers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Unix sockets are for Unix")
	}
	leveetest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	listen(t, "unix", path, echo)
	p := update(t, &upstream.Pool{}, "unix:"+path)
	if got := exchange(t, p, "hello"); got != "hello" {
		t.Errorf("got %q", got)
	}
	p = update(t, &upstream.Pool{Name: "x", Tries: 1}, "unix:"+path+"x")
	if _, err := p.Dial(t.Context(), upstream.Request{}); err == nil || p.Stats().Servers[0].Failures[upstream.Refused] != 1 {
		t.Errorf("%v: %+v", err, p.Stats())
	}
}

func TestARefusalIsASentence(t *testing.T) {
	addr := refusing(t)
	p := update(t, &upstream.Pool{Name: "postgres", Tries: 1}, addr)
	_, err := p.Dial(t.Context(), upstream.Request{})
	if want := "upstream postgres: no server available: " + addr + ": connection refused"; runtime.GOOS == "linux" && (err == nil || err.Error() != want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("%v is not ErrUnavailable", err)
	}
}

func TestAResetOfTheKernelIsAnEarlyClose(t *testing.T) {
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		c.Read(make([]byte, 1)) // sooner, and connecting may be what fails
		c.(*net.TCPConn).SetLinger(0)
	})
	p := update(t, &upstream.Pool{EarlyClose: time.Hour, Breaker: upstream.Breaker{Failures: 1}}, addr)
	c, err := p.Dial(t.Context(), upstream.Request{First: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	c.Read(make([]byte, 1))
	c.Close()
	if s := p.Stats().Servers[0]; s.EarlyCloses != 1 || s.Breaker != upstream.BreakerOpen {
		t.Errorf("stats are %+v", s)
	}
}

func TestSourceAddressesTakeTurns(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		io.WriteString(c, host)
	})
	p := update(t, &upstream.Pool{Source: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3"), netip.IPv6Loopback()}}, addr)
	counts := map[string]int{}
	for range 10 {
		counts[exchange(t, p, "")]++
	}
	if counts["127.0.0.2"] != 5 || counts["127.0.0.3"] != 5 {
		t.Errorf("sources were %v", counts)
	}
}

// A source address that the machine does not have fails as one does whose ports are used
// up.
func TestASourceAddressThatCannotBeUsedIsPassedOver(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	addr := listen(t, "tcp", "127.0.0.1:0", echo)
	gone := netip.MustParseAddr("192.0.2.1")
	p := update(t, &upstream.Pool{Source: []netip.Addr{gone, netip.MustParseAddr("127.0.0.2")}}, addr)
	for range 4 {
		if got := exchange(t, p, "x"); got != "x" {
			t.Errorf("got %q", got)
		}
	}
	p = update(t, &upstream.Pool{Tries: 1, Source: []netip.Addr{gone}, Breaker: upstream.Breaker{Failures: 1}}, addr)
	_, err := p.Dial(t.Context(), upstream.Request{})
	if want := "source 192.0.2.1: cannot assign requested address; is it an address of this machine?"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if s := p.Stats().Servers[0]; !errors.Is(err, syscall.EADDRNOTAVAIL) || s.Failures[upstream.Local] != 1 || s.Breaker != upstream.BreakerClosed {
		t.Errorf("%v: %+v", err, s)
	}
}

func serveTLS(t testing.TB, config *tls.Config) string {
	return listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) { echo(tls.Server(c, config)) })
}

func TestTLSVerifiesTheServersName(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	addr := serveTLS(t, ca.ServerConfig("127.0.0.1"))
	right := update(t, &upstream.Pool{TLS: &tls.Config{RootCAs: ca.Pool()}}, addr)
	if got := exchange(t, right, "secret"); got != "secret" {
		t.Errorf("got %q", got)
	}
	exchange(t, right, "again")
	c, err := right.Dial(t.Context(), upstream.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	secured, ok := c.NetConn().(*tls.Conn)
	if !ok || !secured.ConnectionState().DidResume {
		t.Errorf("a %T resumed nothing", c.NetConn())
	}

	wrong := &upstream.Pool{Name: "db", TLS: &tls.Config{RootCAs: ca.Pool()}, Tries: 1, Breaker: upstream.Breaker{Failures: 1}}
	if err := wrong.Update([]upstream.Server{{Name: "db.example.com", Addresses: []string{addr}}}); err != nil {
		t.Fatal(err)
	}
	_, err = wrong.Dial(t.Context(), upstream.Request{})
	if err == nil || !strings.Contains(err.Error(), "db.example.com: TLS handshake: tls: failed to verify certificate") {
		t.Errorf("got %v", err)
	}
	if s := wrong.Stats().Servers[0]; s.Failures[upstream.Handshake] != 1 || s.Breaker != upstream.BreakerOpen || s.Active != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestAServersCertificateIsForItsServerName(t *testing.T) {
	ca := leveetest.NewCA(t)
	addr := serveTLS(t, ca.ServerConfig("db.example.com"))
	p := &upstream.Pool{TLS: &tls.Config{RootCAs: ca.Pool()}, Tries: 1, Breaker: upstream.Breaker{Failures: -1, Rate: -1}}
	for _, c := range []struct {
		serverName string
		fits       bool
	}{{"", false}, {"db.example.com", true}, {"web.example.com", false}} {
		if err := p.Update([]upstream.Server{{Name: addr, ServerName: c.serverName}}); err != nil {
			t.Fatal(err)
		}
		conn, err := p.Dial(t.Context(), upstream.Request{})
		if fits := err == nil; fits != c.fits {
			t.Errorf("for %q: %v", c.serverName, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// In TLS 1.3 the client is done before the server has looked at its certificate.
func TestAServerThatWantsAnotherCertificateClosesEarly(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("127.0.0.1")
	config.ClientAuth = tls.RequireAndVerifyClientCert
	addr := serveTLS(t, config)
	p := update(t, &upstream.Pool{TLS: &tls.Config{RootCAs: ca.Pool()}, EarlyClose: time.Hour, Breaker: upstream.Breaker{Failures: 1}}, addr)
	c, err := p.Dial(t.Context(), upstream.Request{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	c.Close()
	if s := p.Stats().Servers[0]; err == nil || s.EarlyCloses != 1 || s.Breaker != upstream.BreakerOpen {
		t.Errorf("after %v: %+v", err, s)
	}
}

func TestAHandshakeThatHangsEndsByItsTimeout(t *testing.T) {
	leveetest.CheckLeaks(t)
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) })
	p := update(t, &upstream.Pool{Name: "db", TLS: &tls.Config{}, Tries: 1, HandshakeTimeout: 20 * time.Millisecond}, addr)
	_, err := p.Dial(t.Context(), upstream.Request{})
	if want := "upstream db: no server available: " + addr + ": TLS handshake: no answer within 20ms: i/o timeout"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if s := p.Stats().Servers[0]; s.Failures[upstream.TimedOut] != 1 {
		t.Errorf("stats are %+v", s)
	}
}

// A deadline would make the connection one of net's, which an event loop has to undo.
func TestWhatComesFirstLeavesTheConnectionAsAnEventLoopWantsIt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there are event loops on Linux only")
	}
	got := make(chan string, 1)
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b := make([]byte, 7)
		_, _ = io.ReadFull(c, b)
		got <- string(b)
	})
	p := update(t, &upstream.Pool{}, addr)
	c, err := p.Dial(t.Context(), upstream.Request{First: []byte("PROXY\r\n")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if first := <-got; first != "PROXY\r\n" {
		t.Errorf("first came %q", first)
	}
	fd, ok := c.Conn.(*bare.Conn).Detach()
	if !ok {
		t.Fatal("it is one of net's")
	}
	_ = os.NewFile(uintptr(fd), "tcp").Close()
}

func TestWhatComesFirstIsBoundedByTheTimeOfTheTry(t *testing.T) {
	leave := make(chan struct{})
	addr := listen(t, "tcp", "127.0.0.1:0", func(net.Conn) { <-leave }) // reads nothing
	defer close(leave)
	p := update(t, &upstream.Pool{Tries: 1, DialTimeout: 200 * time.Millisecond}, addr)
	began := time.Now()
	c, err := p.Dial(t.Context(), upstream.Request{First: make([]byte, 32<<20)})
	if err == nil {
		c.Close()
		t.Fatal("it was written")
	}
	if s := p.Stats().Servers[0]; s.Failures[upstream.TimedOut] != 1 || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v: %+v", err, time.Since(began), s)
	}
}

func TestWhatComesFirstComesBeforeTLS(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("127.0.0.1")
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		header := make([]byte, 7)
		io.ReadFull(c, header)
		secured := tls.Server(c, config)
		secured.Write(header)
		secured.Close()
	})
	p := update(t, &upstream.Pool{TLS: &tls.Config{RootCAs: ca.Pool()}}, addr)
	c, err := p.Dial(t.Context(), upstream.Request{First: []byte("PROXY\r\n")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, _ := io.ReadAll(c); string(got) != "PROXY\r\n" {
		t.Errorf("the server had got %q", got)
	}
}

// A server whose accept queue is full answers nothing: a black hole that needs no network.
func TestABlackHoleEndsByDialTimeout(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other kernels refuse, or queue more")
	}
	leveetest.CheckLeaks(t)
	addr := fullQueue(t)
	p := update(t, &upstream.Pool{Name: "hole", Tries: 1, DialTimeout: 50 * time.Millisecond}, addr)
	began := time.Now()
	_, err := p.Dial(t.Context(), upstream.Request{})
	if took := time.Since(began); err == nil || took > 2*time.Second || p.Stats().Servers[0].Failures[upstream.TimedOut] != 1 {
		t.Errorf("after %v: %v", took, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	patient := update(t, &upstream.Pool{Name: "hole"}, addr)
	if _, err := patient.Dial(ctx, upstream.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkDial(b *testing.B) {
	addr := listen(b, "tcp", "127.0.0.1:0", func(net.Conn) {})
	b.Run("pool", func(b *testing.B) {
		p := update(b, &upstream.Pool{EarlyClose: -1}, addr)
		b.ReportAllocs()
		for b.Loop() {
			c, err := p.Dial(context.Background(), upstream.Request{})
			if err != nil {
				b.Fatal(err)
			}
			c.NetConn().(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
	b.Run("net", func(b *testing.B) {
		b.ReportAllocs()
		d := net.Dialer{Timeout: 5 * time.Second}
		for b.Loop() {
			c, err := d.DialContext(context.Background(), "tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
}
