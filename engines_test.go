package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// The tests in engines_*_test.go hold a Stepper's connections to the same promises
// whichever engine serves them: a goroutine or an event loop, which gets them in
// several ways.

// An engine is one of them.
type engine struct {
	name    string
	loop    bool // serves on an event loop, where there are any
	joins   bool // does so for connections that are joined
	bare    bool // its sockets are accepted without an arrival
	routed  bool // looks at a connection's first byte: a client that says nothing is not served yet
	tls     bool // the same goes for its handshake
	network string
	alone   bool // sets GoroutinePerConn
	listen  func(t testing.TB) net.Listener
}

var engines = []engine{
	{name: "loop, accepted bare", loop: true, bare: true, network: "tcp", listen: listenTCP},
	{name: "loop, moved after arrival", loop: true, network: "tcp", listen: listenPlain},
	{name: "loop, routed", loop: true, routed: true, network: "tcp", listen: listenTCP},
	{name: "loop, Unix socket", loop: true, network: "unix", listen: listenUnix},
	{name: "goroutine, TCP", alone: true, network: "tcp", listen: listenTCP},
	{name: "goroutine, memory", network: "memory", listen: func(testing.TB) net.Listener { return leveetest.Listen() }},
	{name: "goroutine, TLS", joins: true, tls: true, network: "tcp", listen: listenTCP},
}

// servesTheSilent reports whether a client is served before it has said anything.
func (e engine) servesTheSilent() bool { return !e.routed && !e.tls }

// overTCP reports whether the kernel's TCP, and nothing else, lies between the two.
func (e engine) overTCP() bool { return e.network == "tcp" && !e.tls }

// onLoop reports whether connections are to be found on an event loop.
func (e engine) onLoop() bool { return e.loop && runtime.GOOS == "linux" }

// joinsOnLoop reports whether those are that are joined.
func (e engine) joinsOnLoop() bool { return (e.loop || e.joins) && runtime.GOOS == "linux" }

// onEveryEngine runs a test in real time, with a leak check.
func onEveryEngine(t *testing.T, test func(t *testing.T, e engine)) {
	onEach(t, engines, test)
}

func onEach(t *testing.T, engines []engine, test func(t *testing.T, e engine)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			test(t, e)
		})
	}
}

// listenPlain listens as net does: such a connection has to arrive before a loop gets it.
func listenPlain(t testing.TB) net.Listener { return listenAt(t, "tcp", "127.0.0.1:0") }

func listenUnix(t testing.TB) net.Listener {
	if runtime.GOOS == "windows" {
		t.Skip("Unix sockets cannot be half-closed here")
	}
	l, err := levee.Listen(context.Background(), "unix:"+filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip("no Unix sockets here:", err)
	}
	return l
}

func listenAt(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A scene is a server on an engine.
type scene struct {
	*service
	t        testing.TB
	engine   engine
	listener net.Listener
	client   *tls.Config // nil in plaintext
	ends     chan levee.End
}

// serve serves with srv, whose Handler is a Stepper, until the test is over.
func (e engine) serve(t testing.TB, srv *levee.Server) *scene {
	t.Helper()
	return e.serveAt(t, srv, e.listen(t))
}

func (e engine) serveAt(t testing.TB, srv *levee.Server, l net.Listener) *scene {
	t.Helper()
	s := &scene{t: t, engine: e, listener: l, ends: make(chan levee.End, 10_000)}
	srv.GoroutinePerConn = e.alone
	if stepper, ok := srv.Handler.(levee.Stepper); ok {
		srv.Handler = e.engaged(t, stepper)
	}
	if e.tls {
		ca := leveetest.NewCA(t)
		srv.TLSConfig, s.client = ca.ServerConfig("localhost"), ca.ClientConfig("localhost")
	}
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { s.ends <- end }})
	s.service = serve(t, srv, l)
	return s
}

// engaged has h check that it is served by the engine.
func (e engine) engaged(t testing.TB, h levee.Stepper) levee.Handler {
	h = &engaged{h, t, e}
	if !e.routed {
		return h
	}
	return routing(func(_ context.Context, c *levee.Conn) (levee.Handler, error) {
		_, err := c.Peek(1)
		return h, err
	})
}

type engaged struct {
	levee.Stepper
	t      testing.TB
	engine engine
}

func (h *engaged) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, h) }

func (h *engaged) Step(c *levee.Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	if got := levee.OnLoop(c); got != h.engine.onLoop() {
		h.t.Errorf("on an event loop: %t, want %t", got, h.engine.onLoop())
	}
	return h.Stepper.Step(c, in, seen, out)
}

// longest is what a test waits for anything. It is never waited for in full unless
// something is wrong; a busy machine has needed more than 20 seconds.
const longest = time.Minute

// dial connects to the server. A TLS handshake begins with the first byte.
func (s *scene) dial() peer {
	s.t.Helper()
	c, err := s.tryDial()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(longest))
	if s.client != nil {
		return tls.Client(c, s.client)
	}
	return c
}

