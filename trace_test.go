package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// diary notes what a Trace is told, by connection.
type diary struct {
	mu      sync.Mutex
	entries map[uint64][]string
	ends    []levee.End
}

func (d *diary) note(c *levee.Conn, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entries == nil {
		d.entries = make(map[uint64][]string)
	}
	d.entries[c.ID()] = append(d.entries[c.ID()], fmt.Sprintf(format, args...))
}

func (d *diary) trace() *levee.Trace {
	return &levee.Trace{
		Accepted:    func(c *levee.Conn) { d.note(c, "accepted") },
		ProxyHeader: func(c *levee.Conn) { d.note(c, "proxy header of %v", c.ClientAddr()) },
		Handshake: func(c *levee.Conn, _ time.Duration, err error) {
			d.note(c, "handshake ok: %t", err == nil)
		},
		Serving:  func(c *levee.Conn, h levee.Handler) { d.note(c, "serving by %T", h) },
		Draining: func(c *levee.Conn) { d.note(c, "draining") },
		Panicked: func(c *levee.Conn, value any, _ []byte) { d.note(c, "panicked: %v", value) },
		Closed: func(c *levee.Conn, end levee.End) {
			d.note(c, "closed: %v", end.Reason)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.ends = append(d.ends, end)
		},
	}
}

func TestTraceTellsAConnectionsLifeInOrder(t *testing.T) {
	const serving = "serving by levee.HandlerFunc"
	ca := leveetest.NewCA(t)
	goodbye := func(c net.Conn) { c.Close() }
	for _, test := range []struct {
		name   string
		srv    *levee.Server
		client func(*levee.Server, *leveetest.Conn)
		want   []string
	}{
		{
			"plain", &levee.Server{}, func(_ *levee.Server, c *leveetest.Conn) {
				_ = exchange(c, "hello\n")
				goodbye(c)
			},
			[]string{"accepted", serving, "closed: client_closed"},
		},
		{
			"TLS", &levee.Server{TLSConfig: ca.ServerConfig("localhost")}, func(_ *levee.Server, c *leveetest.Conn) {
				sealed := tls.Client(c, ca.ClientConfig("localhost"))
				_ = exchange(sealed, "hello\n")
				goodbye(sealed)
			},
			[]string{"accepted", "handshake ok: true", serving, "closed: client_closed"},
		},
		{
			"TLS behind a proxy",
			&levee.Server{TLSConfig: ca.ServerConfig("localhost"), ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
			func(_ *levee.Server, c *leveetest.Conn) {
				fmt.Fprintf(c, "PROXY TCP4 192.0.2.1 192.0.2.2 1001 443\r\n")
				sealed := tls.Client(c, ca.ClientConfig("localhost"))
				_ = exchange(sealed, "hello\n")
				goodbye(sealed)
			},
			[]string{"accepted", "proxy header of 192.0.2.1:1001", "handshake ok: true", serving, "closed: client_closed"},
		},
		{
			"not TLS", &levee.Server{TLSConfig: ca.ServerConfig("localhost")}, func(_ *levee.Server, c *leveetest.Conn) {
				_ = exchange(c, "GET / HTTP/1.0\r\n")
				goodbye(c)
			},
			[]string{"accepted", "handshake ok: false", "closed: tls_failed"},
		},
		{
			"a panic",
			&levee.Server{Handler: handle(func(context.Context, *levee.Conn) error { panic("boom") })},
			func(_ *levee.Server, c *leveetest.Conn) { _ = exchange(c, "hello\n") },
			[]string{"accepted", serving, "panicked: boom", "closed: handler_panic"},
		},
		{
			"asked to leave", &levee.Server{}, func(srv *levee.Server, c *leveetest.Conn) {
				_ = exchange(c, "hello\n")
				srv.Conns()[0].Drain(nil)
				srv.Conns()[0].Drain(nil) // once is enough
			},
			[]string{"accepted", serving, "draining", "closed: drained"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				if test.srv.Handler == nil {
					test.srv.Handler = answering
				}
				test.srv.Trace = d.trace()
				l := leveetest.Listen()
				serve(t, test.srv, l)
				test.client(test.srv, dial(t, l))
				time.Sleep(slack) // virtual time
				synctest.Wait()
				for _, got := range d.entries {
					if !slices.Equal(got, test.want) {
						t.Errorf("told %q, want %q", got, test.want)
					}
				}
				if len(d.entries) != 1 {
					t.Errorf("told of %d connections", len(d.entries))
				}
			})
		})
	}
}

func TestAcceptedIsToldFirstWhateverShutdownDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		l := leveetest.Listen()
		for range 20 {
			if _, err := dial(t, l).Write([]byte("hello\n")); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		srv := &levee.Server{Handler: answering, Trace: d.trace()}
		if err := srv.Serve(ctx, l); err != nil {
			t.Error(err)
		}
		for _, got := range d.entries {
			if got[0] != "accepted" || !slices.Contains(got, "draining") || got[len(got)-1] != "closed: drained" {
				t.Errorf("told %q", got)
			}
		}
		if len(d.entries) != 20 {
			t.Errorf("told of %d connections, want 20", len(d.entries))
		}
	})
}

func TestClosedIsToldLastWhateverShutdownDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		trace := d.trace()
		trace.Draining = func(c *levee.Conn) {
			time.Sleep(time.Second) // virtual time
			d.note(c, "draining")
		}
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering, Trace: trace}, l)
		dial(t, l)
		synctest.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		want := []string{"accepted", "serving by levee.HandlerFunc", "draining", "closed: drained"}
		for _, got := range d.entries {
			if !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
		}
	})
}

