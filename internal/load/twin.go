package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A twin does what the engine does, with two goroutines for each connection: where
// there is no epoll, over TLS, and in the tests.
type twin struct {
	Load
	dialer net.Dialer
	began  time.Time
	fail   context.CancelCauseFunc

	mu        sync.Mutex
	measuring bool
	rec       *recorder
}

// A line is one connection of a twin, or with Reconnect one after the other.
type line struct {
	net.Conn // replaced under the twin's mu
	index    int
	reply    reply
	slots    chan struct{}      // one for each message under way
	sentAt   chan time.Duration // of the messages under way
	answered int64              // guarded by the twin's mu
}

func newTwin(l Load) *twin {
	t := &twin{Load: l, rec: newRecorder(l.Progress), dialer: net.Dialer{Timeout: l.openBudget}}
	t.dialer.SetMultipathTCP(false)
	return t
}

func (l Load) runTwin(ctx context.Context) (*Result, error) {
	t := newTwin(l)
	lines, err := t.open(ctx)
	defer t.hangUp(lines)
	if err != nil {
		return nil, err
	}
	return t.measure(ctx, lines)
}

func (t *twin) hangUp(lines []*line) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
	var lines []*line
	for i := range t.Connections {
		conn, err := t.dial(ctx)
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

// dial leaves a handshake to the first Write.
func (t *twin) dial(ctx context.Context) (net.Conn, error) {
	conn, err := t.dialer.DialContext(ctx, "tcp", t.Addr)
	if err != nil || t.TLS == nil {
		return conn, err
	}
	return tls.Client(conn, t.TLS), nil
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
		if t.Reconnect {
			all.Go(func() { t.askAnew(ctx, c) })
			continue
		}
		all.Go(func() { t.ask(ctx, c) })
		all.Go(func() { t.hear(c) })
	}
	result, err := t.keepTime(ctx, lines)
	t.fail(nil) // what fails from here on does so because of the next line
	t.hangUp(lines)
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

// askAnew sends each message on a connection of its own.
func (t *twin) askAnew(ctx context.Context, c *line) {
	for ctx.Err() == nil {
		sentAt := t.now()
		err := t.dialAnew(ctx, c)
		if err == nil {
			_, err = c.Write(t.Protocol.request)
		}
		if err == nil {
			err = c.listen(func(state replyState) error {
				t.count(c, state, sentAt)
				return errGreeted
			})
		}
		if !errors.Is(err, errGreeted) {
			t.fail(t.failed(c.index, err))
			return
		}
	}
}

// dialAnew replaces the connection. In plaintext the old one is reset: a FIN would keep
// its port in TIME_WAIT for a minute.
func (t *twin) dialAnew(ctx context.Context, c *line) error {
	if sock, ok := c.Conn.(*net.TCPConn); ok {
		_ = sock.SetLinger(0)
	}
	_ = c.Close()
	conn, err := t.dial(ctx)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(t.openBudget))
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil { // nobody will hang this one up
		_ = conn.Close()
		return ctx.Err()
	}
	c.Conn = conn
	return nil
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
