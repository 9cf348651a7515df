//go:build unix

package levee

import (
	"math"
	"syscall"
)

// openFilesLimit returns how many files the process may have open, 0 if any
// number. Go has raised the soft limit to the hard one by the time this runs.
func openFilesLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	if n := uint64(limit.Cur); n < math.MaxInt32 { //nolint:unconvert // signed on some systems
		return int(n)
	}
	return 0
}
