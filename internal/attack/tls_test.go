package attack_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
	"github.com/levee-net/levee/leveetest"
)

// echoInTLS serves echo in TLS.
func echoInTLS(config *tls.Config) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		secure := tls.Server(c, config)
		_, _ = io.Copy(secure, secure)
	}
}

func TestHandshakesAreFullOnes(t *testing.T) {
	config := leveetest.NewCA(t).ServerConfig("localhost")
	saw := look[tls.ConnectionState](t)
	var served atomic.Int64
	target := serve(t, func(c *net.TCPConn) {
		secure := tls.Server(c, config)
		if err := secure.Handshake(); err != nil {
			return
		}
		if served.Add(1) > 1 { // the second could resume
			saw.tell(secure.ConnectionState())
		}
	})
	f := small(target)
	f.Connections = 1
	state, tally := saw.of(t, f, "handshakes")
	if !state.HandshakeComplete || state.DidResume || tally.Left == 0 {
		t.Errorf("%+v, %+v", state, tally)
	}
}

// helloOf is what a TLS server reads of an attack.
func helloOf(t *testing.T, name string) (tls.ClientHelloInfo, attack.Tally) {
	t.Helper()
	saw := look[tls.ClientHelloInfo](t)
	config := leveetest.NewCA(t).ServerConfig("localhost", "*.example.com")
	var mu sync.Mutex
	last := ""
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		if last != "" { // what it told of the first has gone out
			copied := *hello
			saw.tell(copied)
			if name == "names" && hello.ServerName == last {
				t.Errorf("%s comes again", last)
			}
		}
		last = hello.ServerName
		return nil, nil
	}
	f := small(serve(t, echoInTLS(config)))
	f.Connections = 1
	return saw.of(t, f, name)
}

func TestHellosLeaveOnceTheyAreAnswered(t *testing.T) {
	if hello, tally := helloOf(t, "hellos"); hello.ServerName != "localhost" || tally.Left == 0 {
		t.Errorf("hello for %s, %+v", hello.ServerName, tally)
	}
}

func TestNamesAreNewOnes(t *testing.T) {
	if hello, tally := helloOf(t, "names"); !strings.HasSuffix(hello.ServerName, ".example.com") || tally.Left == 0 {
		t.Errorf("hello for %s, %+v", hello.ServerName, tally)
	}
}

func TestFragmentsAreAHelloInRecordsOfOneByte(t *testing.T) {
	if hello, tally := helloOf(t, "fragments"); hello.ServerName != "localhost" || tally.Left == 0 {
		t.Errorf("hello for %s, %+v", hello.ServerName, tally)
	}
	target, saw := first(t, 12)
	if r, _ := saw.of(t, small(target), "fragments"); !bytes.HasPrefix(r.all, []byte{22, 3, 3, 0, 1, 1, 22, 3, 3, 0, 1}) { // a ClientHello is handshake message 1
		t.Errorf("it begins with %x", r.all)
	}
}

func TestSilenceHasMadeItsHandshake(t *testing.T) {
	config := leveetest.NewCA(t).ServerConfig("localhost")
	saw := look[error](t)
	target := serve(t, func(c *net.TCPConn) {
		secure := tls.Server(c, config)
		if err := secure.Handshake(); err != nil {
			saw.tell(err)
			return
		}
		secure.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := secure.Read(make([]byte, 1))
		saw.tell(err)
	})
	if err, _ := saw.of(t, small(target), "silence"); !isTimeout(err) {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error) //nolint:errorlint // as it comes from the connection
	return ok && timeout.Timeout()
}

// TestKeyUpdatesAreUnderstood: a TLS server reads the requests, each byte under a key of
// its own.
func TestKeyUpdatesAreUnderstood(t *testing.T) {
	config := leveetest.NewCA(t).ServerConfig("localhost")
	const size = 1000
	type found struct {
		read    []byte
		records int
		err     error
	}
	saw := look[found](t)
	target := serve(t, func(c *net.TCPConn) {
		counted := &recordCounter{Conn: c, in: bufio.NewReader(c)}
		secure := tls.Server(counted, config)
		if err := secure.Handshake(); err != nil {
			return
		}
		counted.records = 0
		read := make([]byte, size)
		_, err := io.ReadFull(secure, read)
		saw.tell(found{read, counted.records, err})
	})
	f := small(target)
	f.Connections = 1
	got, _ := saw.of(t, f, "key-updates")
	if want := bytes.Repeat(request, size)[:size]; !bytes.Equal(got.read, want) || got.err != nil {
		t.Errorf("the server read %q, %v", got.read, got.err)
	}
	if got.records < 2*size {
		t.Errorf("%d records for %d bytes", got.records, size)
	}
}

// A recordCounter counts TLS records as they are read.
type recordCounter struct {
	net.Conn
	in      *bufio.Reader
	left    int // of the record
	records int
}

func (c *recordCounter) Read(p []byte) (int, error) {
	if c.left == 0 {
		header, err := c.in.Peek(5)
		if err != nil {
			return 0, err
		}
		c.left = 5 + int(header[3])<<8 + int(header[4])
		c.records++
	}
	n, err := c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// TestKeyUpdatesAreUnderstoodInEverySuite asks a server that lets them be chosen.
func TestKeyUpdatesAreUnderstoodInEverySuite(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"} {
		target := serveOpenSSL(t, openssl, suite)
		ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
		f := small(target)
		f.Connections = 1
		tally := attack.Strike(ctx, t, f, "key-updates")
		stop()
		if tally.Attempts != 1 || tally.Held != 1 {
			t.Errorf("%s: the server has not stayed: %+v", suite, tally)
		}
	}
}

func TestKeysAreNotChangedInASuiteThatIsNotSpoken(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	f := small(serveOpenSSL(t, openssl, "TLS_CHACHA20_POLY1305_SHA256"), "key-updates")
	f.TLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test's own server
	f.Protocol = attack.Exchange([]byte("abc\n"), []byte("cba\n"))
	if got := run(t, f).Results[0].Skipped; got != "the server does not speak TLS 1.3 with AES" {
		t.Errorf("skipped because %q", got)
	}
}

// serveOpenSSL is a server that answers lines with themselves, backwards.
func serveOpenSSL(t *testing.T, openssl, suite string) netip.AddrPort {
	t.Helper()
	cert, key := leveetest.NewCA(t).WriteFiles(t.TempDir(), "localhost")
	server := exec.CommandContext(t.Context(), openssl, "s_server", "-rev", "-accept", "127.0.0.1:0", "-tls1_3", "-ciphersuites", suite, "-cert", cert, "-key", key)
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	server.Stderr = server.Stdout
	if err := server.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if where, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return netip.MustParseAddrPort(where)
		}
	}
	t.Skip("openssl s_server does not say where it listens")
	panic("unreachable")
}
