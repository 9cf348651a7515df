package attack

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// patience is how long the well-behaved client waits for an answer.
const patience = 2 * time.Second

// A probe is the well-behaved client: one connection that it keeps, with a round
// trip on it at every interval, and a new connection with a round trip on it at every
// fourth. They are due at fixed times, and latency counts from then: a server that
// stalls for a second shows a second in all that would have been asked meanwhile.
type probe struct {
	life     context.Context // of the whole flood: when it ends nothing is waited for
	target   *target
	interval time.Duration
	kept     client

	mu          sync.Mutex
	all         *series // of this phase
	roundTrips  *series
	connections *series
	lag         *series
}

// In intervals.
const (
	newEvery       = 4
	bystanderEvery = 20 // each of them; they take turns
)

func newProbe(life context.Context, t *target, interval time.Duration) *probe {
	p := &probe{life: life, target: t, interval: interval}
	p.begin()
	return p
}

func (p *probe) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all, p.roundTrips, p.connections, p.lag = new(series), new(series), new(series), new(series)
}

// watch is the client's life until ctx ends. Others may live beside it; their round
// trips count like those on the connection that it keeps.
func (p *probe) watch(ctx context.Context, others ...*client) Health {
	p.begin()
	var watching sync.WaitGroup
	watching.Go(func() { p.repeat(ctx, p.interval, p.roundTrips, func() error { return p.roundTrip(&p.kept) }) })
	watching.Go(func() { p.repeat(ctx, newEvery*p.interval, p.connections, p.visit) })
	watching.Go(func() { p.repeat(ctx, p.interval, p.lag, func() error { return nil }) })
	for i, c := range others {
		watching.Go(func() {
			defer c.leave()
			if every := bystanderEvery * p.interval; sleep(ctx, every*time.Duration(i)/time.Duration(len(others))) {
				p.repeat(ctx, every, p.roundTrips, func() error { return p.roundTrip(c) })
			}
		})
	}
	watching.Wait()
	return p.soFar()
}

// soFar is how the client is in this phase.
func (p *probe) soFar() Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Health{All: p.all.numbers(), RoundTrips: p.roundTrips.numbers(), Connections: p.connections.numbers(), Lag: p.lag.numbers()}
}

// repeat does something whenever it is due. What was due and could not even be tried
// before ctx ended, because something before it took so long, is no better than that.
func (p *probe) repeat(ctx context.Context, every time.Duration, s *series, do func() error) {
	free := time.Now() // since when there was nothing to do
	var err error
	for due := free; ; due = due.Add(every) {
		if !sleep(ctx, time.Until(due)) {
			for ; due.Before(free); due = due.Add(every) {
				p.record(s, time.Since(due), err)
			}
			return
		}
		err = do()
		free = time.Now()
		p.record(s, free.Sub(due), err)
	}
}

func (p *probe) record(s *series, took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.record(took, err)
	if s != p.lag {
		p.all.record(took, err)
	}
}

// visit is a round trip on a connection of its own.
func (p *probe) visit() error {
	var c client
	defer c.leave()
	return p.roundTrip(&c)
}

func (p *probe) close() { p.kept.leave() }

// roundTrip connects, if need be, and has one message there and back. The end of a
// phase does not end it: what has begun is to be measured.
func (p *probe) roundTrip(c *client) error {
	ctx, stop := context.WithTimeout(p.life, patience)
	defer stop()
	err := c.converse(ctx, p.target)
	if err != nil {
		c.leave()
	}
	return err
}

// A client is one connection to the target, if it is there.
type client struct {
	source netip.Addr // the zero value is the probe's
	conn   net.Conn
	in     *bufio.Reader
}

func (c *client) converse(ctx context.Context, t *target) error {
	if c.conn == nil {
		conn, err := t.visit(ctx, c.source)
		if err != nil {
			return err
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	defer endWith(ctx, c.conn)()
	if _, err := c.conn.Write(t.protocol.request); err != nil {
		return err
	}
	last, err := t.protocol.answer(c.in)
	if last {
		c.leave()
	}
	return err
}

func (c *client) leave() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}
