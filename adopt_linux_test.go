package levee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"golang.org/x/sys/unix"
)

// A way is a Rerouter with two routes.
type way map[string]levee.Handler

func (way) ServeTCP(context.Context, *levee.Conn) error { return errors.New("a router serves nobody") }

func (r way) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) {
	first, err := c.Peek(1)
	if err != nil {
		return nil, err
	}
	c.SetRoute("by " + string(first))
	return r.Reroute(c)
}

func (r way) Reroute(c *levee.Conn) (levee.Handler, error) {
	if h := r[c.Route()]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("no route %q", c.Route())
}

// A host is a Readmitter that counts who is there.
type host struct {
	mu   sync.Mutex
	told []string
}

func (h *host) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, what)
}

func (h *host) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.told)
}

func (h *host) Admit(*levee.Conn) (levee.Pass, *levee.Refusal) {
	h.note("admit")
	return guest{h}, nil
}

func (h *host) Readmit(c *levee.Conn) levee.Pass {
	h.note("readmit " + c.ClientAddr().Addr().String())
	return guest{h}
}

type guest struct{ *host }

func (guest) Reach(*levee.Conn, levee.Stage) *levee.Refusal { return nil }
func (g guest) Leave(_ *levee.Conn, end levee.End)          { g.note("leave " + end.Reason.String()) }

func TestAnUpstreamThatTellsOfItsRestKnowsWhereItsConnectionIs(t *testing.T) {
	upstream := listenTCP(t)
	var houses [2]*house
	var joiners [2]*rejoiner
	for i := range houses {
		joiners[i] = rejoining(upstream)
		joiners[i].rest = func(_, last []byte) levee.Rest {
			if string(last) == "answer" {
				return levee.AtRest
			}
			return levee.NotAtRest
		}
		houses[i] = build(t, &levee.Server{Handler: joiners[i]})
	}
	client := dialTCP(t, houses[0].listener)
	send(t, client, "question")
	far, err := upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	want(t, far, "question")
	send(t, far, "answer")
	want(t, client, "answer")
	c := houses[0].move(houses[1], houses[0].only())
	if end := receive(t, joiners[0].ends); end.Reason != levee.ReasonNone || joiners[0].active.Load() != 0 || joiners[1].active.Load() != 1 {
		t.Errorf("told %+v; %d and %d have it", end, joiners[0].active.Load(), joiners[1].active.Load())
	}
	asked := time.Now()
	c.Drain(nil)
	if end := receive(t, joiners[1].ends); end.Reason != levee.Drained || time.Since(asked) > 2*time.Second {
		t.Errorf("told %+v after %v, and what has been answered before was known", end, time.Since(asked))
	}
}

