package limit

import (
	"time"
)

// A Bucket keeps bytes to a rate, of one connection or of many together. It is a
// [levee.Pacer]. Bytes are spent before they are there, and who has spent them
// waits until they are.
type Bucket struct{}

// NewBucket returns a bucket for so many bytes per second.
func NewBucket(bytesPerSecond int64) *Bucket

// Set changes the rate.
func (b *Bucket) Set(bytesPerSecond int64)

// Chunk returns how many bytes to move at once: what comes in 50 ms, and less if many wait; but at least 4 KiB and at most 256 KiB.
func (b *Bucket) Chunk() int

// Spend takes n bytes and returns how long to wait before more are taken.
func (b *Bucket) Spend(n int) time.Duration
