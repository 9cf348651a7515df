package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func TestTLSTellsWhatTheHandshakeAgreedOn(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("db.example.com", "localhost")
	config.NextProtos = []string{"levee/2", "levee/1"}
	config.ClientAuth = tls.VerifyClientCertIfGiven
	states := make(chan *tls.ConnectionState, 1)
	took := make(chan error, 1)
	dial, ends := overTCP(t, &levee.Server{
		TLSConfig: config,
		Trace:     &levee.Trace{Handshake: func(_ *levee.Conn, _ time.Duration, err error) { took <- err }},
		Handler: does(func(c *levee.Conn) error {
			states <- c.TLS()
			return echo(c)
		}),
	})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client := ca.ClientConfig("db.example.com")
		client.NextProtos = []string{"levee/1"}
		client.Certificates = []tls.Certificate{ca.ClientCertificate("alice")}
		client.MinVersion, client.MaxVersion = version, version
		c := handshaken(t, dial(), client)
		state := <-states
		if state == nil || state.ServerName != "db.example.com" || state.NegotiatedProtocol != "levee/1" || state.Version != version ||
			len(state.PeerCertificates) != 1 || state.PeerCertificates[0].Subject.CommonName != "alice" {
			t.Errorf("TLS() is %+v", state)
		}
		if err := <-took; err != nil {
			t.Error(err)
		}
		c.Close()
		expectReason(t, ends, levee.ClientClosed)
	}
}

func TestFirstByteDecidesBetweenTLSAndPlaintext(t *testing.T) {
	ca := leveetest.NewCA(t)
	onePort := func() *levee.Server {
		return &levee.Server{
			TLSConfig: ca.ServerConfig("localhost"), AllowPlaintext: true,
			Handler: does(func(c *levee.Conn) error {
				fmt.Fprintf(c, "TLS: %t\n", c.TLS() != nil)
				return echo(c)
			}),
		}
	}
	synctest.Test(t, func(t *testing.T) {
		dial, ends := inMemory(t, onePort())
		secure := handshaken(t, dial(), ca.ClientConfig("localhost"))
		want(t, secure, "TLS: true\n")
		secure.Close()
		expectReason(t, ends, levee.ClientClosed)

		plain := dial()
		send(t, plain, "x")
		want(t, plain, "TLS: false\nx")
		plain.Close()
		expectReason(t, ends, levee.ClientClosed)

		dial().Close()
		expectReason(t, ends, levee.ClientAborted)

		dial().Reset()
		expectReason(t, ends, levee.ClientReset)

		shy := dial()
		expectEndAt(t, ends, levee.ArrivalTimeout, time.Now(), 5*time.Second)
		if _, err := shy.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client that said nothing read %v", err)
		}
	})
}

func TestHandshakeThatFailsIsToldByAnAlert(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("localhost")
	config.NextProtos = []string{"levee/1"}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	dial, ends := overTCP(t, &levee.Server{TLSConfig: config, Handler: does(func(*levee.Conn) error {
		t.Error("the handler was called")
		return nil
	})})
	stranger := leveetest.NewCA(t)
	for _, bad := range []struct {
		name   string
		change func(*tls.Config)
		alert  string
	}{
		{"ALPN", func(c *tls.Config) { c.NextProtos = []string{"other"} }, "no application protocol"},
		{"version", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "protocol version not supported"},
		{"no certificate", func(c *tls.Config) { c.Certificates = nil }, "certificate required"},
		{"a stranger's certificate", func(c *tls.Config) {
			own := stranger.ClientCertificate("mallory")
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
		}, "unknown certificate authority"},
	} {
		client := ca.ClientConfig("localhost")
		client.Certificates = []tls.Certificate{ca.ClientCertificate("alice")}
		bad.change(client)
		c := tls.Client(dial(), client)
		err := c.Handshake()
		if err == nil { // in TLS 1.3 the client is done before the server is
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), bad.alert) {
			t.Errorf("%s: the client got %v, want %q", bad.name, err, bad.alert)
		}
		end := expectReason(t, ends, levee.TLSFailed)
		if end.Err == nil {
			t.Errorf("%s: no error", bad.name)
		}
		c.Close()
	}
	t.Run("a client that does not trust the server", func(t *testing.T) {
		c := tls.Client(dial(), stranger.ClientConfig("localhost"))
		if err := c.Handshake(); err == nil {
			t.Error("the handshake succeeded")
		}
		expectReason(t, ends, levee.TLSFailed)
	})
	t.Run("garbage", func(t *testing.T) {
		for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05hello", strings.Repeat("\x00", 100_000)} {
			c := dial()
			c.Write([]byte(garbage))
			expectReason(t, ends, levee.TLSFailed)
			got, err := io.ReadAll(c)
			if garbage[0] == 22 && (err != nil || len(got) != 7 || got[0] != 21) {
				t.Errorf("to %.20q it answered %q, %v, want an alert", garbage, got, err)
			}
			c.Close()
		}
	})
	t.Run("a client that leaves in the middle", func(t *testing.T) {
		c := dial()
		send(t, c, clientHello(t)[:100])
		c.Close()
		expectReason(t, ends, levee.ClientAborted)
	})
}

