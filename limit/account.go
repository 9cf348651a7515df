package limit

import (
	"math"
	"sync/atomic"
	"time"
)

// An account is what somebody has taken: a client, or all connections of a scope together. It is guarded by
// the lock of its set, except for the bytes.
type account struct {
	// GCRA's theoretical arrival times, in nanoseconds since the law's epoch: when what was taken
	// will have been made up for.
	rate, handshakes int64
	bytes            [2]atomic.Int64 // up and down

	open int32 // connections
}

// forgiven returns when all that was taken will have been made up for.
func (a *account) forgiven() int64 {
	return max(a.rate, a.handshakes, a.bytes[0].Load(), a.bytes[1].Load())
}

// clear makes it the account of somebody else.
func (a *account) clear() {
	a.rate, a.handshakes, a.open = 0, 0, 0
	for i := range a.bytes { // a pacer may still be at work, for a connection that is gone
		a.bytes[i].Store(0)
	}
}

// A kind is what a limit counts.
type kind uint8

const (
	none kind = iota // nothing is exceeded
	connections
	rate
	handshakes
	up
	down
	shared
	kinds
)

var kindWords = [kinds]string{
	connections: "connections", rate: "rate", handshakes: "handshakes", up: "up", down: "down", shared: "shared",
}

// A width is whose account it is: a client's, or that of a network of clients.
type width uint8

const (
	one width = iota
	wide56
	wide48
	widths
)

// prefixBits are the lengths of the IPv6 prefixes.
var prefixBits = [widths]int{64, 56, 48}

// numbers are limits in the form in which accounts are held to them.
type numbers struct {
	most             int64 // connections; 0 is any number
	rate, handshakes cadence
	nsPerByte        [2]float64 // up and down; 0 is any number of bytes
}

// A cadence is a rate as GCRA has it, in nanoseconds.
type cadence struct {
	interval  int64 // between two at that rate; 0 is any rate
	tolerance int64 // by which they may come early
}

func (r Rate) cadence(times float64) cadence {
	perSecond := r.PerSecond * times
	if !(perSecond > 0) { // or not a number
		return cadence{}
	}
	burst := float64(r.Burst) * times
	if r.Burst <= 0 {
		burst = max(1, math.Floor(2*perSecond))
	}
	interval := math.Round(min(max(float64(time.Second)/perSecond, 1), maxPause))
	return cadence{interval: int64(interval), tolerance: int64(min(interval*(burst-1), maxPause))}
}

const maxPause = float64(1000 * time.Hour) // far from an overflow, whatever is added to it

// next returns the account's time after one more, if it is not too early for that.
func (c cadence) next(tat, now int64) (after int64, ok bool) {
	if c.interval == 0 {
		return tat, true
	}
	tat = max(tat, now)
	return tat + c.interval, tat-now <= c.tolerance
}

func (l *Limits) numbers(times float64) numbers {
	n := numbers{rate: l.Rate.cadence(times), handshakes: l.Handshakes.cadence(times)}
	if l.Connections > 0 {
		n.most = max(1, int64(float64(l.Connections)*times))
	}
	for i, perSecond := range [2]int64{l.Bandwidth.Up, l.Bandwidth.Down} {
		if perSecond > 0 {
			n.nsPerByte[i] = float64(time.Second) / (float64(perSecond) * times)
		}
	}
	return n
}

// over returns what one more connection would exceed, and the account's rate after it.
func (n *numbers) over(a *account, now int64) (kind, int64) {
	if n.most > 0 && int64(a.open) >= n.most {
		return connections, 0
	}
	after, ok := n.rate.next(a.rate, now)
	if !ok {
		return rate, 0
	}
	return none, after
}

// A law is limits, as they are now, and what they have decided.
type law struct {
	epoch  time.Time
	times  [widths]float64 // by which the limits are multiplied; 0 is no limit
	terms  atomic.Pointer[terms]
	name   string
	names  [kinds]string
	counts [kinds]struct{ allowed, refused, wouldRefuse atomic.Int64 }

	inherited [kinds]inherited // what in counts another process has decided
}

type terms struct {
	mode    Mode
	shared  bool
	limits  Limits
	numbers [widths]numbers
}

func (l *law) set(limits Limits) {
	t := &terms{mode: limits.Mode, shared: limits.Shared && limits.Mode != Off, limits: limits}
	for w, times := range l.times {
		if times > 0 {
			t.numbers[w] = limits.numbers(times)
		}
	}
	l.terms.Store(t)
}

func (l *law) call(name string) {
	l.name = name
	for k, word := range kindWords {
		l.names[k] = name + "." + word
	}
}

func (l *law) since(now time.Time) int64 { return int64(now.Sub(l.epoch)) }

// has reports whether there is a limit of that kind.
func (t *terms) has(k kind) bool {
	n := &t.numbers[one]
	switch k {
	case connections:
		return n.most > 0
	case rate:
		return n.rate.interval > 0
	case handshakes:
		return n.handshakes.interval > 0
	case up, down:
		return n.nsPerByte[k-up] > 0
	case shared:
		return t.shared && (n.most > 0 || n.rate.interval > 0)
	}
	return false
}

// admitted counts the decision about one more connection.
func (l *law) admitted(t *terms, over kind) {
	switch {
	case t.mode == Off:
	case over != none:
		l.exceeded(t, over)
	default:
		if t.has(connections) {
			l.counts[connections].allowed.Add(1)
		}
		if t.has(rate) {
			l.counts[rate].allowed.Add(1)
		}
	}
}

func (l *law) exceeded(t *terms, k kind) {
	if t.mode == Shadow {
		l.counts[k].wouldRefuse.Add(1)
	} else {
		l.counts[k].refused.Add(1)
	}
}

func (l *law) stats() []Decisions {
	var all []Decisions
	t := l.terms.Load()
	for k := connections; k < kinds; k++ {
		c := &l.counts[k]
		s := Decisions{Limit: l.names[k], Allowed: c.allowed.Load(), Refused: c.refused.Load(), WouldRefuse: c.wouldRefuse.Load()}
		if t.has(k) || s.Allowed+s.Refused+s.WouldRefuse > 0 {
			all = append(all, s)
		}
	}
	return all
}
