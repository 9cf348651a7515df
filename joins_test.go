package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// The tests in joins_*_test.go hold joined connections to the same promises whichever
// engine serves them, and whatever they are joined to.

// An upstreamKind is what they are joined to.
type upstreamKind struct {
	name  string
	loop  bool // an event loop can have it
	tls   bool
	start func(t testing.TB) (l net.Listener, dial dialer)
}

type dialer func(ctx context.Context) (net.Conn, error)

var (
	tcpUpstream    = upstreamKind{name: "TCP", loop: true, start: func(t testing.TB) (net.Listener, dialer) { return dialed(listenTCP(t)) }}
	unixUpstream   = upstreamKind{name: "Unix", loop: true, start: func(t testing.TB) (net.Listener, dialer) { return dialed(listenUnix(t)) }}
	memoryUpstream = upstreamKind{name: "memory", start: func(testing.TB) (net.Listener, dialer) {
		l := leveetest.Listen()
		return l, func(ctx context.Context) (net.Conn, error) { return l.Dial(ctx) }
	}}
	tlsUpstream = upstreamKind{name: "TLS", tls: true, start: func(t testing.TB) (net.Listener, dialer) {
		ca := leveetest.NewCA(t)
		l, dial := dialed(listenTCP(t))
		return tls.NewListener(l, ca.ServerConfig("localhost")), func(ctx context.Context) (net.Conn, error) {
			raw, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			c := tls.Client(raw, ca.ClientConfig("localhost"))
			return c, c.HandshakeContext(ctx)
		}
	}}

	upstreams = []upstreamKind{tcpUpstream, unixUpstream, tlsUpstream, memoryUpstream}
)

func dialed(l net.Listener) (net.Listener, dialer) {
	return l, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, l.Addr().Network(), l.Addr().String())
	}
}

// joins is a server that joins its connections to an upstream.
type joins struct {
	*scene
	upstream upstreamKind
	listener net.Listener // the upstream's
	dialer   dialer
	joined   chan *levee.Conn
	over     chan parting
	by       engine
	explodes atomic.Bool  // Ended panics
	header   atomic.Int64 // bytes that a client sends which are not for the upstream
	rough    atomic.Bool  // connections are ended at any time

	mu   sync.Mutex
	rest func(first, last []byte) levee.Rest // of those who come
	ends map[*levee.Conn][]levee.UpstreamEnd // as they are told; there is an entry once Join has returned
}

// A parting is how both connections ended.
type parting struct {
	levee.End
	upstream levee.UpstreamEnd
}

// join serves with srv, joining its connections to an upstream.
func (e engine) join(t testing.TB, srv *levee.Server, to upstreamKind) *joins {
	t.Helper()
	l, dial := to.start(t)
	t.Cleanup(func() { l.Close() })
	return e.joinAt(t, srv, e.listen(t), to, l, dial)
}

func (e engine) joinAt(t testing.TB, srv *levee.Server, at net.Listener, to upstreamKind, l net.Listener, dial dialer) *joins {
	t.Helper()
	s := &joins{
		upstream: to, listener: l, dialer: dial, by: e,
		joined: make(chan *levee.Conn, 10_000), over: make(chan parting, 10_000), ends: make(map[*levee.Conn][]levee.UpstreamEnd),
	}
	srv.Handler = e.routedTo(s)
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{Closed: func(c *levee.Conn, end levee.End) { s.closed(t, c, end) }})
	s.scene = e.serveAt(t, srv, at)
	return s
}

// routedTo has h be found by its client's first byte, if that is the engine's way.
func (e engine) routedTo(h levee.Handler) levee.Handler {
	if !e.routed {
		return h
	}
	return routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
		_, err := c.Peek(1)
		return h, err
	})
}

func (s *joins) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, s)
}

func (s *joins) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	conn, err := s.dialer(ctx)
	if err != nil || conn == nil {
		return levee.Upstream{}, err
	}
	s.mu.Lock()
	s.ends[c] = nil
	rest := s.rest
	s.mu.Unlock()
	s.joined <- c
	return levee.Upstream{Conn: conn, Rest: rest, Ended: func(end levee.UpstreamEnd) {
		s.mu.Lock()
		s.ends[c] = append(s.ends[c], end)
		s.mu.Unlock()
		if s.explodes.Load() {
			panic("bang")
		}
	}}, nil
}

