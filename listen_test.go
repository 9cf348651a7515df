package levee_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestListenSaysWhichAddressIsInUse(t *testing.T) {
	taken := listenTCP(t).Addr().String()
	_, err := levee.Listen(t.Context(), taken)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v is not EADDRINUSE", err)
	}
	if got, want := err.Error(), "listen on "+taken+": bind: address already in use"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestListenSaysWhatIsWrongWithAnAddress(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1":           "listen on 127.0.0.1: address 127.0.0.1: missing port in address",
		"127.0.0.1:65536":     "listen on 127.0.0.1:65536: address 65536: invalid port",
		"203.0.113.1:0":       "listen on 203.0.113.1:0: bind: ",
		"unix:/no/such/place": "listen on unix:/no/such/place: bind: no such file or directory",
	} {
		_, err := levee.Listen(t.Context(), address)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Listen(%q): %v, want %s", address, err, want)
		}
	}
}

func TestUnixSocketIsServedAndRemoved(t *testing.T) {
	leveetest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "levee.sock")
	l, err := levee.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, &levee.Server{Handler: answering}, l)
	if err := exchange(dialTCP(t, l), "hello\n"); err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestFileOfADeadUnixSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "levee.sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false) // as if its process had been killed
	dead.Close()
	l, err := levee.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	if _, err := levee.Listen(t.Context(), "unix:"+path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket in use: %v, want EADDRINUSE", err)
	}
	dialTCP(t, l) // it is still there

	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := levee.Listen(t.Context(), "unix:"+precious); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a file that is no socket: %v, want EADDRINUSE", err)
	}
	if data, err := os.ReadFile(precious); string(data) != "data" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
}

func TestListenAndServeWithAnEndedContextReturnsNil(t *testing.T) {
	leveetest.CheckLeaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	srv := &levee.Server{Handler: echoing}
	if err := srv.ListenAndServe(ctx, "127.0.0.1:0"); err != nil {
		t.Errorf("ListenAndServe returned %v", err)
	}
}

func TestListenAndServeListensOnEveryAddress(t *testing.T) {
	leveetest.CheckLeaks(t)
	socket := "unix:" + filepath.Join(t.TempDir(), "levee.sock")
	served := make(chan net.Addr, 2)
	srv := &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		served <- c.LocalAddr()
		return nil
	})}
	port := freePort(t)
	ctx, end := context.WithCancel(t.Context())
	returned := make(chan error)
	go func() { returned <- srv.ListenAndServe(ctx, port, socket) }()
	for _, address := range []string{port, socket} {
		awaitListener(t, address).Close()
		if got := (<-served).String(); got != strings.TrimPrefix(address, "unix:") {
			t.Errorf("served on %s, want %s", got, address)
		}
	}
	end()
	if err := <-returned; err != nil {
		t.Error(err)
	}
}

func TestAddressThatFailsClosesTheOthers(t *testing.T) {
	leveetest.CheckLeaks(t)
	taken, free := listenTCP(t).Addr().String(), freePort(t)
	srv := &levee.Server{Handler: echoing}
	err := srv.ListenAndServe(t.Context(), free, taken)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), taken) {
		t.Errorf("ListenAndServe returned %v", err)
	}
	l, err := levee.Listen(t.Context(), free)
	if err != nil {
		t.Fatalf("the first address is still taken: %v", err)
	}
	l.Close()
}

// freePort returns an address that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l := listenTCP(t)
	l.Close()
	return l.Addr().String()
}

// awaitListener dials until somebody listens.
func awaitListener(t *testing.T, address string) net.Conn {
	t.Helper()
	network, where := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, where = "unix", path
	}
	for {
		c, err := net.Dial(network, where)
		if err == nil {
			return c
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
