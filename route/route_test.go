package route_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// named is a handler that answers with its name and what it has read.
func named(name string) levee.Handler {
	return levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		read, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c, "%s %q", name, read)
		return err
	})
}

var (
	httpRoute = route.Route{Match: route.HTTP, Handler: named("http")}
	sshRoute  = route.Route{Match: route.Prefix("SSH-2.0-", "SSH-1.99-"), Handler: named("ssh")}
	elseRoute = route.Route{Handler: named("else")}
)

// A server is a levee.Server in memory that tells how each connection ended.
type server struct {
	*levee.Server
	*leveetest.Listener
	ends chan levee.End
}

// serve serves until the test ends. It may be called inside a bubble.
func serve(t *testing.T, srv *levee.Server) *server {
	t.Helper()
	s := &server{srv, leveetest.Listen(), make(chan levee.End, 100)}
	srv.Trace = &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { s.ends <- end }}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), s.Listener) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return s
}

func (s *server) dial(t *testing.T) *leveetest.Conn {
	t.Helper()
	c, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestHoweverTheBytesAreCutTheRouteIsTheSame(t *testing.T) {
	tests := []struct{ text, want string }{
		{"GET / HTTP/1.1\r\n\r\n", "http"},
		{"DELETE /x HTTP/1.0\r\n", "http"},
		{"PATCH ", "http"},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http"},
		{"SSH-2.0-OpenSSH\r\n", "ssh"},
		{"SSH-1.99-x\r\n", "ssh"},
		{"SSH-1.0-x\r\n", "else"},
		{"GETTING", "else"},
		{"GET", "else"}, // and then the end
		{"PRI * HTTP/1.1\r\n", "else"},
		{"PO", "else"},
		{"get / HTTP/1.1\r\n", "else"},
		{"\x00\xff\r\n", "else"},
		{"", "else"},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{sshRoute, httpRoute, elseRoute}}})
				want := fmt.Sprintf("%s %q", test.want, test.text)
				for cut := range len(test.text) + 1 {
					if got := ask(t, s, test.text[:cut], test.text[cut:]); got != want {
						t.Errorf("%q + %q: %s", test.text[:cut], test.text[cut:], got)
					}
				}
				if got := ask(t, s, strings.Split(test.text, "")...); got != want {
					t.Errorf("byte by byte: %s", got)
				}
			})
		})
	}
}

// ask sends the pieces, each once the server has seen the one before, and returns
// the answer.
func ask(t *testing.T, s *server, pieces ...string) string {
	t.Helper()
	c := s.dial(t)
	for _, piece := range pieces {
		io.WriteString(c, piece)
		synctest.Wait()
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestFirstRouteThatMatchesWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		yes := func(*route.Beginning) route.Verdict { return route.Yes }
		no := func(*route.Beginning) route.Verdict { return route.No }
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{
			{Match: no, Handler: named("1")},
			{Match: route.Prefix("ab"), Handler: named("2")},
			{Match: route.Prefix("a"), Handler: named("3")},
			{Match: yes, Handler: named("4")},
			{Handler: named("5")},
		}}})
		for text, want := range map[string]string{"abc": "2", "axc": "3", "x": "4", "a": "3", "": "4"} {
			if got := ask(t, s, strings.Split(text, "")...); got != fmt.Sprintf("%s %q", want, text) {
				t.Errorf("%q: %s", text, got)
			}
		}
	})
}

func TestRouteThatNeedsNoBytesWaitsForNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		greets := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.WriteString(c, "220 welcome")
			return err
		})
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{{Handler: greets}}}})
		began := time.Now()
		if got, err := io.ReadAll(s.dial(t)); string(got) != "220 welcome" || err != nil || time.Since(began) > 10*time.Millisecond {
			t.Errorf("%q, %v after %v", got, err, time.Since(began))
		}
	})
}

func TestWithoutAMatchTheReasonIsNoRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{httpRoute}}})
		for _, text := range []string{"x", "GE", ""} {
			if got := ask(t, s, text); got != "" {
				t.Errorf("%q: %s", text, got)
			}
			if end := <-s.ends; end.Reason != levee.NoRoute || !errors.Is(end.Err, route.ErrNoMatch) {
				t.Errorf("%q: %v, %v", text, end.Reason, end.Err)
			}
		}
	})
}

func TestSilenceAndDripsEndAtTheSniffTimeout(t *testing.T) {
	undecided := func(*route.Beginning) route.Verdict { return route.More }
	for name, text := range map[string]string{"silence": "", "half a word": "GE", "one byte a second": "x x x x x x x x x x x"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, &levee.Server{SniffTimeout: 4 * time.Second, Handler: &route.Router{Routes: []route.Route{
					{Match: undecided, Handler: named("never")},
					elseRoute,
				}}})
				c := s.dial(t)
				for piece := range strings.SplitSeq(text, " ") {
					io.WriteString(c, piece)
					time.Sleep(time.Second) // virtual time
				}
				if end := <-s.ends; end.Reason != levee.ArrivalTimeout || end.Duration.Round(time.Millisecond) != 4*time.Second {
					t.Errorf("%v after %v", end.Reason, end.Duration)
				}
			})
		})
	}
}

