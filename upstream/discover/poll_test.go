package discover_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

func TestOnlyChangesAreTold(t *testing.T) {
	a, b := upstream.Server{Name: "a:1"}, upstream.Server{Name: "b:1", Addresses: []string{"10.0.0.1:1", "10.0.0.2:1"}}
	var updates []string
	tell := discover.OnChange(func(servers []upstream.Server) {
		updates = append(updates, describe(servers))
		for i := range servers { // what it is given is its own
			servers[i].Name = "spoilt"
		}
	})
	for _, servers := range [][]upstream.Server{
		nil, // that there are none is told too
		{},
		{a, b},
		{b, a},
		{{Name: "b:1", Addresses: []string{"10.0.0.2:1", "10.0.0.1:1"}, Weight: 1}, {Addresses: []string{"a:1"}}}, // the same in other words
		{b},
		{{Name: "b:1", Addresses: b.Addresses, Weight: 2}},
		{{Name: "b:1", Addresses: b.Addresses, Weight: 2, Tier: 1}},
		{},
	} {
		tell(servers)
	}
	want := []string{
		"", "a:1, b:1[10.0.0.1:1 10.0.0.2:1]", "b:1[10.0.0.1:1 10.0.0.2:1]",
		"b:1[10.0.0.1:1 10.0.0.2:1] weight=2", "b:1[10.0.0.1:1 10.0.0.2:1] weight=2 tier=1", "",
	}
	if got, want := len(updates), len(want); got != want {
		t.Fatalf("told %q", updates)
	}
	for i := range want {
		if updates[i] != want[i] {
			t.Errorf("told %q, want %q", updates[i], want[i])
		}
	}
}

func TestStaticServersAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRun(t)
		r.start(discover.Static{{Name: "a:1"}})
		time.Sleep(time.Hour) // virtual time
		r.expect("a:1")
	})
}

func TestPollBacksOffAndForgetsItAfterAGoodAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			asked []time.Time
			good  bool
			r     = newRun(t)
		)
		r.start(&discover.Poll{
			Ask: func(context.Context) ([]upstream.Server, time.Duration, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				asked = append(asked, time.Now())
				if good {
					good = false
					return []upstream.Server{{Name: "a:1"}}, time.Minute, nil
				}
				return nil, 0, errors.New("nobody answers")
			},
			Problem: r.problem,
		})
		check := func(limits ...time.Duration) {
			t.Helper()
			r.mu.Lock()
			defer r.mu.Unlock()
			for i, limit := range limits {
				if waited := asked[i+1].Sub(asked[i]); waited < limit/2 || waited > limit {
					t.Errorf("asked again after %v, want %v to %v", waited, limit/2, limit)
				}
			}
		}
		time.Sleep(5*time.Minute + time.Nanosecond) // virtual time
		synctest.Wait()
		check(time.Second, 2*time.Second, 4*time.Second, 8*time.Second, 16*time.Second, 30*time.Second, 30*time.Second)
		r.expect()
		r.mu.Lock()
		if len(r.problems) != len(asked) {
			t.Errorf("%d problems of %d questions", len(r.problems), len(asked))
		}
		good, asked = true, nil
		r.mu.Unlock()

		time.Sleep(2 * time.Minute) // virtual time
		synctest.Wait()
		r.expect("a:1")
		r.mu.Lock()
		if waited := asked[1].Sub(asked[0]); waited != time.Minute {
			t.Errorf("asked again after %v", waited)
		}
		asked = asked[1:]
		r.mu.Unlock()
		check(time.Second, 2*time.Second)
	})
}

func TestPollKeepsWhatItKnowsUnlessItIsToldOtherwise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := []upstream.Server{{Name: "a:1"}}, []upstream.Server{{Name: "b:1"}}
		lame := errors.New("lame")
		answers := []struct {
			servers []upstream.Server
			err     error
		}{
			{nil, lame},                 // nothing is known
			{a, nil},                    //
			{nil, lame},                 // the last are kept
			{b, lame},                   // better than nothing
			{[]upstream.Server{}, lame}, // this one is sure
			{a, nil},                    //
			{nil, nil},                  // and so is this one
		}
		r := newRun(t)
		r.start(&discover.Poll{
			Ask: func(ctx context.Context) ([]upstream.Server, time.Duration, error) {
				if len(answers) == 0 {
					<-ctx.Done()
					return nil, 0, ctx.Err()
				}
				answer := answers[0]
				answers = answers[1:]
				return answer.servers, 5 * time.Second, answer.err
			},
			Problem: r.problem,
		})
		time.Sleep(7 * 5 * time.Second) // virtual time
		r.expect("a:1", "b:1", "", "a:1", "")
		r.expectProblems("lame", "lame", "lame", "lame")
	})
}

func TestServersAreToldBeforeWhatIsWrongWithThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		ctx, cancel := context.WithCancel(t.Context())
		poll := &discover.Poll{
			Ask: func(context.Context) ([]upstream.Server, time.Duration, error) {
				return []upstream.Server{{Name: "a:1"}}, time.Hour, errors.New("there may be more")
			},
			Problem: func(error) {
				order = append(order, "problem")
				cancel()
			},
		}
		_ = poll.Run(ctx, func([]upstream.Server) { order = append(order, "update") })
		if len(order) != 2 || order[0] != "update" {
			t.Errorf("told %q", order)
		}
	})
}
