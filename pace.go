package levee

import "time"

// A Pacer keeps bytes to a rate. limit.Bucket is one. Its methods are called from several
// goroutines, also for one connection.
type Pacer interface {
	// Chunk is how many bytes may be moved at once, at most. It is at least 1.
	Chunk() int
	// Spend is told of n bytes that have been moved, and returns how long to wait before
	// more are. It may be more than Chunk, by a TLS record.
	Spend(n int) time.Duration
}
