package load_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/load"
)

// serve runs handle for every connection, and returns the address. Both end with the test.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		open []net.Conn
	)
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// echoUntil answers messages of size bytes, and then does something else.
func echoUntil(n, size int, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.CopyN(c, c, int64(n*size)); err == nil {
			then(c)
		}
	}
}

func mustEcho(t *testing.T, size int) load.Protocol {
	t.Helper()
	p, err := load.Echo(size)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type engine func(load.Load, context.Context) (*load.Result, error)

// withEach runs the test over the engine of this system and over the twin.
func withEach(t *testing.T, test func(*testing.T, engine)) {
	for name, run := range load.Engines {
		t.Run(name, func(t *testing.T) { test(t, run) })
	}
}

func TestMessagesAreCountedWhenAllOfThemHasComeBack(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		for _, shape := range []struct{ conns, size, depth int }{
			{1, 1, 1},
			{8, 64, 16},
			{300, 64, 1},
			{3, 16 << 10, 1},
			{2, 1 << 20, 8}, // does not fit into the socket's buffers
		} {
			var progress int64
			l := load.Load{
				Addr: serve(t, echo), Protocol: mustEcho(t, shape.size), Connections: shape.conns, Depth: shape.depth,
				Warmup: 10 * time.Millisecond, Duration: 100 * time.Millisecond,
				Progress: func(i load.Interval) { progress += i.Messages },
			}
			result, err := run(l, t.Context())
			if err != nil {
				t.Fatalf("%+v: %v", shape, err)
			}
			if result.Messages == 0 || result.Elapsed < l.Duration || result.Rate() <= 0 || progress != result.Messages {
				t.Errorf("%+v: %d messages in %s, %d by the second", shape, result.Messages, result.Elapsed, progress)
			}
			if p50, p99 := result.Percentile(50), result.Percentile(99); p50 <= 0 || p50 > p99 || p99 > result.Max() || result.Mean() > result.Max() {
				t.Errorf("%+v: p50 %s, p99 %s, mean %s, max %s", shape, p50, p99, result.Mean(), result.Max())
			}
		}
	})
}

func TestMarkIsCalledWhenMeasuringBeginsAndEnds(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		var marks []time.Time
		l := load.Load{
			Addr: serve(t, echo), Protocol: mustEcho(t, 64), Duration: 50 * time.Millisecond,
			Mark: func() { marks = append(marks, time.Now()) },
		}
		if _, err := run(l, t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(marks) != 2 || marks[1].Sub(marks[0]) < l.Duration {
			t.Errorf("marks at %v", marks)
		}
	})
}

func TestAServerThatMisbehavesEndsTheRun(t *testing.T) {
	const size = 64
	tests := map[string]struct {
		handle func(net.Conn)
		want   []string // any of them: a reset may overtake what it was about
	}{
		"closes at once":       {func(net.Conn) {}, []string{"closed by the server", "reset", "broken pipe"}},
		"closes later":         {echoUntil(3, size, func(net.Conn) {}), []string{"closed by the server", "reset", "broken pipe"}},
		"closes in a message":  {echoUntil(1, size+size/2, func(net.Conn) {}), []string{"closed by the server", "reset", "broken pipe"}},
		"sends something else": {echoUntil(2, size, func(c net.Conn) { _, _ = c.Write(make([]byte, size)) }), []string{"not what was sent", "more came back"}},
		"sends more": {func(c net.Conn) {
			message := make([]byte, size)
			for {
				if _, err := io.ReadFull(c, message); err != nil {
					return
				}
				if _, err := c.Write(append(message, message...)); err != nil {
					return
				}
			}
		}, []string{"more came back than was sent"}},
		"resets":    {echoUntil(2, size, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }), []string{"reset", "broken pipe"}},
		"is silent": {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, []string{"answered on 0 of 2 connections"}},
	}
	withEach(t, func(t *testing.T, run engine) {
		for name, test := range tests {
			l := load.Load{Addr: serve(t, test.handle), Protocol: mustEcho(t, size), Connections: 2, Duration: time.Hour}.OpenWithin(300 * time.Millisecond)
			_, err := run(l, t.Context())
			found := false
			for _, want := range test.want {
				found = found || err != nil && strings.Contains(err.Error(), want)
			}
			if !found {
				t.Errorf("%s: error %v; want one of %q", name, err, test.want)
			}
		}
	})
}

func TestNobodyListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	withEach(t, func(t *testing.T, run engine) {
		_, err := run(load.Load{Addr: l.Addr().String(), Protocol: mustEcho(t, 64), Duration: time.Hour}, t.Context())
		if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("error %v", err)
		}
	})
}

func TestTheRunEndsWithItsContext(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		for name, handle := range map[string]func(net.Conn){"echo": echo, "silence": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }} {
			ctx, cancel := context.WithCancel(t.Context())
			address := serve(t, func(c net.Conn) {
				cancel()
				handle(c)
			})
			_, err := run(load.Load{Addr: address, Protocol: mustEcho(t, 64), Duration: time.Hour}, ctx)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: error %v", name, err)
			}
		}
	})
}

// stalling echoes, but stops for a while after a number of bytes.
func stalling(after int64, stall time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.CopyN(c, c, after); err != nil {
			return
		}
		<-time.After(stall)
		echo(c)
	}
}

// In a closed loop the one message that met the stall says so, and those that would
// have met it were never sent. At a rate each of them counts.
func TestAStallCountsForEveryMessageThatWasDueInIt(t *testing.T) {
	const (
		size  = 64
		stall = 400 * time.Millisecond
		felt  = 100 * time.Millisecond
	)
	withEach(t, func(t *testing.T, run engine) {
		l := load.Load{Protocol: mustEcho(t, size), Duration: time.Second}
		l.Addr = serve(t, stalling(10*size, stall))
		closed, err := run(l, t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if closed.Percentile(80) > felt || closed.Max() < stall*9/10 {
			t.Errorf("closed loop: p80 %s, max %s", closed.Percentile(80), closed.Max())
		}
		// 1000 messages, of which 400 are due in the stall, and 300 of these more than 100 ms before its end.
		l.Rate = 1000
		l.Addr = serve(t, stalling(10*size, stall))
		open, err := run(l, t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if open.Percentile(80) < felt || open.Max() < stall*9/10 {
			t.Errorf("at a rate: p80 %s, max %s", open.Percentile(80), open.Max())
		}
		if n := open.Messages + open.Unanswered; n != 1000 {
			t.Errorf("%d messages were due at 1000/s in a second; want 1000", n)
		}
	})
}

func TestMessagesThatAreNeverAnsweredCountWithTheirAge(t *testing.T) {
	const size = 64
	withEach(t, func(t *testing.T, run engine) {
		mute := echoUntil(1, size, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		result, err := run(load.Load{
			Addr: serve(t, mute), Protocol: mustEcho(t, size), Connections: 3, Rate: 1000,
			Warmup: 100 * time.Millisecond, Duration: 200 * time.Millisecond,
		}, t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if result.Messages != 0 || result.Unanswered != 200 {
			t.Errorf("%d answered, %d not; want 0 and 200", result.Messages, result.Unanswered)
		}
		if p50 := result.Percentile(50); p50 < 90*time.Millisecond {
			t.Errorf("p50 %s; want half of the 200 ms or more", p50)
		}
	})
}

func TestHTTPCountsResponses(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		for path, want := range map[string]struct{ refused bool }{"/plain": {false}, "/chunked": {false}, "/missing": {true}} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/plain":
					_, _ = w.Write(bytes.Repeat([]byte("x"), 1000))
				case "/chunked":
					_, _ = io.WriteString(w, "some")
					_ = http.NewResponseController(w).Flush()
					_, _ = io.WriteString(w, "thing")
				default:
					http.NotFound(w, r)
				}
			}))
			t.Cleanup(server.Close)
			u, err := url.Parse(server.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			result, err := run(load.Load{Addr: u.Host, Protocol: load.HTTP(u), Connections: 2, Depth: 2, Duration: 50 * time.Millisecond}, t.Context())
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if result.Messages == 0 || want.refused != (result.Refused == result.Messages) || !want.refused && result.Refused > 0 {
				t.Errorf("%s: %d responses, %d refused", path, result.Messages, result.Refused)
			}
		}
	})
}

