//go:build !unix

package app

// privateFiles does nothing: access is not a matter of mode bits here.
func privateFiles() (restore func()) { return func() {} }
