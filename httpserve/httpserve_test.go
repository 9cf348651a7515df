package httpserve_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/httpserve"
	"github.com/levee-net/levee/leveetest"
)

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// serve serves h, with the server's other fields as given, on a TCP port until
// the test ends.
func serve(t *testing.T, srv *levee.Server, h *http.Server) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, srv, h)
	return l.Addr().String()
}

func serveOn(t *testing.T, l net.Listener, srv *levee.Server, h *http.Server) {
	t.Helper()
	if h.ErrorLog == nil {
		h.ErrorLog = log.New(io.Discard, "", 0)
	}
	srv.Handler = httpserve.Handler(h)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-ended; !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func dial(t *testing.T, address string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, bufio.NewReader(c)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer reads an answer and its body.
func answer(t *testing.T, r *bufio.Reader) (*http.Response, string) {
	t.Helper()
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a, string(body)
}

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })

// shutDown begins a graceful shutdown and returns how to wait for its end.
func shutDown(t *testing.T, srv *levee.Server) (wait func() error) {
	t.Helper()
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	go func() {
		defer cancel()
		ended <- srv.Shutdown(ctx)
	}()
	return func() error { return <-ended }
}

func TestManyRequestsTravelOnOneConnection(t *testing.T) {
	leveetest.CheckLeaks(t)
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, body)
	})})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for i := range 50 {
		a, err := client.Post(fmt.Sprintf("http://%s/%d", address, i), "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(a.Body)
		a.Body.Close()
		if want := fmt.Sprintf("POST /%d body", i); string(body) != want || err != nil {
			t.Fatalf("%q, %v, want %q", body, err, want)
		}
	}
	if n := srv.Stats().Accepted; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	address := serve(t, &levee.Server{}, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path)
	})})
	c, r := dial(t, address)
	send(t, c, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHo")
	for _, want := range []string{"/1", "/2"} {
		if _, body := answer(t, r); body != want {
			t.Fatalf("%q, want %q", body, want)
		}
	}
	send(t, c, "st: x\r\n\r\n")
	if _, body := answer(t, r); body != "/3" {
		t.Errorf("%q", body)
	}
}

func TestRequestsKnowTheirTLSAndConn(t *testing.T) {
	ca := leveetest.NewCA(t)
	type seen struct {
		state *tls.ConnectionState
		id    uint64
	}
	requests := make(chan seen, 1)
	address := serve(t, &levee.Server{TLSConfig: ca.ServerConfig("example.com")}, &http.Server{
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			requests <- seen{r.TLS, httpserve.Conn(r).ID()}
		}),
	})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: ca.ClientConfig("example.com"), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	a, err := client.Get("https://" + address)
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	got := <-requests
	if got.state == nil || got.state.ServerName != "example.com" || got.id == 0 {
		t.Errorf("TLS %+v, id %d", got.state, got.id)
	}
	if a.ProtoMajor != 1 || a.TLS.NegotiatedProtocol != "" {
		t.Errorf("HTTP/2 was offered though NextProtos is empty: %s, %q", a.Proto, a.TLS.NegotiatedProtocol)
	}
	if httpserve.Conn(new(http.Request)) != nil {
		t.Error("a request from elsewhere has a connection")
	}
}

func TestALPNChoosesHTTP2(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("example.com")
	config.NextProtos = []string{"h2", "http/1.1"}
	srv := &levee.Server{TLSConfig: config}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %v", r.Proto, r.TLS.NegotiatedProtocol, httpserve.Conn(r) != nil)
	})})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: ca.ClientConfig("example.com"), ForceAttemptHTTP2: true}}
	for range 3 {
		a, err := client.Get("https://" + address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(a.Body)
		a.Body.Close()
		if string(body) != "HTTP/2.0 h2 true" || err != nil {
			t.Fatalf("%q, %v", body, err)
		}
	}
	began := time.Now()
	if err := shutDown(t, srv)(); err != nil || time.Since(began) > time.Second {
		t.Errorf("an idle HTTP/2 connection left after %v, %v", time.Since(began), err)
	}
	client.CloseIdleConnections()
}

