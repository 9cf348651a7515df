package levee_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	"golang.org/x/sys/unix"
)

// Two servers stand for two processes: a connection's sockets are duplicated on their way from one
// to the other, as SCM_RIGHTS does.

// A house is a server that connections move from and to, and what it has to tell.
type house struct {
	*levee.Server
	t        testing.TB
	listener net.Listener
	ends     chan levee.End
	told     chan string // of moves
}

// build serves with srv until the test is over.
func build(t testing.TB, srv *levee.Server) *house {
	t.Helper()
	h := &house{Server: srv, t: t, listener: listenTCP(t), ends: make(chan levee.End, 10_000), told: make(chan string, 10_000)}
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{
		Closed:  func(_ *levee.Conn, end levee.End) { h.ends <- end },
		Adopted: func(c *levee.Conn) { h.told <- fmt.Sprint("adopted ", c.ID()) },
		Moved:   func(c *levee.Conn) { h.told <- fmt.Sprint("moved ", c.ID()) },
	})
	serve(t, srv, h.listener)
	return h
}

// only waits for the one connection that there is, and that it is served.
func (h *house) only() *levee.Conn {
	h.t.Helper()
	var all []*levee.Conn
	eventually(h.t, "one connection is served", func() bool {
		all = h.Conns()
		return len(all) == 1 && all[0].Moments().Routed > 0 && (all[0].Moments().DialBegun == 0 || levee.OnLoop(all[0]))
	})
	return all[0]
}

// pack makes a parcel of a connection that can move, once its handler has said so.
func (h *house) pack(c *levee.Conn) *levee.Parcel {
	h.t.Helper()
	var parcels []*levee.Parcel
	eventually(h.t, "it can move", func() bool {
		parcels = h.packAll(c)
		return len(parcels) == 1
	})
	return parcels[0]
}

func (h *house) packAll(all ...*levee.Conn) []*levee.Parcel {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	parcels := h.Pack(ctx, all...)
	if ctx.Err() != nil {
		h.t.Error("Pack waits for what is not to be had")
	}
	return parcels
}

// copied returns what another process gets.
func copied(t testing.TB, p *levee.Parcel) (data []byte, sockets []int) {
	t.Helper()
	for _, fd := range p.Sockets() {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, fd)
	}
	return slices.Clone(p.Data()), sockets
}

// moveTo moves a parcel.
func (h *house) moveTo(to *house, p *levee.Parcel) *levee.Conn {
	h.t.Helper()
	a, err := to.Adopt(copied(h.t, p))
	if err != nil {
		h.t.Fatal(err)
	}
	p.Moved()
	a.Begin()
	return a.Conn()
}

// move moves a connection.
func (h *house) move(to *house, c *levee.Conn) *levee.Conn {
	h.t.Helper()
	return h.moveTo(to, h.pack(c))
}

// wantCounts checks the server's, and what they add up to.
func (h *house) wantCounts(accepted, adopted, active, moved, closed int64) {
	h.t.Helper()
	eventually(h.t, "those who leave have left", func() bool { return h.Stats().Active == active })
	s := h.Stats()
	ended := int64(0)
	for _, n := range s.Closed {
		ended += n
	}
	if s.Accepted != accepted || s.Adopted != adopted || s.Active != active || s.Moved != moved || ended != closed {
		h.t.Errorf("accepted %d, adopted %d, active %d, moved %d, closed %d; want %d, %d, %d, %d, %d",
			s.Accepted, s.Adopted, s.Active, s.Moved, ended, accepted, adopted, active, moved, closed)
	}
}

// A rejoiner joins its connections to an upstream, and goes on with those of others.
type rejoiner struct {
	address string
	active  atomic.Int64
	ends    chan levee.UpstreamEnd
	refuses error
	rest    func(first, last []byte) levee.Rest
}

func rejoining(l net.Listener) *rejoiner {
	return &rejoiner{address: l.Addr().String(), ends: make(chan levee.UpstreamEnd, 10_000)}
}

func (r *rejoiner) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, r)
}

