package leveetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/leveetest"
)

func TestDialBlocksWhileTheQueueIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := leveetest.Network{Backlog: 1}.Listen()
		defer listener.Close()
		defer mustDial(t, listener).Close()

		time.AfterFunc(time.Minute, func() { mustAccept(t, listener).Close() })
		start := time.Now()
		defer mustDial(t, listener).Close()
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("waited %v, want 1m", waited)
		}
		if queued := listener.Queued(); queued != 1 {
			t.Errorf("%d queued, want 1", queued)
		}
	})
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := leveetest.Network{Backlog: 1}.Listen()
		defer listener.Close()
		defer mustDial(t, listener).Close()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := listener.Dial(ctx)
		wantOpError(t, err, context.DeadlineExceeded)
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Errorf("%v does not say that it is a timeout", err)
		}
	})
}

func TestQueueHolds128ByDefault(t *testing.T) {
	listener := leveetest.Listen()
	defer listener.Close()
	for range 128 {
		mustDial(t, listener)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := listener.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("connection 129: %v", err)
	}
	if queued := listener.Queued(); queued != 128 {
		t.Errorf("%d queued, want 128", queued)
	}
}

func TestConnectionsAreAcceptedInTheOrderDialled(t *testing.T) {
	listener := leveetest.Listen()
	defer listener.Close()
	first, second := mustDial(t, listener), mustDial(t, listener)
	for _, client := range []net.Conn{first, second} {
		if got := mustAccept(t, listener).RemoteAddr().String(); got != client.LocalAddr().String() {
			t.Errorf("accepted %v, want %v", got, client.LocalAddr())
		}
	}
	if first.LocalAddr().String() == second.LocalAddr().String() {
		t.Errorf("two clients at %v", first.LocalAddr())
	}
}

func TestDialFromIsWhatTheServerSees(t *testing.T) {
	listener := leveetest.Network{Addr: netip.MustParseAddrPort("[2001:db8::1]:5432")}.Listen()
	defer listener.Close()
	for from, want := range map[string]string{
		"203.0.113.7:4711":   "203.0.113.7:4711",
		"[2001:db8::2]:4711": "[2001:db8::2]:4711",
		"203.0.113.7:0":      "203.0.113.7:32768",
	} {
		if _, err := listener.DialFrom(t.Context(), netip.MustParseAddrPort(from)); err != nil {
			t.Fatal(err)
		}
		conn := mustAccept(t, listener)
		if got := conn.RemoteAddr().(*net.TCPAddr).String(); got != want {
			t.Errorf("from %s: server sees %s, want %s", from, got, want)
		}
		if got := conn.LocalAddr().String(); got != "[2001:db8::1]:5432" {
			t.Errorf("local address %s", got)
		}
	}
}

func TestFailAcceptsComeInOrderBeforeConnections(t *testing.T) {
	listener := leveetest.Listen()
	defer listener.Close()
	mustDial(t, listener)
	odd := errors.New("odd")
	listener.FailAccepts(syscall.EMFILE, odd)

	_, err := listener.Accept()
	wantOpError(t, err, syscall.EMFILE)
	if _, err := listener.Accept(); err != odd {
		t.Errorf("got %v, want %v", err, odd)
	}
	mustAccept(t, listener)
}

func TestBlockedAcceptEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*leveetest.Listener)
		want error
	}{
		"FailAccepts": {func(l *leveetest.Listener) { l.FailAccepts(syscall.ECONNABORTED) }, syscall.ECONNABORTED},
		"Close":       {func(l *leveetest.Listener) { l.Close() }, net.ErrClosed},
		"SetDeadline": {func(l *leveetest.Listener) { l.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := leveetest.Listen()
				time.AfterFunc(time.Hour, func() { test.end(listener) })
				_, err := listener.Accept()
				wantOpError(t, err, test.want)
			})
		})
	}
}

func TestAcceptDeadlineCanBeLifted(t *testing.T) {
	listener := leveetest.Listen()
	defer listener.Close()
	mustDial(t, listener)
	listener.SetDeadline(time.Unix(1, 0))
	_, err := listener.Accept()
	wantOpError(t, err, os.ErrDeadlineExceeded)
	listener.SetDeadline(time.Time{})
	mustAccept(t, listener)
}

func TestListenerCloseRefusesDialsAndResetsTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := leveetest.Network{Backlog: 1}.Listen()
		queued := mustDial(t, listener)
		time.AfterFunc(time.Minute, func() { listener.Close() })
		_, err := listener.Dial(t.Context()) // blocked on the queue
		wantOpError(t, err, syscall.ECONNREFUSED)
		_, err = listener.DialContext(t.Context(), "tcp", "anywhere:1")
		wantOpError(t, err, syscall.ECONNREFUSED)

		wantTransfer(t, queued.Read, "?", 0, syscall.ECONNRESET)
		wantOpError(t, listener.Close(), net.ErrClosed)
		wantOpError(t, listener.SetDeadline(time.Time{}), net.ErrClosed)
	})
}

func TestAcceptedConnectionsOutliveTheListener(t *testing.T) {
	listener := leveetest.Listen()
	client := mustDial(t, listener)
	server := mustAccept(t, listener)
	listener.Close()
	client.Write([]byte("still here"))
	wantRead(t, server, 20, "still here")
}

// The program of the package's documentation.
func TestSilentClientIsDropped(t *testing.T) {
	serve := func(listener net.Listener) {
		conn := mustAccept(t, listener)
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		wantTransfer(t, conn.Read, "?", 0, os.ErrDeadlineExceeded)
	}
	synctest.Test(t, func(t *testing.T) {
		listener := leveetest.Listen()
		defer listener.Close()
		go serve(listener) // the server under test

		client, err := listener.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()

		start := time.Now()
		_, err = client.Read(make([]byte, 1)) // a minute passes in no time
		if err != io.EOF || time.Since(start) != time.Minute {
			t.Errorf("Read: %v after %v, want EOF after 1m0s", err, time.Since(start))
		}
	})
}

func TestHTTPRunsOverTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := leveetest.Listen()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Host)
		})}
		go func() { _ = server.Serve(listener) }()
		defer server.Close()

		transport := &http.Transport{DialContext: listener.DialContext}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		answer, err := client.Get("http://example.com/")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if string(body) != "example.com" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
	})
}

func mustDial(t *testing.T, l *leveetest.Listener) *leveetest.Conn {
	t.Helper()
	conn, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func mustAccept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