func TestAConnectionThatMovesIsTheSameConnection(t *testing.T) {
	proxied := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	upstream := listenTCP(t)
	var houses [2]*house
	var hosts [2]*host
	var joiners [2]*rejoiner
	for i := range houses {
		hosts[i], joiners[i] = new(host), rejoining(upstream)
		houses[i] = build(t, &levee.Server{Handler: way{"by j": joiners[i]}, Gate: hosts[i], ProxyFrom: proxied, MaxLifetime: time.Hour})
	}
	client := dialTCP(t, houses[0].listener)
	send(t, client, v2(0x21, 0x11, "\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb"))
	send(t, client, "join")
	far, err := upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	want(t, far, "join")
	send(t, far, "joined")
	want(t, client, "joined")
	before := houses[0].only()
	gaveBack := make(chan struct{}, 2)
	before.AtEnd(func() { gaveBack <- struct{}{} })
	c := houses[0].move(houses[1], before)
	if houses[0].Conn(before.ID()) != nil || houses[1].Conn(before.ID()) != c {
		t.Error("it is not where it should be")
	}
	if got, want := c.Story(), before.Story(); !reflect.DeepEqual(got, want) {
		t.Errorf("the story is\n%+v, want\n%+v", got, want)
	}
	if moments := c.Moments(); moments.FirstByte == 0 || moments.DialDone == 0 || moments.ProxyHeader == 0 {
		t.Errorf("%+v", moments)
	}
	for name, same := range map[string]bool{
		"id":       c.ID() == before.ID(),
		"age":      (before.Age() - c.Age()).Abs() < 50*time.Millisecond,
		"client":   c.ClientAddr() == before.ClientAddr() && c.ClientAddr().String() == "192.0.2.1:1234",
		"peer":     c.PeerAddr().String() == client.LocalAddr().String() && c.PeerAddr().Network() == "tcp",
		"local":    c.LocalAddr().String() == client.RemoteAddr().String(),
		"server":   c.Server() == houses[1].Server,
		"reason":   before.Reason() == levee.ReasonNone && c.Reason() == levee.ReasonNone,
		"traffic":  traffic(c) == traffic(before),
		"on loop":  levee.OnLoop(c),
		"accepted": c.Accepted().Sub(before.Accepted()).Abs() < 50*time.Millisecond,
	} {
		if !same {
			t.Errorf("%s is not the same", name)
		}
	}
	send(t, client, "ask")
	want(t, far, "ask")
	send(t, far, "answer")
	want(t, client, "answer")
	client.Close()
	far.Close()
	receive(t, houses[1].ends)
	for i, told := range [][]string{{fmt.Sprint("moved ", c.ID())}, {fmt.Sprint("adopted ", c.ID())}} {
		if got := receive(t, houses[i].told); got != told[0] || len(houses[i].told) > 0 {
			t.Errorf("server %d was told %q first", i, got)
		}
	}
	if got := hosts[0].all(); !slices.Equal(got, []string{"admit", "leave none"}) {
		t.Errorf("the first gate was told %q", got)
	}
	eventually(t, "the pass is given back", func() bool { return len(hosts[1].all()) == 2 })
	if got := hosts[1].all(); !slices.Equal(got, []string{"readmit 192.0.2.1", "leave client_closed"}) {
		t.Errorf("the second gate was told %q", got)
	}
	if end := receive(t, joiners[0].ends); end != (levee.UpstreamEnd{}) {
		t.Errorf("the first joiner was told %+v", end)
	}
	if end := receive(t, joiners[1].ends); end.Reason != levee.ClientClosed || end.Sent != 7 || end.Received != 12 || !end.ClientFirst {
		t.Errorf("the second joiner was told %+v", end)
	}
	receive(t, gaveBack)
	houses[0].wantCounts(1, 0, 0, 1, 0)
	houses[1].wantCounts(0, 1, 0, 0, 1)
	if len(houses[0].ends)+len(gaveBack) > 0 {
		t.Error("it has ended where it was")
	}
}

func traffic(c *levee.Conn) [2]int64 {
	read, written := c.Traffic()
	return [2]int64{read, written}
}

// A memo is a Movable that remembers how many lines it had.
type memo struct {
	mu    sync.Mutex
	lines map[uint64]byte
	fails error
}

func (m *memo) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, m) }

func (m *memo) Step(c *levee.Conn, in []byte, _ int, out []byte) (int, []byte, error) {
	end := bytes.IndexByte(in, '\n') + 1
	if end == 0 {
		return 0, nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines[c.ID()]++
	return end, append(out, '0'+m.lines[c.ID()], '\n'), nil
}

func (m *memo) Save(c *levee.Conn) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []byte{m.lines[c.ID()]}, m.fails
}

func (m *memo) Restore(c *levee.Conn, state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != nil || len(state) != 1 {
		return errors.Join(m.fails, io.ErrUnexpectedEOF)
	}
	m.lines[c.ID()] = state[0]
	return nil
}

func newMemo() *memo { return &memo{lines: make(map[uint64]byte)} }

