package breaker_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

const (
	success = breaker.Success
	failure = breaker.Failure
	ignored = breaker.Ignored
)

// attempt makes attempts that end one after the other.
func attempt(t *testing.T, b *breaker.Breaker, outcomes ...breaker.Outcome) {
	t.Helper()
	for i, o := range outcomes {
		if !b.Allow() {
			t.Fatalf("attempt %d is not allowed: %v", i, b.State())
		}
		b.Done(o)
	}
}

func times(n int, o breaker.Outcome) []breaker.Outcome { return slices.Repeat([]breaker.Outcome{o}, n) }

func expect(t *testing.T, b *breaker.Breaker, want breaker.State) {
	t.Helper()
	if got := b.State(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func pass(d time.Duration) {
	time.Sleep(d) // virtual time
}

func TestStatesAreTheNumbersAndWordsOfTheMetrics(t *testing.T) {
	var got []string
	for s := range breaker.State(4) {
		got = append(got, fmt.Sprintf("%d %v", uint8(s), s))
	}
	if want := "0 closed, 1 half_open, 2 open, 3 State(3)"; strings.Join(got, ", ") != want {
		t.Errorf("%q", got)
	}
}

func TestFiveFailuresInARowOpenIt(t *testing.T) {
	b := breaker.New(breaker.Settings{}, nil)
	attempt(t, b, times(4, failure)...)
	attempt(t, b, success)
	attempt(t, b, times(4, failure)...)
	attempt(t, b, ignored)
	expect(t, b, breaker.Closed)
	attempt(t, b, failure)
	expect(t, b, breaker.Open)
	if b.Allow() || b.Ready() {
		t.Error("it lets somebody through")
	}
}

func TestHalfOfTwentyFailuresInTenSecondsOpenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		for range 9 {
			attempt(t, b, success, failure)
		}
		expect(t, b, breaker.Closed) // of 18
		attempt(t, b, success, failure)
		expect(t, b, breaker.Open)

		b = breaker.New(breaker.Settings{}, nil)
		for range 100 { // the same, but never 20 within 10 s
			attempt(t, b, success, failure)
			pass(1200 * time.Millisecond)
		}
		expect(t, b, breaker.Closed)
	})
}

func TestSuccessDoesNotOpenItEvenIfItMakesUpTheVolume(t *testing.T) {
	b := breaker.New(breaker.Settings{Failures: -1}, nil)
	attempt(t, b, times(19, failure)...)
	attempt(t, b, success)
	expect(t, b, breaker.Closed)
	attempt(t, b, failure)
	expect(t, b, breaker.Open)
}

func TestNegativeThresholdsAreOff(t *testing.T) {
	b := breaker.New(breaker.Settings{Failures: -1, Rate: -1}, nil)
	attempt(t, b, times(1000, failure)...)
	expect(t, b, breaker.Closed)
	b.Trip()
	expect(t, b, breaker.Open)

	b = breaker.New(breaker.Settings{Failures: -1, Volume: -1, Rate: 1}, nil)
	attempt(t, b, failure)
	expect(t, b, breaker.Open)

	b = breaker.New(breaker.Settings{Open: -1, Probes: -1}, nil)
	attempt(t, b, times(5, failure)...)
	expect(t, b, breaker.HalfOpen)
	attempt(t, b, success)
	expect(t, b, breaker.Closed)
}

func TestSettingsOfAnySizeAreSafe(t *testing.T) {
	for _, s := range []breaker.Settings{
		{Failures: 1, Open: math.MaxInt64, MaxOpen: math.MaxInt64, Window: math.MaxInt64},
		{Failures: 1, Open: math.MaxInt64, MaxOpen: 1, Window: 1, Rate: math.NaN()},
		{Failures: 1, Open: time.Hour, MaxOpen: -1, Window: -1, Rate: math.Inf(1), Volume: math.MaxInt, Probes: math.MaxInt},
	} {
		b := breaker.New(s, nil)
		attempt(t, b, failure)
		expect(t, b, breaker.Open)
		if left := time.Until(b.Until()); left < 50*time.Minute {
			t.Errorf("%+v: open for %v", s, left)
		}
	}
}