// onLoop reports whether the pairs are to be found on an event loop.
func (s *joins) onLoop() bool { return s.by.joinsOnLoop() && s.upstream.loop }

// closed checks what holds for the end of every connection that was joined.
func (s *joins) closed(t testing.TB, c *levee.Conn, end levee.End) {
	s.mu.Lock()
	ends, joined := s.ends[c]
	s.mu.Unlock()
	if !joined {
		return
	}
	if len(ends) != 1 {
		t.Errorf("the end of an upstream was told %d times before Closed (%v, %v), want once", len(ends), end.Reason, end.Err)
		return
	}
	up := ends[0]
	if up.Reason != end.Reason {
		t.Errorf("the upstream ended as %v, its client's connection as %v", up.Reason, end.Reason)
	}
	if got := levee.OnLoop(c); got != s.onLoop() && !s.rough.Load() {
		t.Errorf("on an event loop: %t, want %t", got, s.onLoop())
	}
	end.Read -= s.header.Load()
	clean := !s.rough.Load() && (end.Reason == levee.ClientClosed || end.Reason == levee.UpstreamClosed)
	if !s.by.tls && (up.Sent > end.Read || up.Received < end.Written || clean && (up.Sent != end.Read || up.Received != end.Written)) {
		t.Errorf("%v: read %d, sent %d; received %d, wrote %d", end.Reason, end.Read, up.Sent, up.Received, end.Written)
	}
	s.over <- parting{end, up}
}

// A couple are the two ends of a connection that was joined.
type couple struct {
	near, far peer
	conn      *levee.Conn
}

// meet connects, by way of the server, to the upstream. The client has spoken then.
func (s *joins) meet() couple {
	s.t.Helper()
	return s.introduce(s.dial())
}

// introduce is meet with a client that has connected.
func (s *joins) introduce(near peer) couple {
	s.t.Helper()
	send(s.t, near, "hello\n")
	far := s.accept()
	want(s.t, far, "hello\n")
	return couple{near, far, receive(s.t, s.joined)}
}

// accept waits for the upstream's next connection.
func (s *joins) accept() peer {
	s.t.Helper()
	far, err := s.listener.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { far.Close() })
	_ = far.SetDeadline(time.Now().Add(longest))
	return far.(peer)
}

// end waits for the next end of a pair.
func (s *joins) end(want levee.CloseReason) parting {
	s.t.Helper()
	p := receive(s.t, s.over)
	if p.Reason != want {
		s.t.Errorf("the pair ended as %v (%v), want %v", p.Reason, p.Err, want)
	}
	return p
}

// cleanEnd is end for one without an error.
func (s *joins) cleanEnd(want levee.CloseReason) parting {
	s.t.Helper()
	p := s.end(want)
	if p.Err != nil || p.upstream.Err != nil {
		s.t.Errorf("the errors are %v and %v, want none", p.Err, p.upstream.Err)
	}
	return p
}

// swapped returns the couple as its upstream sees it.
func (c couple) swapped() couple { return couple{c.far, c.near, c.conn} }

// eachWay runs a test from the client to the upstream, and from the upstream to the client.
func eachWay(t testing.TB, s *joins, test func(t testing.TB, from, to peer, upward bool)) {
	t.Helper()
	for _, upward := range []bool{true, false} {
		c := s.meet()
		if !upward {
			c = c.swapped()
		}
		test(t, c.near, c.far, upward)
	}
}

// payload is so many random bytes.
func payload(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(rand.Uint32())})
	_, _ = random.Read(b)
	return b
}

// newRandom returns a source for one goroutine.
func newRandom() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), 0)) }