func TestHTTP2RequestInFlightIsAnsweredDuringTheDrain(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("example.com")
	config.NextProtos = []string{"h2"}
	srv := &levee.Server{TLSConfig: config}
	in, out := make(chan struct{}), make(chan struct{})
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		in <- struct{}{}
		<-out
		io.WriteString(w, "late")
	})})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: ca.ClientConfig("example.com"), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	bodies := make(chan string, 2)
	for range 2 {
		go func() {
			a, err := client.Get("https://" + address)
			if err != nil {
				bodies <- err.Error()
				return
			}
			defer a.Body.Close()
			body, _ := io.ReadAll(a.Body)
			bodies <- string(body)
		}()
	}
	<-in
	<-in
	wait := shutDown(t, srv)
	for !asked(srv.Conns()[0]) { // for a moment
	}
	close(out)
	for range 2 {
		if body := <-bodies; body != "late" {
			t.Errorf("%q", body)
		}
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// A client that opens two connections at once may need only one of them.
func TestHTTP2ConnectionWithoutARequestLeavesWhenAsked(t *testing.T) {
	leveetest.CheckLeaks(t)
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: http.NotFoundHandler()})
	for name, parts := range map[string][]string{
		"at once":   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
		"in pieces": {"P", "RI * HTTP/2.0\r\n", "\r\nSM\r\n\r", "\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		for _, part := range parts {
			if _, err := io.WriteString(c, part); err != nil {
				t.Fatal(name, err)
			}
		}
		const (
			ping         = "\x00\x00\x08\x06\x00\x00\x00\x00\x00 ping me"
			acknowledged = "\x00\x00\x08\x06\x01\x00\x00\x00\x00 ping me"
		)
		if _, err := io.WriteString(c, ping); err != nil { // a frame that is no request
			t.Fatal(name, err)
		}
		var answer []byte
		for b := make([]byte, 1); !bytes.HasSuffix(answer, []byte(acknowledged)); answer = append(answer, b...) {
			if _, err := c.Read(b); err != nil {
				t.Fatalf("%s: %q, %v", name, answer, err)
			}
		}
	}
	if err := shutDown(t, srv)(); err != nil {
		t.Error(err)
	}
}

func TestHTTP2WithoutTLSByPriorKnowledge(t *testing.T) {
	address := serve(t, &levee.Server{}, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, r.TLS == nil)
	})})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Timeout: patience, Transport: transport}
	defer client.CloseIdleConnections()
	a, err := client.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if body, _ := io.ReadAll(a.Body); string(body) != "HTTP/2.0true" {
		t.Errorf("%q", body)
	}
}

func TestProtocolsCanBeLimited(t *testing.T) {
	only := new(http.Protocols)
	only.SetHTTP1(true)
	address := serve(t, &levee.Server{}, &http.Server{Handler: hello, Protocols: only})
	c, r := dial(t, address)
	send(t, c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if a, _ := answer(t, r); a.ProtoMajor != 1 {
		t.Errorf("%s %s", a.Proto, a.Status)
	}
}

func TestRemoteAddrIsTheOneInThePROXYHeader(t *testing.T) {
	srv := &levee.Server{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	})})
	c, r := dial(t, address)
	send(t, c, "PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n"+get)
	if _, body := answer(t, r); body != "192.0.2.7:1234" {
		t.Errorf("%q", body)
	}
}

func TestHooksOfTheServerAreKept(t *testing.T) {
	type key string
	var (
		mu     sync.Mutex
		states []http.ConnState
	)
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Context().Value(key("conn")), httpserve.Conn(r) != nil)
		}),
		ConnState: func(c net.Conn, state http.ConnState) {
			if _, ok := c.(*levee.Conn); !ok {
				t.Errorf("ConnState gets a %T", c)
			}
			mu.Lock()
			defer mu.Unlock()
			states = append(states, state)
		},
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), key("base"), "base")
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if _, ok := c.(*levee.Conn); !ok {
				t.Errorf("ConnContext gets a %T", c)
			}
			// Not derived from ctx, as it should be: the request knows its connection all the same.
			return context.WithValue(context.Background(), key("conn"), ctx.Value(key("base")))
		},
	})
	c, r := dial(t, address)
	send(t, c, strings.Replace(get, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
	if _, body := answer(t, r); body != "basetrue" {
		t.Errorf("%q", body)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("not closed: %v", err)
	}
	if err := shutDown(t, srv)(); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := fmt.Sprint(states); got != "[new active closed]" {
		t.Errorf("states %s", got)
	}
}

func TestIdleConnectionsLeaveAtOnceWhenTheServerDrains(t *testing.T) {
	leveetest.CheckLeaks(t)
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: hello})
	var clients []*bufio.Reader
	for i := range 20 {
		c, r := dial(t, address)
		if i%2 == 0 { // the others have not said anything yet
			send(t, c, get)
			answer(t, r)
		}
		clients = append(clients, r)
	}
	began := time.Now()
	if err := shutDown(t, srv)(); err != nil || time.Since(began) > time.Second {
		t.Errorf("drained after %v, %v", time.Since(began), err)
	}
	for _, r := range clients {
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("%v, want EOF", err)
		}
	}
	if closed := srv.Stats().Closed; closed[levee.Drained] != 20 {
		t.Errorf("reasons %v", closed)
	}
}

