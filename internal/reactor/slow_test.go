//go:build linux

package reactor_test

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A diary is what an owner is told of its slow calls.
type diary struct {
	slow   chan struct{}
	slowed chan time.Duration
}

func (o *owner) keepDiary() diary {
	d := diary{make(chan struct{}, 100), make(chan time.Duration, 100)}
	o.onSlow = func() { d.slow <- struct{}{} }
	o.onSlowed = func(took time.Duration) { d.slowed <- took }
	return d
}

// A stage has calls that last as long as the test wants.
type stage struct{ inside, gate chan struct{} }

func newStage() stage { return stage{make(chan struct{}), make(chan struct{})} }

func (s stage) step(in, out []byte) (int, []byte, error) {
	s.inside <- struct{}{}
	<-s.gate
	return len(in), append(out, in...), nil
}

// isSlow waits for a call and ends it when it has outlived its budget: if it is made
// inline, when that has been told; if aside, where it is told only then, after a
// while in which a watchdog would have come by, however busy the machine.
func (s stage) isSlow(t testing.TB, o *owner) {
	t.Helper()
	receive(t, s.inside, "the call")
	for end := time.Now().Add(200 * time.Millisecond); o.slow.Load() == 0 && time.Now().Before(end); {
		over := time.NewTimer(time.Millisecond)
		<-over.C
	}
	s.gate <- struct{}{}
}

func TestASlowCallIsToldWhileItRunsAndWhenItIsOver(t *testing.T) {
	const budget = 2 * time.Millisecond
	r := start(t, reactor.Options{Loops: 1, Budget: budget})
	fd, peer := tcp(t)
	o := newOwner(t, nil)
	d := o.keepDiary()
	s := newStage()
	o.step = s.step
	o.adopt(t, r, fd, nil, reactor.Limits{})
	for i := range 3 { // inline, and then aside
		peer.Write([]byte("x"))
		receive(t, s.inside, "the call")
		if i == 0 {
			receive(t, d.slow, "the word that the call is slow")
			if len(d.slowed) > 0 {
				t.Error("told of the end of a call that goes on")
			}
		}
		const more = 10 * budget
		over := time.NewTimer(more)
		<-over.C
		s.gate <- struct{}{}
		took := receive(t, d.slowed, "the word that the call is over")
		if i > 0 {
			receive(t, d.slow, "the word that the call is slow")
		}
		if took < more {
			t.Errorf("told that the call took %v, of at least %v", took, more)
		}
		expect(t, peer, "x")
	}
	if n := len(d.slow) + len(d.slowed); n > 0 {
		t.Errorf("told %d times too often", n)
	}
}

func TestAQuickCallIsNotToldOf(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1, Budget: time.Hour})
	fd, peer := tcp(t)
	o := newOwner(t, echo)
	d := o.keepDiary()
	o.adopt(t, r, fd, nil, reactor.Limits{})
	for range 100 {
		exchange(t, peer, "x")
	}
	o.Kill()
	o.endsAs(t, reactor.Killed)
	if n := len(d.slow) + len(d.slowed); n > 0 {
		t.Errorf("told %d times", n)
	}
}

func TestHowLongASlowCallTookIsTrueInALongBatch(t *testing.T) {
	const budget = 4 * time.Millisecond
	r := start(t, reactor.Options{Loops: 1, Budget: budget})
	var all []*owner
	const many = 40
	for i := range many {
		fd, peer := tcp(t)
		o := newOwner(t, nil)
		o.slack = 30 * time.Millisecond // far less than the batch takes
		o.step = func(in, out []byte) (int, []byte, error) {
			long := budget / 2
			if i == 0 || i == many-1 { // the first, so that the others make one batch
				long = 5 * budget
			}
			for began := time.Now(); time.Since(began) < long; {
				runtime.Gosched()
			}
			return len(in), append(out, in...), nil
		}
		o.adopt(t, r, fd, nil, reactor.Limits{})
		o.Pause()
		o.view(t)
		peer.Write([]byte("x"))
		defer expect(t, peer, "x")
		all = append(all, o)
	}
	for _, o := range all {
		o.Resume()
	}
}

func TestASlowCallThatPanicsIsToldOf(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	for name, fail := range map[string]func(){"panic": func() { panic("oh") }, "exit": runtime.Goexit} {
		for _, calls := range []int{1, 2} { // inline, and aside
			fd, peer := tcp(t)
			o := newOwner(t, nil)
			d := o.keepDiary()
			s, left := newStage(), calls
			o.step = func(in, out []byte) (int, []byte, error) {
				s.step(in, out)
				if left--; left == 0 {
					fail()
				}
				return len(in), nil, nil
			}
			o.adopt(t, r, fd, nil, reactor.Limits{})
			for range calls {
				peer.Write([]byte("x"))
				s.isSlow(t, o)
				receive(t, d.slow, name+": the word that the call is slow")
				receive(t, d.slowed, name+": the word that the call is over")
			}
			o.endsAs(t, reactor.Panicked)
		}
	}
}

func TestAPanicInSlowedIsAsOneInTheCall(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	for name, fail := range map[string]func(){"panic": func() { panic("oh") }, "exit": runtime.Goexit} {
		for _, last := range []int32{1, 2} { // inline, and aside
			fd, peer := tcp(t)
			o := newOwner(t, nil)
			s := newStage()
			o.step = s.step
			var calls atomic.Int32
			o.onSlowed = func(time.Duration) {
				if calls.Add(1) == last {
					fail()
				}
			}
			o.adopt(t, r, fd, nil, reactor.Limits{})
			for range last {
				peer.Write([]byte("x"))
				s.isSlow(t, o)
			}
			end := o.endsAs(t, reactor.Panicked)
			var panicked *reactor.PanicError
			if !errors.As(end.err, &panicked) || (panicked.Value == "oh") != (name == "panic") {
				t.Errorf("%s: ended with %v", name, end.err)
			}
			exchange(t, other, "hello")
		}
	}
}

func TestNothingElseOfTheConnectionIsCalledBeforeSlowedReturns(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	fd, peer := tcp(t)
	o := newOwner(t, nil)
	s, slowed, gate := newStage(), make(chan struct{}), make(chan struct{})
	o.step = s.step
	o.onSlowed = func(time.Duration) {
		close(slowed)
		<-gate
	}
	o.adopt(t, r, fd, nil, reactor.Limits{})
	peer.Write([]byte("x"))
	s.isSlow(t, o)
	receive(t, slowed, "the word that the call is over")
	o.Kill()
	o.view(t)
	select {
	case end := <-o.ended:
		t.Errorf("ended as %d before", end.cause)
	default:
	}
	close(gate)
	o.endsAs(t, reactor.Killed)
}

func TestAnEndThatIsSlowIsNotToldOf(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	fd, peer := tcp(t)
	o := newOwner(t, echo)
	d := o.keepDiary()
	gate := make(chan struct{})
	over := make(chan struct{})
	o.onEnd = func() { <-gate; close(over) }
	o.adopt(t, r, fd, nil, reactor.Limits{})
	exchange(t, peer, "x")
	o.Kill()
	o.endsAs(t, reactor.Killed)
	eventually(t, "the loop is taken from it", func() bool { return r.Slow() > 0 })
	close(gate)
	receive(t, over, "the end of End")
	if n := len(d.slow) + len(d.slowed); n > 0 {
		t.Errorf("told %d times", n)
	}
}
