package upstream

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Health is how servers are checked while [Pool.Run] runs: each by itself, by a
// connection that is made as a Dial makes it, asked by Probe, and closed. A server counts
// as healthy until checks have said otherwise.
type Health struct {
	// Interval is the time from the end of a check to the next one, and FastInterval that
	// between checks of which the last did not agree with the verdict. Both are jittered
	// by 10 %. The first check comes within a tenth of Interval. Zero means 5 seconds and
	// 1 second; a negative Interval turns checks off. A FastInterval that is negative or
	// longer is Interval.
	Interval     time.Duration
	FastInterval time.Duration

	// Timeout is how long a check may take altogether. Zero and negative mean 2 seconds.
	Timeout time.Duration

	// Fall is how many failed checks in a row declare a server down, and Rise how many
	// good ones up. Zero means 3 and 2, negative 1.
	Fall, Rise int

	// Probe looks whether the server behind the connection is well; an error says that it
	// is not, and why. It must end when ctx does. If it is nil, connecting is all, and
	// with Pool.TLS the handshake.
	Probe func(ctx context.Context, conn net.Conn) error

	// First is written right after connecting, before TLS: a PROXY header of the LOCAL
	// command, for servers that require one.
	First []byte
}

// settle fills in the defaults.
func (h Health) settle() Health {
	h.Interval = setting(h.Interval, 5*time.Second, 0)
	h.FastInterval = min(setting(h.FastInterval, time.Second, h.Interval), h.Interval)
	h.Timeout = setting(h.Timeout, 2*time.Second, 2*time.Second)
	h.Fall = setting(h.Fall, 3, 1)
	h.Rise = setting(h.Rise, 2, 1)
	return h
}

// A checkup is what the checks of a server have found.
type checkup struct {
	last     error // of the last check
	lastAt   time.Time
	contrary int // checks in a row that did not agree with the verdict
}

// verdict returns whether the server is up by its health checks, and what the last one
// found.
func (m *member) verdict() (up bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.down.Load(), m.health.last
}

// watch checks the server until ctx ends.
func (m *member) watch(ctx context.Context, all *sync.WaitGroup) {
	settings := &m.pool.terms.health
	pause := rand.N(settings.Interval/10 + 1)
	endCut := func() {}
	defer func() { endCut() }()
	if up, err := m.verdict(); !up { // it has left, and comes back as it was
		endCut = m.startCut(ctx, cmp.Or(err, errDown), all)
	}
	for rest(ctx, pause) {
		err := m.check(ctx)
		if ctx.Err() != nil {
			return
		}
		turned, doubtful := m.judge(err)
		if turned {
			m.turn(err)
			endCut()
			endCut = m.startCut(ctx, err, all)
		}
		pause = settings.Interval
		if doubtful {
			pause = settings.FastInterval
		}
		pause = jittered(pause)
	}
}

// rest waits, and reports whether ctx has not ended meanwhile.
func rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// jittered returns d give or take 10 %: servers must not be checked in step.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// check makes one check.
func (m *member) check(ctx context.Context) error {
	settings := &m.pool.terms.health
	ctx, cancel := context.WithTimeout(ctx, settings.Timeout)
	defer cancel()
	conn, _, err := m.open(ctx, settings.First)
	if err == nil && settings.Probe != nil {
		err = settings.Probe(ctx, conn)
	}
	if conn != nil {
		conn.Close()
	}
	if err != nil && whyEnded(ctx) != nil {
		return timeoutError(settings.Timeout)
	}
	return err
}

// startCut has the connections of a server that is down cut, if that is wanted, until the
// function that it returns is called.
func (m *member) startCut(ctx context.Context, err error, all *sync.WaitGroup) context.CancelFunc {
	if err == nil || !m.pool.CutOnDown {
		return func() {}
	}
	ctx, end := context.WithCancel(ctx)
	all.Go(func() { m.cut(ctx, err) }) // ends with ctx
	return end
}

// judge takes a check into account, but for this machine's own trouble. It reports whether it has turned the verdict, and if
// it has not, whether it spoke against it.
func (m *member) judge(err error) (turned, doubtful bool) {
	settings := &m.pool.terms.health
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.health
	h.last, h.lastAt = err, time.Now()
	if err != nil && kindOf(err) == Local {
		return false, false
	}
	down, enough := m.down.Load(), settings.Fall
	if down {
		enough = settings.Rise
	}
	if (err != nil) == down {
		h.contrary = 0
		return false, false
	}
	h.contrary++
	if h.contrary < enough {
		return false, true
	}
	h.contrary = 0
	m.down.Store(!down)
	return true, false
}

// turn has a new verdict take effect.
func (m *member) turn(err error) {
	p := m.pool
	if err == nil {
		m.riseSlowly()
		p.news.post(func() { p.Trace.serverUp(m.name) })
	} else {
		p.news.post(func() { p.Trace.serverDown(m.name, err) })
	}
	p.reassess()
	signal(p.returned)
	p.news.tell()
}

// believeAll has all servers count as healthy.
func (p *Pool) believeAll() {
	defer p.news.tell()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		m.mu.Lock()
		m.health = checkup{}
		m.down.Store(false)
		m.mu.Unlock()
	}
	p.reassessLocked()
}
