//go:build linux

package reactor_test

import (
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/levee-net/levee/internal/reactor"
)

// says answers, whatever it is given.
func says(reply string) step {
	return func(in, _ []byte) (int, []byte, error) { return len(in), []byte(reply), nil }
}

// greeted has a connection greet its peer, which has said nothing.
func greeted(t testing.TB, r *reactor.Reactor, greet step) (*owner, *net.TCPConn) {
	t.Helper()
	fd, peer := tcp(t)
	o := newOwner(t, echo)
	o.greet = greet
	o.adopt(t, r, fd, nil, reactor.Limits{})
	return o, peer
}

func TestTheFirstCallWaitsForNoByte(t *testing.T) {
	r := start(t, reactor.Options{})
	o, peer := greeted(t, r, says("hello"))
	expect(t, peer, "hello")
	exchange(t, peer, "again")
	peer.Close()
	o.endsAs(t, reactor.EOF)
	if read, written := o.Traffic(); read != 5 || written != 10 {
		t.Errorf("read %d and wrote %d bytes, want 5 and 10", read, written)
	}
}

func TestTheFirstCallIsTheOnlyOneWithoutBytes(t *testing.T) {
	r := start(t, reactor.Options{}) // the rest is minded by the owner
	o := newOwner(t, echo)
	o.greet = func([]byte, []byte) (int, []byte, error) {
		t.Error("called without bytes, though there are some")
		return 0, nil, nil
	}
	fd, peer := tcp(t)
	o.adopt(t, r, fd, []byte("first"), reactor.Limits{})
	expect(t, peer, "first")
	o.Leave()
	o.endsAs(t, reactor.Left)
	if o.calls != 1 {
		t.Errorf("%d calls", o.calls)
	}
}

// held greets in a call that outlives its budget, until the gate opens.
func held(t testing.TB, r *reactor.Reactor, greet step) (o *owner, peer *net.TCPConn, gate chan struct{}) {
	t.Helper()
	gate = make(chan struct{})
	o, peer = greeted(t, r, func(in, out []byte) (int, []byte, error) {
		<-gate
		return greet(in, out)
	})
	eventually(t, "it is away", func() bool { return o.view(t).Away })
	return o, peer, gate
}

func TestASlowGreetingIsACallAsAnyOther(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	t.Run("it holds nobody up", func(t *testing.T) {
		o, peer, gate := held(t, r, says("hi"))
		exchange(t, other, "hello")
		peer.Write([]byte("x"))
		close(gate)
		expect(t, peer, "hix")
		peer.Close()
		o.endsAs(t, reactor.EOF)
	})
	t.Run("Leave", func(t *testing.T) {
		o, peer, gate := held(t, r, says("hi"))
		peer.Write([]byte("x"))
		o.Leave()
		o.view(t)
		close(gate)
		expectEnd(t, peer, []byte("hix"))
		o.endsAs(t, reactor.Left)
	})
	t.Run("Kill", func(t *testing.T) {
		o, peer, gate := held(t, r, says("hi"))
		o.Kill()
		expectEnd(t, peer, nil)
		o.view(t)
		close(gate)
		o.endsAs(t, reactor.Killed)
	})
	t.Run("Pause", func(t *testing.T) {
		o, peer, gate := held(t, r, says("hi"))
		peer.Write([]byte("x"))
		o.Pause()
		o.view(t)
		close(gate)
		expect(t, peer, "hi")
		if v := o.view(t); !v.Paused || v.Read != 0 {
			t.Errorf("%+v, want it to be paused and nothing read", v)
		}
		o.Resume()
		expect(t, peer, "x")
	})
	t.Run("Pack", func(t *testing.T) {
		o, peer, gate := held(t, r, says("hi"))
		peer.Write([]byte("x"))
		came := pack(&o.Conn)
		o.view(t)
		close(gate)
		s := receive(t, came, "the connection")
		if s == nil || len(s.Near.In)+len(s.Near.Out) > 0 {
			t.Errorf("packed as %+v", s)
		}
		expect(t, peer, "hi")
		o.moveTo(t, r, s, reactor.Limits{}, echo).Unpack()
		expect(t, peer, "x")
	})
}

func TestAGreetingThatFailsEndsTheConnection(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	panics := func([]byte, []byte) (int, []byte, error) { panic("oh") }
	exits := func([]byte, []byte) (int, []byte, error) { runtime.Goexit(); return 0, nil, nil }
	for name, c := range map[string]struct {
		greet step
		want  reactor.Cause
		reply string
	}{
		"a panic":           {panics, reactor.Panicked, ""},
		"runtime.Goexit":    {exits, reactor.Panicked, ""},
		"an error":          {refuses(nil), reactor.Refused, ""},
		"an error, replied": {refuses([]byte("no")), reactor.Refused, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			o, peer := greeted(t, r, c.greet)
			expectEnd(t, peer, []byte(c.reply))
			if end := o.endsAs(t, c.want); c.want == reactor.Refused && !errors.Is(end.err, errEnough) {
				t.Errorf("ended with %v", end.err)
			}
			o, peer, gate := held(t, r, c.greet)
			close(gate)
			peer.Close()
			o.endsAs(t, c.want)
			exchange(t, other, "hello")
		})
	}
}

func TestManyGreetingsThatWaitDoSoAtOnce(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	const many = 300
	var inside atomic.Int64
	all := make(chan struct{})
	var last *owner
	for range many {
		last, _ = greeted(t, r, func([]byte, []byte) (int, []byte, error) {
			if inside.Add(1) == many {
				close(all)
			}
			<-all // serially they would never come to be many
			return 0, nil, nil
		})
	}
	receive(t, all, "the last call")
	if slow := r.Slow(); slow > many/10 {
		t.Errorf("%d of %d calls were waited for inline", slow, many)
	}
	eventually(t, "its call is over", func() bool { return !last.view(t).Away })
}

func TestAQuickGreetingProvesNothing(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	const many = 300
	var inside atomic.Int64
	all := make(chan struct{})
	for range many {
		_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
			if inside.Add(1) == many {
				close(all)
			}
			<-all
			return len(in), append(out, in...), nil
		})
		peer.Write([]byte("x"))
		defer expect(t, peer, "x")
	}
	receive(t, all, "the last call")
	if slow := r.Slow(); slow > 8 { // 3 make for enough doubt
		t.Errorf("%d of %d calls were waited for inline, with a greeting before each", slow, many)
	}
}
