package upstream

import (
	"cmp"
	"time"
)

// terms are a pool's settings with their defaults filled in. Of durations 0 is off.
type terms struct {
	dial, handshake, total time.Duration
	queueTimeout           time.Duration
	slowStart, earlyClose  time.Duration
	tries, maxQueue        int
	maxConnections         int64 // 0: no cap
	panicThreshold         float64
	panics                 bool
	cutRate, rebalance     float64 // a second
	checks                 bool
	health                 Health
	sources                sources
}

func (p *Pool) settle() terms {
	t := terms{
		dial:           setting(p.DialTimeout, 5*time.Second, 0),
		handshake:      setting(p.HandshakeTimeout, 0, 0),
		total:          setting(p.TotalTimeout, 10*time.Second, 0),
		queueTimeout:   setting(p.QueueTimeout, 0, 0),
		slowStart:      setting(p.SlowStart, 10*time.Second, 0),
		earlyClose:     setting(p.EarlyClose, time.Second, 0),
		tries:          setting(p.Tries, 3, 1),
		maxQueue:       queueBound(p.MaxQueue, p.QueueTimeout),
		maxConnections: int64(setting(p.MaxConnections, 0, 0)),
		panicThreshold: setting(p.PanicThreshold, 0.5, 0),
		panics:         p.PanicThreshold >= 0,
		cutRate:        setting(p.CutRate, 100, 100),
		rebalance:      setting(p.Rebalance, 0, 0),
		checks:         p.Health.Interval >= 0,
		health:         p.Health.settle(),
		sources:        sortSources(p.Source),
	}
	if p.Balance.hashes() {
		t.slowStart = 0
	}
	return t
}

// queueBound is how many may wait. If nobody may wait for a while, nobody may wait.
func queueBound(maxQueue int, timeout time.Duration) int {
	if timeout < 0 {
		return 0
	}
	return setting(maxQueue, 1024, 0)
}

// setting is the house's rule: 0 is the default, negative is off.
func setting[T cmp.Ordered](set, byDefault, off T) T {
	var zero T
	switch {
	case set == zero:
		return byDefault
	case set < zero:
		return off
	}
	return set
}
