package breaker_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

// handedOver returns a breaker of another process, which knows what b did a while ago.
func handedOver(t *testing.T, b *breaker.Breaker, ago time.Duration) *breaker.Breaker {
	t.Helper()
	s := b.Snapshot()
	pass(ago)
	next := breaker.New(breaker.Settings{}, func(from, to breaker.State) {
		if from == breaker.Closed {
			t.Errorf("told of %v to %v", from, to)
		}
	})
	next.Restore(s, ago)
	return next
}

func TestFailuresInARowGoOnInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		attempt(t, b, times(4, failure)...)
		next := breaker.New(breaker.Settings{}, nil)
		next.Restore(b.Snapshot(), 0)
		attempt(t, next, failure)
		expect(t, next, breaker.Open)
	})
}

func TestASharesOutcomesGoOnInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		for range 9 {
			attempt(t, b, failure, success)
		}
		attempt(t, b, success)
		next := breaker.New(breaker.Settings{}, nil)
		next.Restore(b.Snapshot(), 9*time.Second)
		attempt(t, next, failure)
		expect(t, next, breaker.Open)

		later := handedOver(t, b, 11*time.Second) // they are forgotten
		attempt(t, later, failure)
		expect(t, later, breaker.Closed)
	})
}

func TestAnOpenBreakerHasTheRestOfItsTimeInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		b.Trip()
		pass(10 * time.Second)
		attempt(t, b, failure) // and open again, for twice as long
		pass(7 * time.Second)
		next := handedOver(t, b, 2*time.Second)
		pass(11*time.Second - 1)
		expect(t, next, breaker.Open)
		pass(1)
		expect(t, next, breaker.HalfOpen)
		attempt(t, next, failure)
		pass(40*time.Second - 1)
		expect(t, next, breaker.Open)
		pass(1)
		expect(t, next, breaker.HalfOpen)
	})
}

func TestProofsGoOnInAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		b.Trip()
		pass(10 * time.Second)
		attempt(t, b, success, success)
		if !b.Allow() { // of this one the other will hear nothing
			t.Fatal("no third probe")
		}
		next := handedOver(t, b, time.Second)
		expect(t, next, breaker.HalfOpen)
		attempt(t, next, success)
		expect(t, next, breaker.Closed)
	})
}

func TestABreakerBelievesNothingThatItsSettingsDoNotAllow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, extreme := range []int64{math.MinInt64, -1, 0, 1, math.MaxInt64} {
			for _, ago := range []time.Duration{0, time.Hour, math.MaxInt64} {
				for state := range breaker.State(4) {
					b := breaker.New(breaker.Settings{}, nil)
					n, d := int(extreme), time.Duration(extreme)
					b.Restore(breaker.Snapshot{State: state, Row: n, Good: n, Bad: n, Steady: d, Left: d, Pause: d, Successes: n}, ago)
					got := b.Snapshot()
					if got.Left > time.Minute || got.Pause < 10*time.Second || got.Pause > time.Minute {
						t.Fatalf("%v of %d, %v ago: %+v", state, extreme, ago, got)
					}
					pass(time.Minute)
					for range 3 { // what is well is well in the end
						if b.State() != breaker.Closed {
							attempt(t, b, success)
						}
					}
					expect(t, b, breaker.Closed)
				}
			}
		}
	})
}