func (s *scene) tryDial() (peer, error) {
	if l, ok := s.listener.(*leveetest.Listener); ok {
		return l.Dial(context.Background())
	}
	c, err := net.Dial(s.listener.Addr().Network(), s.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	return c.(peer), nil
}

// greet connects, and returns when the engine serves the connection.
func (s *scene) greet() (peer, *levee.Conn) {
	s.t.Helper()
	before := make(map[*levee.Conn]bool)
	for _, c := range s.Conns() {
		before[c] = true
	}
	client := s.dial()
	send(s.t, client, "echo hello\n")
	want(s.t, client, "hello\n")
	for _, c := range s.Conns() {
		if !before[c] {
			return client, c
		}
	}
	s.t.Fatal("the connection is not among the server's")
	return nil, nil
}

// expectEnd waits for the next end of a connection.
func (s *scene) expectEnd(want levee.CloseReason) levee.End {
	s.t.Helper()
	end := receive(s.t, s.ends)
	if end.Reason != want {
		s.t.Errorf("the connection ended as %v (%v), want %v", end.Reason, end.Err, want)
	}
	return end
}

// expectCleanEnd is expectEnd for an end without an error.
func (s *scene) expectCleanEnd(want levee.CloseReason) levee.End {
	s.t.Helper()
	end := s.expectEnd(want)
	if end.Err != nil {
		s.t.Errorf("the error is %v, want none", end.Err)
	}
	return end
}

// expectEndBy is expectEnd for an end with a cause.
func (s *scene) expectEndBy(want levee.CloseReason, cause error) {
	s.t.Helper()
	if end := s.expectEnd(want); !errors.Is(end.Err, cause) {
		s.t.Errorf("the error is %v, want %v", end.Err, cause)
	}
}

// receive waits for a value, but not for ever.
func receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(longest):
		t.Fatalf("waited %v in vain", longest)
		panic("unreachable")
	}
}

// wantEOF reads the end of the stream.
func wantEOF(t testing.TB, c io.Reader) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes, %v; want EOF", n, err)
	}
}

// wantEnd reads the end of the connection, in good order or not.
func wantEnd(t testing.TB, c io.Reader) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err == nil || isDeadline(err) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

func isDeadline(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// resetByClient ends the connection as a client does that crashes.
func resetByClient(t testing.TB, c net.Conn) {
	t.Helper()
	if sealed, ok := c.(*tls.Conn); ok {
		c = sealed.NetConn()
	}
	if err := c.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// lines is a Stepper: a protocol of commands, one a line.
type lines struct {
	commands map[string]command         // beside the common ones
	single   bool                       // a line per Step, instead of all that are there
	partial  func(c *levee.Conn)        // told when only a part of a line has come
	t        interface{ Error(...any) } // told of what must not be; may be nil
}

// A command appends its reply to out.
type command func(c *levee.Conn, arg string, out []byte) ([]byte, error)

var errStep = errors.New("the handler's own error")

var commonCommands = map[string]command{
	"echo": func(_ *levee.Conn, arg string, out []byte) ([]byte, error) {
		return append(append(out, arg...), '\n'), nil
	},
	"big": func(_ *levee.Conn, arg string, out []byte) ([]byte, error) { return appendBig(out, arg), nil },
	"close": func(_ *levee.Conn, arg string, out []byte) ([]byte, error) {
		return append(appendBig(out, arg), "bye\n"...), io.EOF
	},
	"fail": func(_ *levee.Conn, arg string, out []byte) ([]byte, error) {
		return append(appendBig(out, arg), "sorry\n"...), errStep
	},
	"panic":  func(_ *levee.Conn, arg string, out []byte) ([]byte, error) { return explodeOnPurpose(arg), nil },
	"goexit": func(_ *levee.Conn, _ string, out []byte) ([]byte, error) { runtime.Goexit(); return out, nil },
	"kill": func(c *levee.Conn, _ string, out []byte) ([]byte, error) {
		c.Kill(errStep)
		return append(out, "never\n"...), nil
	},
	"hangup": func(c *levee.Conn, _ string, out []byte) ([]byte, error) {
		_ = c.Close()
		return append(out, "never\n"...), nil
	},
	"drain": func(c *levee.Conn, arg string, out []byte) ([]byte, error) {
		c.Drain(nil)
		return append(appendBig(out, arg), "leaving\n"...), nil
	},
}

func explodeOnPurpose(arg string) []byte { panic("bang " + arg) }

// appendBig appends so many bytes, none if size is empty.
func appendBig(out []byte, size string) []byte {
	n, _ := strconv.Atoi(size)
	return append(out, big(n)...)
}

// big is a reply of that size in which no part can be mistaken for another.
// The race detector makes megabytes of it slow to write, so they are written once.
func big(n int) []byte {
	all := &bigReply
	all.mu.Lock()
	defer all.mu.Unlock()
	for ; len(all.written) < n; all.next++ {
		all.written = append(strconv.AppendInt(all.written, all.next, 10), ' ')
	}
	return bytes.Clone(all.written[:n])
}

var bigReply struct {
	mu      sync.Mutex
	written []byte
	next    int64
}

func (l *lines) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, l) }

func (l *lines) Step(c *levee.Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	if l.t != nil && bytes.IndexByte(in[:seen], '\n') >= 0 {
		l.t.Error("a line counts as seen that Step was never shown")
	}
	for n < len(in) && err == nil && len(out) < 64<<10 {
		size := bytes.IndexByte(in[n:], '\n') + 1
		if size == 0 {
			if l.partial != nil && n == 0 {
				l.partial(c)
			}
			break
		}
		line := string(in[n : n+size-1])
		n += size
		if out, err = l.obey(c, line, out); l.single {
			break
		}
	}
	return n, out, err
}

func (l *lines) obey(c *levee.Conn, line string, out []byte) ([]byte, error) {
	verb, arg, _ := strings.Cut(line, " ")
	run := l.commands[verb]
	if run == nil {
		run = commonCommands[verb]
	}
	if run == nil {
		return append(out, "what?\n"...), nil
	}
	return run(c, arg, out)
}

func TestEachEngineIsTheOneThatItsNameSays(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		for range 4 {
			_, c := s.greet()
			if got := levee.OnLoop(c); got != e.onLoop() {
				t.Errorf("on an event loop: %t, want %t", got, e.onLoop())
			}
			if got := levee.AcceptedBare(c); got != (e.bare && e.onLoop()) {
				t.Errorf("accepted bare: %t, want %t", got, e.bare)
			}
		}
	})
}
