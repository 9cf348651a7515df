//go:build linux

package reactor_test

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// waits answers when the gate opens.
func waits(gate <-chan struct{}) step {
	return func(in, out []byte) (int, []byte, error) {
		<-gate
		return len(in), append(out, in...), nil
	}
}

func TestACallThatWaitsHoldsNobodyElseUp(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	_, stuck := serve(t, r, reactor.Limits{}, waits(gate))
	stuck.Write([]byte("a"))
	var all sync.WaitGroup
	for range 50 {
		_, peer := serve(t, r, reactor.Limits{}, echo)
		all.Go(func() {
			for range 100 {
				exchange(t, peer, "hello")
			}
		})
	}
	all.Wait() // with the only loop in a call that has not returned
	if r.Slow() == 0 {
		t.Error("no call counted as slow")
	}
	stuck.Write([]byte("b"))
	close(gate)
	expect(t, stuck, "ab")
}

func TestWhatASlowCallWasGivenStaysItsOwn(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	want := bytes.Repeat([]byte("mine"), 1000)
	for range 10 {
		_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
			out = append(out, in...)
			<-gate
			if !bytes.Equal(in, want) || !bytes.Equal(out, want) {
				t.Error("somebody else has written to a call's memory")
			}
			return len(in), out, nil
		})
		defer expect(t, peer, string(want))
		peer.Write(want)
	}
	_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) { return len(in), append(out, in...), nil })
	for range 100 {
		exchange(t, peer, "theirs: theirs: theirs")
	}
	close(gate)
}

func TestManyCallsThatWaitDoSoAtOnce(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	const many = 500
	var inside atomic.Int64
	all := make(chan struct{})
	for range many {
		_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
			if inside.Add(1) == many {
				close(all)
			}
			<-all // serially they would never come to be many
			return len(in), append(out, in...), nil
		})
		peer.Write([]byte("x"))
		defer expect(t, peer, "x")
	}
	receive(t, all, "the last call")
	if slow := r.Slow(); slow > many/4 {
		t.Errorf("%d of %d calls were waited for inline", slow, many)
	}
}

func TestCallsThatBurnProcessorTimeStarveNobody(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	r := start(t, reactor.Options{})
	stop := make(chan struct{})
	burns := func(in, _ []byte) (int, []byte, error) {
		for began := time.Now(); time.Since(began) < 100*time.Millisecond; {
		}
		return len(in), in, nil
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer close(stop)
	var burnt atomic.Int64
	for range 8 {
		_, peer := serve(t, r, reactor.Limits{}, burns)
		all.Go(func() {
			for {
				exchange(t, peer, "x")
				burnt.Add(1)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	eventually(t, "all burn", func() bool { return r.Slow() > 0 && burnt.Load() > 8 })
	_, peer := serve(t, r, reactor.Limits{}, echo)
	began, before := time.Now(), burnt.Load()
	for range 100 {
		exchange(t, peer, "x")
	}
	// In turns with the burners each of these would take a slice of 10 ms for each of them.
	t.Logf("100 round trips beside 8 burners in %v, while those made %d calls", time.Since(began), burnt.Load()-before)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("100 round trips took %v", took)
	}
}

func TestASlowConnectionComesBackInlineOnceItIsQuick(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	o, peer := serve(t, r, reactor.Limits{}, waits(gate))
	peer.Write([]byte("x"))
	eventually(t, "it is slow", func() bool { return o.view(t).Slow })
	close(gate)
	expect(t, peer, "x")
	for i := 0; o.view(t).Slow; i++ {
		if i == 1000 {
			t.Fatal("still slow after 1000 quick calls")
		}
		exchange(t, peer, "x")
	}
}

func TestPipelinedMessagesOfASlowConnectionStayInOrder(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1, Budget: 100 * time.Microsecond})
	var calls atomic.Int64
	inner := records(3)
	_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
		if calls.Add(1)%50 == 0 { // the first time until it is slow, and then as long
			for began := time.Now(); r.Slow() == 0 || time.Since(began) < time.Millisecond; {
				runtime.Gosched()
			}
		}
		return inner(in, out)
	})
	var stream []byte
	for i := range 3000 {
		stream = append(stream, record([]byte{byte(i), byte(i >> 8)})...)
	}
	go sendCut(peer, stream, []int{1, 17, 300, 4000}) // ends with the stream, or the peer's deadline
	expectEnd(t, peer, stream)
}

