//go:build !windows

package upstream

import "syscall"

var (
	localErrors = []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE,
	}
	timeoutErrors     = []syscall.Errno{syscall.ETIMEDOUT}
	refusedErrors     = []syscall.Errno{syscall.ECONNREFUSED, syscall.ENOENT} // ENOENT: there is no such Unix socket
	unreachableErrors = []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN}
	resetErrors       = []syscall.Errno{syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE}
	portErrors        = []syscall.Errno{syscall.EADDRNOTAVAIL, syscall.EADDRINUSE}
)