func TestItStaysOpenTwiceAsLongEachTimeUntilItHasBeenWellForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		open := func(want time.Duration) {
			t.Helper()
			if got := time.Until(b.Until()); got != want {
				t.Errorf("open for %v, want %v", got, want)
			}
			pass(want - 1)
			expect(t, b, breaker.Open)
			if b.Ready() || b.Allow() {
				t.Error("it lets somebody through")
			}
			pass(1)
			if !b.Ready() || !b.Until().IsZero() {
				t.Errorf("%v, until %v", b.Ready(), b.Until())
			}
			expect(t, b, breaker.HalfOpen)
		}
		attempt(t, b, times(5, failure)...)
		for _, seconds := range []int{10, 20, 40, 60, 60} {
			open(time.Duration(seconds) * time.Second)
			attempt(t, b, failure)
		}
		open(time.Minute)
		attempt(t, b, success, success, success)
		pass(time.Minute - 1)
		attempt(t, b, times(5, failure)...)
		open(time.Minute)
		attempt(t, b, success, success, success)
		pass(time.Minute)
		attempt(t, b, times(5, failure)...)
		open(10 * time.Second)
		b.Reset()
		b.Trip()
		open(10 * time.Second)
	})
}

func TestHalfOpenLetsOneThroughAndThenAFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		allowed := func(want int) {
			t.Helper()
			for i := range want {
				if !b.Ready() || !b.Allow() {
					t.Errorf("attempt %d of %d is not allowed", i+1, want)
				}
			}
			if b.Ready() || b.Allow() {
				t.Errorf("more than %d are allowed", want)
			}
		}
		attempt(t, b, times(5, failure)...)
		pass(10 * time.Second)
		allowed(1)
		b.Done(ignored)
		allowed(1)
		b.Done(success)
		allowed(3)
		b.Done(ignored)
		allowed(1)
		b.Done(success)
		allowed(1)
		expect(t, b, breaker.HalfOpen)
		b.Done(success)
		expect(t, b, breaker.Closed)
	})
}

func TestAProbeThatIsDroppedEarlyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		attempt(t, b, times(5, failure)...)
		pass(10 * time.Second)
		if !b.Allow() {
			t.Fatal("no probe")
		}
		pass(time.Second) // it is connected, and its permit held
		if b.Allow() {
			t.Error("another probe before it is known what becomes of the first")
		}
		b.Done(failure)
		expect(t, b, breaker.Open)
	})
}

func TestReportsCountOnlyWhileItIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		for range 5 {
			b.Report(failure)
		}
		expect(t, b, breaker.Open)
		b.Report(success)
		expect(t, b, breaker.Open)
		pass(10 * time.Second)
		for range 5 {
			b.Report(success)
		}
		expect(t, b, breaker.HalfOpen)
		b.Report(failure)
		expect(t, b, breaker.HalfOpen)
		attempt(t, b, success, success, success)
		for range 4 {
			b.Report(failure)
		}
		expect(t, b, breaker.Closed) // what was reported meanwhile is not remembered
	})
}

func TestAttemptsFromBeforeItOpenedAreNotTakenForProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		for range 7 {
			b.Allow()
		}
		for range 5 {
			b.Done(failure)
		}
		pass(10 * time.Second)
		expect(t, b, breaker.HalfOpen)
		if b.Ready() || b.Allow() {
			t.Error("a probe that could not be told from the two that still hang")
		}
		b.Done(success)
		b.Done(failure)
		expect(t, b, breaker.HalfOpen)
		attempt(t, b, success, success)
		expect(t, b, breaker.HalfOpen) // the stranger's success was none of the three
		attempt(t, b, success)
		expect(t, b, breaker.Closed)
	})
}

func TestDoneTooManyChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.Settings{}, nil)
		for range 10 {
			b.Done(ignored)
		}
		attempt(t, b, times(5, failure)...)
		until := b.Until()
		b.Done(failure)
		if got := b.Until(); got != until {
			t.Errorf("open until %v instead of %v", got, until)
		}
		pass(10 * time.Second)
		if !b.Allow() || b.Allow() {
			t.Error("not exactly one probe")
		}
	})
}

func TestResetForgetsEverything(t *testing.T) {
	var told []string
	b := breaker.New(breaker.Settings{}, func(from, to breaker.State) {
		told = append(told, fmt.Sprintf("%v to %v", from, to))
	})
	attempt(t, b, times(4, failure)...)
	b.Reset()
	attempt(t, b, times(4, failure)...)
	expect(t, b, breaker.Closed)
	b.Trip()
	b.Trip()
	b.Reset()
	expect(t, b, breaker.Closed)
	if want := []string{"closed to open", "open to closed"}; !slices.Equal(told, want) {
		t.Errorf("%q", told)
	}
}

