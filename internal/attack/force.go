package attack

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A force is the attackers of one attack.
type force struct {
	attack  Attack
	target  *target
	workers int
	pace    pace
	beat    time.Duration // of what is slow
	tally   tally
	budget  atomic.Int64  // of bytes that may yet be sent
	serial  atomic.Int64  // of attackers
	hello   func() []byte // the same again and again: it costs nothing, and servers do not remember them
	over    chan struct{} // is closed when all have left
}

func newForce(f *Flood, a Attack, t *target) *force {
	force := &force{
		attack: a, target: t, workers: a.workers(f.Connections),
		pace:  pace{every: time.Duration(float64(time.Second) / f.Rate)},
		beat:  min(time.Second, f.Duration/10),
		hello: sync.OnceValue(func() []byte { return helloOf(t.forTLS) }),
		over:  make(chan struct{}),
	}
	force.budget.Store(maxSent)
	return force
}

// workers is how many attackers there are at once.
func (a Attack) workers(connections int) int {
	switch a.size {
	case crowd:
		return connections
	case cores: // on one machine, the server needs some as well, or the attack would be on the machine
		return max(1, runtime.NumCPU()/2)
	case many:
		return min(connections, 1000)
	case loud:
		return min(connections, 2000)
	}
	return min(connections, 64)
}

// strike lets them go until ctx ends.
func (f *force) strike(ctx context.Context) error {
	defer close(f.over)
	var all sync.WaitGroup
	for range f.workers {
		all.Go(func() { f.work(ctx) })
	}
	all.Wait()
	return nil
}

func (f *force) soFar() Tally { return f.tally.snapshot() }

// work is one attacker's life: whatever becomes of its connection, there is a next.
func (f *force) work(ctx context.Context) {
	for f.pace.wait(ctx) && f.tally.attempts.Add(1) <= maxAttempts {
		f.once(ctx)
	}
}

func (f *force) once(ctx context.Context) {
	a, err := f.arrive(ctx)
	if a == nil {
		f.tally.unreached(ctx, err)
		return
	}
	f.tally.open.Add(1)
	if err == nil {
		err = f.attack.strike(ctx, a)
	}
	lasted := time.Since(a.born)
	a.leave()
	f.tally.open.Add(-1)
	f.tally.over(ctx, err, lasted)
}

// arrive brings an attacker to where its attack begins. If it gets no further than
// being connected, it returns that and an error.
func (f *force) arrive(ctx context.Context) (*attacker, error) {
	n := f.serial.Add(1)
	var source netip.Addr
	if f.attack.source != nil {
		source = f.attack.source(f.target, n)
	}
	dial, stop := context.WithTimeout(ctx, 5*time.Second)
	raw, err := f.target.dial(dial, source, f.attack.receive)
	stop()
	if err != nil {
		return nil, err
	}
	a := &attacker{Conn: raw, raw: raw, force: f, number: n, born: time.Now()}
	a.unwatch = endWith(ctx, raw)
	return a, a.advance()
}

// A tally counts what became of attackers.
type tally struct {
	attempts, failed, refused, left, open atomic.Int64

	mu     sync.Mutex
	lasted durations // of those that the server ended
}

// A Tally is what became of an attack's connections.
type Tally struct {
	Attempts int64
	Failed   int64 // for want of ports, files or memory on this side
	Refused  int64 // not let in, or ended by the server within 100 ms
	Left     int64 // done with what they came for
	Ended    int64 // by the server, later than that
	Held     int64 // still open, or when it was over

	EndedMin, EndedMedian, EndedMax time.Duration // from connecting
}

// atTheDoor is how long a connection may have lasted that was refused: the client
// cannot see whether it was accepted, and a reset takes its time on a machine that is busy.
const atTheDoor = 100 * time.Millisecond

func (t *tally) snapshot() Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Tally{
		Attempts: min(t.attempts.Load(), maxAttempts), Failed: t.failed.Load(), Refused: t.refused.Load(), Left: t.left.Load(),
		Ended: t.lasted.total, Held: t.open.Load(),
		EndedMin: t.lasted.min, EndedMedian: t.lasted.quantile(0.5), EndedMax: t.lasted.max,
	}
}

// unreached counts an attacker that could not connect.
func (t *tally) unreached(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
		t.attempts.Add(-1)
	case isOurs(err):
		t.failed.Add(1)
		sleep(ctx, 10*time.Millisecond) // there will be more soon
	default:
		t.refused.Add(1)
	}
}

// isOurs reports whether this machine lacks something for another connection.
func isOurs(err error) bool {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE} {
		if errors.Is(err, lack) {
			return true
		}
	}
	return false
}

// over counts an attacker that was connected.
func (t *tally) over(ctx context.Context, err error, lasted time.Duration) {
	switch {
	case err == nil:
		t.left.Add(1)
	case ctx.Err() != nil:
		t.open.Add(1) // for good: what the end of the attack has ended was held
	case lasted < atTheDoor:
		t.refused.Add(1)
	default:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.lasted.record(lasted)
	}
}

// A pace spaces events.
type pace struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

// behind is how much of what was not used can be caught up on.
const behind = 10 * time.Millisecond

// wait reports whether ctx let it wait for its turn.
func (p *pace) wait(ctx context.Context) bool {
	p.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-behind); p.next.Before(earliest) {
		p.next = earliest
	}
	turn := p.next
	p.next = turn.Add(p.every)
	p.mu.Unlock()
	return sleep(ctx, turn.Sub(now))
}

// others are the well-behaved clients that an attack has beside the usual one.
func (a Attack) others() []*client {
	others := make([]*client, a.bystanders)
	for i := range others {
		others[i] = &client{source: netip.AddrFrom4([4]byte{127, 78, 0, byte(1 + i)})}
	}
	return others
}
