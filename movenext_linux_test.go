package levee_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// tallying answers each line with how many there were, wherever.
var tallying = handle(func(_ context.Context, c *levee.Conn) error {
	lines, _ := strconv.Atoi(string(c.Saved()))
	c.MovesWith(func() ([]byte, error) { return []byte(strconv.Itoa(lines)), nil })
	for c.Next() {
		line, err := readLine(c)
		if err != nil {
			return err
		}
		if line == "panic" {
			c.MovesWith(func() ([]byte, error) { panic("no") })
		}
		lines++
		if _, err := fmt.Fprintf(c, "%d line\n", lines); err != nil {
			return err
		}
	}
	return nil
})

// readLine takes a line, and no more.
func readLine(c *levee.Conn) (string, error) {
	for n := 1; ; n++ {
		b, err := c.Peek(n)
		if err != nil {
			return "", err
		}
		if b[n-1] == '\n' {
			line := string(b[:n-1])
			_, err := io.ReadFull(c, make([]byte, n))
			return line, err
		}
	}
}

func TestAHandlerThatWaitsInNextGoesOnInAnotherProcess(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, listen := range map[string]func(testing.TB) net.Listener{"TCP": listenTCP, "Unix": listenUnix} {
		t.Run(name, func(t *testing.T) {
			one, two := build(t, &levee.Server{Handler: tallying}), build(t, &levee.Server{Handler: tallying})
			l := listen(t)
			serve2(t, one, l)
			client := dialTCP(t, l)
			if err := exchangeAs(client, "a\n", "1 line\n"); err != nil {
				t.Fatal(err)
			}
			c := one.only()
			p := one.pack(c)
			send(t, client, "b\n")
			p.Unpack()
			want(t, client, "2 line\n")
			now := one.move(two, c)
			if err := exchangeAs(client, "c\nd\n", "3 line\n4 line\n"); err != nil {
				t.Error(err)
			}
			if string(now.Saved()) != "2" || c.Saved() != nil || now.ID() != c.ID() || now.PeerAddr().String() != c.PeerAddr().String() {
				t.Errorf("saved %q; %v, %v", now.Saved(), now.ID(), now.PeerAddr())
			}
			if _, err := c.Write([]byte("lost")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("writing where it has left: %v", err)
			}
			one.wantCounts(1, 0, 0, 1, 0)
			two.wantCounts(0, 1, 1, 0, 0)
			now = two.move(one, now) // and back
			if err := exchangeAs(client, "e\n", "5 line\n"); err != nil {
				t.Error(err)
			}
			_ = client.(peer).CloseWrite()
			if end := receive(t, one.ends); end.Reason != levee.ClientClosed || end.Read != 10 || end.Written != 35 || now.Reason() != end.Reason {
				t.Errorf("%+v", end)
			}
		})
	}
}

func TestWhoHasGivenUpPackingABusyConnectionKeepsNobodyFromIt(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, kind := range map[string]func(work <-chan struct{}) levee.Handler{
		"in a goroutine": func(work <-chan struct{}) levee.Handler {
			return handle(func(_ context.Context, c *levee.Conn) error {
				c.MovesWith(func() ([]byte, error) { return nil, nil })
				for c.Next() {
					if _, err := readLine(c); err != nil {
						return err
					}
					<-work
				}
				return nil
			})
		},
		"on an event loop": func(work <-chan struct{}) levee.Handler { return &toiling{work: work} },
	} {
		t.Run(name, func(t *testing.T) {
			work := make(chan struct{})
			one := build(t, &levee.Server{Handler: kind(work), StepBudget: time.Millisecond})
			client := dialTCP(t, one.listener)
			c := one.only()
			send(t, client, "a\n")
			for c.Story().Moments == (levee.Moments{}) || func() bool { read, _ := c.Traffic(); return read == 0 }() {
				<-time.After(time.Millisecond)
			}
			<-time.After(20 * time.Millisecond) // until the loop has let go of the call
			brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if parcels := one.Pack(brief, c); len(parcels) != 0 {
				t.Fatal("it is packed while it is busy")
			}
			packed := make(chan []*levee.Parcel, 1)
			go func() { packed <- one.Pack(t.Context(), c) }() // ends when the connection is to be had
			<-time.After(20 * time.Millisecond)
			close(work)
			parcels := <-packed
			if len(parcels) != 1 {
				t.Fatal("who asks next does not get it")
			}
			parcels[0].Unpack()
		})
	}
}

// A toiling Stepper takes a line, and its time.
type toiling struct {
	levee.Stateless
	work <-chan struct{}
}

func (s *toiling) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, s) }

func (s *toiling) Step(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) {
	<-s.work
	return len(in), nil, nil
}

// serve2 has a server serve on another listener.
func serve2(t testing.TB, h *house, l net.Listener) {
	done := make(chan struct{})
	go func() { // ends with the server
		defer close(done)
		_ = h.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		_ = h.Close()
		<-done
	})
}

