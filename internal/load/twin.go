package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A twin does what the engine does, with two goroutines for each connection: where
// there is no epoll, and in the tests.
type twin struct {
	Load
	began time.Time
	fail  context.CancelCauseFunc

	mu        sync.Mutex
	measuring bool
	rec       *recorder
}

// A line is one connection of a twin.
type line struct {
	net.Conn
	index    int
	reply    reply
	slots    chan struct{}      // one for each message under way
	sentAt   chan time.Duration // of the messages under way
	answered int64              // guarded by the twin's mu
}

func (l Load) runTwin(ctx context.Context) (*Result, error) {
	if l.Reconnect {
		return nil, errors.New("a new connection for every message: only on Linux")
	}
	t := &twin{Load: l, rec: newRecorder(l.Progress)}
	lines, err := t.open(ctx)
	defer hangUp(lines)
	if err != nil {
		return nil, err
	}
	return t.measure(ctx, lines)
}

func hangUp(lines []*line) {
	for _, c := range lines {
		_ = c.Close()
	}
}

func (t *twin) failed(index int, err error) error {
	return fmt.Errorf("connection %d of %d to %s: %w", index+1, t.Connections, t.Addr, err)
}

// open opens the connections, one after the other, with one message there and back
// on each.
func (t *twin) open(ctx context.Context) ([]*line, error) {
	dialer := net.Dialer{Timeout: t.openBudget}
	dialer.SetMultipathTCP(false)
	var lines []*line
	for i := range t.Connections {
		conn, err := dialer.DialContext(ctx, "tcp", t.Addr)
		switch {
		case ctx.Err() != nil:
			return lines, ctx.Err()
		case err != nil:
			return lines, t.failed(i, err)
		}
		c := &line{
			Conn: conn, index: i, reply: t.Protocol.reply(),
			slots: make(chan struct{}, t.Depth), sentAt: make(chan time.Duration, t.Depth),
		}
		lines = append(lines, c)
		if err := t.greet(ctx, c); err != nil {
			return lines, err
		}
	}
	return lines, nil
}

var errGreeted = errors.New("greeted")

// greet sends the first message and waits for the answer.
func (t *twin) greet(ctx context.Context, c *line) error {
	_ = c.SetDeadline(time.Now().Add(t.openBudget))
	interrupt := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer interrupt()
	_, err := c.Write(t.Protocol.request)
	if err == nil {
		err = c.listen(func(replyState) error { return errGreeted })
	}
	switch {
	case errors.Is(err, errGreeted):
		return c.SetDeadline(time.Time{})
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return t.unanswered(c.index)
	}
	return t.failed(c.index, err)
}

// listen calls answer for every answer on the connection, until it returns an
// error or the connection ends.
func (c *line) listen(answer func(replyState) error) error {
	p := make([]byte, 16<<10)
	for {
		n, err := c.Read(p)
		for rest := p[:n]; len(rest) > 0; {
			taken, state, err := c.reply.take(rest)
			if err != nil {
				return err
			}
			rest = rest[taken:]
			if state == partial {
				continue
			}
			if err := answer(state); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return errClosed
		}
		if err != nil {
			return err
		}
	}
}

// measure puts the server under the load.
func (t *twin) measure(ctx context.Context, lines []*line) (*Result, error) {
	ctx, t.fail = context.WithCancelCause(ctx)
	t.began = time.Now()
	if t.Rate > 0 { // what counts is what is due from then on, and it may be answered before anybody looks at the clock
		t.measuring = true
		t.rec.begin(t.Warmup)
	}
	var all sync.WaitGroup
	for _, c := range lines {
		all.Go(func() { t.ask(ctx, c) })
		all.Go(func() { t.hear(c) })
	}
	result, err := t.keepTime(ctx, lines)
	t.fail(nil) // what fails from here on does so because of the next line
	hangUp(lines)
	all.Wait()
	return result, err
}

func (t *twin) now() time.Duration { return time.Since(t.began) }

// ask sends the messages of a connection, when they are due and have a slot.
func (t *twin) ask(ctx context.Context, c *line) {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for n := int64(0); ; n++ {
		if t.Rate > 0 {
			due := t.dueOn(c.index, n)
			if due >= t.end() {
				return
			}
			alarm.Reset(due - t.now())
			select {
			case <-alarm.C:
			case <-ctx.Done():
				return
			}
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c.sentAt <- t.now() // has room: it is as long as there are slots
		if _, err := c.Write(t.Protocol.request); err != nil {
			t.fail(t.failed(c.index, err))
			return
		}
	}
}

// hear counts the answers on a connection.
func (t *twin) hear(c *line) {
	err := c.listen(func(state replyState) error {
		select {
		case sentAt := <-c.sentAt:
			t.count(c, state, sentAt)
			<-c.slots
			return nil
		default:
			return errTooMuch
		}
	})
	t.fail(t.failed(c.index, err))
}

func (t *twin) count(c *line, state replyState, sentAt time.Duration) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Rate > 0 {
		sentAt = t.dueOn(c.index, c.answered)
	}
	c.answered++
	if t.measuring && (t.Rate == 0 || sentAt >= t.Warmup) {
		t.rec.record(now-sentAt, state)
	}
}

// keepTime begins and ends the measuring, and closes its seconds.
func (t *twin) keepTime(ctx context.Context, lines []*line) (*Result, error) {
	wait := func(until time.Duration) error {
		alarm := time.NewTimer(until - t.now())
		defer alarm.Stop()
		select {
		case <-alarm.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := wait(t.Warmup); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Rate == 0 {
		t.measuring = true
		t.rec.begin(t.now())
	}
	t.mark()
	for end := t.rec.began + t.Duration; t.now() < end; {
		t.mu.Unlock()
		err := wait(min(t.now()+time.Second, end))
		t.mu.Lock()
		if err != nil {
			return nil, err
		}
		t.rec.tick(t.now())
	}
	t.mark()
	t.measuring = false
	if t.Rate > 0 {
		for i, c := range lines {
			t.recordUnanswered(t.rec, i, c.answered, t.now())
		}
	}
	return t.rec.end(t.now()), nil
}
