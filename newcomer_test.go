package levee_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// halting sends so many bytes of the first that is written, and the rest when it may go on.
type halting struct {
	net.Conn
	before string // goes before that
	first  int
	goOn   <-chan struct{}
	once   sync.Once
}

func (h *halting) Write(p []byte) (int, error) {
	rest := p
	h.once.Do(func() {
		all := append([]byte(h.before), p...)
		_, _ = h.Conn.Write(all[:h.first])
		<-h.goOn
		rest = all[h.first:]
	})
	_, err := h.Conn.Write(rest)
	return len(p), err
}

const v1Header = "PROXY TCP4 198.51.100.7 198.51.100.8 4711 80\r\n"

// arrivals are what may come before a first request. A client gets so far, halts, and goes on when it is told to.
var arrivals = []struct {
	name   string
	server func(ca *leveetest.CA) *levee.Server
	begin  func(t *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn
}{
	{"in the hello", overTLS, func(_ *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return tls.Client(&halting{Conn: c, first: 100, goOn: goOn}, ca.ClientConfig("localhost"))
	}},
	{"behind the handshake", overTLS, func(t *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return &halting{Conn: handshaken(t, c, ca.ClientConfig("localhost")), goOn: goOn}
	}},
	{"in a hello that a Router looks at", overStartTLS, func(_ *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return tls.Client(&halting{Conn: c, first: 100, goOn: goOn}, ca.ClientConfig("localhost"))
	}},
	{"behind a handshake that a Router has begun", overStartTLS, func(t *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return &halting{Conn: handshaken(t, c, ca.ClientConfig("localhost")), goOn: goOn}
	}},
	{"in the PROXY header", behindProxy, func(_ *testing.T, c net.Conn, _ *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return &halting{Conn: c, before: v1Header, first: 20, goOn: goOn}
	}},
	{"behind the PROXY header", behindProxy, func(t *testing.T, c net.Conn, _ *leveetest.CA, goOn <-chan struct{}) net.Conn {
		send(t, c, v1Header)
		return &halting{Conn: c, goOn: goOn}
	}},
	{"in the first bytes, which tell TLS from plaintext", func(ca *leveetest.CA) *levee.Server {
		s := overTLS(ca)
		s.AllowPlaintext = true
		return s
	}, func(_ *testing.T, c net.Conn, ca *leveetest.CA, goOn <-chan struct{}) net.Conn {
		return tls.Client(&halting{Conn: c, first: 1, goOn: goOn}, ca.ClientConfig("localhost"))
	}},
}

func overTLS(ca *leveetest.CA) *levee.Server {
	return &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: answering}
}

func overStartTLS(ca *leveetest.CA) *levee.Server {
	return &levee.Server{Handler: routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
		if _, err := c.Peek(300); err != nil {
			return nil, err
		}
		return answering, c.StartTLS(ca.ServerConfig("localhost"))
	})}
}

func behindProxy(*leveetest.CA) *levee.Server {
	return &levee.Server{ProxyFrom: loopbackOnly, Handler: answering}
}

func TestWhoIsInTheMiddleOfArrivingAtADrainIsServedAFirstRequest(t *testing.T) {
	for _, a := range arrivals {
		t.Run(a.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := leveetest.NewCA(t)
				srv := a.server(ca)
				l := leveetest.Listen()
				ends := stage(t, srv, l)
				goOn := make(chan struct{})
				raw := dialAs(t, l, "127.0.0.1:4711")
				client := a.begin(t, raw, ca, goOn)
				answered := make(chan error, 1)
				go func() { answered <- exchange(client, "hello\n") }()
				synctest.Wait()
				drained := make(chan error, 1)
				go func() { drained <- srv.Shutdown(t.Context()) }()
				time.Sleep(3 * time.Second) // virtual time
				began := time.Now()
				close(goOn)
				if err := <-answered; err != nil {
					t.Error("the first request is not answered:", err)
				}
				if n, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("then it read %d bytes, %v, want the end", n, err)
				}
				_ = raw.Close()
				if err := <-drained; err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > 2*slack {
					t.Errorf("it left %v after it had been served, want at once", took)
				}
				expectReason(t, ends, levee.Drained)
			})
		})
	}
}