func TestPanicInATLSCallbackEndsThatConnectionOnly(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("localhost")
	good := config.Certificates[0]
	config.Certificates = nil
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "panic" {
			panic("no such name")
		}
		return &good, nil
	}
	srv := &levee.Server{TLSConfig: config, Handler: echoing}
	dial, ends := overTCP(t, srv)
	neighbour := handshaken(t, dial(), ca.ClientConfig("localhost"))
	if err := tls.Client(dial(), ca.ClientConfig("panic")).Handshake(); err == nil {
		t.Error("the handshake succeeded")
	}
	expectReason(t, ends, levee.HandlerPanic)
	send(t, neighbour, "still here")
	want(t, neighbour, "still here")
	if stats := srv.Stats(); stats.Panics != 1 || stats.Active != 1 {
		t.Errorf("%d panics, %d connections active", stats.Panics, stats.Active)
	}
}

func TestCloseNotifyIsSentAtTheEnd(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	for name, end := range map[string]func(c *levee.Conn) error{
		"return":     func(*levee.Conn) error { return nil },
		"error":      func(*levee.Conn) error { return errors.New("of its own") },
		"Close":      func(c *levee.Conn) error { return c.Close() },
		"CloseWrite": func(c *levee.Conn) error { return c.CloseWrite() },
	} {
		dial, _ := overTCP(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(func(c *levee.Conn) error {
			send(t, c, "bye")
			return end(c)
		})})
		tap := &tapped{Conn: dial()}
		client := tls.Client(tap, ca.ClientConfig("localhost"))
		got, err := io.ReadAll(client)
		if string(got) != "bye" || err != nil {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
		// crypto/tls returns io.EOF for a bare FIN between two records, too.
		if size := lastRecord(tap.got.Bytes()); size != 19 { // an alert of 2 bytes, its type and the tag of 16
			t.Errorf("%s: the last record has %d bytes, want an alert's 19", name, size)
		}
		client.Close()
	}
}

// tapped remembers what was read.
type tapped struct {
	net.Conn
	got bytes.Buffer
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got.Write(p[:n])
	return n, err
}

// lastRecord returns the size of the last record's body.
func lastRecord(records []byte) (size int) {
	for len(records) >= 5 {
		size = int(records[3])<<8 | int(records[4])
		if len(records) < 5+size {
			return -1
		}
		records = records[5+size:]
	}
	return size
}

func TestHalfCloseWorksBothWays(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		t.Run("the client's side first", func(t *testing.T) {
			dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
				got, err := io.ReadAll(c)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c, "%d bytes", len(got))
				return err
			})})
			client := dial()
			send(t, client, strings.Repeat("x", 100_000))
			client.CloseWrite()
			want(t, client, "100000 bytes")
			expectReason(t, ends, levee.ClientClosed)
		})
		t.Run("the server's side first", func(t *testing.T) {
			received := make(chan int, 1)
			dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
				send(t, c, "go on")
				if err := c.CloseWrite(); err != nil {
					return err
				}
				if _, err := c.Write([]byte("x")); err == nil {
					t.Error("a Write after CloseWrite succeeded")
				}
				got, err := io.ReadAll(c)
				received <- len(got)
				return err
			})})
			client := dial()
			if got, err := io.ReadAll(client); string(got) != "go on" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			send(t, client, strings.Repeat("x", 100_000))
			client.CloseWrite()
			if n := <-received; n != 100_000 {
				t.Errorf("%d bytes arrived", n)
			}
			<-ends
		})
	})
}