// transferring is the server of load.Transfer; got counts what it has taken.
func transferring(got *atomic.Int64) func(net.Conn) {
	return func(c net.Conn) {
		for {
			var head [2]uint32
			if binary.Read(c, binary.BigEndian, &head) != nil {
				return
			}
			n, err := io.CopyN(io.Discard, c, int64(head[0]))
			got.Add(8 + n)
			if err != nil {
				return
			}
			if _, err := c.Write(make([]byte, head[1])); err != nil {
				return
			}
		}
	}
}

func TestATransferSendsAndTakesAsManyBytesAsItSays(t *testing.T) {
	withEach(t, func(t *testing.T, run engine) {
		for _, size := range []struct{ up, down int }{{8, 1}, {8, 1 << 20}, {1 << 20, 8}, {300_000, 300_000}} {
			protocol, err := load.Transfer(size.up, size.down)
			if err != nil {
				t.Fatal(err)
			}
			var got atomic.Int64
			result, err := run(load.Load{
				Addr: serve(t, transferring(&got)), Protocol: protocol, Connections: 3, Depth: 4, Duration: 50 * time.Millisecond,
			}, t.Context())
			if err != nil {
				t.Fatalf("%+v: %v", size, err)
			}
			if result.Messages == 0 || got.Load() < result.Messages*int64(size.up) {
				t.Errorf("%+v: %d messages, of which %d bytes arrived", size, result.Messages, got.Load())
			}
		}
	})
}

func TestATransferThatAnswersTooMuchEndsTheRun(t *testing.T) {
	protocol, err := load.Transfer(8, 100)
	if err != nil {
		t.Fatal(err)
	}
	withEach(t, func(t *testing.T, run engine) {
		generous := serve(t, func(c net.Conn) {
			message := make([]byte, 8)
			for {
				if _, err := io.ReadFull(c, message); err != nil {
					return
				}
				if _, err := c.Write(make([]byte, 101)); err != nil {
					return
				}
			}
		})
		_, err := run(load.Load{Addr: generous, Protocol: protocol, Duration: time.Hour}, t.Context())
		if err == nil || !strings.Contains(err.Error(), "more came back than was sent") {
			t.Errorf("error %v", err)
		}
	})
}

func TestALoadIsBounded(t *testing.T) {
	echo := mustEcho(t, 1)
	for want, l := range map[string]load.Load{
		"no protocol":         {Duration: 1},
		"connections: at":     {Protocol: echo, Duration: 1, Connections: 1 << 30},
		"messages in all":     {Protocol: echo, Duration: 1, Connections: 1 << 20, Depth: 100},
		"messages/s: between": {Protocol: echo, Duration: 1, Rate: math.Inf(1)},
		"NaN messages/s":      {Protocol: echo, Duration: 1, Rate: math.NaN()},
		"at most 1e+09":       {Protocol: echo, Duration: time.Hour, Rate: 1e6},
		"duration of 0s":      {Protocol: echo},
		"duration of 25h":     {Protocol: echo, Duration: 25 * time.Hour},
		"warm-up of -1ns":     {Protocol: echo, Duration: 1, Warmup: -1},
		"every message":       {Protocol: echo, Duration: 1, Reconnect: true, Depth: 2},
	} {
		if err := l.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want %q", err, want)
		}
	}
	for _, size := range []int{-1, 0, load.MaxSize + 1} {
		if _, err := load.Echo(size); err == nil {
			t.Errorf("messages of %d bytes", size)
		}
	}
	for _, size := range [][2]int{{7, 1}, {load.MaxSize + 1, 1}, {8, 0}, {8, load.MaxSize + 1}} {
		if _, err := load.Transfer(size[0], size[1]); err == nil {
			t.Errorf("a transfer of %d bytes", size)
		}
	}
}

func TestThePlotStandsAlone(t *testing.T) {
	result, err := load.Load{Addr: serve(t, echo), Protocol: mustEcho(t, 64), Duration: 50 * time.Millisecond}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := result.WritePlot(&page, "a <b> & c"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<!doctype html>", "a &lt;b&gt; &amp; c", "Latency by percentile", "Messages per second", "Latency over time", "</html>"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	for _, bad := range []string{"http", "src=", "href=", "NaN", "Inf", "%!"} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page has %q", bad)
		}
	}
}

// opened counts the connections that a handler has had.
func opened(n *atomic.Int64, handle func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		n.Add(1)
		handle(c)
	}
}
