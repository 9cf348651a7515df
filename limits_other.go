//go:build !unix

package levee

// openFilesLimit returns 0: sockets are not files here.
func openFilesLimit() int { return 0 }