// Handlers that set write deadlines at random, in the middle of records, and go on
// with what Write says was not written: the peer's stream stays byte-exact.
func TestWriteDeadlineInMidRecordDoesNotPoisonTheConnection(t *testing.T) {
	const size = 4 << 20
	message := make([]byte, size)
	for i := range message {
		message[i] = byte(i * i >> 7)
	}
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		timeouts := make(chan int, 1)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			random := rand.New(rand.NewPCG(1, 2))
			count := 0
			for sent := 0; sent < size; {
				c.SetWriteDeadline(time.Now().Add(time.Duration(random.IntN(300)) * time.Microsecond))
				n, err := c.Write(message[sent:min(size, sent+random.IntN(1<<20)+1)])
				sent += n
				if errors.Is(err, os.ErrDeadlineExceeded) {
					count++
				} else if err != nil {
					return err
				}
			}
			timeouts <- count
			c.SetWriteDeadline(time.Time{})
			return c.CloseWrite()
		})})
		client := dial()
		var got bytes.Buffer
		buffer := make([]byte, 50_000)
		random := rand.New(rand.NewPCG(3, 4))
		for {
			n, err := client.Read(buffer[:1+random.IntN(len(buffer))])
			got.Write(buffer[:n])
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				break
			}
			if random.IntN(20) == 0 {
				<-time.After(time.Duration(random.IntN(3000)) * time.Microsecond) // a reader with pauses
			}
		}
		if !bytes.Equal(got.Bytes(), message) {
			t.Fatalf("%d bytes arrived and differ from the %d that were sent", got.Len(), size)
		}
		client.Close()
		<-ends
		if n := <-timeouts; n == 0 && strings.Contains(t.Name(), "TLS") { // a socket's buffer may take it all at once
			t.Error("no write met its deadline: the test shows nothing")
		}
	})
}

// The FIN does not overtake the rest of a record.
func TestCloseWriteDoesNotCutARecordShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		sent := make(chan int, 1)
		dial, ends := inMemory(t, &levee.Server{
			TLSConfig: ca.ServerConfig("localhost"),
			Handler: does(func(c *levee.Conn) error {
				c.SetWriteDeadline(time.Now().Add(time.Second))
				n, err := c.Write(make([]byte, 1<<20))
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Write: %v", err)
				}
				sent <- n
				if err := c.CloseWrite(); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("CloseWrite after the deadline: %v", err)
				}
				c.SetWriteDeadline(time.Time{})
				return c.CloseWrite()
			}),
		})
		client := handshaken(t, dial(), ca.ClientConfig("localhost"))
		time.Sleep(2 * time.Second) // virtual time
		got, err := io.ReadAll(client)
		if n := <-sent; len(got) != n || err != nil {
			t.Errorf("%d bytes arrived of %d, %v", len(got), n, err)
		}
		client.Close()
		<-ends
	})
}

// A peer that does not read cannot hold up a connection whose handler is done.
func TestGoodbyeToAPeerThatDoesNotReadIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		dial, ends := inMemory(t, &levee.Server{
			TLSConfig: ca.ServerConfig("localhost"),
			Handler: does(func(c *levee.Conn) error {
				c.SetWriteDeadline(time.Now().Add(time.Second))
				c.Write(make([]byte, 1<<20))
				return nil
			}),
		})
		handshaken(t, dial(), ca.ClientConfig("localhost"))
		expectEndAt(t, ends, levee.HandlerClosed, time.Now(), 1501*time.Millisecond) // with a last look of 1 ms for bytes
	})
}

// The handler has returned and left a goroutine in a Write.
func TestWriterLeftBehindDoesNotHoldUpTheGoodbye(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		left := make(chan error, 1)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			go func() {
				_, err := c.Write(make([]byte, 64<<20))
				left <- err
			}()
			for before := int64(-1); ; { // until the socket's buffers are full
				<-time.After(20 * time.Millisecond)
				_, written := c.Traffic()
				if written == before {
					return nil
				}
				before = written
			}
		})})
		dial()
		start := time.Now()
		expectReason(t, ends, levee.HandlerClosed)
		if took := time.Since(start); took > 10*time.Second { // a stalled Write takes 30
			t.Errorf("it took %v", took)
		}
		if err := <-left; err == nil {
			t.Error("the Write that was left behind succeeded")
		}
	})
}

