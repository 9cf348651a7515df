package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// echoes is echo as a handler.
var echoes = does(func(c *levee.Conn) error { return echo(c) })

func TestARouterMayLookAtTheHelloBeforeItStartsTLS(t *testing.T) {
	ca := leveetest.NewCA(t)
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: router(func(c *levee.Conn) (levee.Handler, error) {
			if c.TLS() != nil { // the transport's own
				return echoes, nil
			}
			if hello, err := c.Peek(200); err != nil || hello[0] != 22 || c.StartTLS(ca.ServerConfig("localhost")) != nil {
				return nil, errors.New("no hello")
			}
			first, err := c.Peek(2) // what is routed by from now on is what was encrypted
			if err != nil || string(first) != "hi" || c.TLS().ServerName != "localhost" {
				return nil, errors.New("no greeting")
			}
			return echoes, nil
		})})
		c := dial()
		if sealed, ok := c.(*tls.Conn); ok {
			send(t, sealed, "hi\n")
			want(t, sealed, "hi\n")
			return
		}
		sealed := handshaken(t, c, ca.ClientConfig("localhost"))
		send(t, sealed, "hi\n")
		want(t, sealed, "hi\n")
		sealed.Close()
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestAConnectionKnowsWhatItsTLSWasMadeWith(t *testing.T) {
	ca := leveetest.NewCA(t)
	whole, chosen := ca.ServerConfig("localhost"), ca.ServerConfig("localhost")
	whole.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return ca.ServerConfig("localhost"), nil }
	start := router(func(c *levee.Conn) (levee.Handler, error) {
		if c.TLSConfig() != nil {
			return nil, errors.New("there is no TLS yet")
		}
		return echoes, c.StartTLS(chosen)
	})
	for _, c := range []struct {
		name   string
		server *levee.Server
		want   *tls.Config
	}{
		{"plaintext", &levee.Server{Handler: echoes}, nil},
		{"the server's", &levee.Server{Handler: echoes, TLSConfig: whole}, whole},
		{"a router's", &levee.Server{Handler: start}, chosen},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				serving := make(chan *levee.Conn, 1)
				c.server.Trace = &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) { serving <- c }}
				dial, _ := inMemory(t, c.server)
				var client net.Conn = dial()
				if c.want != nil {
					client = handshaken(t, client, ca.ClientConfig("localhost"))
				}
				send(t, client, "hi\n")
				if got := (<-serving).TLSConfig(); got != c.want {
					t.Errorf("it is %p, want %p", got, c.want)
				}
			})
		})
	}
}

// starttls is a protocol that begins TLS by a command.
func starttls(config *tls.Config) levee.Handler {
	return does(func(c *levee.Conn) error {
		if err := expect(c, "STARTTLS\n"); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "go ahead\n"); err != nil {
			return err
		}
		if err := c.StartTLS(config); err != nil {
			return err
		}
		return echo(c)
	})
}

// commanded has a client of starttls begin, and say more ahead of TLS.
func commanded(t *testing.T, dial func() *leveetest.Conn, ahead string) *leveetest.Conn {
	t.Helper()
	c := dial()
	send(t, c, "STARTTLS\n"+ahead)
	want(t, c, "go ahead\n")
	return c
}

func TestAHandlerMayStartTLSByACommand(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, &levee.Server{Handler: starttls(ca.ServerConfig("localhost"))})
		c := commanded(t, dial, "")
		sealed := handshaken(t, c, ca.ClientConfig("localhost"))
		send(t, sealed, "hello\n")
		want(t, sealed, "hello\n")
		<-time.After(30 * time.Second) // the handshake's deadline is over with it
		send(t, sealed, "still here\n")
		want(t, sealed, "still here\n")
		sealed.Close()
		expectReason(t, ends, levee.ClientClosed)
	})
}

// What a client, or somebody between, sends ahead in plaintext must not be taken for
// something that came encrypted (CVE-2011-0411, CVE-2021-23214).
func TestWhatIsSentAheadOfTLSIsNotTakenForEncrypted(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, &levee.Server{Handler: starttls(ca.ServerConfig("localhost"))})
		commanded(t, dial, "DROP TABLE users\n")
		expectReason(t, ends, levee.TLSFailed)
	})
}

func TestAHandshakeThatFailsInAHandlerEndsTheConnectionAsTLSFailed(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, &levee.Server{Handler: starttls(ca.ServerConfig("localhost"))})
		c := commanded(t, dial, "")
		send(t, c, "EHLO\r\n")
		if end := expectReason(t, ends, levee.TLSFailed); reasonOf(end.Err) != levee.TLSFailed {
			t.Errorf("the handler was told %v", end.Err)
		}

		commanded(t, dial, "")
		<-time.After(time.Minute)
		start := time.Now()
		expectReason(t, ends, levee.ArrivalTimeout)
		if time.Since(start) != 0 {
			t.Error("it lasted longer than a minute")
		}
	})
}