func TestRequestInFlightIsAnsweredAndToldThatItWasTheLast(t *testing.T) {
	tests := map[string]func(w http.ResponseWriter){
		"by Write":       func(w http.ResponseWriter) { w.Write([]byte("late")) },
		"by WriteString": func(w http.ResponseWriter) { io.WriteString(w, "late") },
		"by WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot); io.WriteString(w, "late") },
		"by ReadFrom":    func(w http.ResponseWriter) { io.Copy(w, strings.NewReader("late")) },
		"by Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush(); io.WriteString(w, "late") },
		"by controller":  func(w http.ResponseWriter) { http.NewResponseController(w).Flush(); io.WriteString(w, "late") },
		"after a hint":   func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints); io.WriteString(w, "late") },
	}
	for name, write := range tests {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			srv := &levee.Server{}
			in := make(chan *levee.Conn)
			address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				in <- httpserve.Conn(r)
				<-httpserve.Conn(r).Draining()
				write(w)
			})})
			c, r := dial(t, address)
			send(t, c, get)
			<-in
			wait := shutDown(t, srv)
			a, body := answer(t, r)
			if a.StatusCode == http.StatusEarlyHints {
				if a.Close {
					t.Error("the hint says Connection: close")
				}
				a, body = answer(t, r)
			}
			if body != "late" || !a.Close {
				t.Errorf("%q with close: %v", body, a.Close)
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("%v, want EOF", err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnswerWithoutABodyIsToldToo(t *testing.T) {
	srv := &levee.Server{}
	in := make(chan struct{})
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		in <- struct{}{}
		<-httpserve.Conn(r).Draining()
	})})
	c, r := dial(t, address)
	send(t, c, get)
	<-in
	wait := shutDown(t, srv)
	if a, body := answer(t, r); a.StatusCode != 200 || body != "" || !a.Close {
		t.Errorf("%s %q with close: %v", a.Status, body, a.Close)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestStreamThatBeganBeforeTheDrainEndsTheConnection(t *testing.T) {
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush() // the head is gone
		<-httpserve.Conn(r).Draining()
		io.WriteString(w, "the end")
	})})
	c, r := dial(t, address)
	send(t, c, get)
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait := shutDown(t, srv)
	if body, err := io.ReadAll(a.Body); string(body) != "the end" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// The head of a request, whether the connection's first or a later one, may
// come in pieces with the drain between them.
func TestRequestWhoseHeadHasBegunIsAnsweredDuringTheDrain(t *testing.T) {
	for _, earlier := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(earlier, " requests before"), func(t *testing.T) {
			leveetest.CheckLeaks(t)
			srv := &levee.Server{}
			address := serve(t, srv, &http.Server{Handler: hello})
			c, r := dial(t, address)
			for range earlier {
				send(t, c, get)
				answer(t, r)
			}
			send(t, c, "GET / HTTP/1.1\r\nHo")
			awaitRead(t, srv, int64(earlier*len(get)+len("GET / HTTP/1.1\r\nHo")))
			wait := shutDown(t, srv)
			for len(srv.Conns()) == 1 && !asked(srv.Conns()[0]) { // for a moment
			}
			send(t, c, "st: x\r\n\r\n")
			if a, body := answer(t, r); body != "hello" || !a.Close {
				t.Errorf("%q with close: %v", body, a.Close)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// awaitRead waits until the server has read n bytes.
func awaitRead(t *testing.T, srv *levee.Server, n int64) {
	t.Helper()
	for late := time.Now().Add(patience); srv.Stats().Read < n; {
		if time.Now().After(late) {
			t.Fatalf("the server has read %d bytes, not %d", srv.Stats().Read, n)
		}
	}
}

func asked(c *levee.Conn) bool {
	select {
	case <-c.Draining():
		return true
	default:
		return false
	}
}

// held is a listener that accepts nobody until it is released.
type held struct {
	*net.TCPListener
	release chan struct{}
}

func (l *held) Accept() (net.Conn, error) {
	<-l.release
	return l.TCPListener.Accept()
}

func TestConnectionsInTheAcceptQueueAreAnsweredDuringTheDrain(t *testing.T) {
	leveetest.CheckLeaks(t)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	srv, queue := &levee.Server{}, &held{l, make(chan struct{})}
	serveOn(t, queue, srv, &http.Server{Handler: hello})
	var clients []*bufio.Reader
	for range 20 {
		c, r := dial(t, l.Addr().String())
		send(t, c, get)
		clients = append(clients, r)
	}
	wait := shutDown(t, srv)
	for !srv.Stats().Draining { // for a moment
	}
	close(queue.release)
	for _, r := range clients {
		if a, body := answer(t, r); body != "hello" || !a.Close {
			t.Errorf("%q with close: %v", body, a.Close)
		}
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestOneConnectionCanBeToldToLeave(t *testing.T) {
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: hello})
	stays, staysReader := dial(t, address)
	leaves, leavesReader := dial(t, address)
	send(t, leaves, get)
	answer(t, leavesReader)
	send(t, stays, get)
	answer(t, staysReader)
	for _, c := range srv.Conns() {
		if c.PeerAddr().String() == leaves.LocalAddr().String() {
			c.Drain(nil)
		}
	}
	if _, err := leavesReader.ReadByte(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
	send(t, stays, get)
	if a, body := answer(t, staysReader); body != "hello" || a.Close {
		t.Errorf("the other one: %q with close: %v", body, a.Close)
	}
}

func TestSlowHeadTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		serveOn(t, l, &levee.Server{}, &http.Server{Handler: hello, ReadHeaderTimeout: 3 * time.Second})
		for name, text := range map[string]string{"silence": "", "half a head": "GET / HTTP/1.1\r\nHo"} {
			c, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			io.WriteString(c, text)
			_, err = io.ReadAll(c)
			if took := time.Since(began); took.Round(10*time.Millisecond) != 3*time.Second || err != nil {
				t.Errorf("%s: closed after %v, %v", name, took, err)
			}
			c.Close()
		}
	})
}

func TestHeadByByteTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		serveOn(t, l, &levee.Server{}, &http.Server{Handler: hello, ReadHeaderTimeout: 3 * time.Second})
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		for err == nil {
			_, err = io.WriteString(c, "x")
			time.Sleep(time.Second) // virtual time
		}
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestIdleTimeoutOfTheServerHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		serveOn(t, l, &levee.Server{}, &http.Server{Handler: hello, IdleTimeout: 7 * time.Second})
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, get)
		r := bufio.NewReader(c)
		answer(t, r)
		began := time.Now()
		if _, err := r.ReadByte(); err != io.EOF || time.Since(began) != 7*time.Second {
			t.Errorf("closed after %v, %v", time.Since(began), err)
		}
	})
}

