package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// A town is servers on a network in memory, by their names.
type town map[string]*host

// A host is a server that does what a test wants of it.
type host struct {
	address string
	manner  atomic.Int32
	delay   atomic.Int64 // of connecting, in nanoseconds
	err     atomic.Pointer[error]

	mu    sync.Mutex
	dials int
	ends  []*leveetest.Conn // the server's ends of its connections
}

const (
	accepts int32 = iota // and says nothing
	greets               // and sends a byte
	refuses
	hangs
	slams // accepts and closes at once
	fails // with err
)

func newTown(names ...string) town {
	t := make(town)
	for i, name := range names {
		t[name] = &host{address: fmt.Sprintf("10.0.%d.%d:5432", i/250, i%250+1)}
	}
	return t
}

func (t town) servers() (servers []Server) {
	for name := range t {
		servers = append(servers, t.server(name))
	}
	slices.SortFunc(servers, func(a, b Server) int { return strings.Compare(a.Name, b.Name) })
	return servers
}

func (t town) server(name string) Server {
	return Server{Name: name, Addresses: []string{t[name].address}}
}

func (t town) at(address string) *host {
	for _, h := range t {
		if h.address == address {
			return h
		}
	}
	return nil
}

func (t town) connect(ctx context.Context, to address) (net.Conn, error) {
	h := t.at(to.text)
	if h == nil {
		return nil, fmt.Errorf("there is no %s", to.text)
	}
	h.mu.Lock()
	h.dials++
	h.mu.Unlock()
	if delay := time.Duration(h.delay.Load()); delay > 0 && !rest(ctx, delay) {
		return nil, ctx.Err()
	}
	switch h.manner.Load() {
	case refuses:
		return nil, dialError(syscall.ECONNREFUSED)
	case hangs:
		<-ctx.Done()
		return nil, ctx.Err()
	case fails:
		return nil, *h.err.Load()
	}
	near, far := leveetest.Pipe()
	switch h.manner.Load() {
	case slams:
		far.Close()
	case greets:
		far.Write([]byte("!"))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = append(h.ends, far)
	return near, nil
}

func (h *host) become(manner int32) { h.manner.Store(manner) }

func (h *host) failWith(err error) {
	h.err.Store(&err)
	h.become(fails)
}

func (h *host) dialled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials
}

func dialError(errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
}

// found returns a pool on the town's network that knows the servers.
func found(t testing.TB, where town, p *Pool, servers ...Server) *Pool {
	t.Helper()
	if p.Name == "" {
		p.Name = "test"
	}
	p.connect = where.connect
	if len(servers) == 0 {
		servers = where.servers()
	}
	if err := p.Update(servers); err != nil {
		t.Fatal(err)
	}
	return p
}

// run runs the pool until the test ends.
func run(t testing.TB, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	returned := make(chan error)
	go func() { returned <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-returned; err != nil {
			t.Error(err)
		}
	})
}

func dial(t testing.TB, p *Pool) *Conn {
	t.Helper()
	c, err := p.Dial(context.Background(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// use dials, waits for the server to speak or end, and closes. It returns the server's
// name, or what the dial failed with.
func use(p *Pool) string {
	c, err := p.Dial(context.Background(), Request{})
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.Read(make([]byte, 1))
	return c.Server()
}

// stats returns one server's.
func stats(t testing.TB, p *Pool, server string) ServerStats {
	t.Helper()
	for _, s := range p.Stats().Servers {
		if s.Name == server {
			return s
		}
	}
	t.Fatalf("there are no stats of %s", server)
	return ServerStats{}
}

func mustFail(t testing.TB, p *Pool, want string) *DialError {
	t.Helper()
	c, err := p.Dial(context.Background(), Request{})
	if err == nil {
		c.Close()
		t.Fatalf("got a connection to %s, want %q", c.Server(), want)
	}
	if err.Error() != want {
		t.Fatalf("dial failed with\n%v, want\n%s", err, want)
	}
	failure, ok := errors.AsType[*DialError](err)
	if !ok || !errors.Is(err, ErrUnavailable) {
		t.Fatalf("%T is not ErrUnavailable", err)
	}
	return failure
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

// advance lets virtual time pass, and what is due happen.
func advance(d time.Duration) {
	time.Sleep(d) // virtual time
	synctest.Wait()
}

// declare has a health check decide that a server is down, or up again.
func declare(t testing.TB, p *Pool, server string, down bool) {
	t.Helper()
	var err error
	if down {
		err = errors.New("not well")
	}
	m := p.members[server]
	m.down.Store(down)
	m.turn(err)
}

// A puppet is a Client.
type puppet struct {
	conn  *Conn
	quiet time.Duration
	left  atomic.Pointer[error]
	ended atomic.Pointer[error]
}

func (c *puppet) Quiet() time.Duration { return c.quiet }
func (c *puppet) Leave(cause error)    { c.left.Store(&cause) }

func (c *puppet) Cut(cause error) {
	c.ended.Store(&cause)
	c.conn.Close()
}

// enter dials for a client.
func enter(t testing.TB, p *Pool, quiet time.Duration) *puppet {
	t.Helper()
	client := &puppet{quiet: quiet}
	conn, err := p.Dial(context.Background(), Request{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	client.conn = conn
	return client
}