func TestAStepperMovesWithWhatItRemembersAndAPartOfAMessage(t *testing.T) {
	leveetest.CheckLeaks(t)
	memos := [2]*memo{newMemo(), newMemo()}
	one, two := build(t, &levee.Server{Handler: memos[0]}), build(t, &levee.Server{Handler: memos[1]})
	client := dialTCP(t, one.listener)
	if err := exchangeAs(client, "a\n", "1\n"); err != nil {
		t.Fatal(err)
	}
	send(t, client, "b")
	c := one.only()
	eventually(t, "it has come", func() bool { return traffic(c)[0] == 3 })
	memos[0].fails = errors.New("not now")
	if got := one.packAll(c); len(got) > 0 {
		t.Error("it moves though it cannot be saved")
	}
	memos[0].fails = nil
	p := one.pack(c)
	memos[1].fails = errors.New("not here")
	if _, err := two.Adopt(copied(t, p)); !errors.Is(err, memos[1].fails) {
		t.Errorf("adopted with %v", err)
	}
	memos[1].fails = nil
	one.moveTo(two, p)
	if err := exchangeAs(client, "c\nd\n", "2\n3\n"); err != nil {
		t.Error(err)
	}
	client.Close()
	if end := receive(t, two.ends); end.Reason != levee.ClientClosed || end.Read != 7 || end.Written != 6 {
		t.Errorf("%+v", end)
	}
}

// exchangeAs sends a text and expects another one.
func exchangeAs(c net.Conn, text, answer string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	return expect(c, answer)
}

func TestWhatCannotMoveStays(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca, upstream := leveetest.NewCA(t), listenTCP(t)
	serve(t, &levee.Server{Handler: answering}, upstream)
	for name, test := range map[string]struct {
		srv    *levee.Server
		client *tls.Config
		first  func(c *levee.Conn)
	}{
		"of a Stepper that is not Movable": {srv: &levee.Server{Handler: new(lines)}},
		"of a Joiner that is no Rejoiner":  {srv: &levee.Server{Handler: passBy{upstream.Addr().String()}}},
		"of sequential code":               {srv: &levee.Server{Handler: answering}},
		"over TLS":                         {srv: &levee.Server{Handler: &plainEcho{}, TLSConfig: ca.ServerConfig("localhost")}, client: ca.ClientConfig("localhost")},
		"joined over TLS":                  {srv: &levee.Server{Handler: rejoining(upstream), TLSConfig: ca.ServerConfig("localhost")}, client: ca.ClientConfig("localhost")},
		"served by a goroutine":            {srv: &levee.Server{Handler: &plainEcho{}, GoroutinePerConn: true}},
		"asked to leave":                   {srv: &levee.Server{Handler: newMemo()}, first: func(c *levee.Conn) { c.Drain(nil) }},
		"killed":                           {srv: &levee.Server{Handler: newMemo()}, first: func(c *levee.Conn) { c.Kill(nil) }},
		"that does not say how": {srv: &levee.Server{Handler: handle(func(_ context.Context, c *levee.Conn) error {
			c.MovesWith(nil)
			for c.Next() {
				if _, err := readLine(c); err != nil {
					return err
				}
			}
			return nil
		})}},
	} {
		t.Run(name, func(t *testing.T) {
			h := build(t, test.srv)
			client := dialTCP(t, h.listener)
			if test.client != nil {
				client = tls.Client(client, test.client)
			}
			text := "x\n"
			if test.first != nil {
				text = "x" // a message of which the end has not come
			}
			send(t, client, text)
			c := h.only()
			eventually(t, "it has come", func() bool { return traffic(c)[0] > 0 })
			if test.first != nil {
				test.first(c)
			}
			if got := h.packAll(c); len(got) > 0 {
				t.Error("it moves")
				got[0].Unpack()
			}
		})
	}
}

