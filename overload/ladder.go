package overload

import (
	"time"

	"github.com/levee-net/levee"
)

// An Input is something that may run short.
type Input uint8

// The inputs.
const (
	Memory Input = iota
	Files
	AcceptQueue
	Arriving
	Handshakes
	Scheduler

	inputCount
)

var inputWords = [inputCount]string{"memory", "files", "accept_queue", "arriving", "handshakes", "scheduler"}

// String returns the input's word, such as "memory".
func (i Input) String() string {
	if i < inputCount {
		return inputWords[i]
	}
	return "unknown"
}

// Inputs returns all of them, in the order of Loads.
func Inputs() []Input {
	all := make([]Input, inputCount)
	for i := range all {
		all[i] = Input(i) //nolint:gosec // a few
	}
	return all
}

// Loads are how much of each input is in use: 0 is nothing, or not known, and 1 all of it. More is
// possible.
type Loads [inputCount]float64

// levels is one more than the hardest pressure.
const levels = levee.ShedIdle + 1

const never = 1e9 // a threshold that is not reached

// thresholds are the loads at which pressures come; see the package's table. Inputs that are not here
// cause none.
var thresholds = [...][levels]float64{
	Memory: {levee.ShortIdle: 0.70, levee.NoLinger: 0.75, levee.RefuseNew: 0.80, levee.PauseReads: 0.85, levee.ShedIdle: 0.92},
	Files:  {levee.ShortIdle: 0.80, levee.NoLinger: 0.85, levee.RefuseNew: 0.95, levee.PauseReads: never, levee.ShedIdle: 0.98},
}

// near is the part of a threshold below which a load is well below it.
const near = 0.9

// A ladder is the pressure that there is, which is climbed at once and come down from slowly.
type ladder struct {
	calm  time.Duration
	level levee.Pressure
	cause Input // of the last change
	last  [levels]struct {
		near  time.Time // when a load was last near the threshold
		cause Input     // whose
	}
}

// look takes new loads. It reports whether the present level has to be pressed again, as loads are
// still at its threshold.
func (l *ladder) look(now time.Time, loads Loads) (again bool) {
	for level := levee.ShortIdle; level < levels; level++ {
		for input, at := range thresholds {
			load := loads[input]
			if load >= near*at[level] {
				l.last[level].near, l.last[level].cause = now, Input(input) //nolint:gosec // a few
			}
			if load < at[level] {
				continue
			}
			if level > l.level {
				l.level, l.cause = level, Input(input) //nolint:gosec // a few
			}
			again = again || level == l.level
		}
	}
	if at := l.last[l.level]; l.level > levee.NoPressure && now.Sub(at.near) >= l.calm {
		l.level--
		l.cause = at.cause
	}
	return again
}

// A ration is the share of newcomers that are let in.
type ration struct {
	share float64
	load  float64 // at the last look
	cause Input
}

const (
	leastShare = 0.1  // so that it shows when there is room again
	growth     = 1.15 // of the share, each time that there is room: all are let in again after 17 looks at most
)

// turnedAway returns the share that is not.
func (r *ration) turnedAway() float64 { return 1 - r.share }

// look takes new loads.
func (r *ration) look(loads Loads) {
	most := AcceptQueue
	for input := AcceptQueue; input < inputCount; input++ {
		if loads[input] > loads[most] {
			most = input
		}
	}
	load, before := loads[most], r.load
	r.load = load
	switch {
	case load > 1 && load < before: // it goes down already: what is queued has to be served first
	case load > 1:
		r.share, r.cause = max(leastShare, r.share/min(load, 1.5)), most
	default:
		r.share = min(1, r.share*growth)
	}
}