func TestWhoDoesNotGetOnWithArrivingDoesNotHoldUpADrain(t *testing.T) {
	const within = 30 * time.Second
	for _, test := range []struct {
		name   string
		server func(ca *leveetest.CA) *levee.Server
		client func(t *testing.T, c net.Conn, ca *leveetest.CA)
		within time.Duration // of the drain
		after  time.Duration // it has come before that
		want   time.Duration // it takes at most
	}{
		{"who has said nothing since long ago", overTLS, silently, within, 2 * time.Second, 0},
		{"who has just come and says nothing", overTLS, silently, within, 0, time.Second},
		{"whom a Router waits for", overStartTLS, silently, within, 0, time.Second},
		{"who sends a part of a hello", overTLS, partOfHello, within, 0, 5 * time.Second},
		{"who sends a part of a hello that a Router looks at", overStartTLS, partOfHello, within, 0, 5 * time.Second},
		{"who sends a part of a PROXY header", behindProxy, func(t *testing.T, c net.Conn, _ *leveetest.CA) { send(t, c, v1Header[:20]) }, within, 0, 5 * time.Second},
		{"who makes a handshake and no more", overTLS, onlyHandshake, within, 0, 5 * time.Second},
		{"who has made a handshake long ago", overTLS, onlyHandshake, within, 7 * time.Second, 0},
		{"who sends a part of a hello while there is little time", overTLS, partOfHello, time.Second, 0, 900 * time.Millisecond},
		{"who makes a handshake and no more while there is little time", overTLS, onlyHandshake, time.Second, 0, 900 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := leveetest.NewCA(t)
				srv := test.server(ca)
				srv.ArrivalTimeout = time.Minute
				l := leveetest.Listen()
				ends := stage(t, srv, l)
				test.client(t, dialAs(t, l, "127.0.0.1:4711"), ca)
				synctest.Wait()
				time.Sleep(test.after) // virtual time
				ctx, cancel := context.WithTimeout(t.Context(), test.within)
				defer cancel()
				began := time.Now()
				if err := srv.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > test.want+2*slack {
					t.Errorf("the drain took %v, want %v", took, test.want)
				}
				if r := srv.DrainReport(); r.Drained+r.Gone != 1 {
					t.Errorf("it is told as %+v, want one that has left", r)
				}
				if end := <-ends; end.Reason != levee.Drained && end.Reason != levee.ArrivalTimeout {
					t.Errorf("it ended as %v", end.Reason)
				}
			})
		})
	}
}

func silently(*testing.T, net.Conn, *leveetest.CA) {}

func partOfHello(t *testing.T, c net.Conn, _ *leveetest.CA) {
	send(t, c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
}

func onlyHandshake(t *testing.T, c net.Conn, ca *leveetest.CA) {
	handshaken(t, c, ca.ClientConfig("localhost"))
}

func TestTheFirstRequestBehindAPROXYHeaderIsServedOnAnEventLoop(t *testing.T) {
	leveetest.CheckLeaks(t)
	srv := &levee.Server{ProxyFrom: loopbackOnly, Handler: &lines{}}
	dial, ends := overTCP(t, srv)
	client := dial()
	send(t, client, v1Header)
	for srv.Stats().Read < int64(len(v1Header)) {
		<-time.After(time.Millisecond)
	}
	drained := make(chan error, 1)
	go func() { drained <- srv.Shutdown(context.Background()) }()
	for srv.Conns()[0].Story().Draining == 0 {
		<-time.After(time.Millisecond)
	}
	<-time.After(20 * time.Millisecond)
	send(t, client, "hello\n")
	want(t, client, "what?\n")
	if err := <-drained; err != nil {
		t.Error(err)
	}
	expectReason(t, ends, levee.Drained)
}