func TestAPackedConnectionIsThereAndHeedsWhatItIsToldWhenItGoesOn(t *testing.T) {
	leveetest.CheckLeaks(t)
	for name, test := range map[string]struct {
		do     func(h *house, c *levee.Conn)
		reason levee.CloseReason
	}{
		"Kill":  {func(_ *house, c *levee.Conn) { c.Kill(nil) }, levee.Killed},
		"Close": {func(_ *house, c *levee.Conn) { _ = c.Close() }, levee.HandlerClosed},
		"Drain": {func(_ *house, c *levee.Conn) { c.Drain(nil) }, levee.Drained},
		"a server that drains": {func(h *house, _ *levee.Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			go func() { _ = h.Shutdown(ctx); cancel() }() // ends when the connection has
			eventually(h.t, "it has been asked", func() bool { return h.Stats().Draining })
		}, levee.Drained},
		"a server that is closed": {func(h *house, _ *levee.Conn) { _ = h.Close() }, levee.ServerClosed},
	} {
		t.Run(name, func(t *testing.T) {
			h := build(t, &levee.Server{Handler: &plainEcho{}})
			client := dialTCP(t, h.listener)
			if err := exchange(client, "x"); err != nil {
				t.Fatal(err)
			}
			c := h.only()
			p := h.pack(c)
			if got := h.packAll(c); len(got) > 0 {
				t.Error("packed twice")
			}
			if s := h.Stats(); s.Active != 1 || s.Read != 1 || s.Written != 1 {
				t.Errorf("%+v", s)
			}
			for seen := range h.Sights() {
				if seen.Conn != c || !seen.OnLoop {
					t.Errorf("seen as %+v", seen)
				}
			}
			if sock, err := c.SyscallConn(); err != nil || sock.Control(func(uintptr) {}) != nil {
				t.Errorf("the socket is not to be had: %v", err)
			}
			test.do(h, c)
			send(t, client, "y")
			select {
			case end := <-h.ends:
				t.Errorf("it has ended as %v while it was packed", end.Reason)
			case <-time.After(20 * time.Millisecond):
			}
			p.Unpack()
			p.Unpack() // only the first counts
			p.Moved()
			if end := receive(t, h.ends); end.Reason != test.reason {
				t.Errorf("ended as %v, want %v", end.Reason, test.reason)
			}
			h.wantCounts(1, 0, 0, 0, 1)
		})
	}
}

func TestAConnectionThatHasMovedIsNotToldAnyMore(t *testing.T) {
	leveetest.CheckLeaks(t)
	one, two := build(t, &levee.Server{Handler: &plainEcho{}}), build(t, &levee.Server{Handler: &plainEcho{}})
	client := dialTCP(t, one.listener)
	before := one.only()
	p := one.pack(before)
	before.Kill(nil)
	c := one.moveTo(two, p)
	before.Drain(nil)
	_ = before.Close()
	if err := exchange(client, "still there"); err != nil || before.Reason() == levee.HandlerClosed {
		t.Errorf("%v, %v", err, before.Reason())
	}
	c.Drain(nil)
	if end := receive(t, two.ends); end.Reason != levee.Drained {
		t.Errorf("ended as %v", end.Reason)
	}
	wantEOF(t, client)
}

func TestTheLastConnectionToMoveLetsItsServerEnd(t *testing.T) {
	leveetest.CheckLeaks(t)
	one, two := build(t, &levee.Server{Handler: &plainEcho{}}), build(t, &levee.Server{Handler: &plainEcho{}})
	client := dialTCP(t, one.listener)
	if err := exchange(client, "x"); err != nil {
		t.Fatal(err)
	}
	p := one.pack(one.only())
	over := make(chan error, 1)
	go func() { over <- one.Shutdown(context.Background()) }() // ends with the move
	eventually(t, "it drains", func() bool { return one.Stats().Draining })
	if len(over) > 0 {
		t.Error("it has ended, though a connection is not gone")
	}
	one.moveTo(two, p)
	if err := receive(t, over); err != nil {
		t.Error(err)
	}
	if err := exchange(client, "y"); err != nil {
		t.Error(err)
	}
}

func TestADrainingServerAsksWhatItAdoptsToLeaveAndOneThatWasClosedEndsIt(t *testing.T) {
	leveetest.CheckLeaks(t)
	for reason, stop := range map[levee.CloseReason]func(h *house){
		levee.Drained:      func(h *house) { go h.Shutdown(context.Background()) }, // ends with the connection
		levee.ServerClosed: func(h *house) { go h.Close() },                        // the same
	} {
		one, two := build(t, &levee.Server{Handler: &plainEcho{}}), build(t, &levee.Server{Handler: &plainEcho{}})
		client := dialTCP(t, one.listener)
		p := one.pack(one.only())
		a, err := two.Adopt(copied(t, p))
		if err != nil {
			t.Fatal(err)
		}
		stop(two)
		eventually(t, "it stops", func() bool { return two.Stats().Draining })
		p.Moved()
		a.Begin()
		if end := receive(t, two.ends); end.Reason != reason {
			t.Errorf("ended as %v, want %v", end.Reason, reason)
		}
		wantEnd(t, client)
		eventually(t, "it is over", func() bool {
			_, err := two.Adopt(nil, nil)
			return err != nil
		})
		two.wantCounts(0, 1, 0, 0, 1)
	}
}