func (r *rejoiner) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.address)
	if err != nil {
		return levee.Upstream{}, err
	}
	c.SetTarget(&levee.Target{Upstream: "db", Server: r.address}, 2)
	r.active.Add(1)
	return levee.Upstream{Conn: conn, Ended: r.ended, Rest: r.rest}, nil
}

func (r *rejoiner) ended(end levee.UpstreamEnd) {
	r.active.Add(-1)
	r.ends <- end
}

func (r *rejoiner) Rejoin(c *levee.Conn) (levee.Upstream, error) {
	if to := c.Target(); to == nil || to.Server != r.address {
		return levee.Upstream{}, errors.New("joined to somebody else")
	}
	if r.refuses != nil {
		return levee.Upstream{}, r.refuses
	}
	r.active.Add(1)
	return levee.Upstream{Ended: r.ended, Rest: r.rest}, nil
}

// plainEcho is a Movable.
type plainEcho struct{ levee.Stateless }

func (e *plainEcho) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, e) }

func (*plainEcho) Step(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) {
	return len(in), in, nil
}

// A town is two houses, with an upstream that both know.
type town struct {
	upstream net.Listener
	houses   [2]*house
	joiners  [2]*rejoiner
}

// joined returns two servers that join to one upstream.
func joined(t testing.TB, like func() *levee.Server) *town {
	t.Helper()
	w := &town{upstream: listenTCP(t)}
	for i := range w.houses {
		srv := like()
		w.joiners[i] = rejoining(w.upstream)
		srv.Handler = w.joiners[i]
		w.houses[i] = build(t, srv)
	}
	return w
}

func newServer() *levee.Server { return &levee.Server{} }

// meet connects a client by way of the first server.
func (w *town) meet(t testing.TB) (near, far *net.TCPConn, c *levee.Conn) {
	t.Helper()
	near = dialTCP(t, w.houses[0].listener).(*net.TCPConn)
	conn, err := w.upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	far = conn.(*net.TCPConn)
	return near, far, w.houses[0].only()
}

// A current is bytes that flow while a connection moves.
type current struct {
	got  atomic.Int64
	stop chan struct{} // closed when they may end
	done sync.WaitGroup
}

func newCurrent() *current { return &current{stop: make(chan struct{})} }

// flow sends bytes one way and then the end of the stream; slowly is called behind each read. It returns how many there are, once
// they are through.
func (f *current) flow(t testing.TB, from, to *net.TCPConn, slowly func()) *int64 {
	size, sum := new(int64), make(chan [32]byte, 1)
	f.done.Go(func() {
		sent, random := sha256.New(), newRandom()
		for {
			select {
			case <-f.stop:
				_ = from.CloseWrite()
				sum <- [32]byte(sent.Sum(nil))
				return
			default:
			}
			b := payload(1 + random.IntN(200<<10))
			sent.Write(b)
			if _, err := from.Write(b); err != nil {
				t.Error(err)
			}
			*size += int64(len(b))
		}
	})
	f.done.Go(func() {
		got, b := sha256.New(), make([]byte, 64<<10)
		for {
			n, err := to.Read(b)
			got.Write(b[:n])
			f.got.Add(int64(n))
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Error(err)
				break
			}
			slowly()
		}
		if [32]byte(got.Sum(nil)) != <-sum {
			t.Error("what came is not what was sent")
		}
	})
	return size
}

// goesOn waits until some more has come.
func (f *current) goesOn(t testing.TB) {
	t.Helper()
	more := f.got.Load() + 100<<10
	eventually(t, "it flows", func() bool { return f.got.Load() > more })
}

// end ends it.
func (f *current) end() {
	close(f.stop)
	f.done.Wait()
}

func atOnce() {}