func TestUpgradedConnectionBelongsToItsHandler(t *testing.T) {
	leveetest.CheckLeaks(t)
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		c, ok := nc.(*levee.Conn)
		if !ok || c != httpserve.Conn(r) {
			t.Errorf("hijacked a %T", nc)
			return
		}
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(rw, line)
			rw.Flush()
			if line == "bye\n" {
				<-c.Draining()
				return
			}
		}
	})})
	c, r := dial(t, address)
	send(t, c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly\n")
	if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(a, err)
	}
	for _, line := range []string{"", "late\n", "bye\n"} {
		send(t, c, line)
		want := line
		if line == "" {
			want = "early\n"
		}
		if got, err := r.ReadString('\n'); got != want {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	if err := shutDown(t, srv)(); err != nil {
		t.Error(err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
}

func TestPanickingHandlerEndsItsConnectionAlone(t *testing.T) {
	srv := &levee.Server{}
	address := serve(t, srv, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("a bug")
		}
		io.WriteString(w, "hello")
	})})
	other, otherReader := dial(t, address)
	send(t, other, get)
	answer(t, otherReader)
	for range 10 {
		c, r := dial(t, address)
		send(t, c, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("%v, want EOF", err)
		}
	}
	send(t, other, get)
	if _, body := answer(t, otherReader); body != "hello" {
		t.Errorf("%q", body)
	}
}

func TestFileGoesOutWhole(t *testing.T) {
	path := t.TempDir() + "/file"
	content := strings.Repeat("0123456789abcdef", 1<<16)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	address := serve(t, &levee.Server{}, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, path)
	})})
	c, r := dial(t, address)
	send(t, c, get)
	if a, body := answer(t, r); body != content || a.ContentLength != int64(len(content)) {
		t.Errorf("%d bytes, content length %d", len(body), a.ContentLength)
	}
}

func TestSettingsAreCopied(t *testing.T) {
	h := &http.Server{Handler: hello, MaxHeaderBytes: 1}
	address := serve(t, &levee.Server{}, h)
	h.Handler = nil
	c, r := dial(t, address)
	send(t, c, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 8<<10)+"\r\n\r\n")
	if a, _ := answer(t, r); a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%s", a.Status)
	}
}

func TestWithoutAHandlerTheDefaultMuxServes(t *testing.T) {
	address := serve(t, &levee.Server{}, &http.Server{})
	c, r := dial(t, address)
	send(t, c, get)
	if a, _ := answer(t, r); a.StatusCode != http.StatusNotFound {
		t.Errorf("%s", a.Status)
	}
}

func Example() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello on connection %d\n", httpserve.Conn(r).ID())
	})
	srv := &levee.Server{
		Handler: httpserve.Handler(&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // here: right away; in a program, at a signal
	fmt.Println(srv.ListenAndServe(ctx, "127.0.0.1:0"))
	// Output: <nil>
}