func TestABusyHandlerMovesBetweenTwoRequestsWithThoseThatWereReadAhead(t *testing.T) {
	leveetest.CheckLeaks(t)
	houses := [2]*house{build(t, &levee.Server{Handler: tallying}), build(t, &levee.Server{Handler: tallying})}
	client := dialTCP(t, houses[0].listener)
	c, stop, asked := houses[0].only(), make(chan struct{}), make(chan int, 1)
	go func() { // ends when the test lets it
		for n := 0; ; n++ {
			select {
			case <-stop:
				_ = client.(peer).CloseWrite()
				asked <- n
				return
			default:
				_, _ = io.WriteString(client, "a line\n")
			}
		}
	}()
	lines, over := make(chan int, 1), sha256.New()
	go func() { // the same
		n, s := 0, bufio.NewScanner(io.TeeReader(client, over))
		for ; s.Scan(); n++ {
			if s.Text() != fmt.Sprint(n+1, " line") {
				t.Errorf("answer %d is %q", n+1, s.Text())
			}
		}
		lines <- n
	}()
	at, ahead := 0, 0
	for range 40 {
		before := traffic(c)[1]
		eventually(t, "it is answered", func() bool { return traffic(c)[1] > before })
		p := houses[at].pack(c)
		if bytes.Contains(p.Data(), []byte(`"Ahead"`)) {
			ahead++
		}
		c = houses[at].moveTo(houses[1-at], p)
		at = 1 - at
	}
	if ahead == 0 {
		t.Error("nothing was read ahead")
	}
	close(stop)
	if got, want := receive(t, lines), receive(t, asked); got != want {
		t.Errorf("%d answers to %d lines", got, want)
	}
	if end := receive(t, houses[at].ends); end.Reason != levee.ClientClosed || end.Err != nil {
		t.Errorf("%+v", end)
	}
}

func TestPackDoesNotWaitForAHandlerForEver(t *testing.T) {
	leveetest.CheckLeaks(t)
	gate, inside := make(chan struct{}), make(chan struct{}, 1)
	saves := 0
	h := build(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		c.MovesWith(func() ([]byte, error) { saves++; return nil, nil })
		for c.Next() {
			line, err := readLine(c)
			if err != nil {
				return err
			}
			inside <- struct{}{}
			<-gate
			if line == "bye" {
				return nil
			}
			if _, err := io.WriteString(c, "done\n"); err != nil {
				return err
			}
		}
		return nil
	})})
	client := dialTCP(t, h.listener)
	send(t, client, "work\n")
	receive(t, inside)
	c := h.only()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if got := h.Pack(ctx, c); len(got) > 0 || ctx.Err() == nil {
		t.Errorf("%d are had", len(got))
	}
	gate <- struct{}{}
	want(t, client, "done\n")
	send(t, client, "bye\n")
	receive(t, inside)
	if saves > 0 {
		t.Error("saved for nobody")
	}
	had := make(chan int, 1)
	go func() { had <- len(h.packAll(c)) }() // ends with the handler
	<-time.After(10 * time.Millisecond)      // by then it waits, most likely
	gate <- struct{}{}
	if n := receive(t, had); n > 0 {
		t.Error("it was had, and has ended")
	}
}

func TestASaveThatFailsHasTheConnectionStayAndOneThatPanicsEndsIt(t *testing.T) {
	leveetest.CheckLeaks(t)
	h := build(t, &levee.Server{Handler: tallying})
	client := dialTCP(t, h.listener)
	if err := exchangeAs(client, "panic\n", "1 line\n"); err != nil {
		t.Fatal(err)
	}
	if got := h.packAll(h.only()); len(got) > 0 {
		t.Error("it moves")
	}
	if end := receive(t, h.ends); end.Reason != levee.HandlerPanic {
		t.Errorf("%+v", end)
	}
	fails := build(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		c.MovesWith(func() ([]byte, error) { return nil, errors.New("not now") })
		return answerRequests(c)
	})})
	client = dialTCP(t, fails.listener)
	c := fails.only()
	if got := fails.packAll(c); len(got) > 0 {
		t.Error("it moves")
	}
	client.Close()
	receive(t, fails.ends)
}

func TestAHandlerInNextThatIsPackedMayBeEnded(t *testing.T) {
	leveetest.CheckLeaks(t)
	for reason, end := range map[levee.CloseReason]func(h *house, c *levee.Conn){
		levee.Killed:       func(_ *house, c *levee.Conn) { c.Kill(nil) },
		levee.Drained:      func(_ *house, c *levee.Conn) { c.Drain(nil) },
		levee.ServerClosed: func(h *house, _ *levee.Conn) { _ = h.Close() },
	} {
		h := build(t, &levee.Server{Handler: tallying})
		client := dialTCP(t, h.listener)
		c := h.only()
		p := h.pack(c)
		end(h, c)
		if len(h.ends) > 0 {
			t.Error("it has ended while it was packed")
		}
		p.Unpack()
		if end := receive(t, h.ends); end.Reason != reason {
			t.Errorf("ended as %v, want %v", end.Reason, reason)
		}
		wantEnd(t, client)
	}
}

func TestAHandlerThatStartsTLSDoesNotMoveBeforeNorAfter(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca, started := leveetest.NewCA(t), make(chan struct{}, 1)
	h := build(t, &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
		c.MovesWith(func() ([]byte, error) { return nil, nil })
		started <- struct{}{}
		if err := c.StartTLS(ca.ServerConfig("localhost")); err != nil {
			return err
		}
		return echo(c)
	})})
	client := dialTCP(t, h.listener)
	receive(t, started)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	c := h.only()
	if got := h.Pack(ctx, c); len(got) > 0 {
		t.Error("it moves while the handshake is waited for")
	}
	secure := tls.Client(client, ca.ClientConfig("localhost"))
	if err := exchange(secure, "hello"); err != nil {
		t.Error(err)
	}
	if got := h.packAll(c); len(got) > 0 {
		t.Error("it moves, though TLS is in place")
	}
}
