package attack

import (
	"math/bits"
	"time"
)

// Durations are counted by the microsecond, from 64 on by a 64th of the power of two
// that is below them: an error of 1.6 % at most, in 14 KiB. HdrHistogram does that too,
// but whoever tests with leveetest would have it among his dependencies.
const (
	fine     = 6 // bits
	octaves  = 26
	longest  = time.Duration(1<<(fine+octaves)-1) * time.Microsecond // 71 minutes
	counters = (octaves + 1) << fine
)

// durations counts durations. It is not safe for concurrent use.
type durations struct {
	counts   [counters]int64
	total    int64
	min, max time.Duration
}

func (d *durations) record(took time.Duration) {
	took = min(max(took, 0), longest)
	if d.total == 0 || took < d.min {
		d.min = took
	}
	d.max = max(d.max, took)
	d.counts[counterOf(uint64(took.Microseconds()))]++
	d.total++
}

// quantile returns a duration that the share q of all do not exceed, or 0 if there is
// none.
func (d *durations) quantile(q float64) time.Duration {
	left := max(1, int64(q*float64(d.total)+0.999999)) // rounded up, but for what floating point adds
	for i, n := range d.counts {
		if left -= n; n > 0 && left <= 0 {
			return min(highestOf(i), d.max)
		}
	}
	return 0
}

func counterOf(n uint64) int {
	octave := max(0, bits.Len64(n)-fine-1)
	return octave<<fine + int(n>>octave)
}

// highestOf is the highest duration that a counter counts.
func highestOf(i int) time.Duration {
	octave := max(0, i>>fine-1)
	n := uint64(i-octave<<fine+1)<<octave - 1
	return time.Duration(n)*time.Microsecond + 999
}