func TestABackendThatStopsToAnswerIsNotedSoon(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	const many = 200
	var hangs atomic.Bool
	var inside atomic.Int64
	gate := make(chan struct{})
	var sendAll []func()
	for range many {
		_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
			if hangs.Load() {
				inside.Add(1)
				<-gate
			}
			return len(in), append(out, in...), nil
		})
		exchange(t, peer, "x") // it has proven quick
		sendAll = append(sendAll, func() { peer.Write([]byte("y")) })
		defer expect(t, peer, "y")
	}
	hangs.Store(true)
	for _, send := range sendAll {
		send()
	}
	eventually(t, "all wait for it", func() bool { return inside.Load() == many })
	if slow := r.Slow(); slow > many/4 {
		t.Errorf("%d of %d calls were waited for inline", slow, many)
	}
	close(gate)
}

func TestAPanicEndsItsOwnConnectionOnly(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	gate := make(chan struct{})
	for name, s := range map[string]step{
		"inline": func([]byte, []byte) (int, []byte, error) { panic("oh") },
		"aside":  func([]byte, []byte) (int, []byte, error) { <-gate; panic("oh") },
		"exit":   func([]byte, []byte) (int, []byte, error) { runtime.Goexit(); return 0, nil, nil },
		"exit aside": func([]byte, []byte) (int, []byte, error) {
			<-gate
			runtime.Goexit()
			return 0, nil, nil
		},
	} {
		o, peer := serve(t, r, reactor.Limits{}, s)
		peer.Write([]byte("x"))
		if name == "aside" || name == "exit aside" {
			eventually(t, "it is away", func() bool { return o.view(t).Away })
			gate <- struct{}{}
		}
		end := o.endsAs(t, reactor.Panicked)
		var panicked *reactor.PanicError
		if !errors.As(end.err, &panicked) || (panicked.Value == "oh") != (name == "inline" || name == "aside") || len(panicked.Stack) == 0 {
			t.Errorf("%s: ended with %+v", name, end.err)
		}
		exchange(t, other, "hello")
	}
}

func TestAPanicInTheLaneLeavesTheLaneOpen(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	gate := make(chan struct{})
	for i := range 40 {
		var calls atomic.Int64
		o, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
			switch calls.Add(1) {
			case 1:
				<-gate // the next goes through the lane
			case 2:
				if i%2 == 0 {
					runtime.Goexit()
				}
				panic("oh")
			}
			return len(in), append(out, in...), nil
		})
		peer.Write([]byte("x"))
		eventually(t, "it is slow", func() bool { return o.view(t).Slow || o.view(t).Away })
		defer o.endsAs(t, reactor.Panicked)
		defer peer.Write([]byte("x"))
		defer expect(t, peer, "x")
	}
	close(gate)
}

func TestAnEndThatPanicsOrHangsOrExitsEndsNothingElse(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	_, other := serve(t, r, reactor.Limits{}, echo)
	gate := make(chan struct{})
	defer close(gate)
	for _, onEnd := range []func(){func() { panic("oh") }, runtime.Goexit, func() { <-gate }} {
		fd, peer := tcp(t)
		o := newOwner(t, echo)
		o.onEnd = onEnd
		must(t, r.Adopt(&o.Conn, fd, nil, o, &reactor.Limits{}))
		exchange(t, peer, "x")
		peer.Close()
		o.endsAs(t, reactor.EOF)
		o.Kill()
		exchange(t, other, "hello")
	}
}

func TestAFloodOnOneConnectionLeavesRoomForTheOthers(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	flooder, flood := serve(t, r, reactor.Limits{}, func(in, _ []byte) (int, []byte, error) { return len(in), nil, nil })
	go func() { // ends when the connection does
		for block := make([]byte, 1<<20); ; {
			if _, err := flood.Write(block); err != nil {
				return
			}
		}
	}()
	eventually(t, "the flood is on", func() bool { return flooder.view(t).Read > 1<<20 })
	_, peer := serve(t, r, reactor.Limits{}, echo)
	for range 100 {
		before, _ := flooder.Traffic()
		exchange(t, peer, "hello")
		if after, _ := flooder.Traffic(); after-before > 1<<30 {
			t.Errorf("%d bytes of the flood went before", after-before)
		}
	}
	flooder.Kill()
	flooder.endsAs(t, reactor.Killed)
}

func TestLagTellsHowLongTheLoopWasBusy(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1, Budget: time.Hour})
	const busy = 5 * time.Millisecond
	_, peer := serve(t, r, reactor.Limits{}, func(in, out []byte) (int, []byte, error) {
		for began := time.Now(); time.Since(began) < busy; {
			runtime.Gosched()
		}
		return len(in), append(out, in...), nil
	})
	exchange(t, peer, "x")
	eventually(t, "it lags", func() bool { return r.Lag() >= busy })
	if r.Loops() != 1 || r.Slow() != 0 {
		t.Errorf("%d loops, %d slow calls", r.Loops(), r.Slow())
	}
}