func TestEndTellsHowAConnectionEnded(t *testing.T) {
	errOwn := errors.New("the handler's own")
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1001 443\r\n"
	synctest.Test(t, func(t *testing.T) {
		var d diary
		l := leveetest.Listen()
		srv := &levee.Server{
			Trace:     d.trace(),
			ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			Handler: handle(func(_ context.Context, c *levee.Conn) error {
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					return err
				}
				time.Sleep(3 * time.Second) // virtual time
				if _, err := c.Write([]byte("an answer")); err != nil {
					return err
				}
				return errOwn
			}),
		}
		s := serve(t, srv, l)
		if err := func() error {
			c := dial(t, l)
			fmt.Fprint(c, header)
			if _, err := c.Write([]byte("four")); err != nil {
				return err
			}
			return expect(c, "an answer")
		}(); err != nil {
			t.Error(err)
		}
		time.Sleep(slack) // virtual time
		synctest.Wait()
		want := levee.End{
			Reason: levee.HandlerError, Err: errOwn, Duration: 3 * time.Second,
			Read: int64(len(header) + len("four")), Written: int64(len("an answer")),
		}
		got := d.ends[0]
		if over := got.Duration - want.Duration; over > 0 && over <= slack {
			got.Duration = want.Duration
		}
		if got != want {
			t.Errorf("told %+v, want %+v", got, want)
		}
		if stats := s.Stats(); stats.Read != want.Read || stats.Written != want.Written {
			t.Errorf("counted %d and %d bytes, want %d and %d", stats.Read, stats.Written, want.Read, want.Written)
		}
	})
}

// The order of hooks is checked by reflection, so that a new one cannot be
// forgotten in Traces.
func TestTracesCallsEachInOrderAndSkipsNil(t *testing.T) {
	var calls []string
	note := func(name string) *levee.Trace {
		trace := new(levee.Trace)
		v := reflect.ValueOf(trace).Elem()
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			v.Field(i).Set(reflect.MakeFunc(v.Field(i).Type(), func([]reflect.Value) []reflect.Value {
				calls = append(calls, name+" "+field)
				if v.Field(i).Type().NumOut() > 0 {
					return []reflect.Value{reflect.ValueOf(false)}
				}
				return nil
			}))
		}
		return trace
	}
	joined := levee.Traces(nil, note("first"), nil, &levee.Trace{}, note("second"), note("third"), nil)
	v := reflect.ValueOf(joined).Elem()
	for i := range v.NumField() {
		calls = nil
		args := make([]reflect.Value, v.Field(i).Type().NumIn())
		for n := range args {
			args[n] = reflect.Zero(v.Field(i).Type().In(n))
		}
		v.Field(i).Call(args)
		field := v.Type().Field(i).Name
		if want := []string{"first " + field, "second " + field, "third " + field}; !slices.Equal(calls, want) {
			t.Errorf("called %q, want %q", calls, want)
		}
	}
	if empty := levee.Traces(nil, nil); !reflect.ValueOf(*empty).IsZero() {
		t.Errorf("joining nothing makes hooks: %+v", empty)
	}
}

func TestTraceIsToldOfFailedAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		type failure struct {
			l     net.Listener
			pause time.Duration
			emf   bool
		}
		told := make(chan failure, 1)
		serve(t, &levee.Server{Handler: answering, Trace: &levee.Trace{
			AcceptFailed: func(l net.Listener, err error, pause time.Duration) {
				told <- failure{l, pause, errors.Is(err, syscall.EMFILE)}
			},
		}}, l)
		l.FailAccepts(syscall.EMFILE)
		if got, want := <-told, (failure{l, 5 * time.Millisecond, true}); got != want {
			t.Errorf("told %+v, want %+v", got, want)
		}
	})
}

// The words are names that outsiders rely on.
func TestCloseReasonsAreDistinctWordsFitForAMetric(t *testing.T) {
	words := make(map[string]levee.CloseReason)
	for _, reason := range levee.CloseReasons() {
		word := reason.String()
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(word) {
			t.Errorf("%d is %q", reason, word)
		}
		if twin, taken := words[word]; taken {
			t.Errorf("%d and %d are both %q", twin, reason, word)
		}
		words[word] = reason
	}
	if _, ok := words["none"]; ok {
		t.Error("a connection cannot end for no reason")
	}
	want := strings.Fields(`limited denied overloaded client_aborted arrival_timeout proxy_header_invalid proxy_header_refused tls_failed no_route
		client_closed client_reset network_error handler_closed handler_error handler_panic
		upstream_unavailable upstream_closed upstream_reset upstream_failed upstream_stalled
		idle_timeout message_timeout half_closed_timeout write_stalled lifetime_expired
		drained drain_timeout killed policy server_closed`)
	for _, word := range want {
		if _, ok := words[word]; !ok {
			t.Errorf("%s is missing", word)
		}
	}
	if len(words) != len(want) {
		t.Errorf("%d reasons, want %d: a new one belongs into this test", len(words), len(want))
	}
	if got := levee.ReasonNone.String(); got != "none" {
		t.Errorf("ReasonNone is %q", got)
	}
	if got := levee.CloseReason(200).String(); got != "CloseReason(200)" {
		t.Errorf("an unknown reason is %q", got)
	}
}
