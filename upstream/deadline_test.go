package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestADeadlineContextEndsLikePackageContexts(t *testing.T) {
	errCause := errors.New("the caller's cause")
	for name, c := range map[string]struct {
		act   func(c *deadlineContext, parent context.CancelCauseFunc)
		want  error
		after time.Duration
	}{
		"by its deadline": {act: func(*deadlineContext, context.CancelCauseFunc) {}, want: context.DeadlineExceeded, after: 5 * time.Second},
		"by its parent":   {act: func(_ *deadlineContext, parent context.CancelCauseFunc) { parent(errCause) }, want: errCause},
		"when cancelled":  {act: func(c *deadlineContext, _ context.CancelCauseFunc) { c.cancel() }, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, stop := context.WithCancelCause(t.Context())
				began := time.Now()
				ctx := &deadlineContext{Context: parent, until: began.Add(5 * time.Second)}
				defer ctx.cancel()
				if cause := whyEnded(ctx); cause != nil {
					t.Fatalf("ended before anything happened: %v", cause)
				}
				child, stopChild := context.WithTimeout(ctx, time.Hour) // waits, as a look-up does
				defer stopChild()
				c.act(ctx, stop)
				<-child.Done()
				if cause := whyEnded(ctx); cause != c.want {
					t.Errorf("ended by %v, want %v", cause, c.want)
				}
				if cause := context.Cause(child); cause != c.want {
					t.Errorf("who waits was told %v, want %v", cause, c.want)
				}
				if took := time.Since(began); took != c.after {
					t.Errorf("after %v, want %v", took, c.after)
				}
			})
		})
	}
}

func TestADeadlineThatNobodyWaitsForIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := &deadlineContext{Context: t.Context(), until: time.Now().Add(time.Second)}
		defer ctx.cancel()
		time.Sleep(time.Second) // virtual time
		if cause := whyEnded(ctx); cause != context.DeadlineExceeded {
			t.Errorf("after its deadline: %v", cause)
		}
	})
}

func TestADeadlineContextHasTheEarlierDeadline(t *testing.T) {
	now := time.Now()
	parent, stop := context.WithDeadline(t.Context(), now.Add(time.Hour))
	defer stop()
	for _, until := range []time.Duration{time.Minute, 2 * time.Hour} {
		ctx := &deadlineContext{Context: parent, until: now.Add(until)}
		if at, ok := ctx.Deadline(); !ok || at != now.Add(min(until, time.Hour)) {
			t.Errorf("until %v in a parent with an hour: %v", until, at.Sub(now))
		}
	}
}