// transfer sends b in random pieces and ends the stream, while the other side reads it.
func transfer(t testing.TB, from, to peer, b []byte) {
	var writing sync.WaitGroup
	writing.Go(func() {
		err := pieces(newRandom(), b, func(piece []byte) error {
			_, err := from.Write(piece)
			return err
		})
		if err = errors.Join(err, from.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	got, err := readRandomly(newRandom(), to)
	wantBytes(t, got, b)
	if err != nil {
		t.Error(err)
	}
	writing.Wait()
}

func wantBytes(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		same := 0
		for same < len(got) && same < len(want) && got[same] == want[same] {
			same++
		}
		t.Errorf("got %d bytes, want %d; the first %d are right", len(got), len(want), same)
	}
}

// converseBothWays transfers random amounts both ways at once, and closes.
func (c couple) converseBothWays(t testing.TB, most int) {
	size := func() int { return rand.IntN(1 + rand.IntN(most)) }
	var both sync.WaitGroup
	both.Go(func() { transfer(t, c.near, c.far, payload(size())) })
	both.Go(func() { transfer(t, c.far, c.near, payload(size())) })
	both.Wait()
	c.far.Close()
	c.near.Close()
}

// itsUpstream is the kind of upstream that goes with an engine, where one is enough.
func (e engine) itsUpstream() upstreamKind {
	switch {
	case e.tls:
		return tlsUpstream
	case e.network == "unix":
		return unixUpstream
	case e.network == "memory":
		return memoryUpstream
	}
	return tcpUpstream
}

// onEveryJoint runs a test on every engine and with every upstream. Clients that speak TLS
// are joined by goroutines too.
func onEveryJoint(t *testing.T, test func(t *testing.T, e engine, to upstreamKind)) {
	alone := engine{name: "goroutine, TLS, alone", alone: true, tls: true, network: "tcp", listen: listenTCP}
	onEach(t, append(slices.Clip(engines), alone), func(t *testing.T, e engine) {
		for _, to := range upstreams {
			t.Run("to "+to.name, func(t *testing.T) { test(t, e, to) })
		}
	})
}

func TestWhatEitherSideSendsReachesTheOtherInFull(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		s := e.join(t, &levee.Server{}, to)
		const pairs = 2 // on each of 32 ways, and in each run of other lengths
		for range pairs {
			s.meet().converseBothWays(t, 1<<20)
			if reason := receive(t, s.over).Reason; reason != levee.ClientClosed && reason != levee.UpstreamClosed {
				t.Errorf("ended as %v", reason)
			}
		}
		stats := s.Stats()
		if stats.Active != 0 || stats.Accepted != pairs {
			t.Errorf("%d active of %d", stats.Active, stats.Accepted)
		}
	})
}

func TestManyPairsAtOnceKeepTheirBytesApart(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.join(t, &levee.Server{}, tcpUpstream)
		var all sync.WaitGroup
		for range 20 {
			c := s.meet()
			all.Go(func() { c.converseBothWays(t, 256<<10) })
		}
		all.Wait()
		for range 20 {
			receive(t, s.over)
		}
	})
}

func TestSmallAndLargeMessagesMayTakeTurns(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.join(t, &levee.Server{}, tcpUpstream)
		c := s.meet()
		for i := range 60 {
			from, to := c.near, c.far
			if i%2 == 1 {
				from, to = to, from
			}
			message := payload(1 + rand.IntN(1<<rand.IntN(21)))
			go from.Write(message) // ends with the reading, or the connection
			got := make([]byte, len(message))
			if _, err := io.ReadFull(to, got); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, got, message)
		}
	})
}

func TestAnUpstreamMaySpeakFirst(t *testing.T) {
	onEveryJoint(t, func(t *testing.T, e engine, to upstreamKind) {
		if !e.servesTheSilent() {
			return
		}
		s := e.join(t, &levee.Server{}, to)
		near, greeted := s.dial(), make(chan error, 1)
		go func() { // ends with the greeting
			far, err := s.listener.Accept()
			if err == nil {
				defer far.Close()
				_, err = io.WriteString(far, "220 ready\r\n")
			}
			greeted <- err
		}()
		want(t, near, "220 ready\r\n")
		if err := receive(t, greeted); err != nil {
			t.Error(err)
		}
		wantEOF(t, near)
		near.Close()
		s.cleanEnd(levee.UpstreamClosed)
	})
}
