package levee_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// serveHTTP runs an http.Server behind a levee.Server in memory.
func serveHTTP(t *testing.T, behind *http.Server, srv *levee.Server) (*service, *leveetest.Listener) {
	t.Helper()
	handed := levee.NewListener(nil)
	srv.Handler = handed
	l := leveetest.Listen()
	s := serve(t, srv, l)
	returned := make(chan error, 1)
	go func() { returned <- behind.Serve(handed) }()
	t.Cleanup(func() {
		behind.Close()
		if err := <-returned; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("http.Server.Serve returned %v", err)
		}
	})
	return s, l
}

// who answers with the client's address, as net/http sees it.
var who = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })

func get(client *http.Client) (string, error) {
	response, err := client.Get("http://levee.test/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestHTTPServerBehindTheListenerKeepsItsConnectionsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := serveHTTP(t, &http.Server{Handler: who}, &levee.Server{})
		transport := &http.Transport{DialContext: l.DialContext}
		for range 3 {
			if body, err := get(&http.Client{Transport: transport}); err != nil || !strings.HasPrefix(body, "127.0.0.1:") {
				t.Errorf("%q, %v", body, err)
			}
			time.Sleep(time.Second) // virtual time
		}
		checkStats(t, s.Stats(), 1, nil)
		transport.CloseIdleConnections()
		time.Sleep(slack) // virtual time
		synctest.Wait()
		stats := s.Stats()
		if stats.Active != 0 || stats.Closed[levee.ClientClosed]+stats.Closed[levee.HandlerClosed] != 1 {
			t.Errorf("%+v", stats)
		}
	})
}

func TestHTTPServersTimeoutsWorkBehindTheListener(t *testing.T) {
	for _, test := range []struct {
		name   string
		behind *http.Server
		first  string
		want   time.Duration
	}{
		{"ReadHeaderTimeout", &http.Server{ReadHeaderTimeout: 7 * time.Second}, "GET / HTTP/1.1\r\nHost: half", 7 * time.Second},
		{"IdleTimeout", &http.Server{IdleTimeout: 11 * time.Second}, "GET / HTTP/1.1\r\nHost: whole\r\n\r\n", 11 * time.Second},
		{"levee's IdleTimeout", &http.Server{}, "GET / HTTP/1.1\r\nHost: whole\r\n\r\n", time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.behind.Handler = who
				s, l := serveHTTP(t, test.behind, &levee.Server{IdleTimeout: time.Minute})
				c := dial(t, l)
				start := time.Now()
				if _, err := io.WriteString(c, test.first); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(c); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took < test.want || took > test.want+slack {
					t.Errorf("closed after %v, want %v", took, test.want)
				}
				time.Sleep(time.Second) // virtual time
				synctest.Wait()
				if stats := s.Stats(); stats.Active != 0 {
					t.Errorf("%+v", stats)
				}
			})
		})
	}
}

func TestClientAddressOfTheProxyHeaderReachesTheHTTPServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := serveHTTP(t, &http.Server{Handler: who}, &levee.Server{
			ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		})
		client := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := l.Dial(ctx)
				if err != nil {
					return nil, err
				}
				_, err = io.WriteString(c, "PROXY TCP4 192.0.2.1 192.0.2.2 1001 80\r\n")
				return c, err
			},
		}}
		if body, err := get(client); err != nil || body != "192.0.2.1:1001" {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestClosedListenerTurnsConnectionsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handed := levee.NewListener(nil)
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: handed}, l)
		waiting := dial(t, l)
		synctest.Wait() // nobody accepts it
		accepted := make(chan error)
		handed.Close()
		handed.Close()
		go func() {
			_, err := handed.Accept()
			accepted <- err
		}()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept returned %v, want net.ErrClosed", err)
		}
		for _, c := range []net.Conn{waiting, dial(t, l)} {
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read %d, %v; want EOF", n, err)
			}
		}
		time.Sleep(slack) // virtual time
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.HandlerError: 2})
	})
}

func TestCloseEndsABlockedAcceptOfTheListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handed := levee.NewListener(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80})
		accepted := make(chan error)
		go func() {
			_, err := handed.Accept()
			accepted <- err
		}()
		synctest.Wait()
		handed.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) || err.Error() != "accept tcp 192.0.2.1:80: use of closed network connection" {
			t.Errorf("Accept returned %v", err)
		}
	})
}

func TestConnThatNobodyAcceptsCanBeKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handed := levee.NewListener(nil)
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: handed}, l)
		dial(t, l)
		synctest.Wait()
		s.Conns()[0].Kill(nil)
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Killed: 1})
	})
}

func TestConnectionsOfTheListenerOutliveIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handed := levee.NewListener(nil)
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: handed}, l)
		client := dial(t, l)
		c, err := handed.Accept()
		if err != nil {
			t.Fatal(err)
		}
		handed.Close()
		go func() {
			defer c.Close()
			_ = echo(c)
		}()
		if err := exchange(client, "still served"); err != nil {
			t.Error(err)
		}
		client.Close()
		synctest.Wait()
		if stats := s.Stats(); stats.Active != 0 {
			t.Errorf("%+v", stats)
		}
	})
}
