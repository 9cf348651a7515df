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

	// LeastWait is what is worth waiting for where a Pacer asks for it: a timer is not more exact.
	LeastWait = time.Millisecond
)

// Hurried returns what is left of a limit on silence under pressure: a tenth, but at
// least a second, or all of it if that is less. No limit stays none.
func Hurried(limit time.Duration) time.Duration {
	return min(limit, max(limit/10, time.Second))
}
