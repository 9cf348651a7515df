package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// A request is 4 bytes, and its answer the same 4.
const requestSize = 4

// answerRequests is the loop that Next is made for.
func answerRequests(c *levee.Conn) error {
	var request [requestSize]byte
	for c.Next() {
		if _, err := io.ReadFull(c, request[:]); err != nil {
			return err
		}
		if _, err := c.Write(request[:]); err != nil {
			return err
		}
	}
	return nil
}

func TestNextIsTrueForEveryRequestAndFalseAtTheEnd(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(answerRequests)})
		client := dial()
		for i := range 10 {
			request := fmt.Sprintf("%4d", i)
			send(t, client, request)
			want(t, client, request)
		}
		client.CloseWrite()
		if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
			t.Errorf("behind the answers: %q, %v", rest, err)
		}
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestPipelinedRequestsAreAllServed(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(answerRequests)})
		client := dial()
		var requests strings.Builder
		for i := range 5000 { // more than a block
			fmt.Fprintf(&requests, "%4d", i)
		}
		send(t, client, requests.String())
		client.CloseWrite()
		answers, err := io.ReadAll(client)
		if err != nil || string(answers) != requests.String() {
			t.Errorf("%d bytes of answers to %d bytes of requests, %v", len(answers), requests.Len(), err)
		}
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestNextReturnsFalseAtOnceWhenAskedToLeave(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		conns := make(chan *levee.Conn, 1)
		dial, ends := serve(&levee.Server{
			Trace:   &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) { conns <- c }},
			Handler: does(answerRequests),
		})
		for _, requests := range []int{0, 1, 2} {
			client := dial()
			for range requests {
				send(t, client, "ping")
				want(t, client, "ping")
			}
			(<-conns).Drain(nil) // it may be in the wait, before it or behind it
			if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
				t.Errorf("the peer read %q, %v", rest, err)
			}
			expectReason(t, ends, levee.Drained)
		}
	})
}

func TestNextReturnsFalseWhenKilled(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		conns := make(chan *levee.Conn, 1)
		said := make(chan bool, 1)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			conns <- c
			said <- c.Next()
			return nil
		})})
		dial()
		cause := errors.New("too loud")
		(<-conns).Kill(cause)
		if <-said {
			t.Error("Next said true")
		}
		expectReason(t, ends, levee.Killed)
	})
}

func TestRequestThatArrivedBeforeTheDrainIsServed(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		conns, proceed := make(chan *levee.Conn, 1), make(chan bool)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			conns <- c
			<-proceed
			return answerRequests(c)
		})})
		client := dial()
		send(t, client, "ping") // on the loopback interface it has arrived when this returns
		c := <-conns
		c.Drain(nil)
		proceed <- true
		want(t, client, "ping")
		if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
			t.Errorf("the peer read %q, %v", rest, err)
		}
		expectReason(t, ends, levee.Drained)
	})
}

// The request has arrived; the drain comes at any moment of the Next that finds it.
func TestNoRequestIsLostToADrainThatComesMeanwhile(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		conns, proceed := make(chan *levee.Conn), make(chan bool)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			conns <- c
			<-proceed
			return answerRequests(c)
		})})
		for range rounds {
			client := dial()
			send(t, client, "ping")
			c := <-conns
			go c.Drain(nil)
			proceed <- true
			want(t, client, "ping")
			client.Close()
			<-ends
		}
	})
}

func TestNextIsFalseWhenIdle(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{IdleTimeout: time.Minute, Handler: does(answerRequests)})
		client := dial()
		time.Sleep(59 * time.Second) // virtual time
		send(t, client, "ping")
		want(t, client, "ping")
		expectEndAt(t, ends, levee.IdleTimeout, time.Now(), time.Minute)
	})
}

// A peer that sends a request in the middle of a drain may still be answered;
// either way it is told where its connection ends.
func TestDrainDoesNotInterruptARequestThatHasBegun(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		conns := make(chan *levee.Conn, 1)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			if !c.Next() {
				return errors.New("no request")
			}
			conns <- c
			var request [requestSize]byte
			if _, err := io.ReadFull(c, request[:]); err != nil {
				return err
			}
			c.Write(request[:])
			if c.Next() {
				return errors.New("another request")
			}
			return nil
		})})
		client := dial()
		send(t, client, "pi")
		(<-conns).Drain(nil)
		send(t, client, "ng")
		want(t, client, "ping")
		expectReason(t, ends, levee.Drained)
	})
}

