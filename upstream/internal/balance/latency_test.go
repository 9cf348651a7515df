package balance_test

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/upstream/internal/balance"
)

func TestLatencyRisesAtOnceAndDecaysWithItsTimeConstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l balance.Latency
		expect := func(want time.Duration) {
			t.Helper()
			if got := l.Value(); (got - want).Abs() > time.Microsecond {
				t.Errorf("%v, want %v", got, want)
			}
		}
		expect(0)
		l.Observe(10 * time.Millisecond)
		expect(10 * time.Millisecond)
		l.Observe(100 * time.Millisecond)
		expect(100 * time.Millisecond)
		l.Observe(10 * time.Millisecond) // no time has passed
		expect(100 * time.Millisecond)

		time.Sleep(10 * time.Second) // virtual time
		expect(36788 * time.Microsecond)
		l.Observe(10 * time.Millisecond) // 100 / e + 10 × (1 - 1/e)
		expect(43109 * time.Microsecond)

		time.Sleep(time.Hour) // virtual time
		expect(0)
		l.Observe(0)
		if got := l.Value(); got != 1 {
			t.Errorf("%v: 0 is for what is unknown", got)
		}
	})
}

func TestLatencyStaysBetweenTheLastAndTheHighestThatWasObserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l balance.Latency
		highest := time.Duration(1)
		for _, d := range rapid.SliceOfN(rapid.Int64Range(-10, math.MaxInt64/4), 1, 20).Draw(t, "observed") {
			highest = max(highest, time.Duration(d))
			l.Observe(time.Duration(d))
			// Real time goes on: a minute's decay and float64's rounding are allowed for.
			if got := l.Value(); float64(got) > float64(highest)*(1+1e-9) || float64(got) < float64(d)*0.002 {
				t.Fatalf("%d after %d", got, d)
			}
		}
	})
}

func TestLatencyIsForManyGoroutines(t *testing.T) {
	var l balance.Latency
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				l.Observe(time.Millisecond)
				l.Value()
			}
		})
	}
	all.Wait()
	if got := l.Value(); got > time.Millisecond || got < time.Millisecond/400 {
		t.Error(got)
	}
}