func TestAnAdoptedConnectionThatIsDroppedStaysWhereItWas(t *testing.T) {
	leveetest.CheckLeaks(t)
	w := joined(t, func() *levee.Server { return &levee.Server{Gate: new(host)} })
	near, far, c := w.meet(t)
	p := w.houses[0].pack(c)
	a, err := w.houses[1].Adopt(copied(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if s := w.houses[1].Stats(); s.Active+s.Adopted > 0 || w.houses[1].Conn(c.ID()) != nil {
		t.Errorf("it counts before it has begun: %+v", s)
	}
	if _, err := w.houses[1].Adopt(copied(t, p)); err == nil {
		t.Error("the same connection comes twice")
	}
	a.Conn().Kill(nil) // which does not matter any more
	a.Drop()
	a.Drop()
	a.Begin() // only the first counts
	if end := receive(t, w.joiners[1].ends); end.Reason != levee.ReasonNone {
		t.Errorf("%+v", end)
	}
	if told := w.houses[1].Gate.(*host).all(); !slices.Equal(told, []string{"readmit 127.0.0.1", "leave none"}) {
		t.Errorf("the gate was told %q", told)
	}
	p.Unpack()
	send(t, near, "ask")
	want(t, far, "ask")
	send(t, far, "answer")
	want(t, near, "answer")
	w.houses[1].wantCounts(0, 0, 0, 0, 0)
	w.houses[0].wantCounts(1, 0, 1, 0, 0)
}

func TestWhatCannotGoOnIsRefusedAndItsSocketsClosed(t *testing.T) {
	one := build(t, &levee.Server{Handler: &plainEcho{}})
	client := dialTCP(t, one.listener)
	p := one.pack(one.only())
	change := func(field string, to any) func(map[string]any) {
		return func(m map[string]any) { m[field] = to }
	}
	for want, test := range map[string]struct {
		srv    *levee.Server
		change func(map[string]any)
	}{
		"of a newer levee":                     {change: change("Version", 2)},
		"data of version 0":                    {change: change("Version", 0)},
		"no connection has id 0":               {change: change("ID", 0)},
		"how the connection is served":         {change: change("Loop", nil)},
		"1 sockets, want 2":                    {change: change("Loop", map[string]any{"Far": map[string]any{}})},
		"cannot unmarshal":                     {change: change("Age", "old")},
		"a levee.HandlerFunc cannot go on":     {srv: &levee.Server{Handler: echoing}},
		"cannot tell which handler":            {srv: &levee.Server{Handler: routing(func(context.Context, *levee.Conn) (levee.Handler, error) { return nil, nil })}},
		"no route \"\"":                        {srv: &levee.Server{Handler: way{}}},
		"Restore has panicked":                 {srv: &levee.Server{Handler: &mean{}}},
		"a *levee_test.rejoiner cannot go on":  {srv: &levee.Server{Handler: rejoining(one.listener)}},
		"a *levee_test.plainEcho cannot go on": {srv: &levee.Server{Handler: &plainEcho{}, GoroutinePerConn: true}},
		"levee: server closed":                 {srv: closedServer()},
	} {
		t.Run(want, func(t *testing.T) {
			if test.srv == nil {
				test.srv = &levee.Server{Handler: &plainEcho{}}
			}
			test.srv.Logger = slog.New(slog.DiscardHandler)
			defer test.srv.Close()
			data, sockets := copied(t, p)
			var fields map[string]any
			if err := json.Unmarshal(data, &fields); err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(fields)
			}
			data, _ = json.Marshal(fields)
			_, err := test.srv.Adopt(data, sockets)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "levee: adopt: ") {
				t.Errorf("the error is %v", err)
			}
			if _, err := unix.FcntlInt(uintptr(sockets[0]), unix.F_GETFD, 0); err != unix.EBADF {
				t.Error("the socket is still open")
			}
			if s := test.srv.Stats(); s.Active+s.Adopted+s.Accepted > 0 {
				t.Errorf("%+v", s)
			}
		})
	}
	p.Unpack()
	if err := exchange(client, "hello"); err != nil {
		t.Error(err)
	}
}