func TestTLSThatCannotBeStartedIsAnError(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		config := ca.ServerConfig("localhost")
		dial, ends := inMemory(t, &levee.Server{TLSConfig: config, Handler: does(func(c *levee.Conn) error {
			if err := c.StartTLS(nil); err == nil {
				t.Error("without a configuration")
			}
			if err := c.StartTLS(config); err == nil || !strings.Contains(err.Error(), "in place already") {
				t.Errorf("twice: %v", err)
			}
			return echo(c) // no harm done
		})})
		c := handshaken(t, dial(), ca.ClientConfig("localhost"))
		send(t, c, "hello\n")
		want(t, c, "hello\n")
		c.Close()
		expectReason(t, ends, levee.ClientClosed)
	})
}

// A kiln is a TLS configuration whose handshakes take as long as they are told to.
type kiln struct {
	*tls.Config
	mu    sync.Mutex
	order []string
	fire  chan struct{}
}

func newKiln(t *testing.T) (*kiln, *tls.Config) {
	t.Helper()
	ca := leveetest.NewCA(t)
	k := &kiln{Config: ca.ServerConfig("localhost"), fire: make(chan struct{})}
	k.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		k.mu.Lock()
		k.order = append(k.order, hello.ServerName)
		k.mu.Unlock()
		<-k.fire
		return nil, nil
	}
	client := ca.ClientConfig("localhost")
	client.InsecureSkipVerify = true // each comes with another name, to tell them apart
	return k, client
}

// come has the client of that name shake hands.
func come(dial func() *leveetest.Conn, config *tls.Config, n int) <-chan error {
	config = config.Clone()
	config.ServerName = "n" + strconv.Itoa(n)
	result := make(chan error, 1)
	c := dial()
	go func() { // ends with the server, if not before
		result <- tls.Client(c, config).Handshake()
	}()
	synctest.Wait()
	return result
}

func TestHandshakesBeyondTheLimitWaitTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, client := newKiln(t)
		srv := &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes}
		dial, _ := inMemory(t, srv)
		var results []<-chan error
		for n := range 5 {
			results = append(results, come(dial, client, n))
		}
		if n := srv.Stats().HandshakesWaiting; n != 4 || len(k.order) != 1 {
			t.Errorf("%d wait, %v are let in", n, k.order)
		}
		close(k.fire)
		for _, result := range results {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if want := []string{"n0", "n1", "n2", "n3", "n4"}; !slices.Equal(k.order, want) {
			t.Errorf("let in %v", k.order)
		}
		synctest.Wait() // the client is done before the server is
		if n := srv.Stats().HandshakesWaiting; n != 0 {
			t.Errorf("%d wait still", n)
		}
	})
}

func TestTheNewestHandshakeGoesFirstOnceTheOldestHaveWaitedLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, client := newKiln(t)
		dial, _ := inMemory(t, &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes})
		var results []<-chan error
		for n := range 3 {
			results = append(results, come(dial, client, n))
		}
		<-time.After(time.Second)
		for n := range 2 {
			results = append(results, come(dial, client, 3+n))
		}
		close(k.fire)
		for _, result := range results {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if want := []string{"n0", "n4", "n3", "n2", "n1"}; !slices.Equal(k.order, want) {
			t.Errorf("let in %v", k.order)
		}
	})
}

func TestWhoComesBackDoesNotWaitBehindAFloodFromEverNewAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, client := newKiln(t)
		l := leveetest.Listen()
		stage(t, &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes}, l)
		from := func(source string) func() *leveetest.Conn {
			return func() *leveetest.Conn {
				c, err := l.DialFrom(t.Context(), netip.MustParseAddrPort(source+":0"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
		}
		friend := from("192.0.2.1")
		close(k.fire)
		if err := <-come(friend, client, 100); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Second)
		k.order = nil
		k.fire = make(chan struct{})
		var results []<-chan error
		for n := range 6 {
			results = append(results, come(from("203.0.113."+strconv.Itoa(n)), client, n))
		}
		for n := range 2 {
			results = append(results, come(friend, client, 100+n))
		}
		close(k.fire)
		for _, result := range results {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if want := []string{"n0", "n100", "n1", "n101", "n2", "n3", "n4", "n5"}; !slices.Equal(k.order, want) {
			t.Errorf("let in %v", k.order)
		}
	})
}

func TestWhoWaitsForAHandshakeDoesSoWithinTheArrivalDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, client := newKiln(t)
		dial, ends := inMemory(t, &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes})
		come(dial, client, 0) // in computation for ever
		start := time.Now()
		waits := come(dial, client, 1)
		expectEndAt(t, ends, levee.ArrivalTimeout, start, 10*time.Second)
		if <-waits == nil {
			t.Error("it was served")
		}
		close(k.fire)
		expectReason(t, ends, levee.ArrivalTimeout)
		if err := <-come(dial, client, 2); err != nil { // its place is free again
			t.Error(err)
		}
	})
}