func TestMatcherThatNeverDecidesSeesNoMoreThanTheBudget(t *testing.T) {
	const budget = 80 << 10
	synctest.Test(t, func(t *testing.T) {
		most := 0
		undecided := func(b *route.Beginning) route.Verdict {
			most = max(most, len(b.First))
			return route.More
		}
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{
			{Match: undecided, Handler: named("never")}, httpRoute, elseRoute,
		}}})
		text := "GET " + strings.Repeat("x", 2*budget)
		if got := ask(t, s, text); got != fmt.Sprintf("http %q", text) {
			t.Errorf("%.20s…, %d bytes: the routes after it are not asked with what there is", got, len(got))
		}
		if most != budget {
			t.Errorf("it was shown %d bytes", most)
		}
	})
}

func TestRequestToLeaveEndsTheWaitForFirstBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{httpRoute, elseRoute}}})
		c := s.dial(t)
		synctest.Wait()
		s.Conns()[0].Drain(nil)
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
		if end := <-s.ends; end.Reason != levee.Drained {
			t.Errorf("%v, %v", end.Reason, end.Err)
		}
	})
}

func TestRouterBehindMiddlewareRoutesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		router := &route.Router{Routes: []route.Route{httpRoute, sshRoute}}
		s := serve(t, &levee.Server{Handler: levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			return router.ServeTCP(ctx, c)
		})})
		if got := ask(t, s, "G", "ET "); got != `http "GET "` {
			t.Error(got)
		}
		<-s.ends
		if got := ask(t, s, "x"); got != "" {
			t.Error(got)
		}
		if end := <-s.ends; end.Reason != levee.HandlerError || !errors.Is(end.Err, route.ErrNoMatch) {
			t.Errorf("%v, %v", end.Reason, end.Err)
		}
	})
}

func TestTLSMatchesConnectionsThatMadeAHandshake(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{
			TLSConfig:      ca.ServerConfig("example.com"),
			AllowPlaintext: true,
			Handler:        &route.Router{Routes: []route.Route{{Match: route.TLS, Handler: named("tls")}, httpRoute, elseRoute}},
		})
		c := tls.Client(s.dial(t), ca.ClientConfig("example.com"))
		io.WriteString(c, "GET ")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != `tls "GET "` || err != nil {
			t.Errorf("%s, %v", got, err)
		}
		if got := ask(t, s, "GET "); got != `http "GET "` {
			t.Error(got)
		}
	})
}

func TestPrefixOfNothingMatchesAtOnceAndOfNoneNever(t *testing.T) {
	if v := route.Prefix("")(new(route.Beginning)); v != route.Yes {
		t.Errorf("the empty prefix: %v", v)
	}
	if v := route.Prefix()(new(route.Beginning)); v != route.No {
		t.Errorf("no prefix: %v", v)
	}
}

// FuzzRoute cuts a stream into segments and compares the route with that of the
// whole stream.
func FuzzRoute(f *testing.F) {
	for _, text := range []string{"", "G", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.1", "SSH-2.0-x", "SSH-1.99", "SSH-1.99-", "CONNECT", "x", "\x16\x03\x01\x00\x05hello", "PROXY TCP4", "PROXY"} {
		f.Add([]byte(text), byte(1))
		f.Add([]byte(text), byte(3))
	}
	prefixes := []struct {
		name  string
		words []string
	}{
		{"ssh", []string{"SSH-2.0-", "SSH-1.99-"}},
		{"http", []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH ", "PRI * HTTP/2.0\r\n"}},
		{"else", []string{""}},
	}
	var listeners [8]*leveetest.Listener // each cuts into segments of another size
	for i := range listeners {
		l := leveetest.Listen()
		srv := &levee.Server{Handler: &route.Router{Routes: []route.Route{sshRoute, httpRoute, elseRoute}}}
		go srv.Serve(context.Background(), leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: i + 1}}))
		f.Cleanup(func() { srv.Close() })
		listeners[i] = l
	}
	f.Fuzz(func(t *testing.T, stream []byte, segment byte) {
		want := ""
		for _, p := range prefixes {
			if slices.ContainsFunc(p.words, func(w string) bool { return bytes.HasPrefix(stream, []byte(w)) }) {
				want = fmt.Sprintf("%s %q", p.name, stream)
				break
			}
		}
		if len(stream) > 0 && stream[0] == 22 || bytes.HasPrefix(stream, []byte("PROXY ")) || bytes.HasPrefix(stream, []byte("\r\n\r\n\x00\r\nQUIT\n")) {
			want = "" // no fuzzer makes a whole hello of it
		}
		c, err := listeners[segment%8].Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() { // ends with c
			c.Write(stream)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if want == "" && len(got) == 7 && got[0] == 21 { // an alert
			got = nil
		}
		if string(got) != want {
			t.Errorf("%q in segments of %d: %s, want %s", stream, segment%8+1, got, want)
		}
	})
}
