package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/levee-net/levee/internal/bare"
	"github.com/levee-net/levee/upstream/internal/breaker"
)

// A Request is what a Dial is for. Its zero value will do.
type Request struct {
	// Key is what SourceHash and Maglev hash; see [Hash].
	Key uint64

	// First is written right after connecting, before TLS, on each connection that is
	// tried: a PROXY header. It is not changed, nor kept.
	First []byte

	// Client, if not nil, is who will use the connection. It is asked to leave by
	// Rebalance, and cut by CutOnDown.
	Client Client

	// Tried, if not nil, is called after each try, as Trace.Dialed is.
	Tried func(Attempt)
}

// An Attempt is what became of one try of a Dial.
type Attempt struct {
	Server string
	Began  time.Time
	Took   time.Duration // altogether
	Err    error         // nil if it brought the connection
	Kind   FailureKind   // of Err
}

// Dial returns a connection to one of the servers, on which nothing has been read and
// only First has been written.
//
// It may wait for a free place, and try several servers: another one each time, and if
// there is none the same again after a pause of about 100, 200, 400 … milliseconds. It
// ends by TotalTimeout, or when ctx ends; ctx has no effect on the connection after that.
// All its errors are a [*DialError].
func (p *Pool) Dial(ctx context.Context, r Request) (*Conn, error) {
	p.start()
	defer p.news.tell()
	d := dialling{pool: p, ctx: ctx, request: r}
	if cause := whyEnded(ctx); cause != nil {
		return nil, d.fail(cause)
	}
	p.decideDue()
	p.budget.Try()
	if p.terms.total > 0 {
		d.until = time.Now().Add(p.terms.total)
	}
	for {
		m, err := d.choose()
		if err != nil {
			return nil, d.fail(err)
		}
		c, err := d.try(m)
		if err == nil {
			c.tries = uint8(min(len(d.tries)+1, math.MaxUint8)) //nolint:gosec // it fits
			return c, nil
		}
		if err := d.mayRetry(m, err); err != nil {
			return nil, d.fail(err)
		}
	}
}

// dialling is a Dial under way.
type dialling struct {
	pool    *Pool
	ctx     context.Context // the caller's
	request Request
	until   time.Time // zero: no end of its own
	tried   []*member // since the last time that all had been tried
	tries   []Try
}

var (
	errNone      = errors.New("none can be used")
	errTriedOut  = errors.New("tried often enough")
	errTimeIsUp  = errors.New("the time is up")
	errBudgetOut = errors.New("the retry budget is used up")
)

// choose seizes a server: another one than before, or if there is none the same again.
func (d *dialling) choose() (*member, error) {
	for {
		m, err := d.seize()
		switch {
		case m != nil || err != nil:
			return m, err
		case !d.mayRepeat():
			return nil, errNone
		}
		if err := d.pause(); err != nil {
			return nil, err
		}
		d.tried = nil
	}
}

// mayRepeat reports whether one that was tried can still be used.
func (d *dialling) mayRepeat() bool {
	if len(d.tried) == 0 {
		return false
	}
	m, full := d.pool.pick(d.request.Key, nil)
	return m != nil || full
}

// seize seizes a server that has not been tried, and waits for one if all are full. It
// returns nil if there is none.
func (d *dialling) seize() (*member, error) {
	p := d.pool
	if p.waiting.Load() == 0 { // nobody is overtaken
		if m, full := p.take(d.request.Key, d.tried); !full {
			return m, nil
		}
	}
	return p.await(d.ctx, d.request.Key, d.tried, d.until)
}

// pause lets a moment pass before the same servers are tried again.
func (d *dialling) pause() error {
	const first, most = 100 * time.Millisecond, 2 * time.Second
	pause := min(first<<min(len(d.tries)-1, 10), most)
	pause = pause/2 + rand.N(pause)
	if !d.until.IsZero() && time.Until(d.until) <= pause {
		return errTimeIsUp
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-d.ctx.Done():
		return whyEnded(d.ctx)
	}
}

// mayRetry notes that m did not do, and returns nil if there may be another try.
func (d *dialling) mayRetry(m *member, err error) error {
	d.tried = append(d.tried, m)
	d.tries = append(d.tries, Try{Server: m.name, Err: err})
	p := d.pool
	switch {
	case whyEnded(d.ctx) != nil:
		return whyEnded(d.ctx)
	case len(d.tries) >= p.terms.tries:
		return errTriedOut
	case !d.until.IsZero() && !time.Now().Before(d.until):
		return errTimeIsUp
	case !p.budget.Retry():
		p.counts.budgetOut.Add(1)
		return errBudgetOut
	}
	p.counts.retries.Add(1)
	p.Trace.retried(m.name, err)
	return nil
}