func TestAHandshakeThatHasWaitedInVainIsNotComputed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, client := newKiln(t)
		dial, ends := inMemory(t, &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes})
		hello := clientHello(t)
		late := dial()
		most := len(hello) - 1
		send(t, late, hello[:most]) // is let in, and has to be waited for
		synctest.Wait()
		come(dial, client, 0)
		send(t, late, hello[most:])
		expectReason(t, ends, levee.ArrivalTimeout)
		synctest.Wait()
		if want := []string{"n0"}; !slices.Equal(k.order, want) {
			t.Errorf("%q are computed at once, of which one has ended", k.order)
		}
		close(k.fire)
		expectReason(t, ends, levee.ArrivalTimeout)
	})
}

type waiter func(hello *tls.ClientHelloInfo, wait func(ctx context.Context)) error

// A callback of the configuration may have to ask somebody else, who may take long to answer. It need not know levee.
func TestACallbackThatWaitsOutsideKeepsNobodyWaiting(t *testing.T) {
	for name, outside := range map[string]waiter{
		"by the function": levee.WaitOutside,
		"by the connection's method": func(hello *tls.ClientHelloInfo, wait func(ctx context.Context)) error {
			return hello.Conn.(interface {
				WaitOutside(wait func(ctx context.Context)) error
			}).WaitOutside(wait)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testCallbackThatWaits(t, outside) })
		})
	}
}

func testCallbackThatWaits(t *testing.T, outside waiter) {
	k, client := newKiln(t)
	hot := k.GetConfigForClient
	answers, back := make(chan struct{}), make(chan error)
	k.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName != "n0" {
			return hot(hello)
		}
		err := outside(hello, func(ctx context.Context) {
			select {
			case <-answers:
			case <-ctx.Done():
			}
		})
		back <- err
		return nil, err
	}
	srv := &levee.Server{TLSConfig: k.Config, MaxHandshakes: 1, Handler: echoes}
	dial, ends := inMemory(t, srv)
	asks, other := come(dial, client, 0), come(dial, client, 1)
	answers <- struct{}{}
	synctest.Wait()
	if n := srv.Stats().HandshakesWaiting; n != 1 {
		t.Errorf("%d wait for the one that is computed", n)
	}
	close(k.fire)
	for _, result := range []<-chan error{back, asks, other} {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}

	k.fire = make(chan struct{})
	start := time.Now()
	asks = come(dial, client, 0)
	come(dial, client, 1) // in computation for ever
	answers <- struct{}{}
	if err := <-back; err == nil || time.Since(start) != 10*time.Second {
		t.Errorf("it is back after %v: %v", time.Since(start), err)
	}
	expectEndAt(t, ends, levee.ArrivalTimeout, start, 10*time.Second)
	if <-asks == nil {
		t.Error("it was computed without a turn")
	}
	close(k.fire)
	expectReason(t, ends, levee.ArrivalTimeout)

	start = time.Now()
	asks = come(dial, client, 0) // and there is no answer
	if err := <-back; time.Since(start) != 10*time.Second {
		t.Errorf("it is back after %v: %v", time.Since(start), err)
	}
	expectEndAt(t, ends, levee.ArrivalTimeout, start, 10*time.Second)
	if <-asks == nil {
		t.Error("it was served")
	}
}

func TestThereIsNothingToWaitOutsideOfElsewhere(t *testing.T) {
	called := 0
	wait := func(context.Context) { called++ }
	if err := levee.WaitOutside(&tls.ClientHelloInfo{Conn: new(net.TCPConn)}, wait); err != nil || called != 1 {
		t.Error(err, called)
	}
	synctest.Test(t, func(t *testing.T) {
		config := leveetest.NewCA(t).ServerConfig("localhost")
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return nil, levee.WaitOutside(hello, wait) }
		dial, _ := inMemory(t, &levee.Server{TLSConfig: config, MaxHandshakes: -1, Handler: echoes})
		handshaken(t, dial(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // whose it is is no matter
		if called != 2 {
			t.Errorf("called %d times", called)
		}
	})
}

func TestAClientThatIsSlowAtItsHandshakeKeepsNobodyWaiting(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, transport := range []string{"TCP", "memory"} {
		t.Run(transport, func(t *testing.T) {
			srv := &levee.Server{TLSConfig: ca.ServerConfig("localhost"), MaxHandshakes: 1, Handler: echoes}
			var dial func() net.Conn
			if transport == "TCP" {
				tcp, _ := overTCP(t, srv)
				dial = func() net.Conn { return tcp() }
			} else {
				memory, _ := inMemory(t, srv)
				dial = func() net.Conn { return memory() }
			}
			for _, stuck := range []string{"\x16", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} { // in the header, and in the hello
				send(t, dial(), stuck)
			}
			for range 3 { // and those that never answer the server's part
				send(t, dial(), clientHello(t))
			}
			for range 5 {
				c := handshaken(t, dial(), ca.ClientConfig("localhost"))
				send(t, c, "hello\n")
				want(t, c, "hello\n")
			}
		})
	}
}

func TestForbiddenConnectionsEndAsPolicy(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, c := s.greet()
		c.Forbid(errStep)
		wantEnd(t, client)
		s.expectEndBy(levee.Policy, errStep)
		if c.Reason() != levee.Policy {
			t.Errorf("Reason says %v", c.Reason())
		}
	})
}
