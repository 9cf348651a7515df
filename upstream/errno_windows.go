package upstream

import (
	"syscall"

	"golang.org/x/sys/windows"
)

var (
	localErrors       = []syscall.Errno{windows.WSAEMFILE, windows.WSAENOBUFS, windows.WSAEADDRNOTAVAIL, windows.WSAEADDRINUSE}
	timeoutErrors     = []syscall.Errno{windows.WSAETIMEDOUT}
	refusedErrors     = []syscall.Errno{windows.WSAECONNREFUSED}
	unreachableErrors = []syscall.Errno{windows.WSAENETUNREACH, windows.WSAEHOSTUNREACH, windows.WSAENETDOWN, windows.WSAEHOSTDOWN}
	resetErrors       = []syscall.Errno{windows.WSAECONNRESET, windows.WSAECONNABORTED}
	portErrors        = []syscall.Errno{windows.WSAEADDRNOTAVAIL, windows.WSAEADDRINUSE}
)
