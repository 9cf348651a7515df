package leveetest_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func echoAll(_ context.Context, c *levee.Conn) error {
	_, err := io.Copy(c, c)
	return err
}

// serveEcho serves until the test ends.
func serveEcho(t *testing.T, srv *levee.Server, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	srv.Handler = levee.HandlerFunc(echoAll)
	go func() { served <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		<-served
	})
	return l.Addr().String()
}

func TestAServerOfOursStandsAbuse(t *testing.T) {
	addr := serveEcho(t, &levee.Server{}, "127.0.0.1:0")
	leveetest.Abuse(t, addr, leveetest.AbuseOptions{Attacks: []string{"hold", "churn", "half-close", "garbage", "length-bomb", "zero-window"}, MaxP99: 10 * time.Second})
}

func TestAServerOfOursStandsAbuseInTLS(t *testing.T) {
	ca := leveetest.NewCA(t)
	addr := serveEcho(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost")}, ":0")
	leveetest.Abuse(t, addr, leveetest.AbuseOptions{TLS: ca.ClientConfig("localhost"), Attacks: []string{"slow-hello", "handshakes", "key-updates"}, MaxP99: 10 * time.Second})
}

// abused is a test that keeps what Abuse says to itself.
type abused struct {
	testing.TB
	ctx  context.Context
	said string
}

func (f *abused) Helper()                        {}
func (f *abused) Context() context.Context       { return f.ctx }
func (f *abused) Logf(string, ...any)            {}
func (f *abused) Errorf(format string, a ...any) { f.said += fmt.Sprintf(format, a...) }
func (f *abused) Fatalf(format string, a ...any) { f.Errorf(format, a...); runtime.Goexit() }

// sayingOf returns what Abuse says of a server.
func sayingOf(t *testing.T, addr string, options leveetest.AbuseOptions) string {
	fake := &abused{ctx: t.Context()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		leveetest.Abuse(fake, addr, options)
	}()
	<-done
	return fake.said
}

func TestAServerThatServesOneAtATimeFailsTheTest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	said := sayingOf(t, l.Addr().String(), leveetest.AbuseOptions{Attacks: []string{"hold"}, Connections: 20})
	if !strings.HasPrefix(said, "a well-behaved client suffered:\nattack ") || !strings.Contains(said, "did not hold") {
		t.Errorf("it said %q", said)
	}
}

func TestAbuseSaysWhyItCannotBe(t *testing.T) {
	for want, test := range map[string]struct {
		addr    string
		options leveetest.AbuseOptions
	}{
		`there is no attack "tickle"`: {"127.0.0.1:7", leveetest.AbuseOptions{Attacks: []string{"tickle"}}},
		"192.0.2.1 is not a loopback": {"192.0.2.1:7", leveetest.AbuseOptions{}},
		`Abuse: not an ip:port`:       {"localhost", leveetest.AbuseOptions{}},
		"no attack on 127.0.0.1:1: ":  {"127.0.0.1:1", leveetest.AbuseOptions{}},
	} {
		if said := sayingOf(t, test.addr, test.options); !strings.Contains(said, want) {
			t.Errorf("%s: %q, want %q", test.addr, said, want)
		}
	}
}
