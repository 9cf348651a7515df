package levee

import (
	"cmp"
	"time"
)

// limits are a Server's fields with the defaults filled in; negative is off.
type limits struct {
	arrival, proxyHeader, sniff  time.Duration
	idle, halfClosed, writeStall time.Duration
	message                      time.Duration
	joinedIdle                   time.Duration
	lifetime, drain, step        time.Duration
	drainSpread                  time.Duration // zero depends on how many there are
	conns, arrivals, handshakes  int
}

func (s *Server) effectiveLimits() limits {
	return limits{
		arrival:     patience(s.ArrivalTimeout, 10*time.Second),
		proxyHeader: patience(s.ProxyHeaderTimeout, 5*time.Second),
		sniff:       patience(s.SniffTimeout, 5*time.Second),
		idle:        patience(s.IdleTimeout, 5*time.Minute),
		joinedIdle:  patience(s.IdleTimeout, time.Hour),
		halfClosed:  patience(s.HalfClosedTimeout, time.Minute),
		writeStall:  patience(s.WriteStallTimeout, 30*time.Second),
		message:     patience(s.MessageTimeout, time.Minute),
		lifetime:    patience(s.MaxLifetime, -1),
		drain:       patience(s.DrainTimeout, 25*time.Second),
		drainSpread: s.DrainSpread,
		step:        patience(s.StepBudget, time.Millisecond),
		conns:       cmp.Or(s.MaxConns, s.defaultMaxConns()),
		arrivals:    cmp.Or(s.MaxArrivals, 16<<10),
		handshakes:  s.maxHandshakes(),
	}
}

// tooLong is more than anybody waits, and little enough to be added to any time
// without an overflow.
const tooLong = 100 * 365 * 24 * time.Hour

// patience returns what a duration among the fields means.
func patience(v, byDefault time.Duration) time.Duration {
	if v > tooLong {
		return -1
	}
	return cmp.Or(v, byDefault)
}

// DefaultMaxConns returns what a [Server.MaxConns] of zero means: the process's
// limit of open files, less those of a server's event loops and 128, but at least
// half of it; or -1 if there is none. A process with several servers has to share
// it out, and for one that joins connections to others [JoinedConns] tells what that
// leaves.
func DefaultMaxConns() int { return defaultMaxConns(openFilesLimit(), loopFiles()) }

// JoinedConns returns how many connections that are joined to others so many files are
// enough for: two for each, and on Linux some for the pipes that event loops share; but at
// least a quarter of the number, as there may be no pipes, and never less than one.
func JoinedConns(files int) int { return max(1, files/4, (files-pipeFiles())/2) }

// defaultMaxConns is DefaultMaxConns, or JoinedConns of it if the handler is a Joiner.
func (s *Server) defaultMaxConns() int {
	n := DefaultMaxConns()
	if _, joins := s.Handler.(Joiner); joins && n > 0 {
		return JoinedConns(n)
	}
	return n
}

// spareFiles are the open files that connections leave to everything else: the
// admin port, logs, certificates.
const spareFiles = 128

// reservedFiles are the last ones, which no accepted connection gets: without them the
// admin port, say, would be shut just when it is needed.
const reservedFiles = 64

// filesForAll returns which descriptors connections may have where so many files may be
// open: those below. It is 0 if there are too few to keep any back.
func filesForAll(files int) int {
	if files < 16*reservedFiles {
		return 0
	}
	return files - reservedFiles
}

// defaultMaxConns derives the cap on connections from that on open files, so
// that the process pauses before the kernel refuses.
func defaultMaxConns(files, taken int) int {
	if files <= 0 {
		return -1 // unknown or unlimited
	}
	return max(1, files/2, files-taken-spareFiles)
}