func TestNextFindsRequestsHoweverTheNetworkCutsThem(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				faulty := leveetest.FaultyListener(l, leveetest.Faults{Read: leveetest.Fault{Segment: 1}})
				srv := &levee.Server{Handler: does(answerRequests)}
				if secure {
					srv.TLSConfig = ca.ServerConfig("localhost")
				}
				ends := stage(t, srv, faulty)
				var client peer = dial(t, l)
				if secure {
					client = handshaken(t, client, ca.ClientConfig("localhost"))
				}
				for i := range 20 {
					request := fmt.Sprintf("%4d", i)
					send(t, client, request)
					want(t, client, request)
				}
				client.CloseWrite()
				expectReason(t, ends, levee.ClientClosed)
			})
		})
	}
}

// coalescing holds written bytes back until they are let go in one segment.
type coalescing struct {
	net.Conn
	held bytes.Buffer
}

func (c *coalescing) Write(p []byte) (int, error) { return c.held.Write(p) }

func (c *coalescing) letGo() error {
	_, err := c.Conn.Write(c.held.Bytes())
	c.held.Reset()
	return err
}

func TestSeveralRecordsInOneSegmentAreSeveralRequests(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	dial, ends := overTCP(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(answerRequests)})
	segment := &coalescing{Conn: dial()}
	through := tls.Client(letThrough{segment}, ca.ClientConfig("localhost"))
	if err := through.Handshake(); err != nil {
		t.Fatal(err)
	}
	for _, requests := range []int{1, 3, 200} {
		for range requests {
			segment.held.Grow(100)
			if _, err := through.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
		}
		if err := segment.letGo(); err != nil {
			t.Fatal(err)
		}
		want(t, through, strings.Repeat("ping", requests))
	}
	through.Close()
	segment.letGo()
	segment.Close()
	expectReason(t, ends, levee.ClientClosed)
}

// letThrough lets a handshake's flights go by themselves: before each Read.
type letThrough struct{ *coalescing }

func (l letThrough) Read(p []byte) (int, error) {
	if l.held.Len() > 0 {
		if err := l.letGo(); err != nil {
			return 0, err
		}
	}
	return l.coalescing.Read(p)
}

// OpenSSL's client can ask for key updates; its tickets, those of the server, go
// the other way.
func TestNextIsNotMisledByKeyUpdates(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here:", err)
	}
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	l := listenTCP(t)
	ends := stage(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(answerRequests)}, l)
	client := exec.Command(openssl, "s_client", "-connect", l.Addr().String(), "-tls1_3", "-servername", "localhost")
	in, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, screen := io.Pipe()
	client.Stdout, client.Stderr = screen, screen
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() {
		exited <- client.Wait()
		screen.Close()
	}()
	seen := make(chan string)
	go func() {
		defer close(seen)
		b := make([]byte, 64<<10)
		for {
			n, err := out.Read(b)
			if n > 0 {
				seen <- string(b[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	output := ""
	awaitOutput := func(text string) {
		t.Helper()
		for !strings.Contains(output, text) {
			more, ok := <-seen
			if !ok {
				t.Fatalf("openssl said %q and left, want %q", output, text)
			}
			output += more
		}
		_, output, _ = strings.Cut(output, text)
	}
	for _, line := range []string{"1st", "K", "2nd", "k", "3rd", "K", "4th"} {
		fmt.Fprintln(in, line)
		if len(line) == 1 {
			awaitOutput("KEYUPDATE")
		} else {
			awaitOutput(line)
		}
	}
	in.Close()
	for range seen {
		continue
	}
	<-exited
	expectReason(t, ends, levee.ClientClosed)
}

// heapOf returns what is in use after the collector has been at it, and has
// emptied the pools.
func heapOf() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The cost is compared with that of connections that each hold a block.
func TestConnectionsThatWaitInNextHoldNoBuffer(t *testing.T) {
	const conns, block = 200, 4 << 10
	for _, transport := range transports {
		if transport.name == "memory" || transport.name == "TLS in memory" {
			continue // which can only be waited for with a buffer
		}
		t.Run(transport.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			cost := func(peeks int) uint64 {
				var perConn uint64
				t.Run(fmt.Sprintf("holding %d bytes", peeks), func(t *testing.T) {
					waiting := make(chan bool, conns)
					dial, ends := transport.serve(t, &levee.Server{
						Handler: handle(func(ctx context.Context, c *levee.Conn) error {
							for c.Next() {
								want(t, c, "ping")
								c.Write([]byte("pong"))
								if _, err := c.Peek(peeks); err != nil {
									return err
								}
								waiting <- true
								if peeks > 0 {
									<-ctx.Done()
									return nil
								}
							}
							return nil
						}),
					})
					before := heapOf()
					clients := make([]peer, conns)
					for i := range clients {
						clients[i] = dial()
						send(t, clients[i], "ping")
						want(t, clients[i], "pong")
						if peeks > 0 {
							send(t, clients[i], "x")
						}
						<-waiting
					}
					perConn = (heapOf() - before) / conns
					runtime.KeepAlive(clients)
					for _, c := range clients {
						c.Close()
						if peeks == 0 {
							<-ends
						}
					}
				})
				return perConn
			}
			empty, full := cost(0), cost(1)
			t.Logf("%d bytes a connection and its peer, %d with a block held", empty, full)
			if full < empty+block*9/10 {
				t.Errorf("%d bytes for a waiting connection, %d for one that holds a block: where is the block?", empty, full)
			}
			if strings.HasPrefix(transport.name, "TLS") {
				return // what crypto/tls keeps is its own affair
			}
			if empty > block {
				t.Errorf("%d bytes for a waiting connection and its peer", empty)
			}
		})
	}
}

func TestNextAllocatesNothingInSteadyState(t *testing.T) {
	if underRaceDetector() {
		t.Skip("the race detector makes sync.Pool forget on purpose")
	}
	for _, transport := range transports[:2] {
		t.Run(transport.name, func(t *testing.T) {
			dial, _ := transport.serve(t, &levee.Server{Handler: does(answerRequests)})
			client := dial()
			message := []byte("ping")
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would empty the pool
			allocations := testing.AllocsPerRun(1000, func() {
				client.Write(message)
				if _, err := io.ReadFull(client, message); err != nil {
					t.Error(err)
				}
			})
			if allocations > 0 {
				t.Errorf("%v allocations for a request and its answer", allocations)
			}
		})
	}
}

// underRaceDetector reports how the test was built.
func underRaceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	for _, setting := range info.Settings {
		if setting.Key == "-race" {
			return setting.Value == "true"
		}
	}
	return false
}

func TestNextHeedsTheHandlersOwnDeadline(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		timedOut := make(chan bool)
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			defer close(timedOut)
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if c.Next() {
				t.Error("Next said true")
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v", err)
			}
			c.SetReadDeadline(time.Time{})
			timedOut <- true
			return answerRequests(c)
		})})
		client := dial()
		<-timedOut
		send(t, client, "ping")
		want(t, client, "ping")
		client.CloseWrite()
		expectReason(t, ends, levee.ClientClosed)
	})
}

