package limit

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// A Bucket keeps bytes to a rate, of one connection or of many together. It is a
// [levee.Pacer]. Bytes are spent before they have been earned, and who has spent them waits
// until they are. It is made by [NewBucket].
type Bucket struct {
	epoch     time.Time
	earned    atomic.Int64  // when all bytes spent will have been earned, in nanoseconds since epoch
	spent     atomic.Int64  // when some were spent last
	nsPerByte atomic.Uint64 // a float64
}

var _ levee.Pacer = (*Bucket)(nil)

const (
	breath   = 50 * time.Millisecond // what may be moved at once is what is earned in that time
	minChunk = 4 << 10               // less would be all system calls
	maxChunk = 512 << 10             // more would make others wait who share the rate, and moves no faster: it is a pipe's size
)

// NewBucket returns a bucket for so many bytes per second. Zero or less is any number.
func NewBucket(bytesPerSecond int64) *Bucket {
	b := &Bucket{epoch: time.Now()}
	b.Set(bytesPerSecond)
	return b
}

// Set changes the rate, for bytes that are spent from then on.
func (b *Bucket) Set(bytesPerSecond int64) {
	var ns float64
	if bytesPerSecond > 0 {
		ns = float64(time.Second) / float64(bytesPerSecond)
	}
	b.nsPerByte.Store(math.Float64bits(ns))
}

// Chunk returns how many bytes to move at once: what is earned in 50 ms, and the less the longer
// others wait already; but at least 4 KiB and at most 512 KiB.
func (b *Bucket) Chunk() int {
	now, earned := b.spent.Load(), b.earned.Load()
	if earned > now { // only then does it matter what the time is, which costs more than all the rest
		now = int64(time.Since(b.epoch))
	}
	return chunk(earned-now, b.cost())
}

// Spend takes n bytes and returns how long to wait before more are moved. 50 ms' worth may be
// taken at once after a pause, and at least 4 KiB.
func (b *Bucket) Spend(n int) time.Duration { return b.spendAt(time.Since(b.epoch), n) }

// spendAt is Spend so long after the epoch.
func (b *Bucket) spendAt(at time.Duration, n int) time.Duration {
	b.spent.Store(int64(at))
	return spend(&b.earned, b.cost(), n, int64(at))
}

func (b *Bucket) cost() float64 { return math.Float64frombits(b.nsPerByte.Load()) }

// chunk is for who owes so many nanoseconds.
func chunk(debt int64, nsPerByte float64) int {
	if nsPerByte == 0 {
		return maxChunk
	}
	bytes := float64(breath) / nsPerByte
	if debt > 0 {
		bytes /= 1 + float64(debt)/float64(breath)
	}
	return int(min(max(bytes, minChunk), maxChunk))
}

func spend(earned *atomic.Int64, nsPerByte float64, n int, now int64) time.Duration {
	if nsPerByte == 0 || n <= 0 {
		return 0
	}
	cost := int64(min(float64(n)*nsPerByte, maxPause))
	credit := max(int64(breath), int64(min(minChunk*nsPerByte, maxPause)))
	for {
		old := earned.Load()
		after := max(old, now-credit) + cost
		if earned.CompareAndSwap(old, after) {
			return time.Duration(max(0, after-now))
		}
	}
}

// A share is a part that a connection has in what a law allows of one direction.
type share struct {
	law    *law
	width  width
	earned *atomic.Int64
	of     kind // up or down
}

// shares are all of a connection's in one direction. They are its pacer.
type shares struct {
	own  []*Bucket
	rest []share
}

// Chunk returns the least of all.
func (s *shares) Chunk() int {
	least := maxChunk
	for _, b := range s.own {
		least = min(least, b.Chunk())
	}
	var now time.Time
	for _, p := range s.rest {
		if t := p.law.terms.Load(); t.mode == Enforce {
			if now.IsZero() {
				now = s.now()
			}
			least = min(least, chunk(p.earned.Load()-p.law.since(now), t.numbers[p.width].nsPerByte[p.of-up]))
		}
	}
	return least
}

// Spend returns the longest wait of all.
func (s *shares) Spend(n int) time.Duration {
	wait, now := time.Duration(0), s.now()
	for _, b := range s.own {
		wait = max(wait, b.spendAt(now.Sub(b.epoch), n))
	}
	for i := range s.rest {
		wait = max(wait, s.rest[i].spend(n, now))
	}
	return wait
}

// now is time.Now for half its price: the wall clock is not looked at.
func (s *shares) now() time.Time {
	var epoch time.Time
	if len(s.own) > 0 {
		epoch = s.own[0].epoch
	} else {
		epoch = s.rest[0].law.epoch
	}
	return epoch.Add(time.Since(epoch))
}

func (p *share) spend(n int, now time.Time) time.Duration {
	t := p.law.terms.Load()
	if t.mode == Off {
		return 0
	}
	at := p.law.since(now)
	wait := spend(p.earned, t.numbers[p.width].nsPerByte[p.of-up], n, at)
	if wait == 0 {
		return 0
	}
	p.law.exceeded(t, p.of)
	if t.mode == Shadow {
		forgive(p.earned, at) // nobody waits, or it would grow without end
		return 0
	}
	return wait
}

// forgive takes back what has been spent beyond now.
func forgive(earned *atomic.Int64, now int64) {
	if old := earned.Load(); old > now {
		earned.CompareAndSwap(old, now)
	}
}