func TestWritesFromSeveralGoroutinesDoNotMix(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		const writers, size = 4, 300_000 // many records, and more than a socket's buffer takes at once
		dial, _ := serve(&levee.Server{
			WriteStallTimeout: 40 * time.Millisecond, // looked at every 10 ms, so that a Write is interrupted
			Handler: does(func(c *levee.Conn) error {
				var all sync.WaitGroup
				for i := range writers {
					all.Go(func() {
						for range 4 {
							if _, err := c.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
								t.Error(err)
							}
						}
					})
				}
				all.Wait()
				return nil
			}),
		})
		client := dial()
		message := make([]byte, size)
		for range writers * 4 {
			<-time.After(5 * time.Millisecond) // so that the socket's buffer fills
			if _, err := io.ReadFull(client, message); err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(message, message[:1]); n != size {
				t.Fatalf("a Write of %d bytes has %d of another one in it", size, size-n)
			}
		}
	})
}

func TestHandlerMayUseAConnectionFromFourGoroutines(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		for _, kill := range []bool{false, true} {
			dial, ends := serve(&levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
				var all sync.WaitGroup
				all.Go(func() { _ = echoNothing(c) })
				all.Go(func() {
					for {
						if _, err := c.Write(make([]byte, 1000)); err != nil {
							return
						}
					}
				})
				all.Go(func() {
					for range 100 {
						c.SetDeadline(time.Now().Add(time.Hour))
						c.TLS()
						c.Traffic()
						c.Draining()
						c.RemoteAddr()
						c.Reason()
						c.SetDeadline(time.Time{})
					}
					c.Close()
				})
				all.Go(func() {
					if kill {
						c.Kill(nil)
					}
				})
				<-ctx.Done()
				all.Wait()
				return ctx.Err()
			})})
			for range 20 {
				client := dial()
				go io.Copy(client, io.LimitReader(zeroes{}, 100_000))
				io.Copy(io.Discard, client)
				client.Close()
				<-ends
			}
		}
	})
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Whoever asks the server for its connections may ask them anything, also while
// they arrive.
func TestConnectionCanBeAskedWhileItArrives(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	srv := &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: echoing}
	dial, _ := overTCP(t, srv)
	stop := make(chan struct{})
	var asker sync.WaitGroup
	asker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, c := range srv.Conns() {
				if state := c.TLS(); state != nil && !state.HandshakeComplete {
					t.Error("TLS() tells of a handshake that is not complete")
				}
				c.ClientAddr()
				c.Reason()
				c.Traffic()
			}
		}
	})
	for range 20 {
		handshaken(t, dial(), ca.ClientConfig("localhost")).Close()
	}
	close(stop)
	asker.Wait()
}

func TestOpenSSLClientGetsAlong(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here:", err)
	}
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/ca.pem", ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		l := listenTCP(t)
		ends := stage(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(func(c *levee.Conn) error {
			line := make([]byte, 6)
			if _, err := io.ReadFull(c, line); err != nil {
				return err
			}
			_, err := c.Write(bytes.ToUpper(line))
			return err
		})}, l)
		client := exec.Command(openssl, "s_client", "-connect", l.Addr().String(), version, "-servername", "localhost",
			"-CAfile", dir+"/ca.pem", "-verify_return_error", "-quiet", "-no_ign_eof")
		var stderr bytes.Buffer
		in, _ := client.StdinPipe()
		client.Stderr = &stderr
		out, _ := client.StdoutPipe()
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		send(t, in, "hello\n")
		got, _ := io.ReadAll(out)
		in.Close()
		if err := client.Wait(); err != nil || string(got) != "HELLO\n" || strings.Contains(stderr.String(), "unexpected eof") {
			t.Errorf("%s: openssl got %q, %v: %s", version, got, err, &stderr)
		}
		expectReason(t, ends, levee.HandlerClosed)
	}
}
