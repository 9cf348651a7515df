package reactor

import "time"

// What levee's goroutines, which serve the connections that no loop does, keep to as
// well.
const (
	// LingerTime and LingerBytes bound the goodbye to a peer that is still sending.
	LingerTime  = 500 * time.Millisecond // net/http's: long enough for the last bytes to get across
	LingerBytes = 256 << 10

	// StallLooks is how often a peer that takes nothing is looked at before it counts
	// as stalled, which is thus noticed up to a quarter late.
	StallLooks = 4

	// QuietTime is how long nothing must have moved on a pair that is asked to leave, where no more is known of it.
	QuietTime = 5 * time.Second

	// DeliverTime is how long a reset waits at most until the bytes before it have been taken.
	DeliverTime = 5 * time.Second

	// LeastWait is what is worth waiting for where a Pacer asks for it: a timer is not more exact.
	LeastWait = time.Millisecond
)

// Hurried returns what is left of a limit on silence under pressure: a tenth, but at
// least a second, or all of it if that is less. No limit stays none.
func Hurried(limit time.Duration) time.Duration {
	return min(limit, max(limit/10, time.Second))
}

// A Rest is what is known of a pair by what its far side has sent last, and the near one has not answered.
type Rest uint8

// What may be known.
const (
	RestUnknown Rest = iota // nothing: a long silence has to do
	AtRest                  // nothing is under way: it may leave
	NotAtRest               // something is: it had better not
)

const (
	restTime   = 50 * time.Millisecond // the silence of a pair that is known to be at rest
	hasteShare = 10                    // of the silence, the part for who is hastened
)

// Quiet returns how long nothing must have moved on a pair that is asked to leave; quiet is for one of which no more
// is known, and whose time is not running out.
func Quiet(quiet time.Duration, rest Rest, hasty bool) time.Duration {
	switch {
	case rest == AtRest && hasty:
		return 0
	case rest == AtRest:
		return min(restTime, quiet)
	case hasty:
		return quiet / hasteShare
	}
	return quiet
}