// closedServer is one that had its time.
func closedServer() *levee.Server {
	s := &levee.Server{Handler: &plainEcho{}}
	_ = s.Close()
	return s
}

// mean is a Movable that goes wrong.
type mean struct{ plainEcho }

func (*mean) Restore(*levee.Conn, []byte) error { panic("no") }

func TestAnOlderAndANewerLeveeUnderstandEachOther(t *testing.T) {
	one, two := build(t, &levee.Server{Handler: &plainEcho{}}), build(t, &levee.Server{Handler: &plainEcho{}})
	client := dialTCP(t, one.listener)
	p := one.pack(one.only())
	data, sockets := copied(t, p)
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields["Hat"] = map[string]int{"size": 7} // which a newer one has told of
	for _, unsaid := range []string{"Moments", "Age", "Client"} {
		delete(fields, unsaid)
	}
	data, _ = json.Marshal(fields)
	a, err := two.Adopt(data, sockets)
	if err != nil {
		t.Fatal(err)
	}
	p.Moved()
	a.Begin()
	if err := exchange(client, "hello"); err != nil {
		t.Error(err)
	}
}

func TestIDsThatAreSkippedAreNotGivenToNewcomers(t *testing.T) {
	last := levee.LastID()
	levee.SkipIDs(last + 1000)
	levee.SkipIDs(last)
	levee.SkipIDs(1<<64 - 1)
	if got := levee.LastID(); got < last+1000 || got > 1<<62 {
		t.Errorf("the last id is %d, was %d", got, last)
	}
	h := build(t, &levee.Server{Handler: &plainEcho{}})
	dialTCP(t, h.listener)
	if c := h.only(); c.ID() <= last+1000 {
		t.Errorf("a newcomer has id %d", c.ID())
	}
}

func TestTimesGoOnWhereAConnectionMovesTo(t *testing.T) {
	const limit, spent = 1200 * time.Millisecond, 600 * time.Millisecond
	for name, test := range map[string]struct {
		srv    func() *levee.Server
		reason levee.CloseReason
	}{
		"idleness":  {func() *levee.Server { return &levee.Server{Handler: newMemo(), IdleTimeout: limit} }, levee.IdleTimeout},
		"a message": {func() *levee.Server { return &levee.Server{Handler: newMemo(), MessageTimeout: limit} }, levee.MessageTimeout},
		"its life":  {func() *levee.Server { return &levee.Server{Handler: newMemo(), MaxLifetime: limit} }, levee.LifetimeExpired},
		"in Next":   {func() *levee.Server { return &levee.Server{Handler: tallying, IdleTimeout: limit} }, levee.IdleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, two := build(t, test.srv()), build(t, test.srv())
			client := dialTCP(t, one.listener)
			want := "1\n"
			send(t, client, "a\n")
			if name == "in Next" {
				want = "1 line\n"
			}
			if err := expect(client, want); err != nil {
				t.Fatal(err)
			}
			if name == "a message" {
				send(t, client, "b")
			}
			c, began := one.only(), time.Now()
			<-time.After(spent)
			one.move(two, c)
			end := receive(t, two.ends)
			if took := time.Since(began); end.Reason != test.reason || took < limit*9/10-50*time.Millisecond || took > limit*11/10+200*time.Millisecond {
				t.Errorf("ended as %v after %v, want %v after %v", end.Reason, took, test.reason, limit)
			}
		})
	}
}

