//go:build unix

package app

import "syscall"

// privateFiles makes new files and sockets accessible to their owner only. There
// is no such setting for one socket alone, and to change its mode afterwards
// would leave a moment in between.
func privateFiles() (restore func()) {
	before := syscall.Umask(0o177)
	return func() { syscall.Umask(before) }
}
