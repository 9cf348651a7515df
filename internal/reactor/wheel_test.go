//go:build linux

package reactor

import (
	"testing"

	"pgregory.net/rapid"
)

// TestTheWheelFindsEachConnectionOnTime compares the wheel with a list of deadlines.
func TestTheWheelFindsEachConnectionOnTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, now := new(wheel), int64(0)
		wanted := map[*Conn]int64{} // the earliest that was asked for
		conns := make([]*Conn, 20)
		for i := range conns {
			conns[i] = new(Conn)
		}
		someone := func(t *rapid.T) *Conn { return rapid.SampledFrom(conns).Draw(t, "conn") }
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				c := someone(t)
				at := now + rapid.Int64Range(-wheelTick, 3*wheelSlots*wheelTick).Draw(t, "in")
				w.put(c, at)
				at = max(at, now)
				if old, ok := wanted[c]; !ok || at < old {
					wanted[c] = at
				}
			},
			"remove": func(t *rapid.T) {
				c := someone(t)
				w.remove(c)
				delete(wanted, c)
			},
			"advance": func(t *rapid.T) {
				next := w.next()
				now += rapid.Int64Range(0, wheelSlots*wheelTick/2).Draw(t, "by")
				w.advance(now)
				for c := w.pop(); c != nil; c = w.pop() {
					at, ok := wanted[c]
					if !ok {
						t.Fatal("found a connection that had been removed")
					}
					delete(wanted, c)
					if at > now { // looked at on the way
						wanted[c] = at
						w.put(c, at)
					}
				}
				if len(wanted) > 0 && next == 0 {
					t.Fatal("nothing is next, and yet there was something")
				}
			},
			"": func(t *rapid.T) {
				if w.count != len(wanted) {
					t.Fatalf("holds %d connections, want %d", w.count, len(wanted))
				}
				for c, at := range wanted {
					if at <= now-wheelTick {
						t.Fatalf("at %d it has not found the connection that was due at %d", now, at)
					}
					if next := w.next(); next == 0 || next > max(at, now)+wheelTick {
						t.Fatalf("at %d it wants to sleep until %d, with a connection due at %d", now, next, at)
					}
					if c.due*wheelTick >= max(at, now)+2*wheelTick {
						t.Fatalf("at %d a connection due at %d is in the slot of %d", now, at, c.due*wheelTick)
					}
				}
			},
		})
	})
}

func TestAWheelsConnectionThatIsFoundAndThenRemovedIsSafe(t *testing.T) {
	w := new(wheel)
	a, b := new(Conn), new(Conn)
	w.put(a, wheelTick)
	w.put(b, wheelTick)
	w.advance(5 * wheelTick)
	first := w.pop()
	w.remove(a) // one of the two is still in the list of those that are due
	w.remove(b)
	w.put(a, 10*wheelTick)
	w.put(b, 10*wheelTick)
	second := w.pop()
	if first == second || first == nil || second == nil || w.pop() != nil {
		t.Errorf("popped %p and %p of %p and %p", first, second, a, b)
	}
	if w.next() != 10*wheelTick || w.count != 1 {
		t.Errorf("next at %d, %d connections", w.next(), w.count)
	}
}