// A fuzzed record comes with sockets that are sound, and what is made of it ends when their peers have gone.
func FuzzAdopt(f *testing.F) {
	stepping := &levee.Server{Handler: &plainEcho{}, Logger: slog.New(slog.DiscardHandler), MaxLifetime: time.Hour}
	joining := &levee.Server{Handler: unasked{}, Logger: slog.New(slog.DiscardHandler), Gate: new(host)}
	f.Cleanup(func() { stepping.Close(); joining.Close() })
	told := `"ID":7,"Age":5,"Network":"tcp","Local":"127.0.0.1:80","Peer":"[fe80::1%lo]:9","Client":"192.0.2.1:5","Moments":[1,2,3,4,5,6,7,8]`
	for _, how := range []string{
		`"Loop":{"Near":{"In":"aGFsZg==","Out":"b3V0","Read":4,"Silent":3,"Message":9,"Stalled":2,"Queue":8}}`,
		`"Loop":{"Near":{"Out":"b3V0","Ended":true},"Far":{"Out":"b3V0","Told":true,"Room":1,"Heard":true,"Young":true}}`,
		`"Next":{"Read":3,"Written":2,"Ahead":"YWhlYWQ=","Silent":1}`,
	} {
		f.Add([]byte(`{"Version":1,`+told+`,"Route":"r","Target":{"Server":"s"},"Tries":3,"State":"c3RhdGU=","Lifetime":5,`+how+`}`), true)
		f.Add([]byte(`{"Version":1,`+told+`,`+how+`}`), false)
	}
	f.Add([]byte(`{"Version":2}`), true)
	f.Add([]byte(`{`), true)
	f.Fuzz(func(t *testing.T, data []byte, begins bool) {
		before, _ := openNow(t)
		for i, srv := range []*levee.Server{stepping, joining} {
			var own, peers []int
			for range i + 1 {
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				own, peers = append(own, fds[0]), append(peers, fds[1])
			}
			a, err := srv.Adopt(data, own)
			var c *levee.Conn
			if err == nil {
				c = a.Conn()
				if c.ID() == 0 || c.Age() < 0 || traffic(c)[0] < 0 || traffic(c)[1] < 0 {
					t.Errorf("id %d, age %v, traffic %v", c.ID(), c.Age(), traffic(c))
				}
				_, _ = c.Story(), c.TraceParent()
				if begins {
					a.Begin()
				} else {
					a.Drop()
				}
			}
			for _, fd := range peers {
				unix.Close(fd)
			}
			eventually(t, "it is gone", func() bool { s := srv.Stats(); return s.Active == 0 && s.Panics == 0 })
			if s := srv.Stats(); s.Accepted != 0 || s.Read < 0 || s.Written < 0 {
				t.Errorf("%+v", s)
			}
		}
		eventually(t, "no socket is left", func() bool { after, _ := openNow(t); return after <= before || before < 20 })
	})
}

// unasked is a Rejoiner that takes everybody.
type unasked struct{}

func (u unasked) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, u)
}

func (unasked) Join(context.Context, *levee.Conn) (levee.Upstream, error) {
	return levee.Upstream{}, errors.New("nobody is to be joined anew")
}

func (unasked) Rejoin(*levee.Conn) (levee.Upstream, error) { return levee.Upstream{}, nil }

func BenchmarkPackOfIdlePairs(b *testing.B) {
	const many = 4000
	upstream := listenTCP(b)
	srv := &levee.Server{Handler: rejoining(upstream), MaxConns: -1}
	h := build(b, srv)
	for range many {
		dialTCP(b, h.listener)
		far, err := upstream.Accept()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { far.Close() })
	}
	all := h.Conns()
	eventually(b, "all are joined", func() bool {
		return !slices.ContainsFunc(all, func(c *levee.Conn) bool { return !levee.OnLoop(c) })
	})
	worked := time.Duration(0) // processor time, which does not depend on what else the machine does
	for b.Loop() {
		before := processorTime(b)
		parcels := h.packAll(all...)
		worked += processorTime(b) - before
		if len(parcels) != many {
			b.Fatalf("%d of %d are had", len(parcels), many)
		}
		b.StopTimer()
		for _, p := range parcels {
			p.Unpack()
		}
		eventually(b, "all are back", func() bool { // which asks the loops
			seen := 0
			for s := range h.Sights() {
				if !s.Moved.IsZero() {
					seen++
				}
			}
			return seen == many
		})
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/pack")
	b.ReportMetric(float64(worked.Milliseconds())/float64(b.N), "cpu-ms/pack")
}

// processorTime returns how long the process has been on a processor.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