// try connects to a server that has been seized.
func (d *dialling) try(m *member) (*Conn, error) {
	began := time.Now()
	until, whole := d.deadline(began)
	ctx := d.ctx
	if !until.IsZero() {
		bounded := &deadlineContext{Context: ctx, until: until}
		ctx = bounded
		defer bounded.cancel()
	}
	conn, connected, err := m.open(ctx, d.request.First)
	took := time.Since(began)
	if err == nil {
		d.tell(Attempt{Server: m.name, Began: began, Took: took})
		m.latency.Observe(connected)
		return m.adopt(conn, d.request.Client), nil
	}
	outcome, kind := breaker.Failure, kindOf(err)
	switch cause := whyEnded(d.ctx); {
	case cause != nil:
		outcome, kind, err = breaker.Ignored, GaveUp, cause
	case kind == Local:
		outcome = breaker.Ignored
	case whyEnded(ctx) != nil && !whole:
		outcome, kind, err = breaker.Ignored, TimedOut, timeoutError(took)
	case whyEnded(ctx) != nil:
		kind, err = TimedOut, timeoutError(took)
		m.latency.Observe(took)
	}
	m.failed(outcome, kind)
	d.tell(Attempt{Server: m.name, Began: began, Took: took, Err: err, Kind: kind})
	return nil, err
}

func (d *dialling) tell(a Attempt) {
	d.pool.Trace.dialed(a.Server, a.Took, a.Err)
	if d.request.Tried != nil {
		d.request.Tried(a)
	}
}

// deadline returns when a try that begins now has to be over, or zero, and whether that
// is long enough to blame the server when it is over: TotalTimeout may have left little.
func (d *dialling) deadline(now time.Time) (until time.Time, whole bool) {
	limit := d.pool.terms.dial
	if limit > 0 {
		until = now.Add(limit)
	}
	if d.until.IsZero() || (limit > 0 && until.Before(d.until)) {
		return until, true
	}
	return d.until, d.until.Sub(now) >= min(limit, d.pool.terms.total)/2
}

// whyEnded returns why ctx has ended, or nil if it has not. Its deadline counts from the
// moment it has passed: package net looks at the clock too, and may be a little ahead of
// the context's timer.
func whyEnded(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if until, ok := ctx.Deadline(); ok && !time.Now().Before(until) {
		return context.DeadlineExceeded
	}
	return nil
}

// timeoutError is what a try's end by its deadline is called.
func timeoutError(after time.Duration) error {
	return fmt.Errorf("no answer within %v: %w", after.Round(time.Millisecond), os.ErrDeadlineExceeded)
}

// open connects, writes what comes first, and does the handshake. It also tells how long
// connecting took.
func (m *member) open(ctx context.Context, first []byte) (conn net.Conn, connected time.Duration, err error) {
	s, began := m.spec.Load(), time.Now()
	conn, err = m.pool.reach(ctx, s.addresses)
	if err != nil {
		return nil, 0, err
	}
	connected = time.Since(began)
	if err := writeFirst(ctx, conn, first); err != nil {
		conn.Close()
		return nil, 0, err
	}
	if s.tls == nil {
		return conn, connected, nil
	}
	secured, err := m.secure(ctx, netsOwn(conn), s.tls)
	if err != nil {
		conn.Close()
		return nil, 0, err
	}
	return secured, connected, nil
}

// writeFirst writes what goes before everything else. On a new connection that does not
// block, unless it is absurdly long; so the deadline alone watches over it, and over no
// more than what is left then.
func writeFirst(ctx context.Context, conn net.Conn, first []byte) error {
	if b, ok := conn.(*bare.Conn); ok && len(first) > 0 {
		first = first[b.TryWrite(first):]
	}
	if len(first) == 0 {
		return nil
	}
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetWriteDeadline(until); err != nil {
			return plain(err)
		}
	}
	if _, err := conn.Write(first); err != nil {
		return plain(err)
	}
	return conn.SetWriteDeadline(time.Time{})
}

func (m *member) secure(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	if limit := m.pool.terms.handshake; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, timeoutError(limit))
		defer cancel()
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		if cause := whyEnded(ctx); cause != nil {
			err = cause
		}
		return nil, &handshakeError{plain(err)}
	}
	return secured, nil
}