func TestAPairMovesBackAndForthInFullFlow(t *testing.T) {
	leveetest.CheckLeaks(t)
	w := joined(t, newServer)
	near, far, c := w.meet(t)
	f := newCurrent()
	up, down := f.flow(t, near, far, atOnce), f.flow(t, far, near, atOnce)
	at, moves := 0, int64(0)
	for i := range 50 {
		f.goesOn(t)
		p := w.houses[at].pack(c)
		if i%5 == 4 {
			p.Unpack()
			continue
		}
		c = w.houses[at].moveTo(w.houses[1-at], p)
		at, moves = 1-at, moves+1
	}
	f.end()
	end := receive(t, w.houses[at].ends)
	if end.Reason != levee.ClientClosed && end.Reason != levee.UpstreamClosed || end.Err != nil {
		t.Errorf("ended as %v, %v", end.Reason, end.Err)
	}
	if end.Read != *up || end.Written != *down {
		t.Errorf("read %d, wrote %d, want %d and %d", end.Read, end.Written, *up, *down)
	}
	w.houses[0].wantCounts(1, moves/2, 0, moves/2, 1)
	w.houses[1].wantCounts(0, moves/2, 0, moves/2, 0)
	read, written := int64(0), int64(0)
	for i, h := range w.houses {
		s := h.Stats()
		read, written = read+s.Read, written+s.Written
		if n := w.joiners[i].active.Load(); n != 0 {
			t.Errorf("server %d has %d upstream connections left", i, n)
		}
	}
	if read != *up || written != *down { // each has counted its own
		t.Errorf("together they read %d and wrote %d, want %d and %d", read, written, *up, *down)
	}
}

func TestASteppedConnectionMovesBackAndForthInFullFlow(t *testing.T) {
	leveetest.CheckLeaks(t)
	houses := [2]*house{build(t, &levee.Server{Handler: &plainEcho{}}), build(t, &levee.Server{Handler: &plainEcho{}})}
	client := dialTCP(t, houses[0].listener).(*net.TCPConn)
	c, f, at := houses[0].only(), newCurrent(), 0
	size := f.flow(t, client, client, atOnce)
	for range 100 {
		f.goesOn(t)
		c = houses[at].move(houses[1-at], c)
		at = 1 - at
	}
	f.end()
	if end := receive(t, houses[at].ends); end.Reason != levee.ClientClosed || end.Read != *size || end.Written != *size {
		t.Errorf("ended as %v; read %d, wrote %d of %d", end.Reason, end.Read, end.Written, *size)
	}
}

func TestBytesThatWaitForASlowReaderMoveToo(t *testing.T) {
	leveetest.CheckLeaks(t)
	w := joined(t, newServer)
	near, far, c := w.meet(t)
	for _, conn := range []*net.TCPConn{near, far} {
		_ = conn.SetReadBuffer(256 << 10)
	}
	slowly := func() { <-time.After(time.Duration(rand.IntN(3_000_000))) }
	f := newCurrent()
	f.flow(t, near, far, slowly)
	f.flow(t, far, near, slowly)
	at, waited := 0, 0
	for range 20 {
		f.goesOn(t)
		p := w.houses[at].pack(c)
		if len(p.Data()) > 8<<10 {
			waited++
		}
		c = w.houses[at].moveTo(w.houses[1-at], p)
		at = 1 - at
	}
	if waited == 0 {
		t.Error("nothing had to wait")
	}
	t.Logf("bytes waited in %d of 20 moves", waited)
	f.end()
	receive(t, w.houses[at].ends)
}

func TestAPairMovesHalfClosed(t *testing.T) {
	w := joined(t, newServer)
	for _, upward := range []bool{true, false} {
		near, far, c := w.meet(t)
		from, to, reason := near, far, levee.ClientClosed
		if !upward {
			from, to, reason = far, near, levee.UpstreamClosed
		}
		send(t, from, "last words")
		_ = from.CloseWrite()
		want(t, to, "last words")
		wantEOF(t, to)
		w.houses[0].move(w.houses[1], c)
		send(t, to, "still here")
		want(t, from, "still here")
		_ = to.CloseWrite()
		wantEOF(t, from)
		if end := receive(t, w.houses[1].ends); end.Reason != reason || end.Err != nil {
			t.Errorf("ended as %v, %v; want %v", end.Reason, end.Err, reason)
		}
		receive(t, w.joiners[0].ends)
		if end := receive(t, w.joiners[1].ends); end.Reason != reason || end.ClientFirst != upward {
			t.Errorf("the upstream ended as %+v", end)
		}
	}
}
