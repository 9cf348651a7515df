package redislimit

import (
	"context"
	"errors"
	"time"

	"github.com/redis/rueidis"
)

// A line runs one command in Redis at a time, for one goroutine, and leaves behind those that take too long: a
// client may wait for a connection longer than its context lets it.
type line struct {
	client rueidis.Client
	reach  func(context.Context) (rueidis.Client, error)
	behind chan struct{} // closed when the last command is over; nil if there was none
}

// free waits until the last command is over, and returns false if ctx ends first. By then it
// has had a second, and what the client takes to notice.
func (l *line) free(ctx context.Context) bool {
	if l.behind == nil {
		return ctx.Err() == nil
	}
	select {
	case <-l.behind:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// run runs a script.
func (l *line) run(ctx context.Context, timeout time.Duration, script *rueidis.Lua, keys, args []string) ([]int64, error) {
	return l.do(ctx, timeout, func(ctx context.Context, client rueidis.Client) rueidis.RedisResult {
		return script.Exec(ctx, client, keys, args)
	})
}

// do returns numbers that Redis answers, or an error when timeout is over. It is not called
// before the line is free.
func (l *line) do(ctx context.Context, timeout time.Duration, command func(context.Context, rueidis.Client) rueidis.RedisResult) ([]int64, error) {
	var numbers []int64
	var err error
	over := make(chan struct{})
	l.behind = over
	ctx, cancel := context.WithTimeout(ctx, patience)
	go func() { // until ctx ends, or a little later
		defer close(over)
		defer cancel()
		var client rueidis.Client
		if client, err = reached(ctx, l.client, l.reach); err == nil {
			l.client = client
			numbers, err = numbersOf(command(ctx, client))
		}
	}()
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case <-over:
		return numbers, err
	case <-late.C:
		return nil, ErrLate
	}
}

// reached returns the client that there is, or one that reach connects.
func reached(ctx context.Context, client rueidis.Client, reach func(context.Context) (rueidis.Client, error)) (rueidis.Client, error) {
	switch {
	case client != nil:
		return client, nil
	case reach == nil:
		return nil, errors.New("there is no client")
	}
	return reach(ctx)
}

// numbersOf returns the one number or the array of them.
func numbersOf(result rueidis.RedisResult) ([]int64, error) {
	message, err := result.ToMessage()
	if err != nil {
		return nil, err
	}
	if message.IsInt64() {
		n, err := message.AsInt64()
		return []int64{n}, err
	}
	return message.AsIntSlice()
}