func TestContextEndsWithTheReasonAsItsCause(t *testing.T) {
	leveetest.CheckLeaks(t)
	causes := make(chan error, 1)
	cause := errors.New("too loud")
	dial, ends := overTCP(t, &levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
		go c.Kill(cause)
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	})})
	dial()
	err := <-causes
	if reasonOf(err) != levee.Killed || !errors.Is(err, cause) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("the context's cause is %v", err)
	}
	expectReason(t, ends, levee.Killed)
}

func TestOneReadAfterNextTakesMoreThanABlock(t *testing.T) {
	const size, block = 16 << 10, 4 << 10
	sent, read := make(chan struct{}), make(chan int, 1)
	dial, _ := overTCP(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
		<-sent // on loopback it has arrived when it has been sent
		c.Next()
		n, err := c.Read(make([]byte, size))
		read <- n
		return err
	})})
	client := dial()
	send(t, client, strings.Repeat("x", size))
	close(sent)
	if n := <-read; n <= block {
		t.Errorf("the first read took %d of %d bytes that had arrived", n, size)
	}
}

func TestReadIntoNothingTakesNothing(t *testing.T) {
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			if n, err := c.Read(nil); n != 0 || err != nil {
				t.Errorf("Read(nil) of a silent peer: %d, %v", n, err)
			}
			want(t, c, "once")
			_, err := io.WriteString(c, "so")
			return err
		})})
		client := dial()
		// Over TLS the handshake alone does not tell that the handler is there.
		send(t, client, "once")
		want(t, client, "so")
		expectReason(t, ends, levee.HandlerClosed)
	})
}

// sluggish is a connection on a machine that has so much to do that over a millisecond goes by between a deadline being set and the
// read that it is for.
type sluggish struct{ net.Conn }

func (s sluggish) SetReadDeadline(at time.Time) error {
	err := s.Conn.SetReadDeadline(at)
	if until := time.Until(at); until > 0 && until < time.Second {
		time.Sleep(1100 * time.Microsecond) // virtual time
	}
	return err
}

type sluggishListener struct{ *leveetest.Listener }

func (l sluggishListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return sluggish{c}, err
}

func TestWhatHasArrivedIsAnsweredAlsoByAMachineThatLooksLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		goOn := make(chan struct{})
		s := serve(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
			for b := make([]byte, 4); c.Next(); {
				if _, err := io.ReadFull(c, b); err != nil {
					return err
				}
				<-goOn
				_, _ = c.Write(b)
			}
			return nil
		})}, sluggishListener{l})
		client := dial(t, l)
		send(t, client, "one\n")
		synctest.Wait()
		send(t, client, "two\n")
		s.Conns()[0].Drain(nil)
		close(goOn)
		want(t, client, "one\ntwo\n")
		wantEOF(t, client)
	})
}