func TestChangesAreToldInOrderWithoutALock(t *testing.T) {
	var b *breaker.Breaker
	inside, last, told := atomic.Int32{}, breaker.Closed, 0
	b = breaker.New(breaker.Settings{Failures: 1, Open: -1, Probes: 1}, func(from, to breaker.State) {
		if inside.Add(1) > 1 {
			t.Error("two at once")
		}
		if from != last || from == to {
			t.Errorf("%v to %v after it was %v", from, to, last)
		}
		last, told = to, told+1
		b.State() // would hang if a lock were held
		b.Ready()
		if told == 10 {
			b.Trip()
		}
		inside.Add(-1)
	})
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 500 {
				switch {
				case i%100 == 0:
					b.Trip()
				case i%77 == 0:
					b.Reset()
				case b.Allow():
					b.Done(breaker.Outcome((g + i) % 3))
				}
			}
		})
	}
	all.Wait()
	if told < 10 || last != b.State() {
		t.Errorf("%d changes, the last to %v; it is %v", told, last, b.State())
	}
}

func TestAPanicInTheHookDoesNotSilenceItNorLockTheBreaker(t *testing.T) {
	told := 0
	b := breaker.New(breaker.Settings{}, func(_, _ breaker.State) {
		told++
		if told == 1 {
			panic("hook")
		}
	})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is swallowed")
			}
		}()
		b.Trip()
	}()
	expect(t, b, breaker.Open)
	b.Reset()
	if told != 2 {
		t.Errorf("told %d times", told)
	}
}

func TestOfManyAtOnceExactlyOneIsTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			b := breaker.New(breaker.Settings{}, nil)
			b.Trip()
			pass(10 * time.Second)
			if got := rush(50, b.Allow); got != 1 {
				t.Fatalf("%d probes", got)
			}
			b.Done(success)
			if got := rush(50, b.Allow); got != 3 {
				t.Fatalf("%d probes after the first", got)
			}
		}
	})
}

// rush asks in n goroutines at once how many may.
func rush(n int, may func() bool) int32 {
	var count atomic.Int32
	var all sync.WaitGroup
	start := make(chan struct{})
	for range n {
		all.Go(func() {
			<-start
			if may() {
				count.Add(1)
			}
		})
	}
	close(start)
	all.Wait()
	return count.Load()
}

func TestThereAreNeverMoreProbesThanAllowedWhateverEndsMeanwhile(t *testing.T) {
	b := breaker.New(breaker.Settings{Open: -1}, nil)
	b.Trip()
	var all sync.WaitGroup
	var probes, most atomic.Int32
	for g := range 8 {
		all.Go(func() {
			for i := range 1000 {
				if !b.Allow() {
					continue
				}
				n := probes.Add(1)
				for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
				}
				probes.Add(-1)
				b.Done([]breaker.Outcome{failure, ignored}[(g+i)%2])
			}
		})
	}
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
}

func TestBudgetIsAShareOfTheTriesButNotLessThanItsFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			share  float64
			floor  int
			tries  int
			wanted int
		}{
			{0, 0, 0, 3},
			{0, 0, 15, 3},
			{0, 0, 100, 20},
			{0, -1, 0, 0},
			{0, -1, 4, 0},
			{0, -1, 5, 1},
			{-1, 0, 1000, 3},
			{-1, -1, 1000, 0},
			{0.5, 10, 100, 50},
			{2, 0, 100, 200},
		} {
			b := breaker.NewBudget(test.share, test.floor, 0)
			for range test.tries {
				b.Try()
			}
			got := 0
			for b.Retry() {
				got++
			}
			if got != test.wanted {
				t.Errorf("%+v: %d retries", test, got)
			}
			pass(8 * time.Second)
			if b.Retry() {
				t.Errorf("%+v: there is more after 8 s", test)
			}
			pass(2 * time.Second)
			if floor := test.floor >= 0; b.Retry() != floor {
				t.Errorf("%+v: after 10 s the tries still count, or the retries", test)
			}
		}
	})
}

func TestBudgetIsNotOverdrawnByManyAtOnce(t *testing.T) {
	b := breaker.NewBudget(0, 0, time.Hour)
	for range 100 {
		b.Try()
	}
	if got := rush(50, b.Retry); got != 20 {
		t.Errorf("%d retries", got)
	}
}

func TestAskingAllocatesNothing(t *testing.T) {
	b, budget := breaker.New(breaker.Settings{}, nil), breaker.NewBudget(0, 0, 0)
	allocs := testing.AllocsPerRun(1000, func() {
		if b.Ready() && b.Allow() {
			b.Done(success)
		}
		budget.Try()
		budget.Retry()
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkReady(b *testing.B) {
	for _, state := range []breaker.State{breaker.Closed, breaker.Open} {
		b.Run(state.String(), func(b *testing.B) {
			br := breaker.New(breaker.Settings{}, nil)
			if state == breaker.Open {
				br.Trip()
			}
			for b.Loop() {
				br.Ready()
			}
		})
	}
}

func BenchmarkAttempt(b *testing.B) {
	br := breaker.New(breaker.Settings{}, nil)
	b.ReportAllocs()
	for b.Loop() {
		br.Allow()
		br.Done(success)
	}
}
